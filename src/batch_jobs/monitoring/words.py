"""What is unusual, in words and in the units of the data."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from batch_jobs.monitoring.drift import Unusual
from batch_jobs.monitoring.statistics import SPREAD_FLOOR
from batch_jobs.registry.references import Reference
from batch_jobs.scoring.bins import NumberBins

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHARES = {
    *("nulls", "shape", "range", "category", "unseen", "labels", "rejected", "stuck"),
}
WORDS = {
    "level": "{name}: {shown} on average, {more} than the {was} of training",
    "spread": "{name}: varies by {shown}, {more} than the {was} of training",
    "shape": "{name}: {shown} of rows lie {where}, not {was}",
    "nulls": "{name}: {shown} of rows have no value, not {was}",
    "range": "{name}: {shown} of rows {where}",
    "stuck": "{name}: all rows of a day have one value, {where}",
    "relation": "{name}: no longer goes with {where} as in training",
    "category": "{name}: {shown} of rows are {item}, not {was}",
    "unseen": "{name}: {shown} of rows have a value never seen in training",
    "labels": "predicted {item}: {shown} of rows, not {was}",
    "slice": "{name} {item}: {shown} rows a day, not {was}",
    "volume": "{shown} rows a day, not {was}",
    "rejected": "{shown} of rows are rejected, not {was}",
}


def words(each: Unusual, reference: Reference, lowest: NDArray[np.float64]) -> str:
    """What happened, in one line.

    Args:
        each: what is unusual.
        reference: what is usual.
        lowest: the least value of each number on the newest day.
    """
    statistic = each.statistic

    def told(value: float) -> str:
        plain = in_units(each, value, reference)
        return f"{plain:.1%}" if statistic.kind in SHARES else f"{plain:,.4g}"

    return WORDS[statistic.kind].format(
        name=statistic.feature,
        item=statistic.item,
        shown=told(each.value),
        was=told(each.usual),
        more="more" if each.value > each.usual else "less",
        where=_where(each, reference, lowest),
    )


def _where(each: Unusual, reference: Reference, lowest: NDArray[np.float64]) -> str:
    name, item = each.statistic.feature, each.statistic.item
    if each.statistic.kind == "range":
        side, _, far = item.partition(" by ")
        beyond = f", by more than {float(far):.0%} of its range" if far else ""
        return f"{side} anything seen in training{beyond}"
    if each.statistic.kind == "shape":
        return _between(item, name, reference)
    if each.statistic.kind == "stuck":
        names = [number.name for number in reference.bins.numbers]
        return f"{lowest[names.index(name)]:.6g}"
    return ", ".join(_related(reference, name))


def _between(item: str, name: str, reference: Reference) -> str:
    bins, place = _number(reference, name), int(item.partition("/")[0])
    if bins is None or bins.low + place >= len(bins.edges):
        return f"in part {item} of training's range"
    low, high = bins.edges[bins.low + place - 1], bins.edges[bins.low + place]
    return f"from {low:.4g} to {high:.4g}"


def _related(reference: Reference, name: str) -> list[str]:
    """The numbers that tell another one most, at most three."""
    numbers = [each.name for each in reference.bins.numbers]
    for relation in reference.bins.relations:
        if relation.name == name:
            size = [abs(weight) for weight in relation.weights]
            order = sorted(range(len(size)), key=lambda place: -size[place])
            return [numbers[place] for place in order[:3] if size[place] > 0.1 * max(size)]
    return ["the others"]


def figures(each: Unusual, reference: Reference) -> dict[str, float | None]:
    """What was usual, what was found, and between what it may lie, in the units of the data."""
    low, high = (
        in_units(each, end, reference) for end in (each.usual - each.limit, each.usual + each.limit)
    )
    if each.statistic.kind in SHARES:
        low, high = max(low, 0.0), min(high, 1.0)
    return {
        "reference": in_units(each, each.usual, reference),
        "value": in_units(each, each.value, reference),
        "lowest": low,
        "highest": high,
    }


def in_units(each: Unusual, value: float, reference: Reference) -> float:
    """A statistic in the units of the data: a mean or a spread of the feature, or a count."""
    kind, bins = each.statistic.kind, _number(reference, each.statistic.feature)
    if kind == "level" and bins:
        return bins.middle + value * bins.spread
    if kind == "spread" and bins:
        return max(math.exp(value) - SPREAD_FLOOR, 0.0) * bins.spread
    return math.exp(value) if kind in {"volume", "slice"} else value


def _number(reference: Reference, feature: str) -> NumberBins | None:
    return next((each for each in reference.bins.numbers if each.name == feature), None)


def affected(each: Unusual) -> float | None:
    """The share of rows that a finding is about, as far as it says so."""
    if each.statistic.kind in {"level", "spread", "stuck", "relation"}:
        return 1.0
    if each.statistic.kind in SHARES:
        return min(abs(each.value - each.usual), 1.0)
    return None
