"""Retention: what readers have not seen for long is removed, run by run.

Ages are measured against the end of the model's newest published interval and not against the
clock, so a model that has stopped publishing loses nothing. A run leaves in two steps: one
transaction hides it whole (`superseded_at` ends its time in `current_predictions`, state `retired`
that in `prediction_history`), and then its rows are removed in small transactions. What is
interrupted anywhere is completed by the next prune.

What was computed or asked on request has no run, and what a run rejected that was never published
has no readers: these go by the clock, when they were answered or claimed longer ago than `keep`.

The ledger's own rows stay, and so do the fences: one row an interval, which refuses an attempt that
was stopped long ago and may go on at any time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Row

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import REMOVED_AT_ONCE, loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.requests import retention
from batch_jobs.runs.removal import (
    REMOVED,
    SMALL,
    batches,
    clear,
    hide,
    is_small,
    remove,
    retire,
    retire_large,
)

log = logging.getLogger(__name__)

# A probe of an index for each run: an anti-join might read millions of current rows instead.
_IS_CURRENT = "(SELECT 1 FROM current_rows AS c WHERE c.run_id = r.run_id LIMIT 1) IS NOT NULL"
_DUE = text(f"""
    SELECT 'hide' AS due, r.run_id, r.rows_table, r.rows_scored, r.rows_scored AS size
    FROM prediction_runs AS r
    WHERE r.model = :model AND r.run_id <> :head AND r.mode = 'merge' AND r.rows_table <> :removed
      AND (r.superseded_at IS NOT NULL OR (r.state = 'published' AND r.interval_end < :expired))
      AND {_IS_CURRENT}
    UNION ALL
    SELECT 'retire', r.run_id, r.rows_table, r.rows_scored, r.rows_scored + r.rows_rejected
    FROM prediction_runs AS r
    WHERE r.model = :model AND r.run_id <> :head AND r.rows_table <> :removed
      AND (r.state = 'retired'
           OR (r.state IN ('published', 'superseded') AND r.published_at < :kept
               AND (r.superseded_at < :kept
                    OR (r.superseded_at IS NULL AND r.mode = 'merge' AND r.rows_scored = 0
                        AND r.rows_rejected > 0)
                    OR (r.superseded_at IS NULL AND r.mode = 'merge' AND r.rows_scored > 0
                        AND NOT {_IS_CURRENT}
                        AND (SELECT max(s.superseded_at) FROM superseded_rows AS s
                             WHERE s.run_id = r.run_id) < :kept))))
    ORDER BY 2""")  # noqa: S608
# Whatever a run is called that was never published and will not be.
_GIVEN_UP = text("""
    SELECT r.run_id FROM prediction_runs AS r
    WHERE r.model = :model AND r.published_at IS NULL AND r.state <> 'staging'
      AND r.claimed_at < :before
      AND (SELECT 1 FROM rejected_rows AS d WHERE d.run_id = r.run_id LIMIT 1) IS NOT NULL
    ORDER BY 1""")


@dataclass(frozen=True)
class Pruned:
    """What one prune did to a model's runs.

    Attributes:
        model: which model.
        expired: runs whose last rows left `current_predictions` because of their age.
        retired: runs whose rows are gone.
        rows: how many rows those were.
        rejected: how many rejected rows are gone.
        left: runs whose rows something still held, so that the next prune removes them.
        online: how many predictions that were computed on request are gone.
        requests: how many requests of many rows are gone, with all that came of them.
        artifacts: how many versions are gone from the model store, which nobody goes back to.
    """

    model: str
    expired: int = 0
    retired: int = 0
    rows: int = 0
    rejected: int = 0
    left: int = 0
    online: int = 0
    requests: int = 0
    artifacts: int = 0

    def __str__(self) -> str:
        told = {
            "runs have expired": self.expired,
            "runs are retired": self.retired,
            "rows are removed": self.rows,
            "rejected rows are removed": self.rejected,
            "runs are left to the next prune": self.left,
            "predictions on request are removed": self.online,
            "requests are removed": self.requests,
            "artifacts are removed": self.artifacts,
        }
        return ", ".join(f"{n:,} {what}" for what, n in told.items() if n) or "nothing to remove"


def prune(
    warehouse: Warehouse, model: str, keep: timedelta, expire: timedelta | None = None
) -> Pruned:
    """Retire the runs of a model that readers have not seen for long; the newest one stays.

    Args:
        warehouse: where the runs are.
        model: whose.
        keep: how long what is no longer current stays in `prediction_history`.
        expire: the age at which rows stop being current in merge mode; None for never.

    Raises:
        WarehouseUnavailableError: the database did not answer; what was done until then stays.
    """
    pruned = _prune_runs(warehouse, model, keep, expire)
    before = stored_time(clock.now() - keep)
    return replace(
        pruned,
        rejected=pruned.rejected + _forget_rejected(warehouse, model, before),
        online=_forget_online(warehouse, model, before),
        requests=retention.forget(warehouse, model, before),
    )


def _prune_runs(
    warehouse: Warehouse, model: str, keep: timedelta, expire: timedelta | None
) -> Pruned:
    due = _due(warehouse, model, keep, expire)
    if not due:
        return Pruned(model)
    hidden = [run for run in due if run.due == "hide"]
    old = [run for run in due if run.due == "retire"]
    expired = hide(warehouse, model, [run.run_id for run in hidden]) if hidden else 0
    for run_ids in batches(hidden, REMOVED_AT_ONCE):
        clear(warehouse, "current_rows", run_ids, model)
    small = [run for run in old if is_small(run)]
    rejected = 0
    for run_ids in batches(small, SMALL):
        rejected += retire(warehouse, run_ids)
        warehouse.database.give_way()
    large = [run for run in old if not is_small(run)]
    for run in large:
        rejected += retire_large(warehouse, run)
    removed = remove(warehouse, large)
    warehouse.database.after_removal()
    retired = [*small, *removed]
    return Pruned(
        model=model,
        expired=expired,
        retired=len(retired),
        rows=sum(run.rows_scored for run in retired),
        rejected=rejected,
        left=len(large) - len(removed),
    )


def _forget_rejected(warehouse: Warehouse, model: str, before: str) -> int:
    """Remove what runs rejected that were given up, and claimed before a moment."""
    given_up = _given_up(warehouse, model, before)
    return sum(clear(warehouse, "rejected_rows", [run_id]) for run_id in given_up)


@repeatable
def _given_up(warehouse: Warehouse, model: str, before: str) -> Sequence[int]:
    with warehouse.read() as connection:
        return connection.scalars(_GIVEN_UP, {"model": model, "before": before}).all()


def _forget_online(warehouse: Warehouse, model: str, before: str) -> int:
    """Remove what was computed on request before a moment, in small transactions."""
    forgotten = 0
    while some := _forget_some(warehouse, model, before):
        forgotten += some
        warehouse.database.give_way()
    return forgotten


@repeatable
def _forget_some(warehouse: Warehouse, model: str, before: str) -> int:
    old = """
        SELECT prediction_id FROM online_predictions
        WHERE model = :model AND created_at < :before LIMIT :most"""
    values = {"model": model, "before": before, "most": REMOVED_AT_ONCE}
    with warehouse.read() as connection:
        if connection.scalar(text(old), values) is None:
            return 0
    with warehouse.write() as connection:
        return connection.execute(
            text(f"DELETE FROM online_predictions WHERE prediction_id IN ({old})"),  # noqa: S608
            values,
        ).rowcount


@repeatable
def _due(
    warehouse: Warehouse, model: str, keep: timedelta, expire: timedelta | None
) -> Sequence[Row[Any]]:
    """What is to be done: hide a run, or retire it."""
    with warehouse.read() as connection:
        head = connection.execute(
            text("SELECT run_id, interval_end FROM serving_heads WHERE model = :model"),
            {"model": model},
        ).first()
        if head is None:
            return []
        newest = loaded_time(head.interval_end)
        return connection.execute(
            _DUE,
            {
                "model": model,
                "head": head.run_id,
                "removed": REMOVED,
                "kept": stored_time(newest - keep),
                "expired": stored_time(newest - expire) if expire else None,
            },
        ).all()
