"""Claim an interval and stage its rows, invisible to readers until they are published.

An attempt claims an interval with an ordered token (a UUIDv7, so a later attempt has the higher
one). A lower token is refused from then on, at every step: claiming, staging a chunk, publishing
(https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import FencedError
from batch_jobs.runs.fencing import lock_part, lock_run, require_open, require_part
from batch_jobs.runs.ledger import Part, Run, load_run
from batch_jobs.scoring.counts import Counts, Reject, counts_of

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


@repeatable
def open_part(warehouse: Warehouse, run_id: int, part: int, token: str) -> tuple[Run, Part]:
    """Take over one part of a run for staging; what an earlier try staged for it is removed.

    A part that is already staged is returned as it is, for a repeated task to leave alone. One that
    has failed its run is tried again, and the run goes on if no other part has failed it.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        IncompleteError: the run has failed as a whole, or its rows are removed already.
    """
    with warehouse.write() as connection:
        row = lock_part(warehouse, connection, run_id, part)
        run = require_open(warehouse, connection, run_id)
        opened = Part(run_id, part, row.key_from, row.key_to, bool(row.staged), counts_of(row))
        if opened.staged or run.is_done:
            return run, opened
        if row.token is not None and row.token > token:
            raise FencedError(f"run {run_id} part {part}: a newer try is scoring this part")
        key = {"run_id": run_id, "part": part}
        connection.execute(
            text("""
                UPDATE run_parts SET token = :token, chunks = 0, error = NULL
                WHERE run_id = :run_id AND part = :part"""),
            {**key, "token": token},
        )
        if row.error is not None:
            run = _go_on(warehouse, connection, run_id)
        # Nobody has staged anything for a part that nobody has opened.
        for table in (run.rows_table, "rejected_rows") if row.token is not None else ():
            connection.execute(
                text(f"DELETE FROM {table} WHERE run_id = :run_id AND part = :part"),  # noqa: S608
                key,
            )
        return run, opened


def _go_on(warehouse: Warehouse, connection: Connection, run_id: int) -> Run:
    """Let a run that a part had failed be staged again, unless another part has failed it, too."""
    lock_run(warehouse, connection, run_id)
    connection.execute(
        text("""
            UPDATE prediction_runs
            SET state = 'staging', error = NULL, refused = NULL, claimed_at = :now
            WHERE run_id = :run_id AND state = 'failed' AND NOT EXISTS
              (SELECT 1 FROM run_parts WHERE run_id = :run_id AND error IS NOT NULL)"""),
        {"run_id": run_id, "now": stored_time(clock.now())},
    )
    return load_run(connection, run_id)


@repeatable
def stage(
    warehouse: Warehouse,
    part: Part,
    token: str,
    chunk: int,
    scored: pa.Table,
    rejected: Sequence[Reject] = (),
) -> None:
    """Store one chunk of a part, invisible to readers; a chunk that is stored already is left.

    Args:
        warehouse: where to.
        part: the part the rows belong to.
        token: the token that opened the part.
        chunk: its number within the part, from 0 on.
        scored: `entity_id` (string), `score` (float64), `label` (string).
        rejected: entity id, reason, the row as it was read.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        sqlalchemy.exc.IntegrityError: an entity is in the run already.
    """
    rows, rejects = _of_part(scored, part), _rejects(part, rejected) if rejected else None
    with warehouse.write() as connection:
        run, stored = require_part(warehouse, connection, part, token)
        if stored.chunks > chunk:
            return
        if stored.chunks < chunk:
            raise FencedError(
                f"run {part.run_id} part {part.part}: the same try was started twice, and the "
                f"other one has begun anew"
            )
        connection.execute(
            text("""
                UPDATE run_parts SET chunks = :chunks WHERE run_id = :run_id AND part = :part"""),
            {"run_id": part.run_id, "part": part.part, "chunks": chunk + 1},
        )
        if rows.num_rows:
            warehouse.database.insert(connection, run.rows_table, rows)
        if rejects:
            warehouse.database.insert(connection, "rejected_rows", _of_model(rejects, run.model))


def _of_part(rows: pa.Table, part: Part) -> pa.Table:
    import pyarrow as pa

    return pa.table(
        {
            "run_id": pa.repeat(pa.scalar(part.run_id, pa.int64()), rows.num_rows),
            "entity_id": rows["entity_id"],
            "part": pa.repeat(pa.scalar(part.part, pa.int32()), rows.num_rows),
            "score": rows["score"],
            "label": rows["label"],
        }
    )


def _rejects(part: Part, rejected: Sequence[Reject]) -> pa.Table:
    import pyarrow as pa

    keys, reasons, rows = zip(*rejected, strict=True)
    return pa.table(
        {
            "run_id": pa.repeat(pa.scalar(part.run_id, pa.int64()), len(keys)),
            "entity_id": pa.array(keys, pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "payload": pa.array([_payload(row) for row in rows], pa.string()),
            "part": pa.repeat(pa.scalar(part.part, pa.int32()), len(keys)),
        }
    )


def _of_model(rejects: pa.Table, model: str) -> pa.Table:
    import pyarrow as pa

    return rejects.append_column("model", pa.repeat(model, rejects.num_rows))


def _payload(row: Mapping[Hashable, Any]) -> str:
    """A row as JSON, which knows neither NaN nor infinity nor numpy's numbers."""
    return json.dumps({str(name): _plain(value) for name, value in row.items()}, default=str)


def _plain(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return None if math.isnan(plain) else str(plain)
    return plain


@repeatable
def close_part(
    warehouse: Warehouse,
    part: Part,
    token: str,
    counts: Counts,
    scores: tuple[float, float] | None = None,
    profile: bytes | None = None,
) -> None:
    """Record that a part is staged in full.

    Args:
        warehouse: where the ledger is.
        part: which part.
        token: the token that opened it.
        counts: what became of its rows.
        scores: the lowest and the highest score, if there is any.
        profile: what the rows looked like, if that is known.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
    """
    with warehouse.write() as connection:
        require_part(warehouse, connection, part, token)
        connection.execute(
            text("""
                UPDATE run_parts SET staged = 1, rows_read = :read, rows_scored = :scored,
                  rows_rejected = :rejected, rows_skipped = :skipped,
                  score_min = :low, score_max = :high, profile = :profile
                WHERE run_id = :run_id AND part = :part"""),
            {
                **asdict(counts),
                **dict(zip(("low", "high"), scores or (None, None), strict=True)),
                "run_id": part.run_id,
                "part": part.part,
                "profile": profile,
            },
        )


@repeatable
def has_doubled_reject(warehouse: Warehouse, run: Run) -> bool:
    """Whether an entity was rejected twice, or rejected and scored, in different chunks.

    Raises:
        FencedError: a newer attempt has claimed the interval.
    """
    with warehouse.read() as connection:
        require_open(warehouse, connection, run.run_id)  # else its rows may have been swept
        found = connection.scalar(
            text(f"""
                SELECT 1 FROM (SELECT entity_id, count(*) AS times FROM rejected_rows
                               WHERE run_id = :run_id GROUP BY entity_id) AS r
                LEFT JOIN {run.rows_table} AS p
                  ON p.run_id = :run_id AND p.entity_id = r.entity_id
                WHERE r.times > 1 OR p.entity_id IS NOT NULL LIMIT 1"""),  # noqa: S608
            {"run_id": run.run_id},
        )
        return found is not None


@repeatable
def fail(warehouse: Warehouse, run_id: int, error: str, refused: str | None = None) -> None:
    """Give up a run that is still staging; the reason stays in the ledger.

    Args:
        warehouse: where the ledger is.
        run_id: which run.
        error: the reason.
        refused: what was asked, if the same would be refused again; see `refusals.question`.
    """
    with warehouse.write() as connection:
        _fail(connection, run_id, error, refused)


@repeatable
def fail_part(
    warehouse: Warehouse, run_id: int, part: int, token: str, error: str, refused: str | None = None
) -> None:
    """Give up the run of a part, unless a newer try is scoring the part and may fare better.

    The other parts may go on: the next try of this one makes good what it has failed.
    """
    with warehouse.write() as connection:
        if lock_part(warehouse, connection, run_id, part).token == token:
            lock_run(warehouse, connection, run_id)
            connection.execute(
                text("""
                    UPDATE run_parts SET error = :error WHERE run_id = :run_id AND part = :part"""),
                {"run_id": run_id, "part": part, "error": error[:1000]},
            )
            _fail(connection, run_id, error, refused)


def _fail(connection: Connection, run_id: int, error: str, refused: str | None) -> None:
    connection.execute(
        text("""
            UPDATE prediction_runs SET state = 'failed', error = :error, refused = :refused
            WHERE run_id = :run_id AND state = 'staging'"""),
        {"run_id": run_id, "error": error[:1000], "refused": refused},
    )
