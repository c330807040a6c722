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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from sqlalchemy import Row, TextClause, bindparam
from sqlalchemy.exc import DBAPIError

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.warehouse import (
    REMOVED_AT_ONCE,
    Warehouse,
    loaded_time,
    repeatable,
    stored_time,
)
from batch_jobs.requests import queue
from batch_jobs.runs.publication import after_the_last
from batch_jobs.runs.staging import REMOVED, remove_rows

log = logging.getLogger(__name__)

# A row of `superseded_rows` goes with each row of a prediction.
SMALL = REMOVED_AT_ONCE // 2
RUNS_AT_ONCE = 500
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
        requests=queue.forget(warehouse, model, before),
    )


def _prune_runs(
    warehouse: Warehouse, model: str, keep: timedelta, expire: timedelta | None
) -> Pruned:
    due = _due(warehouse, model, keep, expire)
    if not due:
        return Pruned(model)
    hidden = [run for run in due if run.due == "hide"]
    old = [run for run in due if run.due == "retire"]
    expired = _hide(warehouse, model, [run.run_id for run in hidden]) if hidden else 0
    for run_ids in _batches(hidden, REMOVED_AT_ONCE):
        _clear(warehouse, "current_rows", run_ids, model)
    small = [run for run in old if _is_small(warehouse, run)]
    rejected = 0
    for run_ids in _batches(small, SMALL):
        rejected += _retire(warehouse, run_ids)
        warehouse.database.give_way()
    large = [run for run in old if not _is_small(warehouse, run)]
    for run in large:
        rejected += _retire_large(warehouse, run)
    removed = _remove(warehouse, large)
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
    return sum(_clear(warehouse, "rejected_rows", [run_id]) for run_id in given_up)


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


def _is_small(warehouse: Warehouse, run: Row[Any]) -> bool:
    return bool(run.rows_table == warehouse.database.shared_rows and run.size <= SMALL)


def _batches(runs: Sequence[Row[Any]], rows: int) -> Iterator[list[int]]:
    """The ids of the runs in batches of so many rows; a run that has more is one by itself."""
    batch: list[int] = []
    held = 0
    for run in runs:
        if batch and (held + run.size > rows or len(batch) == RUNS_AT_ONCE):
            yield batch
            batch, held = [], 0
        batch.append(run.run_id)
        held += run.size
    if batch:
        yield batch


@repeatable
def _hide(warehouse: Warehouse, model: str, run_ids: Sequence[int]) -> int:
    """Let all that is current of the runs leave `current_predictions` at once; how many did."""
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, model)
        return connection.execute(
            _of("UPDATE prediction_runs SET superseded_at = :now WHERE superseded_at IS NULL"),
            {"run_ids": list(run_ids), "now": after_the_last(connection, model)},
        ).rowcount


@repeatable
def _retire(warehouse: Warehouse, run_ids: Sequence[int]) -> int:
    """Retire small runs and remove their rows, in one transaction; how many were rejected ones."""
    values = {"run_ids": list(run_ids)}
    with warehouse.write() as connection:
        connection.execute(
            _of("UPDATE prediction_runs SET state = 'retired', rows_table = :removed WHERE true"),
            {**values, "removed": REMOVED},
        )
        for table in (warehouse.database.shared_rows, "superseded_rows"):
            connection.execute(_of(f"DELETE FROM {table} WHERE true"), values)  # noqa: S608
        return connection.execute(_of("DELETE FROM rejected_rows WHERE true"), values).rowcount


def _retire_large(warehouse: Warehouse, run: Row[Any]) -> int:
    """Retire a run and remove all but its predictions; how many rejected rows that were."""
    _mark_retired(warehouse, run.run_id)
    _clear(warehouse, "superseded_rows", [run.run_id])
    return _clear(warehouse, "rejected_rows", [run.run_id])


@repeatable
def _mark_retired(warehouse: Warehouse, run_id: int) -> None:
    with warehouse.write() as connection:
        connection.execute(
            text("UPDATE prediction_runs SET state = 'retired' WHERE run_id = :run_id"),
            {"run_id": run_id},
        )


def _remove(warehouse: Warehouse, runs: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Remove the predictions of retired runs; which of them are gone."""
    removed = []
    for run in runs:
        try:
            remove_rows(warehouse, run.run_id, run.rows_table)
        except DBAPIError as error:
            if not warehouse.database.is_passing(error):
                raise
            # Whoever reads the table of one run mostly reads those of the others too.
            log.info("run %d is left to the next prune, something holds its rows", run.run_id)
            break
        removed.append(run)
    return removed


def _clear(
    warehouse: Warehouse, table: str, run_ids: Sequence[int], model: str | None = None
) -> int:
    """Remove the rows that a table has of some runs, in small transactions; how many there were.

    Args:
        warehouse: where the rows are.
        table: which table.
        run_ids: whose rows.
        model: keep its publications from changing the same rows meanwhile.
    """
    cleared = 0
    while some := _clear_some(warehouse, table, run_ids, model):
        cleared += some
        warehouse.database.give_way()
    return cleared


@repeatable
def _clear_some(warehouse: Warehouse, table: str, run_ids: Sequence[int], model: str | None) -> int:
    with warehouse.write() as connection:
        if model is not None:
            warehouse.database.lock_model(connection, model)
        return connection.execute(
            _of(f"""
                DELETE FROM {table} WHERE entity_id IN
                (SELECT entity_id FROM {table} WHERE run_id IN :run_ids
                 LIMIT {REMOVED_AT_ONCE})"""),  # noqa: S608
            {"run_ids": list(run_ids)},
        ).rowcount


def _of(statement: str) -> TextClause:
    """A statement with a condition, which holds for the runs of `:run_ids` only."""
    return text(f"{statement} AND run_id IN :run_ids").bindparams(
        bindparam("run_ids", expanding=True)
    )
