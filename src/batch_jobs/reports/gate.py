"""The gate's report as a page: the verdict in words, and in drawings what it rests on.

Drawn from what the warehouse keeps of a version. Reports of older versions of batch-jobs lack some
fields, and lose that part of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batch_jobs.reports.html import Section, Svg, page, svg
from batch_jobs.reports.palette import BLUE, CARD, GREEN, GREY, ORANGE, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In the order of the page, with colour and marker.
CONTENDERS = {"challenger": (BLUE, "o"), "champion": (ORANGE, "s"), "baseline": (GREY, "D")}
MOST_SLICES = 20
FACTS = {
    "version": "version",
    "as_of": "trained as of",
    "history_start": "learnt from",
    "cut": "held out from",
    "rows_fit": "rows learnt from",
    "rows_judged": "rows evaluated on",
    "label_coverage": "share of held-out rows whose label is known",
    "size_bytes": "bytes of the artifact",
    "commit": "commit of the model file",
    "sha256": "sha256 of the artifact",
}


def gate_page(
    model: str, version: str, report: Mapping[str, Any], manifest: Mapping[str, Any]
) -> str:
    """The page of one version.

    Args:
        model: its name.
        version: the challenger's name.
        report: what the gate said, as `GateReport.as_dict` gives it.
        manifest: what the version was made of.
    """
    sections = [
        _verdict(report),
        _losses(report),
        _reliability(report),
        _slices(report),
        _facts(manifest),
    ]
    return page(f"{model} {version}", [each for each in sections if each is not None])


def verdict(report: Mapping[str, Any]) -> str:
    """The gate's answer in one sentence."""
    champion = report.get("champion")
    if not report["promote"]:
        return (
            f"Refused: {champion} goes on serving." if champion else "Refused: nobody serves yet."
        )
    return f"May replace {champion}." if champion else "May serve: it would be the first to do so."


def metrics_table(report: Mapping[str, Any]) -> list[dict[str, object]]:
    """One row a metric, one column a contender; None where it was not measured."""
    metrics: Mapping[str, Mapping[str, float]] = report.get("metrics") or {}
    contenders = [name for name in CONTENDERS if name in metrics]
    names = dict.fromkeys(metric for name in contenders for metric in metrics[name])
    return [
        {"metric": metric.replace("_", " ")}
        | {name: metrics[name].get(metric) for name in contenders}
        for metric in names
    ]


def _verdict(report: Mapping[str, Any]) -> Section:
    rows = f"Evaluated on {report['rows']:,} labelled rows." if "rows" in report else ""
    reasons = [f"{reason[:1].upper()}{reason[1:]}." for reason in report.get("reasons", [])]
    return Section(text=[part for part in (verdict(report), *reasons, rows) if part])


def _losses(report: Mapping[str, Any]) -> Section:
    metrics = report.get("metrics", {}).get("challenger", {})
    loss = "log-loss" if "log_loss" in metrics else "squared error"
    drawings = []
    if losses := report.get("losses"):
        points = [(name, losses[name], name) for name in CONTENDERS if name in losses]
        drawings.append(_whiskers(points, f"Mean {loss} of each, less is better"))
    points = [
        (f"less the {name}'s", report[f"to_{name}"], name)
        for name in ("champion", "baseline")
        if report.get(f"to_{name}")
    ]
    drawings.append(_whiskers(points, f"Challenger's {loss} less the other's", bound=True))
    return Section("Loss", [_how_read(report)], drawings, metrics_table(report))


def _how_read(report: Mapping[str, Any]) -> str:
    sure = f"{report['confidence']:.0%} " if "confidence" in report else ""
    told = f"Lines are {sure}bootstrap intervals."
    bound = {
        "non_inferiority": "the challenger is kept out if its whole line lies beyond zero, on the "
        "worse side.",
        "significant_gain": "the challenger is let in only if its whole line lies before zero, on "
        "the better side.",
        "always": "this gate's rule looks at its bounds only, and not at who is better.",
    }.get(report.get("rule", ""))
    compared = bound and report.get("to_champion")
    return f"{told} Compared with the champion, {bound}" if compared else told


def _whiskers(
    points: Sequence[tuple[str, Mapping[str, float], str]], label: str, *, bound: bool = False
) -> Svg:
    """Means with their intervals, one line each; with the bound, zero and the side of the worse."""

    def paint(axes: Axes) -> None:
        for place, (_, found, contender) in enumerate(points):
            colour, marker = CONTENDERS[contender]
            mean, low, high = found["mean"], found["low"], found["high"]
            axes.plot([low, high], [place, place], color=colour, solid_capstyle="butt")
            axes.plot([mean], [place], marker, color=colour, markeredgecolor=CARD)
        axes.set_yticks(range(len(points)), [_short(name) for name, *_ in points])
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=6)
        axes.set_title(label)
        if bound:
            _paint_bound(axes)

    return svg(paint, label, height=0.85 + 0.25 * bound + 0.3 * len(points))


def _paint_bound(axes: Axes) -> None:
    low, high = axes.get_xlim()
    room = 0.08 * (high - low)
    low, high = min(low, -room), max(high, room)
    axes.axvline(0, color=QUIET, linewidth=1)
    axes.axvspan(0, high, color=ORANGE, alpha=0.1, linewidth=0)
    axes.axvspan(low, 0, color=GREEN, alpha=0.1, linewidth=0)
    axes.set_xlim(low, high)
    axes.set_xlabel("better ← 0 → worse")


def _reliability(report: Mapping[str, Any]) -> Section | None:
    curves = {name: curve for name, curve in report.get("reliability", {}).items() if curve}
    contenders = [name for name in CONTENDERS if name in curves]
    if not contenders:
        return None

    several = [curves[name] for name in contenders if len(curves[name]) > 1]
    most = max((rows for curve in several for *_, rows in curve), default=1)

    def paint(axes: Axes, counts: Axes) -> None:
        if grid := axes.get_gridspec():
            grid.set_height_ratios([3, 1])
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        for name in contenders:
            colour, marker = CONTENDERS[name]
            sure, came_true, rows = zip(*curves[name], strict=True)
            look: dict[str, Any] = {"color": colour, "marker": marker, "markeredgecolor": CARD}
            axes.plot(sure, came_true, label=name, **look)
            if curves[name] in several:  # a constant has all its rows in one place
                counts.plot(sure, rows, linestyle="", **look)
        axes.set_title("share that came true")
        axes.legend(loc="upper left")
        counts.set_title("rows")
        counts.set_ylim(0, 1.25 * most)
        counts.set_xlabel("probability that was given")

    label = "Reliability: given probabilities, and how often they came true"
    text = "On the dashed line, what was given a probability of 30 % came true in 30 % of the rows."
    return Section("Reliability", [text], [svg(paint, label, height=4.2, panels=2)])


def _slices(report: Mapping[str, Any]) -> Section | None:
    slices: Mapping[str, Mapping[str, float]] = report.get("slices") or {}
    if not slices:
        return None
    worst = sorted(slices.items(), key=lambda item: -item[1]["mean"])
    label = "Challenger's loss less the champion's"
    points = [(where, found, "champion") for where, found in worst[:MOST_SLICES]]
    told = "The confidence is shared among all of them, so that none seems worse by chance."
    if len(worst) > MOST_SLICES:
        told += f" The {MOST_SLICES} worst of {len(worst)} are drawn."
    rows = [
        {"where": where, "difference": found["mean"], "from": found["low"], "to": found["high"]}
        for where, found in worst
    ]
    return Section("Slices", [told], [_whiskers(points, label, bound=True)], rows)


def _facts(manifest: Mapping[str, Any]) -> Section:
    facts = {told: _told(manifest[name]) for name, told in FACTS.items() if manifest.get(name)}
    facts |= {
        f"trained with {name}": version for name, version in manifest.get("libraries", {}).items()
    }
    rows = [{"fact": fact, "value": value} for fact, value in facts.items()]
    return Section("What it was made of", rows=rows)


def _told(value: object) -> str:
    """A moment shorter than it is stored, a count with its thousands; all else as it is."""
    if isinstance(value, str) and value.endswith("+00:00"):
        return f"{value[:16].replace('T', ' ')} UTC"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"
