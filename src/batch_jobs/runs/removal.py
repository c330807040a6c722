"""Remove the rows of runs in small transactions, each of which keeps no other writer waiting."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Row, TextClause, bindparam
from sqlalchemy.exc import DBAPIError

from batch_jobs.database.connections import text
from batch_jobs.database.shared_rows import own_table
from batch_jobs.database.transactions import REMOVED_AT_ONCE, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.runs.fencing import SWEPT
from batch_jobs.runs.publication import after_the_last
from batch_jobs.runs.staging import fail

log = logging.getLogger(__name__)

SMALL = REMOVED_AT_ONCE // 2
RUNS_AT_ONCE = 500
REMOVED = "none"  # the rows_table of a run whose rows are gone


@repeatable
def sweep(warehouse: Warehouse, model: str, abandoned: datetime) -> int:
    """Remove the rows that failed runs of the model left staged; the number of runs cleaned.

    Args:
        warehouse: where the rows are.
        model: whose.
        abandoned: runs whose attempt was last heard of before this moment and which are staging
            still are taken for dead, and failed.
    """
    with warehouse.read() as connection:
        leftovers = connection.execute(
            text("""
                SELECT run_id, rows_table, state FROM prediction_runs
                WHERE model = :model AND rows_table <> :removed
                  AND (state = 'failed' OR (state = 'staging' AND claimed_at < :abandoned))"""),
            {"model": model, "removed": REMOVED, "abandoned": stored_time(abandoned)},
        ).all()
    for run in leftovers:
        if run.state == "staging":
            fail(warehouse, run.run_id, "abandoned: its attempt stopped without an error")
        try:
            remove_rows(warehouse, run.run_id, run.rows_table)
        except DBAPIError as error:
            if not warehouse.database.is_passing(error):
                raise
            log.info("run %d is left to the next sweep, something holds its rows", run.run_id)
    return len(leftovers)


def remove_rows(warehouse: Warehouse, run_id: int, rows_table: str) -> None:
    """Remove the rows of a run that nobody shall see any more, in small transactions.

    No other writer waits long, and an attempt that still stages them is waited for.
    """
    key = {"run_id": run_id}
    with warehouse.write() as connection:  # whoever is staging a chunk ends it first
        locked = warehouse.database.for_update
        connection.execute(
            text(f"SELECT part FROM run_parts WHERE run_id = :run_id ORDER BY part {locked}"),  # noqa: S608
            key,
        ).all()
        state = text("SELECT state FROM prediction_runs WHERE run_id = :run_id")
        if connection.scalar(state, key) == "staging":
            return  # a new try of the part that had failed it has just begun
        connection.execute(
            text("UPDATE run_parts SET token = :swept WHERE run_id = :run_id"),
            {**key, "swept": SWEPT},
        )
    if not warehouse.database.rows.drop(rows_table):
        while remove_some(
            warehouse,
            f"""
            DELETE FROM {rows_table} WHERE run_id = :run_id AND entity_id IN
            (SELECT entity_id FROM {rows_table} WHERE run_id = :run_id LIMIT {REMOVED_AT_ONCE})""",  # noqa: S608
            key,
        ):
            warehouse.database.give_way()
    with warehouse.write() as connection:
        connection.execute(
            text("UPDATE prediction_runs SET rows_table = :removed WHERE run_id = :run_id"),
            {**key, "removed": REMOVED},
        )


def remove_some(warehouse: Warehouse, statement: str, values: Mapping[str, Any]) -> int:
    """Run a statement that removes a limited number of rows; how many it removed."""
    with warehouse.write() as connection:
        return connection.execute(text(statement), values).rowcount


# A row of `superseded_rows` goes with each row of a prediction.
def is_small(run: Row[Any]) -> bool:
    """Whether the rows of a run can be removed together with those of others."""
    return bool(run.rows_table != own_table(run.run_id) and run.size <= SMALL)


def batches(runs: Sequence[Row[Any]], rows: int) -> Iterator[list[int]]:
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
def hide(warehouse: Warehouse, model: str, run_ids: Sequence[int]) -> int:
    """Let all that is current of the runs leave `current_predictions` at once; how many did."""
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, model)
        return connection.execute(
            _of("UPDATE prediction_runs SET superseded_at = :now WHERE superseded_at IS NULL"),
            {"run_ids": list(run_ids), "now": after_the_last(connection, model)},
        ).rowcount


@repeatable
def retire(warehouse: Warehouse, run_ids: Sequence[int]) -> int:
    """Retire small runs and remove their rows, in one transaction; how many were rejected ones."""
    values = {"run_ids": list(run_ids)}
    with warehouse.write() as connection:
        connection.execute(
            _of("UPDATE prediction_runs SET state = 'retired', rows_table = :removed WHERE true"),
            {**values, "removed": REMOVED},
        )
        for table in (warehouse.database.rows.shared, "superseded_rows"):
            connection.execute(_of(f"DELETE FROM {table} WHERE true"), values)  # noqa: S608
        return connection.execute(_of("DELETE FROM rejected_rows WHERE true"), values).rowcount


def retire_large(warehouse: Warehouse, run: Row[Any]) -> int:
    """Retire a run and remove all but its predictions; how many rejected rows that were."""
    _mark_retired(warehouse, run.run_id)
    clear(warehouse, "superseded_rows", [run.run_id])
    return clear(warehouse, "rejected_rows", [run.run_id])


@repeatable
def _mark_retired(warehouse: Warehouse, run_id: int) -> None:
    with warehouse.write() as connection:
        connection.execute(
            text("UPDATE prediction_runs SET state = 'retired' WHERE run_id = :run_id"),
            {"run_id": run_id},
        )


def remove(warehouse: Warehouse, runs: Sequence[Row[Any]]) -> list[Row[Any]]:
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


def clear(
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
