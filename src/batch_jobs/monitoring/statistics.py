"""Statistics of days: each profile as figures that can be compared day by day."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batch_jobs.scoring.bins import BEYOND
from batch_jobs.scoring.profiles import HEAD, STEPS, Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    _Add = Callable[..., None]

SPREAD_FLOOR = 0.05  # below it, spreads are alike: in spreads of training
FEW_VALUES = 12  # of a category: the number of rows is then watched for each
FEWEST_VALUES = 10  # of a day: of fewer, nothing but how many are null is told
FEWEST_CONSTANT = 20  # rows of a day that all have one value, before that is called stuck


@dataclass(frozen=True)
class Statistic:
    """One figure of a day.

    Attributes:
        kind: see `Finding`.
        feature: which one, or `score`, `label`, `rows`.
        item: the value, the bin or the side that it is about.
        is_hard: whether training's range ends on this side where many values lie.
    """

    kind: str
    feature: str
    item: str = ""
    is_hard: bool = False


def statistics(
    counts: NDArray[np.int64],
    runs: NDArray[np.float64],
    layout: Layout,
    slices: tuple[str, ...] | None = None,
) -> tuple[list[Statistic], NDArray[np.float64]]:
    """What each day was like.

    Args:
        counts: of the days, shape (days, counts).
        runs: what rows are counted for: the runs of each day in replace mode, and in merge mode the
            share of it that is published, shape (days,).
        layout: of the counts.
        slices: categories for whose values rows are counted; by default those of few values.

    Returns:
        The statistics, and their values, shape (days, statistics): means and logarithms of spreads
        in spreads of training, shares of rows, logarithms of counts; NaN where there are no values.
    """
    import numpy as np

    names: list[Statistic] = []
    columns: list[NDArray[np.float64]] = []

    def add(
        kind: str, feature: str, item: str, values: NDArray[np.float64], *, is_hard: bool = False
    ) -> None:
        names.append(Statistic(kind, feature, item, is_hard))
        columns.append(values)

    rows = counts[:, HEAD.index("rows")].astype("float64")
    with np.errstate(divide="ignore", invalid="ignore"):
        _add_numbers(add, counts, rows, layout)
        _add_relations(add, counts, layout)
        for each, where in zip(layout.bins.categories, layout.categories, strict=True):
            own = counts[:, where]
            add("nulls", each.name, "", own[:, 0] / rows)
            for place, value in enumerate(each.named):
                add("category", each.name, value, own[:, place + 1] / rows)
            if each.others:
                add("category", each.name, f"{each.others:,} others", own[:, -2] / rows)
            if each.tells_unseen:
                add("unseen", each.name, "", own[:, -1] / rows)
            wanted = len(each.named) <= FEW_VALUES if slices is None else each.name in slices
            if wanted and not each.others:
                for place, value in enumerate(each.named):
                    add("slice", each.name, value, np.log((own[:, place + 1] + 1) / runs))
        for place, label in enumerate(layout.bins.classes):
            add("labels", "label", label, counts[:, layout.labels.start + place] / rows)
        read = counts[:, HEAD.index("read")]
        add("rejected", "rows", "", counts[:, HEAD.index("rejected")] / read)
        add("volume", "rows", "", np.log((read + 1) / runs))
    values = np.stack(columns, axis=1)
    values[~np.isfinite(values)] = np.nan
    return names, values


def _add_numbers(
    add: _Add, counts: NDArray[np.int64], rows: NDArray[np.float64], layout: Layout
) -> None:
    import numpy as np

    days = len(counts)
    there, sums, squares = counts[:, layout.sums].reshape(days, 3, -1).transpose(1, 0, 2)
    edges = counts[:, layout.edges].reshape(days, -1, layout.width)
    for place, each in enumerate(layout.bins.numbers):
        n = there[:, place].astype("float64")
        if place < len(layout.bins.numbers) - 1:  # a score is never null
            add("nulls", each.name, "", 1 - n / rows)
        n[n < FEWEST_VALUES] = np.nan
        mean = sums[:, place] / n / STEPS
        variance = squares[:, place] / n / STEPS**2 - mean**2
        enough = n >= np.maximum(FEWEST_CONSTANT, rows / 2)
        constant = np.where(enough, variance < 1 / STEPS**2, 0.0)
        name = each.name
        add("level", name, "", mean)
        add("spread", name, "", np.log(np.sqrt(np.maximum(variance, 0)) + SPREAD_FLOOR))
        add("stuck", name, "", constant)
        if not each.edges:
            continue
        from_edge = edges[:, place, : len(each.edges)] / n[:, None]
        for low in range(each.low, each.high):
            share = from_edge[:, low] - from_edge[:, low + 1]
            add("shape", name, f"{low - each.low + 1}/{each.high - each.low}", share)
        seen = n / rows
        below, above = seen * (1 - from_edge[:, each.low]), seen * from_edge[:, each.high]
        for side, share, hard in (
            ("below", below, each.hard_low),
            ("above", above, each.hard_high),
        ):
            add("range", name, side, share, is_hard=hard)
        for far, width in enumerate(BEYOND[: each.low], start=1):
            below, above = 1 - from_edge[:, each.low - far], from_edge[:, each.high + far]
            add("range", name, f"below by {width:g}", seen * below)
            add("range", name, f"above by {width:g}", seen * above)


def _add_relations(add: _Add, counts: NDArray[np.int64], layout: Layout) -> None:
    import numpy as np

    days = len(counts)
    there, sums, squares = counts[:, layout.relations].reshape(days, 3, -1).transpose(1, 0, 2)
    for place, each in enumerate(layout.bins.relations):
        n = there[:, place].astype("float64")
        mean = sums[:, place] / n / STEPS
        size = np.sqrt(squares[:, place] / n) / STEPS
        add("relation", each.name, "level", mean)
        add("relation", each.name, "size", np.log(size + SPREAD_FLOOR))
