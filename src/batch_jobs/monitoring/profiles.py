"""Profiles of days as they are kept: read back for a year, judged, and forgotten in time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.scoring.profile_bytes import decoded
from batch_jobs.scoring.profiles import Layout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DAY = timedelta(days=1)
KEPT = {"hour": 60 * DAY, "day": 800 * DAY}


@dataclass(frozen=True)
class Days:
    """What a version published, day by day, oldest first.

    Attributes:
        starts: of the days.
        counts: as `Layout` places them, shape (days, counts).
        lowest: of each number, shape (days, numbers).
        highest: likewise.
        runs: how many there were, shape (days,).
        missing: how many runs had rows and no profile, shape (days,).
        covered: share of each day whose intervals are in it, shape (days,).
    """

    starts: tuple[datetime, ...]
    counts: NDArray[np.int64]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]
    runs: NDArray[np.int64]
    missing: NDArray[np.int64]
    covered: NDArray[np.float64]


@repeatable
def days_of(
    warehouse: Warehouse, model: str, version: str, layout: Layout, since: datetime, until: datetime
) -> Days:
    """What a version of a model published on each day that lies in `[since, until)` whole."""
    import numpy as np

    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT span_start, run_count, missing, covered, profile FROM profiles
                WHERE model = :model AND grain = 'day' AND model_version = :version
                  AND span_start >= :first AND span_start <= :last
                ORDER BY span_start"""),
            {
                "model": model,
                "version": version,
                "first": stored_time(since),
                "last": stored_time(until - DAY),
            },
        ).all()
    read = [(row, decoded(bytes(row.profile), layout)) for row in rows]
    known = [(row, profile) for row, profile in read if profile is not None]
    numbers = len(layout.bins.numbers)
    return Days(
        tuple(loaded_time(row.span_start) for row, _ in known),
        np.array([p.counts for _, p in known], "int64").reshape(-1, layout.size),
        np.array([p.lowest for _, p in known], "float64").reshape(-1, numbers),
        np.array([p.highest for _, p in known], "float64").reshape(-1, numbers),
        np.array([row.run_count for row, _ in known], "int64"),
        np.array([row.missing for row, _ in known], "int64"),
        np.array([row.covered for row, _ in known], "float64"),
    )


@repeatable
def unjudged_since(warehouse: Warehouse, model: str) -> datetime | None:
    """The oldest day in which drift was not looked for since it was merged; None if none is."""
    with warehouse.read() as connection:
        found = connection.scalar(
            text("""
                SELECT min(span_start) FROM profiles
                WHERE model = :model AND grain = 'day' AND judged = 0"""),
            {"model": model},
        )
        return loaded_time(found) if found else None


@repeatable
def mark_judged(warehouse: Warehouse, model: str, until: datetime) -> None:
    """Remember that drift was looked for in all days that had ended at a moment."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE profiles SET judged = 1 WHERE model = :model AND grain = 'day'
                  AND judged = 0 AND span_start <= :last"""),
            {"model": model, "last": stored_time(until - DAY)},
        )


@repeatable
def forget(warehouse: Warehouse, model: str, keep: timedelta) -> int:
    """Remove profiles of runs that end longer than `keep` before the newest, and of old spans.

    Those of days stay for two years, those of hours for two months. How many runs lost theirs.
    """
    with warehouse.write() as connection:
        newest = connection.scalar(
            text("SELECT max(span_start) FROM profiles WHERE model = :model AND grain = 'day'"),
            {"model": model},
        )
        if newest is None:
            return 0
        end = loaded_time(newest)
        for grain, kept in KEPT.items():
            connection.execute(
                text("""
                    DELETE FROM profiles
                    WHERE model = :model AND grain = :grain AND span_start < :before"""),
                {"model": model, "grain": grain, "before": stored_time(end - kept)},
            )
        found = connection.execute(
            text("""
                UPDATE run_parts SET profile = NULL WHERE profile IS NOT NULL AND run_id IN
                  (SELECT run_id FROM prediction_runs
                   WHERE model = :model AND interval_end < :before AND interval_end >= :after)"""),
            # What is older than this has lost its profiles before.
            {
                "model": model,
                "before": stored_time(end - keep),
                "after": stored_time(end - keep - 30 * DAY),
            },
        )
        return int(found.rowcount)
