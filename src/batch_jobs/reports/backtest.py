"""The report of a replay as a page: what served when, how it fared, and what was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from batch_jobs.reports.html import Section, Svg, page, svg
from batch_jobs.reports.palette import BLUE, CARD, GREEN, GREY, ORANGE, PURPLE
from batch_jobs.reports.performance import performance_section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]
COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
# The first of them that a replay has is drawn by week.
METRICS = {"log_loss": "Log-loss", "rmse": "Root mean square error", "accuracy": "Accuracy"}
SUMMARY = (
    *("gate", "log_loss", "brier", "auc", "rmse", "mae", "accuracy", "label_coverage"),
    *("promotions", "refusals", "trainings", "intervals", "published", "failed", "rows_scored"),
    "seconds",
)


def replay_page(reports: Sequence[Report]) -> str:
    """One page of one replay, or of several of the same time by different gates."""
    first = reports[0]
    told = (
        f"Every due interval from {first['start']} to {first['end']}, each scored by the version "
        f"that served at its end; outcomes as they were known at the end of that time."
    )
    sections = [
        Section(text=[told], rows=summary_table(reports)),
        Section("By week", drawings=[*_by_week(reports), _champions(reports)]),
        *(_monitored(report) for report in reports if "monitor" in report),
        Section("Predictions", drawings=[_scores(reports), _volume(first)]),
        *(
            Section(f"Trainings evaluated by {report['gate']}", rows=_trainings(report))
            for report in reports
            if report["history"]
        ),
    ]
    return page(f"Replay of {first['model']}", sections)


def _monitored(report: Report) -> Section:
    """What monitoring would have told, and the weeks as it saw them."""
    told = report["monitor"]
    counts = f"{len(told['alarms'])} alarms and {len(told['news'])} pieces of news"
    words = [f"{alarm['at'][:16]}: {alarm['words']}" for alarm in told["alarms"]]
    return performance_section(
        told["weeks"], [f"Monitoring, by the gate {report['gate']}: {counts}.", *words]
    )


def summary_table(reports: Sequence[Report]) -> list[dict[str, object]]:
    """One row a replay, with the figures that any of them has."""
    first = reports[0]
    names = [name for name in SUMMARY if any(report.get(name) is not None for report in reports)]
    rows: list[dict[str, object]] = [
        {name.replace("_", " "): report.get(name) for name in names} for report in reports
    ]
    metric = next((name for name in METRICS if name in first.get("shared", {})), "")
    # Where all have scored the same rows, it would be the same figures once more.
    if any(report.get(metric) != report["shared"][metric] for report in reports if metric):
        for row, report in zip(rows, reports, strict=True):
            row[f"{metric.replace('_', ' ')} where all scored"] = report["shared"][metric]
    return rows


def _by_week(reports: Sequence[Report]) -> list[Svg]:
    found = [
        name
        for name in METRICS
        if any(name in week for report in reports for week in report["weeks"])
    ]
    return [_metric(reports, found[0])] if found else []


def _metric(reports: Sequence[Report], name: str) -> Svg:
    def paint(above: Axes, below: Axes) -> None:
        for colour, report in zip(COLOURS, reports, strict=False):
            weeks = [week for week in report["weeks"] if name in week]
            starts = [_day(week["start"]) for week in weeks]
            above.plot(starts, [week[name] for week in weeks], color=colour, label=report["gate"])
            covered = [week["label_coverage"] for week in weeks]
            below.plot(starts, covered, color=colour)
        _tell_apart(reports, above)
        above.set_title(f"{METRICS[name]} of the week's predictions")
        below.set_title("Share of them whose outcome is known")
        below.set_ylim(0, 1.05)
        _months(below)

    return svg(paint, f"{METRICS[name]} by week", height=4.0, panels=2)


def _champions(reports: Sequence[Report]) -> Svg:
    """Who served when: a bar a version, and a mark for each challenger that was kept out."""

    def paint(axes: Axes) -> None:
        for place, report in enumerate(reports):
            _paint_reigns(axes, place, report)
        axes.set_yticks(range(len(reports)), [report["gate"] for report in reports])
        axes.set_ylim(len(reports) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_title("Champions in turn; x: challenger kept out")
        _months(axes)

    return svg(paint, "Champions by time", height=1.1 + 0.5 * len(reports))


def _paint_reigns(axes: Axes, place: int, report: Report) -> None:
    promoted = [each for each in report["history"] if each["outcome"] == "promoted"]
    starts = [_day(each["as_of"]) for each in promoted]
    for number, (start, end) in enumerate(
        zip(starts, [*starts[1:], _day(report["end"])], strict=False)
    ):
        colour = (BLUE, GREEN)[number % 2]
        axes.barh(place, end - start, left=start, height=0.5, color=colour, edgecolor=CARD)
    kept = [_day(each["as_of"]) for each in report["history"] if each["outcome"] != "promoted"]
    axes.plot(kept, [place + 0.38] * len(kept), "x", color=ORANGE, clip_on=False)


def _scores(reports: Sequence[Report]) -> Svg:
    def paint(axes: Axes) -> None:
        for colour, report in zip(COLOURS, reports, strict=False):
            edges, counts = report["scores"]["edges"], report["scores"]["counts"]
            axes.stairs(counts, edges, color=colour, label=report["gate"], linewidth=1.8)
        _tell_apart(reports, axes)
        axes.set_title("Published scores")
        axes.set_ylim(bottom=0)

    return svg(paint, "Distribution of scores")


def _volume(report: Report) -> Svg:
    def paint(axes: Axes) -> None:
        weeks = report["weeks"]
        starts = [_day(week["start"]) for week in weeks]
        rejected = [week["rows_rejected"] for week in weeks]
        scored = [week["rows_scored"] for week in weeks]
        axes.bar(starts, scored, width=6, color=GREY, label="scored")
        if any(rejected):
            axes.bar(starts, rejected, width=6, bottom=scored, color=ORANGE, label="rejected")
            axes.legend()
        axes.set_title("Rows of each week")
        _months(axes)

    return svg(paint, "Rows by week")


def _trainings(report: Report) -> list[dict[str, object]]:
    return [
        {
            "as of": each["as_of"][:16].replace("T", " "),
            "outcome": each["outcome"],
            "version": each["version"],
            "reason": each["reason"],
        }
        for each in report["history"]
    ]


def _tell_apart(reports: Sequence[Report], axes: Axes) -> None:
    """Say below a drawing, where no line runs, which colour is whose."""
    if len(reports) > 1:
        handles, labels = axes.get_legend_handles_labels()
        figure: Any = axes.figure
        figure.legend(handles, labels, loc="outside lower left", ncols=len(reports))


def _months(axes: Axes) -> None:
    from matplotlib import dates

    untyped: Any = dates
    locator = untyped.AutoDateLocator(minticks=2, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(untyped.ConciseDateFormatter(locator))


def _day(stored: str) -> float:
    """A time as matplotlib counts days."""
    from matplotlib import dates

    untyped: Any = dates
    return float(untyped.date2num(datetime.fromisoformat(stored)))
