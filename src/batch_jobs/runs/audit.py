"""Audit what is staged: a run is complete, and no entity is in it twice, before readers see it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import IncompleteError
from batch_jobs.runs.fencing import require_owner
from batch_jobs.runs.ledger import Run
from batch_jobs.scoring.counts import Counts, counts_of


@dataclass(frozen=True)
class Staged:
    """What a run has staged, as its parts reported it.

    Attributes:
        counts: rows of all parts together.
        scores: the lowest and the highest score; None if there is no row.
    """

    counts: Counts
    scores: tuple[float, float] | None


@repeatable
def seal(warehouse: Warehouse, run_id: int) -> Run:
    """Let the table of a run take no more rows, and build its index."""
    with warehouse.write() as connection:
        run = require_owner(warehouse, connection, run_id)
        if run.state == "staging":
            staged_by_parts(connection, run)  # an index of half the rows would help nobody
            warehouse.database.rows.seal(connection, run.rows_table)
        return run


@repeatable
def audit(warehouse: Warehouse, run: Run) -> Staged:
    """What is staged, if it is complete.

    Raises:
        IncompleteError: a part is missing, or counts and rows differ.
    """
    with warehouse.read() as connection:
        require_owner(warehouse, connection, run.run_id)  # else its rows may have been swept
        staged = staged_by_parts(connection, run)
        warehouse.database.rows.spare_others(connection, run.rows_table)
        stored = connection.execute(
            text(f"""
                SELECT (SELECT count(*) FROM {run.rows_table} WHERE run_id = :run_id) AS scored,
                       (SELECT count(*) FROM rejected_rows WHERE run_id = :run_id) AS rejected"""),  # noqa: S608
            {"run_id": run.run_id},
        ).one()
    counts = staged.counts
    if (counts.scored, counts.rejected) != tuple(stored) or counts.read != (
        counts.scored + counts.rejected + counts.skipped
    ):
        raise IncompleteError(
            f"run {run.run_id} of {run.model} {run.interval}: {counts} were reported, but "
            f"{stored.scored} scored and {stored.rejected} rejected rows are stored"
        )
    if run.mode == "replace" and not counts.scored:
        raise IncompleteError(
            f"run {run.run_id} of {run.model} {run.interval} scored no row of the population; "
            f"readers keep the last good predictions"
        )
    return staged


def staged_by_parts(connection: Connection, run: Run) -> Staged:
    """What the parts of a run reported.

    Raises:
        IncompleteError: a part was not scored.
    """
    parts = connection.execute(
        text("SELECT * FROM run_parts WHERE run_id = :run_id ORDER BY part"),
        {"run_id": run.run_id},
    ).all()
    unstaged = [str(part.part) for part in parts if not part.staged]
    if unstaged:
        raise IncompleteError(
            f"run {run.run_id} of {run.model} {run.interval}: part {', '.join(unstaged)} of "
            f"{len(parts)} was not scored"
        )
    lows = [part.score_min for part in parts if part.score_min is not None]
    highs = [part.score_max for part in parts if part.score_max is not None]
    return Staged(
        counts=sum((counts_of(part) for part in parts), Counts()),
        scores=(min(lows), max(highs)) if lows else None,
    )
