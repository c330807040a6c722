"""The reference: what the rows of training looked like, by blocks of time, to compare others with.

Rows of one day resemble each other, so how much a figure may change is told by how much whole
blocks differed, and not by counts of rows.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from batch_jobs.interval import due_between, floor_to_grid, period_at
from batch_jobs.model import BatchModel
from batch_jobs.registry.references import Reference
from batch_jobs.scoring.bins import bins_of
from batch_jobs.scoring.counts import Counts
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.scoring.profiles import Layout, Profiler
from batch_jobs.training.dataset import Split

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

DAY = timedelta(days=1)
FAR_DAY = datetime(2024, 12, 31, tzinfo=UTC)  # any will do
MOST_BLOCKS = 120  # of a longer history, the newest
ASKED_AT_ONCE = 50_000


def reference(model: BatchModel, split: Split, fitted: Fitted) -> Reference:
    """What the rows of a training look like.

    A block is a day that begins at the time of day of the training schedule, when versions change,
    or an interval of the schedule if that is longer: the time at which the interval begins that
    would have scored a row says which. The first and the last are left out if training saw only a
    part of them. In replace mode a block is a snapshot.

    Args:
        model: as it is trained.
        split: its rows.
        fitted: what answers them.
    """
    import numpy as np

    starts = _starts(model, split.rows["as_of"])
    blocks = np.unique(starts)
    if model.mode == "merge":
        begun, ended = split.as_of - model.history, split.as_of
        whole = [begun <= _moment(each) and _moment(each) + DAY <= ended for each in blocks]
        blocks = blocks[whole] if sum(whole) else blocks
    blocks = blocks[-MOST_BLOCKS:]
    rows = split.rows[np.isin(starts, blocks)]
    starts = starts[np.isin(starts, blocks)]
    scores, labels = _answered(fitted, rows)
    bins = bins_of(rows, scores, model.features, fitted.classes)
    profiler = Profiler(bins, fitted.categories)
    order = np.argsort(starts, kind="stable")
    cuts = [*np.searchsorted(starts[order], blocks).tolist(), len(order)]
    counts = []
    for first, last in pairwise(cuts):
        here = order[first:last]
        read = Counts(len(here), len(here))
        counts.append(profiler.of(rows.iloc[here], scores[here], labels.take(here), read).counts)
    stacked = np.stack(counts)
    period = period_at(model.schedule, split.as_of)
    return Reference(
        bins,
        tuple(_moment(block) for block in blocks),
        stacked,
        max(DAY, period),
        block_offset(model),
        correlated_blocks(stacked, Layout(bins)),
        split.rejected,
    )


def _starts(model: BatchModel, as_of: pd.Series[Any]) -> NDArray[np.datetime64]:
    """When the block of each row begins."""
    import numpy as np

    moments = as_of.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[s]")
    first, last = as_of.min().to_pydatetime(), as_of.max().to_pydatetime()
    period = period_at(model.schedule, last)
    if period <= timedelta(hours=1) and model.mode == "merge":
        return _days(moments, block_offset(model))
    grid = due_between(model.schedule, floor_to_grid(model.schedule, first), last + 2 * period)
    ticks = np.array([_naive(interval.start) for interval in grid], "datetime64[s]")
    begun = ticks[np.searchsorted(ticks, moments, side="right") - 1]
    return begun if model.mode == "replace" else _days(begun, block_offset(model))


def _days(moments: NDArray[np.datetime64], offset: timedelta) -> NDArray[np.datetime64]:
    import numpy as np

    late = np.timedelta64(int(offset.total_seconds()), "s")
    midnights = (moments - late).astype("datetime64[D]").astype("datetime64[s]")
    return np.asarray(midnights + late, "datetime64[s]")


def block_offset(model: BatchModel) -> timedelta:
    """At what time of the UTC day the days of a model begin: when it is trained, as a rule."""
    tick = floor_to_grid(model.train_schedule, FAR_DAY)
    return tick - tick.replace(hour=0, minute=0)


def _naive(moment: datetime) -> datetime:
    return moment.replace(tzinfo=None)


def _moment(block: np.datetime64) -> datetime:
    found: datetime = block.astype("datetime64[s]").item()
    return found.replace(tzinfo=UTC)


def _answered(fitted: Fitted, rows: pd.DataFrame) -> tuple[NDArray[np.float64], pa.Array]:
    """Scores and labels of all rows, asked for some at a time."""
    import numpy as np
    import pyarrow as pa

    found = [
        fitted.scores_and_labels(fitted.answers(fitted.inputs(rows.iloc[at : at + ASKED_AT_ONCE])))
        for at in range(0, len(rows), ASKED_AT_ONCE)
    ]
    return (
        np.concatenate([scores for scores, _ in found]),
        pa.concat_arrays([labels for _, labels in found]),
    )


def correlated_blocks(counts: NDArray[np.int64], layout: Layout) -> int:
    """How many blocks apart two have to be to be independent, as far as the data tell.

    Where the autocorrelation of the blocks' means falls below 1/e, in the median over the numbers.

    Args:
        counts: of the blocks in order of time, shape (blocks, counts).
        layout: of the counts.
    """
    import numpy as np

    there, sums, _ = counts[:, layout.sums].reshape(len(counts), 3, -1).transpose(1, 0, 2)
    means = sums / np.maximum(there, 1)
    means = means - means.mean(axis=0)
    variance = (means**2).mean(axis=0)
    moving = variance > 0
    longest = max(len(counts) // 4, 1)
    lags = []
    for column in means[:, moving].T:
        own = (column**2).mean()
        falls = (
            lag
            for lag in range(1, longest)
            if (column[lag:] * column[:-lag]).mean() < own * np.exp(-1)
        )
        lags.append(next(falls, longest))
    return int(np.median(lags)) if lags else 1
