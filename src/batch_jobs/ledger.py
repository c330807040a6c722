"""The ledger: who may score an interval, what was staged for it, and what readers see.

An attempt claims an interval with an ordered token (a UUIDv7, so a later attempt has the higher
one). A lower token is refused from then on, at every step: claiming, staging a chunk, publishing.
Rows are staged under the run's own id, invisible; one short transaction checks the counts and moves
the pointer, forward only. The pattern is write-audit-publish with a fencing token
(https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html).
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from batch_jobs.errors import ConfigurationError, FencedError, IncompleteError
from batch_jobs.interval import Interval, due_between, floor_to_grid
from batch_jobs.warehouse import Warehouse, loaded_time, stored_time


@dataclass(frozen=True)
class Counts:
    """Where the rows that were read went; `read = scored + rejected + skipped`."""

    read: int = 0
    scored: int = 0
    rejected: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class Run:
    """One attempt at one interval of one model."""

    run_id: int
    model: str
    interval: Interval
    model_version: str
    mode: str
    state: str
    token: str
    error: str | None = None


@dataclass(frozen=True)
class Part:
    """The key range `[key_from, key_to)` that one scoring task reads; None is open-ended."""

    run_id: int
    part: int
    key_from: str | None
    key_to: str | None
    staged: bool
    counts: Counts


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


def find_run(warehouse: Warehouse, run_id: int) -> Run:
    """The run of that id.

    Raises:
        IncompleteError: the ledger has no such run.
    """
    with warehouse.read() as connection:
        return load_run(connection, run_id)


def published_run(warehouse: Warehouse, model: str, interval: Interval) -> Run | None:
    """The published run of exactly this interval, if there is one."""
    with warehouse.read() as connection:
        run_id = connection.scalar(
            text("""
                SELECT run_id FROM prediction_runs WHERE model = :model AND state = 'published'
                AND interval_start = :start AND interval_end = :end"""),
            span(model, interval),
        )
        return None if run_id is None else load_run(connection, run_id)


def gaps(
    warehouse: Warehouse,
    model: str,
    schedule: str,
    until: datetime,
    since: datetime | None = None,
) -> list[Interval]:
    """Due intervals that no published run covers, oldest first.

    An interval is due from the first one ever published on; before that there is no gap. If only
    a part of that one was published, its whole is due.

    Args:
        warehouse: where the ledger is.
        model: whose intervals.
        schedule: the cron grid of the intervals.
        until: intervals that end after this moment are not due yet.
        since: leave out intervals that start before this moment.
    """
    with warehouse.read() as connection:
        # Up to the watermark nothing is missing, so years of history need no second look.
        complete_until = connection.scalar(
            text("""
                SELECT CASE mode WHEN 'merge' THEN fresh_until ELSE due_from END
                FROM serving_heads WHERE model = :model"""),
            {"model": model},
        )
        if complete_until is None:
            return []
        left = max(filter(None, (floor_to_grid(schedule, loaded_time(complete_until)), since)))
        spans = [
            (loaded_time(row.interval_start), loaded_time(row.interval_end))
            for row in connection.execute(
                text("""
                    SELECT interval_start, interval_end FROM prediction_runs
                    WHERE model = :model AND state = 'published' AND interval_end > :left
                    ORDER BY interval_start"""),
                {"model": model, "left": stored_time(left)},
            )
        ]
    return list(_uncovered(due_between(schedule, left, until), spans))


def _uncovered(
    due: Iterable[Interval], spans: Sequence[tuple[datetime, datetime]]
) -> Iterator[Interval]:
    """The intervals not covered without a hole by the spans; both come sorted by start."""
    position = 0
    for interval in due:
        while position < len(spans) and spans[position][1] <= interval.start:
            position += 1
        reached = interval.start
        for place in range(position, len(spans)):
            start, end = spans[place]
            if start > reached or reached >= interval.end:
                break
            reached = max(reached, end)
        if reached < interval.end:
            yield interval


def fresh_until(warehouse: Warehouse, model: str) -> datetime | None:
    """The end of the newest interval up to which every due one is published, if any ever was."""
    with warehouse.read() as connection:
        stored = connection.scalar(
            text("SELECT fresh_until FROM serving_heads WHERE model = :model"), {"model": model}
        )
        return None if stored is None else loaded_time(stored)


def being_staged(warehouse: Warehouse, model: str, since: datetime) -> set[Interval]:
    """Intervals that another attempt has claimed after `since` and not yet finished."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT interval_start, interval_end FROM prediction_runs
                WHERE model = :model AND state = 'staging' AND claimed_at > :since"""),
            {"model": model, "since": stored_time(since)},
        )
        return {Interval.parse(row.interval_start, row.interval_end) for row in rows}


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
    owner = connection.scalar(
        text("SELECT token FROM run_parts WHERE run_id = :run_id AND part = :part"),
        {"run_id": part.run_id, "part": part.part},
    )
    if owner != token:
        raise FencedError(f"run {part.run_id} part {part.part}: a newer try is scoring this part")
    return run


def load_run(connection: Connection, run_id: int) -> Run:
    """Read one run inside the caller's transaction.

    Raises:
        IncompleteError: the ledger has no such run.
    """
    row = connection.execute(
        text("SELECT * FROM prediction_runs WHERE run_id = :run_id"), {"run_id": run_id}
    ).first()
    if row is None:
        raise IncompleteError(f"the ledger has no run {run_id}")
    return Run(
        run_id=row.run_id,
        model=row.model,
        interval=Interval.parse(row.interval_start, row.interval_end),
        model_version=row.model_version,
        mode=row.mode,
        state=row.state,
        token=row.token,
        error=row.error,
    )


def counts_of(row: Row[Any]) -> Counts:
    """The counts in a row that has the four `rows_…` columns."""
    return Counts(row.rows_read, row.rows_scored, row.rows_rejected, row.rows_skipped)


def span(model: str, interval: Interval) -> dict[str, str]:
    """The bound values `:model`, `:start` and `:end` of one interval."""
    return {
        "model": model,
        "start": stored_time(interval.start),
        "end": stored_time(interval.end),
    }
