"""The fence: an attempt changes a run only while no newer attempt has claimed its interval."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row

from batch_jobs.database.connections import text
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import FencedError, IncompleteError
from batch_jobs.runs.ledger import Part, Run, load_run, span

SWEPT = "~"  # the token of a part whose rows are being removed: no try has a higher one


def require_owner(
    warehouse: Warehouse, connection: Connection, run_id: int, *, lock: bool = False
) -> Run:
    """The run, if its attempt may still change what readers see or has done so already.

    Args:
        warehouse: where the ledger is.
        connection: inside the caller's transaction.
        run_id: which run.
        lock: let nobody claim the interval before the transaction ends.

    Raises:
        FencedError: a newer attempt has claimed the interval.
        IncompleteError: the run has failed or was never made.
    """
    run = load_run(connection, run_id)
    token = connection.scalar(
        text(f"""
            SELECT token FROM fences
            WHERE model = :model AND interval_start = :start AND interval_end = :end
            {warehouse.database.for_update if lock else ""}"""),  # noqa: S608
        span(run.model, run.interval),
    )
    if token != run.token:
        raise FencedError(
            f"run {run_id} of {run.model} {run.interval}: a newer attempt has claimed the interval"
        )
    if lock and warehouse.database.for_update:  # what another did while this one waited
        run = load_run(connection, run_id)
    if run.state == "failed":
        raise _failed(run)
    return run


def _failed(run: Run) -> IncompleteError:
    return IncompleteError(
        f"run {run.run_id} of {run.model} {run.interval} has failed: {run.error}; only a new "
        f"attempt (clear the task `plan`, or `batch-jobs predict`) can score the interval"
    )


def require_open(warehouse: Warehouse, connection: Connection, run_id: int) -> Run:
    """The run, if its parts may be staged, be it that one of them has failed it."""
    try:
        return require_owner(warehouse, connection, run_id)
    except IncompleteError:
        parts = connection.execute(
            text("SELECT token, error FROM run_parts WHERE run_id = :run_id"), {"run_id": run_id}
        ).all()
        is_swept = any(part.token == SWEPT for part in parts)
        if is_swept or all(part.error is None for part in parts):
            raise
        return load_run(connection, run_id)


def require_part(
    warehouse: Warehouse, connection: Connection, part: Part, token: str
) -> tuple[Run, Row[Any]]:
    """The run and the part, locked, if the token still owns the part."""
    row = lock_part(warehouse, connection, part.run_id, part.part)
    run = require_open(warehouse, connection, part.run_id)
    if row.token != token:
        raise FencedError(f"run {part.run_id} part {part.part}: a newer try is scoring this part")
    return run, row


def lock_run(warehouse: Warehouse, connection: Connection, run_id: int) -> None:
    """Lock a run until the transaction ends."""
    connection.execute(
        text(f"""
            SELECT 1 FROM prediction_runs WHERE run_id = :run_id
            {warehouse.database.for_update}"""),  # noqa: S608
        {"run_id": run_id},
    ).all()


def lock_part(warehouse: Warehouse, connection: Connection, run_id: int, part: int) -> Row[Any]:
    """The part, which nobody else takes over before the transaction ends."""
    return connection.execute(
        text(f"""
            SELECT * FROM run_parts WHERE run_id = :run_id AND part = :part
            {warehouse.database.for_update}"""),  # noqa: S608
        {"run_id": run_id, "part": part},
    ).one()
