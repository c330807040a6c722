"""The ledger: which runs there are, what came of their rows, and which intervals are missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from batch_jobs.database.connections import text
from batch_jobs.database.warehouse import Warehouse, loaded_time, repeatable, stored_time
from batch_jobs.errors import IncompleteError
from batch_jobs.interval import Interval, Volume, due_between, floor_to_grid
from batch_jobs.scoring.counts import Counts, counts_of

# An interval whose run was published is no gap, even if retention has removed the rows since.
COVERS = "state IN ('published', 'retired')"


@dataclass(frozen=True)
class Run:
    """One attempt at one interval of one model; counts are None until it is published."""

    run_id: int
    model: str
    interval: Interval
    model_version: str
    mode: str
    state: str
    token: str
    rows_table: str
    hindsight: bool = False
    accepted: str | None = None
    error: str | None = None
    counts: Counts | None = None
    published_at: datetime | None = None
    claimed_at: datetime | None = None  # or when its attempt was last heard of

    @property
    def is_done(self) -> bool:
        """Whether it was published, so that there is nothing left to score; it may be retired."""
        return self.state in ("published", "retired")

    def as_dict(self) -> dict[str, Any]:
        """The run as its row of the ledger: plain values under the names of `prediction_runs`."""
        plain = {
            "run_id": self.run_id,
            "model": self.model,
            "interval_start": self.interval.start.isoformat(),
            "interval_end": self.interval.end.isoformat(),
            "state": self.state,
            "model_version": self.model_version,
        }
        counts = {} if self.counts is None else asdict(self.counts)
        published = self.published_at and self.published_at.isoformat()
        return {
            **plain,
            **{f"rows_{name}": count for name, count in counts.items()},
            "published_at": published,
            "error": self.error,
        }


@dataclass(frozen=True)
class Part:
    """The key range `[key_from, key_to)` that one scoring task reads; None is open-ended."""

    run_id: int
    part: int
    key_from: str | None
    key_to: str | None
    staged: bool
    counts: Counts


@repeatable
def published_run(warehouse: Warehouse, model: str, interval: Interval) -> Run | None:
    """The run that was published last for exactly this interval, if any was; it may be retired."""
    with warehouse.read() as connection:
        run_id = connection.scalar(
            text(f"""
                SELECT run_id FROM prediction_runs WHERE model = :model AND {COVERS}
                AND interval_start = :start AND interval_end = :end
                ORDER BY published_at DESC, run_id DESC LIMIT 1"""),  # noqa: S608
            span(model, interval),
        )
        return None if run_id is None else load_run(connection, run_id)


@repeatable
def published_between(warehouse: Warehouse, model: str, span_: Interval) -> list[Run]:
    """The published runs whose interval touches a span and has not expired, oldest first."""
    with warehouse.read() as connection:
        found = connection.scalars(
            text("""
                SELECT run_id FROM prediction_runs WHERE model = :model AND state = 'published'
                AND superseded_at IS NULL AND interval_start < :end AND interval_end > :start
                ORDER BY interval_start, interval_end"""),
            span(model, span_),
        ).all()
        return [load_run(connection, run_id) for run_id in found]


@repeatable
def seen_of_version(warehouse: Warehouse, model: str, version: str) -> list[Run]:
    """The published runs of a model version of which readers still see a row, oldest first."""
    with warehouse.read() as connection:
        found = connection.scalars(
            text("""
                SELECT run_id FROM prediction_runs AS r
                WHERE model = :model AND state = 'published' AND model_version = :version
                AND superseded_at IS NULL
                AND (EXISTS (SELECT 1 FROM serving_heads AS h WHERE h.run_id = r.run_id)
                     OR EXISTS (SELECT 1 FROM current_rows AS c WHERE c.run_id = r.run_id))
                ORDER BY interval_start, interval_end"""),
            {"model": model, "version": version},
        ).all()
        return [load_run(connection, run_id) for run_id in found]


@repeatable
def find_run(warehouse: Warehouse, run_id: int) -> Run:
    """The run of that number; see `load_run`."""
    with warehouse.read() as connection:
        return load_run(connection, run_id)


@repeatable
def newest_attempt(warehouse: Warehouse, model: str, interval: Interval) -> Run:
    """The run of the attempt that has claimed exactly this interval last."""
    with warehouse.read() as connection:
        run_id = connection.scalar(
            text("""
                SELECT run_id FROM prediction_runs
                WHERE model = :model AND interval_start = :start AND interval_end = :end
                ORDER BY token DESC LIMIT 1"""),
            span(model, interval),
        )
        return load_run(connection, run_id)


@repeatable
def parts_of(warehouse: Warehouse, run_id: int) -> list[int]:
    """The numbers of a run's parts."""
    with warehouse.read() as connection:
        return list(
            connection.scalars(
                text("SELECT part FROM run_parts WHERE run_id = :run_id ORDER BY part"),
                {"run_id": run_id},
            )
        )


@repeatable
def rows_read_before(warehouse: Warehouse, run: Run, runs: int) -> list[int]:
    """How many rows the newest published runs of intervals before this one had read."""
    with warehouse.read() as connection:
        return list(
            connection.scalars(
                text(f"""
                    SELECT rows_read FROM prediction_runs
                    WHERE model = :model AND {COVERS} AND interval_start < :start
                    ORDER BY interval_start DESC LIMIT :runs"""),  # noqa: S608
                {**span(run.model, run.interval), "runs": runs},
            )
        )


@repeatable
def volumes(warehouse: Warehouse, run: Run, since: datetime) -> list[Volume]:
    """What was read for the published intervals that start from a moment on and before this run's.

    They come in the order of their starts, and may be of any length.
    """
    with warehouse.read() as connection:
        found = connection.execute(
            text(f"""
                SELECT interval_start, interval_end, rows_read FROM prediction_runs
                WHERE model = :model AND {COVERS}
                  AND interval_start >= :since AND interval_start < :start
                ORDER BY interval_start, interval_end"""),  # noqa: S608
            {**span(run.model, run.interval), "since": stored_time(since)},
        ).all()
    return [Volume(loaded_time(start), loaded_time(end), rows) for start, end, rows in found]


@repeatable
def gaps(
    warehouse: Warehouse,
    model: str,
    schedule: str,
    until: datetime,
    since: datetime | None = None,
) -> list[Interval]:
    """Due intervals that no run ever published covers, oldest first.

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
        spans = _covered(connection, model, left)
    return list(_uncovered(due_between(schedule, left, until), spans))


def _covered(
    connection: Connection, model: str, since: datetime
) -> list[tuple[datetime, datetime]]:
    """The spans of the intervals that are published and end after a moment, sorted by start."""
    rows = connection.execute(
        text(f"""
            SELECT interval_start, interval_end FROM prediction_runs
            WHERE model = :model AND {COVERS} AND interval_end > :since
            ORDER BY interval_start"""),  # noqa: S608
        {"model": model, "since": stored_time(since)},
    )
    return [(loaded_time(row.interval_start), loaded_time(row.interval_end)) for row in rows]


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


@repeatable
def fresh_until(warehouse: Warehouse, model: str) -> datetime | None:
    """The end of the newest interval up to which every due one is published, if any ever was."""
    with warehouse.read() as connection:
        stored = connection.scalar(
            text("SELECT fresh_until FROM serving_heads WHERE model = :model"), {"model": model}
        )
        return None if stored is None else loaded_time(stored)


@repeatable
def being_staged(warehouse: Warehouse, model: str, since: datetime) -> set[Interval]:
    """Intervals whose attempt was heard of after `since` and has not yet finished."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT interval_start, interval_end FROM prediction_runs
                WHERE model = :model AND state = 'staging' AND claimed_at > :since"""),
            {"model": model, "since": stored_time(since)},
        )
        return {_interval(row) for row in rows}


@repeatable
def refusals(warehouse: Warehouse, model: str, since: datetime) -> dict[Interval, str]:
    """What was asked of the intervals whose last attempt was refused, from a moment on."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT interval_start, interval_end, refused FROM prediction_runs AS r
                WHERE model = :model AND state = 'failed' AND refused IS NOT NULL
                  AND interval_start >= :since
                  AND NOT EXISTS (SELECT 1 FROM prediction_runs AS n WHERE n.model = r.model
                                  AND n.interval_start = r.interval_start
                                  AND n.interval_end = r.interval_end AND n.run_id > r.run_id)"""),
            {"model": model, "since": stored_time(since)},
        )
        return {_interval(row): row.refused for row in rows}


@repeatable
def unhealed(warehouse: Warehouse, model: str, since: datetime, heard: datetime) -> list[Interval]:
    """Intervals that somebody tried in vain and nobody has published, oldest first.

    Args:
        warehouse: where the ledger is.
        model: whose.
        since: leave out intervals that start before this moment.
        heard: an attempt that was not heard of since this moment has tried in vain.
    """
    key = {"model": model, "since": stored_time(since), "heard": stored_time(heard)}
    with warehouse.read() as connection:
        tried = connection.execute(
            text("""
                SELECT DISTINCT interval_start, interval_end, mode FROM prediction_runs
                WHERE model = :model AND interval_start >= :since
                  AND (state = 'failed' OR (state = 'staging' AND claimed_at < :heard))
                ORDER BY interval_start, interval_end"""),
            key,
        ).all()
        published = _covered(connection, model, since)
    newest = max((end for _, end in published), default=since)
    missing = _uncovered(map(_interval, tried), published)
    replaced = {_interval(row) for row in tried if row.mode == "replace"}
    return [gap for gap in missing if gap not in replaced or gap.end > newest]


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
        interval=_interval(row),
        model_version=row.model_version,
        mode=row.mode,
        state=row.state,
        token=row.token,
        rows_table=row.rows_table,
        hindsight=bool(row.hindsight),
        accepted=row.accepted,
        error=row.error,
        counts=None if row.published_at is None else counts_of(row),
        published_at=None if row.published_at is None else loaded_time(row.published_at),
        claimed_at=loaded_time(row.claimed_at),
    )


def _interval(row: Row[Any]) -> Interval:
    return Interval(loaded_time(row.interval_start), loaded_time(row.interval_end))


def span(model: str, interval: Interval) -> dict[str, str]:
    """The bound values `:model`, `:start` and `:end` of one interval."""
    return {
        "model": model,
        "start": stored_time(interval.start),
        "end": stored_time(interval.end),
    }
