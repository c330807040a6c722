"""Claim an interval and stage its rows, invisible to readers until they are published.

An attempt claims an interval with an ordered token (a UUIDv7, so a later attempt has the higher
one). A lower token is refused from then on, at every step: claiming, staging a chunk, publishing
(https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from batch_jobs.errors import ConfigurationError, FencedError, IncompleteError
from batch_jobs.interval import Interval
from batch_jobs.ledger import Counts, Part, Run, counts_of, load_run, span
from batch_jobs.warehouse import Warehouse, stored_time


def claim(
    warehouse: Warehouse,
    *,
    model: str,
    interval: Interval,
    token: str,
    model_version: str,
    mode: str,
    key_ranges: Sequence[tuple[str | None, str | None]],
) -> Run:
    """Claim the interval for this attempt and open its run.

    Attempts with a lower token that were still staging are failed. Claiming again with the same
    token answers with the same run.

    Raises:
        FencedError: an attempt with a higher token has claimed the interval.
        ConfigurationError: the model has been published in the other mode.
    """
    now = stored_time(datetime.now(UTC))
    key = span(model, interval)
    with warehouse.write() as connection:
        _require_mode(connection, model, mode)
        claimed = connection.execute(
            text("""
                INSERT INTO fences (model, interval_start, interval_end, token, claimed_at)
                VALUES (:model, :start, :end, :token, :now)
                ON CONFLICT (model, interval_start, interval_end)
                DO UPDATE SET token = excluded.token, claimed_at = excluded.claimed_at
                WHERE fences.token <= excluded.token
                RETURNING token"""),
            {**key, "token": token, "now": now},
        ).first()
        if claimed is None:
            raise FencedError(f"{model} {interval}: a newer attempt has claimed this interval")
        connection.execute(
            text("""
                UPDATE prediction_runs SET state = 'failed', error = 'fenced off by a newer attempt'
                WHERE model = :model AND interval_start = :start AND interval_end = :end
                  AND state = 'staging' AND token < :token"""),
            {**key, "token": token},
        )
        run_id = connection.scalar(
            text("""
                INSERT INTO prediction_runs
                  (model, interval_start, interval_end, state, model_version, mode, token,
                   claimed_at)
                VALUES (:model, :start, :end, 'staging', :version, :mode, :token, :now)
                ON CONFLICT (model, interval_start, interval_end, token) DO NOTHING
                RETURNING run_id"""),
            {**key, "version": model_version, "mode": mode, "token": token, "now": now},
        )
        if run_id is None:
            run_id = connection.scalar(
                text("""
                    SELECT run_id FROM prediction_runs
                    WHERE model = :model AND interval_start = :start AND interval_end = :end
                      AND token = :token"""),
                {**key, "token": token},
            )
        else:
            connection.execute(
                text("""
                    INSERT INTO run_parts (run_id, part, key_from, key_to)
                    VALUES (:run_id, :part, :key_from, :key_to)"""),
                [
                    {"run_id": run_id, "part": part, "key_from": low, "key_to": high}
                    for part, (low, high) in enumerate(key_ranges)
                ],
            )
        return load_run(connection, run_id)


def _require_mode(connection: Connection, model: str, mode: str) -> None:
    served = connection.scalar(
        text("SELECT mode FROM serving_heads WHERE model = :model"), {"model": model}
    )
    if served not in (None, mode):
        raise ConfigurationError(
            f"{model} has been published in {served} mode and its model file now says {mode}; "
            f"readers would see both kinds of rows: give the model file another name"
        )


def open_part(warehouse: Warehouse, run_id: int, part: int, token: str) -> tuple[Run, Part]:
    """Take over one part of a run for staging; what an earlier try staged for it is removed.

    A part that is already staged is returned as it is, for a repeated task to leave alone.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
    """
    with warehouse.write() as connection:
        run = require_owner(connection, run_id)
        key = {"run_id": run_id, "part": part}
        row = connection.execute(
            text("SELECT * FROM run_parts WHERE run_id = :run_id AND part = :part"), key
        ).one()
        opened = Part(run_id, part, row.key_from, row.key_to, bool(row.staged), counts_of(row))
        if opened.staged or run.state == "published":
            return run, opened
        if row.token is not None and row.token > token:
            raise FencedError(f"run {run_id} part {part}: a newer try is scoring this part")
        connection.execute(
            text("UPDATE run_parts SET token = :token WHERE run_id = :run_id AND part = :part"),
            {**key, "token": token},
        )
        for table in ("predictions", "rejected_rows"):
            connection.execute(
                text(f"DELETE FROM {table} WHERE run_id = :run_id AND part = :part"),  # noqa: S608
                key,
            )
        return run, opened


def stage(
    warehouse: Warehouse,
    part: Part,
    token: str,
    scored: Sequence[tuple[str, float, str | None]],
    rejected: Sequence[tuple[str, str, Mapping[Hashable, Any]]] = (),
) -> None:
    """Store one chunk of a part, invisible to readers.

    Args:
        warehouse: where to.
        part: the part the rows belong to.
        token: the token that opened the part.
        scored: entity id, score, label.
        rejected: entity id, reason, the row as it was read.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        sqlalchemy.exc.IntegrityError: an entity is in the run already.
    """
    with warehouse.write() as connection:
        run = _require_part(connection, part, token)
        if scored:
            connection.exec_driver_sql(
                "INSERT INTO predictions (run_id, part, entity_id, score, label) "
                "VALUES (?, ?, ?, ?, ?)",
                [(part.run_id, part.part, *row) for row in scored],
            )
        if rejected:
            connection.exec_driver_sql(
                "INSERT INTO rejected_rows (run_id, part, model, entity_id, reason, payload) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (part.run_id, part.part, run.model, key, reason, _payload(row))
                    for key, reason, row in rejected
                ],
            )


def _payload(row: Mapping[Hashable, Any]) -> str:
    """A row as JSON, which knows neither NaN nor infinity nor numpy's numbers."""
    return json.dumps({str(name): _plain(value) for name, value in row.items()}, default=str)


def _plain(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float) and not math.isfinite(plain):
        return None if math.isnan(plain) else str(plain)
    return plain


def close_part(warehouse: Warehouse, part: Part, token: str, counts: Counts) -> None:
    """Record that a part is staged in full.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
    """
    with warehouse.write() as connection:
        _require_part(connection, part, token)
        connection.execute(
            text("""
                UPDATE run_parts SET staged = 1, rows_read = :read, rows_scored = :scored,
                  rows_rejected = :rejected, rows_skipped = :skipped
                WHERE run_id = :run_id AND part = :part"""),
            {"run_id": part.run_id, "part": part.part, **asdict(counts)},
        )


def has_doubled_reject(warehouse: Warehouse, run_id: int) -> bool:
    """Whether an entity was rejected twice, or rejected and scored, in different chunks."""
    with warehouse.read() as connection:
        found = connection.scalar(
            text("""
                SELECT 1 FROM (SELECT entity_id, count(*) AS times FROM rejected_rows
                               WHERE run_id = :run_id GROUP BY entity_id) AS r
                LEFT JOIN predictions AS p ON p.run_id = :run_id AND p.entity_id = r.entity_id
                WHERE r.times > 1 OR p.entity_id IS NOT NULL LIMIT 1"""),
            {"run_id": run_id},
        )
        return found is not None


def fail(warehouse: Warehouse, run_id: int, error: str) -> None:
    """Give up a run that is still staging; the reason stays in the ledger."""
    with warehouse.write() as connection:
        _fail(connection, run_id, error)


def fail_part(warehouse: Warehouse, part: Part, token: str, error: str) -> None:
    """Give up the run of a part, unless a newer try is scoring the part and may fare better."""
    with warehouse.write() as connection:
        if _owner(connection, part) == token:
            _fail(connection, part.run_id, error)


def _fail(connection: Connection, run_id: int, error: str) -> None:
    connection.execute(
        text("""
            UPDATE prediction_runs SET state = 'failed', error = :error
            WHERE run_id = :run_id AND state = 'staging'"""),
        {"run_id": run_id, "error": error[:1000]},
    )


def sweep(warehouse: Warehouse, model: str) -> int:
    """Remove the rows that failed runs of the model left staged; the number removed."""
    removed = 0
    with warehouse.read() as connection:
        leftovers = connection.scalars(
            text("""
                SELECT run_id FROM prediction_runs AS r WHERE model = :model AND state = 'failed'
                AND EXISTS (SELECT 1 FROM predictions AS p WHERE p.run_id = r.run_id)"""),
            {"model": model},
        ).all()
    for run_id in leftovers:
        # Small transactions, so that no other writer waits long.
        while batch := _remove_rows(warehouse, run_id):
            removed += batch
    return removed


def _remove_rows(warehouse: Warehouse, run_id: int) -> int:
    with warehouse.write() as connection:
        return connection.execute(
            text("""
                DELETE FROM predictions WHERE run_id = :run_id AND entity_id IN
                (SELECT entity_id FROM predictions WHERE run_id = :run_id LIMIT 20000)"""),
            {"run_id": run_id},
        ).rowcount


def require_owner(connection: Connection, run_id: int) -> Run:
    """The run, if its attempt may still change what readers see or has done so already.

    Raises:
        FencedError: a newer attempt has claimed the interval.
        IncompleteError: the run has failed or was never made.
    """
    run = load_run(connection, run_id)
    token = connection.scalar(
        text("""
            SELECT token FROM fences
            WHERE model = :model AND interval_start = :start AND interval_end = :end"""),
        span(run.model, run.interval),
    )
    if token != run.token:
        raise FencedError(
            f"run {run_id} of {run.model} {run.interval}: a newer attempt has claimed the interval"
        )
    if run.state == "failed":
        raise IncompleteError(
            f"run {run_id} of {run.model} {run.interval} has failed: {run.error}; only a new "
            f"attempt (clear the task `plan`, or `batch-jobs predict`) can score the interval"
        )
    return run


def _require_part(connection: Connection, part: Part, token: str) -> Run:
    run = require_owner(connection, part.run_id)
    if _owner(connection, part) != token:
        raise FencedError(f"run {part.run_id} part {part.part}: a newer try is scoring this part")
    return run


def _owner(connection: Connection, part: Part) -> str | None:
    token: str | None = connection.scalar(
        text("SELECT token FROM run_parts WHERE run_id = :run_id AND part = :part"),
        {"run_id": part.run_id, "part": part.part},
    )
    return token
