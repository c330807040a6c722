"""Judge what a model published, day by day and window by window, and word what is unusual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from batch_jobs.model import BatchModel
from batch_jobs.monitoring.drift import FEWEST_BLOCKS, Usual, roots, unusual, usual
from batch_jobs.monitoring.findings import Finding
from batch_jobs.monitoring.profiles import DAY, Days
from batch_jobs.monitoring.statistics import statistics
from batch_jobs.monitoring.words import affected, figures, words
from batch_jobs.registry.references import Reference
from batch_jobs.scoring.profiles import HEAD

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENOUGH_COVERED = 0.95  # of a day: less may lack its evening, and so look different
FEWEST_ROWS = 20  # of a day: fewer are not judged


@dataclass(frozen=True, eq=False)
class JudgedDay:
    """One day of what a version published.

    Attributes:
        start: of the day.
        version: who scored it.
        usual: what is usual for that version.
        values: its statistics, in the order of those.
        rows: how many it has.
        lowest: of each number.
        highest: likewise.
    """

    start: datetime
    version: str
    usual: Usual
    values: NDArray[np.float64]
    rows: float
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]

    @property
    def weekday(self) -> int:
        """0 for Monday."""
        return self.start.weekday()


def too_short(reference: Reference) -> str | None:
    """Why days cannot be compared with those of a training; None if they can."""
    if len(reference.starts) < FEWEST_BLOCKS:
        return (
            f"training saw only {len(reference.starts)} whole days, and {FEWEST_BLOCKS} are "
            f"needed to tell what is usual: let `history` be longer"
        )
    return None


def judged_days(
    model: BatchModel, version: str, reference: Reference, days: Days
) -> list[JudgedDay]:
    """The days that can be judged: published nearly whole, and with a few rows.

    Args:
        model: whose.
        version: who scored them.
        reference: what the version was trained on.
        days: what it published.
    """
    import numpy as np

    if not len(days.starts):
        return []
    layout, slices = reference.layout, model.monitor.slices
    ones = np.ones(len(reference.starts))
    names, values = statistics(reference.counts, ones, layout, slices)
    weekdays = np.array([start.weekday() for start in reference.starts])
    known = usual(names, values, weekdays)
    per = days.runs.astype("float64") if model.mode == "replace" else days.covered
    _, found = statistics(days.counts, np.maximum(per, 1e-9), layout, slices)
    rows = days.counts[:, HEAD.index("read")]
    whole = (days.covered >= ENOUGH_COVERED) | (model.mode == "replace")
    return [
        JudgedDay(
            days.starts[place],
            version,
            known,
            found[place],
            float(rows[place]),
            days.lowest[place],
            days.highest[place],
        )
        for place in np.flatnonzero(whole & (days.missing == 0) & (rows >= FEWEST_ROWS)).tolist()
    ]


def judge(
    model: BatchModel, days: Sequence[JudgedDay], references: Mapping[str, Reference]
) -> list[Finding]:
    """What is unlike training in a window of days, one finding a cause.

    Args:
        model: whose.
        days: of the window, oldest first; at least one.
        references: of their versions.
    """
    found = unusual(
        [(day.usual, day.values, day.weekday, day.rows) for day in days], model.monitor.limit
    )
    ignored = set(model.monitor.ignore)
    kept = roots([each for each in found if each.statistic.feature not in ignored])
    newest = days[-1]
    reference = references[newest.version]
    start, end = days[0].start, newest.start + DAY
    return [
        Finding(
            model_version=newest.version,
            window_start=start,
            window_end=end,
            kind=each.statistic.kind,
            feature=each.statistic.feature,
            item=each.statistic.item,
            days=len(days),
            reference_days=newest.usual.blocks,
            severity=each.severity,
            rows_affected=affected(each),
            words=words(each, reference, newest.lowest),
            **figures(each, reference),
        )
        for each in kept
    ]


def windows(days: Sequence[JudgedDay], window: timedelta, since: datetime) -> list[list[JudgedDay]]:
    """Each day since a moment by itself, and the days of the window that ends with it.

    A window is judged if it has days in more than half of it.
    """
    found: list[list[JudgedDay]] = []
    for day in days:
        if day.start < since:
            continue
        found.append([day])
        own = [each for each in days if day.start - window < each.start <= day.start]
        if len(own) * 2 * DAY > window:
            found.append(own)
    return found
