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
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row
from sqlalchemy.exc import DBAPIError

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.warehouse import REMOVED_AT_ONCE, Warehouse, repeatable, stored_time
from batch_jobs.errors import ConfigurationError, FencedError, IncompleteError
from batch_jobs.interval import Interval
from batch_jobs.runs.ledger import Part, Run, load_run, span
from batch_jobs.scoring.counts import Counts, Reject, counts_of

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

# From so many rows on, a population is cheaper to publish from a table of its own.
LARGE = 100_000
REMOVED = "none"  # the rows_table of a run whose rows are gone
SWEPT = "~"  # the token of a part whose rows are being removed: no try has a higher one


@dataclass(frozen=True)
class Claim:
    """What an attempt wants to score.

    Attributes:
        model: whose interval.
        interval: which.
        token: the attempt's; a later attempt has the higher one.
        model_version: which version scores.
        mode: `merge` or `replace`.
        key_ranges: the range of keys of each part.
        hindsight: the version was trained after the interval.
        accepted: why its rows may be published whatever the circuit breaker says.
    """

    model: str
    interval: Interval
    token: str
    model_version: str
    mode: str
    key_ranges: Sequence[tuple[str | None, str | None]]
    hindsight: bool = False
    accepted: str | None = None


@repeatable
def claim(warehouse: Warehouse, wanted: Claim) -> Run:
    """Claim the interval for this attempt and open its run.

    Attempts with a lower token that were still staging are failed. Claiming again with the same
    token answers with the same run.

    Raises:
        FencedError: an attempt with a higher token has claimed the interval.
        ConfigurationError: the model has been published in the other mode.
    """
    key = {
        **span(wanted.model, wanted.interval),
        "token": wanted.token,
        "now": stored_time(clock.now()),
    }
    with warehouse.write() as connection:
        large = _is_large(connection, wanted)
        claimed = connection.execute(
            text("""
                INSERT INTO fences (model, interval_start, interval_end, token, claimed_at)
                VALUES (:model, :start, :end, :token, :now)
                ON CONFLICT (model, interval_start, interval_end)
                DO UPDATE SET token = excluded.token, claimed_at = excluded.claimed_at
                WHERE fences.token <= excluded.token
                RETURNING token"""),
            key,
        ).first()
        if claimed is None:
            raise FencedError(
                f"{wanted.model} {wanted.interval}: a newer attempt has claimed this interval"
            )
        connection.execute(
            text("""
                UPDATE prediction_runs SET state = 'failed', error = 'fenced off by a newer attempt'
                WHERE model = :model AND interval_start = :start AND interval_end = :end
                  AND state = 'staging' AND token < :token"""),
            key,
        )
        run_id = connection.scalar(
            text("""
                SELECT run_id FROM prediction_runs
                WHERE model = :model AND interval_start = :start AND interval_end = :end
                  AND token = :token"""),
            key,
        )
        if run_id is None:
            run_id = _open_run(warehouse, connection, wanted, key, large=large)
        return load_run(connection, run_id)


def _is_large(connection: Connection, wanted: Claim) -> bool:
    """Whether to expect many rows: of a whole population, as many as last time, or unknown."""
    served = connection.execute(
        text("""
            SELECT h.mode, r.rows_scored FROM serving_heads AS h
            JOIN prediction_runs AS r ON r.run_id = h.run_id WHERE h.model = :model"""),
        {"model": wanted.model},
    ).first()
    if served is not None and served.mode != wanted.mode:
        raise ConfigurationError(
            f"{wanted.model} has been published in {served.mode} mode and its model file now says "
            f"{wanted.mode}; readers would see both kinds of rows: give the model file another name"
        )
    return wanted.mode == "replace" and (served is None or served.rows_scored >= LARGE)


def _open_run(
    warehouse: Warehouse,
    connection: Connection,
    wanted: Claim,
    key: Mapping[str, Any],
    *,
    large: bool,
) -> int:
    run_id = connection.scalar(
        text("""
            INSERT INTO prediction_runs
              (model, interval_start, interval_end, state, model_version, mode, token, claimed_at,
               hindsight, accepted, rows_table)
            VALUES (:model, :start, :end, 'staging', :version, :mode, :token, :now,
               :hindsight, :accepted, '')
            RETURNING run_id"""),
        {
            **key,
            "version": wanted.model_version,
            "mode": wanted.mode,
            "hindsight": int(wanted.hindsight),
            "accepted": wanted.accepted,
        },
    )
    table = warehouse.database.new_rows_table(connection, int(run_id), large=large)
    connection.execute(
        text("UPDATE prediction_runs SET rows_table = :rows_table WHERE run_id = :run_id"),
        {"run_id": run_id, "rows_table": table},
    )
    connection.execute(
        text("""
            INSERT INTO run_parts (run_id, part, key_from, key_to)
            VALUES (:run_id, :part, :key_from, :key_to)"""),
        [
            {"run_id": run_id, "part": part, "key_from": low, "key_to": high}
            for part, (low, high) in enumerate(wanted.key_ranges)
        ],
    )
    return int(run_id)


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
        row = _lock_part(warehouse, connection, run_id, part)
        run = _require_open(warehouse, connection, run_id)
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
    _lock_run(warehouse, connection, run_id)
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
        run, stored = _require_part(warehouse, connection, part, token)
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
) -> None:
    """Record that a part is staged in full.

    Args:
        warehouse: where the ledger is.
        part: which part.
        token: the token that opened it.
        counts: what became of its rows.
        scores: the lowest and the highest score, if there is any.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
    """
    low, high = scores or (None, None)
    with warehouse.write() as connection:
        _require_part(warehouse, connection, part, token)
        connection.execute(
            text("""
                UPDATE run_parts SET staged = 1, rows_read = :read, rows_scored = :scored,
                  rows_rejected = :rejected, rows_skipped = :skipped,
                  score_min = :low, score_max = :high
                WHERE run_id = :run_id AND part = :part"""),
            {"run_id": part.run_id, "part": part.part, **asdict(counts), "low": low, "high": high},
        )


@repeatable
def has_doubled_reject(warehouse: Warehouse, run: Run) -> bool:
    """Whether an entity was rejected twice, or rejected and scored, in different chunks.

    Raises:
        FencedError: a newer attempt has claimed the interval.
    """
    with warehouse.read() as connection:
        _require_open(warehouse, connection, run.run_id)  # else its rows may have been swept
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
        if _lock_part(warehouse, connection, run_id, part).token == token:
            _lock_run(warehouse, connection, run_id)
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
            fail(warehouse, run.run_id, "abandoned: its attempt ended without a word")
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
    if not warehouse.database.drop_rows(rows_table):
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


def _require_open(warehouse: Warehouse, connection: Connection, run_id: int) -> Run:
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


def _require_part(
    warehouse: Warehouse, connection: Connection, part: Part, token: str
) -> tuple[Run, Row[Any]]:
    row = _lock_part(warehouse, connection, part.run_id, part.part)
    run = _require_open(warehouse, connection, part.run_id)
    if row.token != token:
        raise FencedError(f"run {part.run_id} part {part.part}: a newer try is scoring this part")
    return run, row


def _lock_run(warehouse: Warehouse, connection: Connection, run_id: int) -> None:
    connection.execute(
        text(f"""
            SELECT 1 FROM prediction_runs WHERE run_id = :run_id
            {warehouse.database.for_update}"""),  # noqa: S608
        {"run_id": run_id},
    ).all()


def _lock_part(warehouse: Warehouse, connection: Connection, run_id: int, part: int) -> Row[Any]:
    """The part, which nobody else takes over before the transaction ends."""
    return connection.execute(
        text(f"""
            SELECT * FROM run_parts WHERE run_id = :run_id AND part = :part
            {warehouse.database.for_update}"""),  # noqa: S608
        {"run_id": run_id, "part": part},
    ).one()
