"""Which intervals are published, which are missing, and how many rows each had."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from sqlalchemy import Connection

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval, Volume, due_between, floor_to_grid
from batch_jobs.runs.ledger import COVERS, Run, interval_of, span


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
def volumes(warehouse: Warehouse, model: str, before: datetime, since: datetime) -> list[Volume]:
    """What was read for the published intervals that start before a moment and from another one on.

    They come in the order of their starts, and may be of any length.
    """
    with warehouse.read() as connection:
        found = connection.execute(
            text(f"""
                SELECT interval_start, interval_end, rows_read FROM prediction_runs
                WHERE model = :model AND {COVERS}
                  AND interval_start >= :since AND interval_start < :before
                ORDER BY interval_start, interval_end"""),  # noqa: S608
            {"model": model, "since": stored_time(since), "before": stored_time(before)},
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
        return {interval_of(row) for row in rows}


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
        return {interval_of(row): row.refused for row in rows}


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
    missing = _uncovered(map(interval_of, tried), published)
    replaced = {interval_of(row) for row in tried if row.mode == "replace"}
    return [gap for gap in missing if gap not in replaced or gap.end > newest]
