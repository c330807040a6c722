"""How the past windows of a model fared, drawn: beside a constant, others and what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from batch_jobs.reports.html import Section, Svg, svg
from batch_jobs.reports.palette import BLUE, GREEN, GREY, ORANGE, PURPLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = Mapping[str, Any]
NAMES = {"log_loss": "Log-loss", "rmse": "Root mean square error", "accuracy": "Accuracy"}
OTHERS = {"since": (ORANGE, "a version trained since"), "before": (PURPLE, "the version before")}


def performance_section(points: Sequence[Point], words: Sequence[str] = ()) -> Section:
    """One section of a page.

    Args:
        points: windows of one grain, oldest first; each has its `start` (ISO 8601), `metric`,
            `label_coverage` and `damaged`, the metric's `value`, `low` and `high` (None before
            outcomes are known), what was `estimated` and the `constant` has (or None), and under
            `since` and `before` how much the loss is above theirs, with its bounds (or None).
        words: what was judged, a paragraph each.
    """
    if not points:
        return Section("Performance", [*words, "No past window has predictions that count."])
    return Section("Performance", words, [_metric(points), _differences(points)])


def _metric(points: Sequence[Point]) -> Svg:
    name = NAMES.get(points[0]["metric"], points[0]["metric"])

    def paint(above: Axes, below: Axes) -> None:
        known = [point for point in points if point["value"] is not None]
        days = [_day(point) for point in known]
        low, high = ([point[side] for point in known] for side in ("low", "high"))
        above.fill_between(days, low, high, color=BLUE, alpha=0.2, linewidth=0)
        above.plot(days, [point["value"] for point in known], color=BLUE, label="published")
        for key, colour, style, label in (
            ("constant", GREY, "--", "a constant"),
            ("estimated", GREEN, ":", "expected from the scores"),
        ):
            told = [point for point in points if point[key] is not None]
            values = [point[key] for point in told]
            above.plot([_day(point) for point in told], values, style, color=colour, label=label)
        damaged = [point for point in known if point["damaged"]]
        marks = [point["value"] for point in damaged]
        above.plot([_day(point) for point in damaged], marks, "o", color=ORANGE)
        above.set_title(f"{name} of what was published, with its interval; o: damage")
        covered = [point["label_coverage"] for point in points]
        below.plot([_day(point) for point in points], covered, color=BLUE)
        below.set_ylim(0, 1.05)
        below.set_title("Share of outcomes known")
        _legend(above)
        _dates(below)

    return svg(paint, f"{name} of past windows", height=4.4, panels=2)


def _differences(points: Sequence[Point]) -> Svg:
    """Above zero, another version would have done better on the same rows."""

    def paint(axes: Axes) -> None:
        for number, (key, (colour, label)) in enumerate(OTHERS.items()):
            told = [point for point in points if point[key] is not None]
            days = [_day(point) + number for point in told]
            excess = [point[key] for point in told]
            middle = [each[0] for each in excess]
            reach = [[each[0] - each[1], each[2] - each[0]] for each in excess]
            axes.errorbar(
                days,
                middle,
                yerr=list(zip(*reach, strict=True)) or None,
                fmt=".",
                color=colour,
                label=label,
                linewidth=1,
            )
        axes.axhline(0, color=GREY, linewidth=1)
        axes.set_title("Loss above that of others on the same rows")
        _legend(axes)
        _dates(axes)

    return svg(paint, "Loss above that of other versions")


def _legend(axes: Axes) -> None:
    figure: Any = axes.figure
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=3)


def _dates(axes: Axes) -> None:
    from matplotlib import dates

    untyped: Any = dates
    locator = untyped.AutoDateLocator(minticks=2, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(untyped.ConciseDateFormatter(locator))


def _day(point: Point) -> float:
    from matplotlib import dates

    untyped: Any = dates
    return float(untyped.date2num(datetime.fromisoformat(point["start"])))
