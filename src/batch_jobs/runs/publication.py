"""Publish: audit what is staged, then one short transaction after which readers see it, whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import first_words, loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import IncompleteError
from batch_jobs.failpoints import failpoint
from batch_jobs.runs.audit import Staged, audit, seal, staged_by_parts
from batch_jobs.runs.fencing import require_owner
from batch_jobs.runs.ledger import Run, load_run, span

log = logging.getLogger(__name__)


def publish(
    warehouse: Warehouse, run_id: int, inspect: Callable[[Run, Staged], None] | None = None
) -> Run:
    """Make a staged run visible; publishing a published run again changes nothing.

    The rows are counted, and inspected, before anybody is locked out. Then, inside one transaction:
    the claim and the counts are checked once more, an earlier run of the same interval is
    superseded, and the pointer moves, never back: rows of an older interval do not replace rows
    of a newer one.

    Args:
        warehouse: where the run is staged.
        run_id: which run.
        inspect: raises if what is staged should not be seen, although it is complete.

    Raises:
        FencedError: a newer attempt has claimed the interval.
        IncompleteError: a part is not staged, the counts do not add up, the run has failed, or it
            would replace the whole population by nothing.
        sqlalchemy.exc.IntegrityError: an entity is in the run twice.
    """
    run = seal(warehouse, run_id)
    failpoint("publish.sealed")
    if run.state == "staging":
        staged = audit(warehouse, run)
        if inspect is not None:
            inspect(run, staged)
        failpoint("publish.audited")
        if run.has_own_table:
            _attach(warehouse, run_id)
        failpoint("publish.attached")
        if run.has_own_table:
            _let_all_reach(warehouse, run)
        failpoint("publish.reached")
        run = _publish(warehouse, run, staged)
    failpoint("publish.committed")
    if run.mode == "replace":
        _set_aside(warehouse)
    return run


@repeatable
def _attach(warehouse: Warehouse, run_id: int) -> None:
    with warehouse.write() as connection:
        run = require_owner(warehouse, connection, run_id, lock=True)
        warehouse.database.rows.attach(connection, run_id, run.rows_table)


def _let_all_reach(warehouse: Warehouse, run: Run) -> None:
    """Let every reader find the rows as soon as the pointer moves, whatever it looked at before."""
    if _is_reached_by_all(warehouse):
        return
    log.warning(
        "run %d of %s: a transaction that has looked at predictions stays open; the rows are "
        "copied to the table that it knows",
        run.run_id,
        run.model,
    )
    _share(warehouse, run.run_id)


@repeatable
def _is_reached_by_all(warehouse: Warehouse) -> bool:
    return warehouse.database.rows.is_reached_by_all()


@repeatable
def _share(warehouse: Warehouse, run_id: int) -> None:
    with warehouse.write() as connection:
        run = require_owner(warehouse, connection, run_id, lock=True)
        if not run.has_own_table:
            return
        warehouse.database.rows.share(connection, run.rows_table)
        connection.execute(
            text("UPDATE prediction_runs SET rows_table = :shared WHERE run_id = :run_id"),
            {"shared": warehouse.database.rows.shared, "run_id": run_id},
        )


@repeatable
def _publish(warehouse: Warehouse, sealed: Run, audited: Staged) -> Run:
    run_id, model = sealed.run_id, sealed.model
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, model)
        run = require_owner(warehouse, connection, run_id, lock=True)
        failpoint("publish.locked")
        if run.state != "staging":
            return run
        if staged_by_parts(connection, run) != audited:
            raise IncompleteError(
                f"run {run_id} of {model} {run.interval} changed after it was audited"
            )
        now = after_the_last(connection, run.model)
        key = {**span(run.model, run.interval), "run_id": run_id, "now": now}
        connection.execute(
            text("""
                UPDATE prediction_runs
                SET state = 'superseded', superseded_at = COALESCE(superseded_at, :now)
                WHERE model = :model AND interval_start = :start AND interval_end = :end
                  AND state = 'published'"""),
            key,
        )
        connection.execute(
            text("""
                UPDATE prediction_runs SET state = 'published', published_at = :now,
                  rows_read = :read, rows_scored = :scored, rows_rejected = :rejected,
                  rows_skipped = :skipped
                WHERE run_id = :run_id"""),
            {**key, **vars(audited.counts)},
        )
        if run.mode == "merge":
            _merge_rows(connection, key)
        failpoint("publish.before_pointer")
        _move_head(connection, run, key)
        failpoint("publish.before_commit")
        return load_run(connection, run_id)


def after_the_last(connection: Connection, model: str) -> str:
    """Now, but never before the newest publication: the history stays in order if a clock jumps."""
    now = clock.now()
    last = connection.scalar(
        text("""
            SELECT max(published_at) FROM prediction_runs
            WHERE model = :model AND published_at IS NOT NULL"""),
        {"model": model},
    )
    return stored_time(max(now, loaded_time(last)) if last else now)


def _merge_rows(connection: Connection, key: Mapping[str, Any]) -> None:
    """Let the run's rows join the current ones: per entity, the newest interval wins."""
    connection.execute(
        text("""
            DELETE FROM current_rows WHERE run_id IN
            (SELECT run_id FROM prediction_runs WHERE model = :model AND state = 'superseded'
             AND interval_start = :start AND interval_end = :end)"""),
        key,
    )
    for loser, compared in (("p.run_id", ">"), ("c.run_id", "<")):
        connection.execute(
            text(f"""
                INSERT INTO superseded_rows (run_id, entity_id, superseded_at)
                SELECT {loser}, p.entity_id, :now
                FROM predictions AS p
                -- In this order: SQLite would begin with every run there ever was.
                CROSS JOIN current_rows AS c CROSS JOIN prediction_runs AS r
                WHERE p.run_id = :run_id AND c.model = :model AND c.entity_id = p.entity_id
                  AND r.run_id = c.run_id AND r.superseded_at IS NULL
                  AND (r.interval_end, r.interval_start) {compared} (:end, :start)"""),  # noqa: S608
            key,
        )
    connection.execute(
        text("""
            INSERT INTO current_rows (model, entity_id, run_id)
            SELECT :model, p.entity_id, p.run_id
            FROM predictions AS p
            LEFT JOIN superseded_rows AS s ON s.run_id = p.run_id AND s.entity_id = p.entity_id
            WHERE p.run_id = :run_id AND s.run_id IS NULL
            ON CONFLICT (model, entity_id) DO UPDATE SET run_id = excluded.run_id"""),
        key,
    )


def _move_head(connection: Connection, run: Run, key: Mapping[str, Any]) -> None:
    head = connection.execute(text("SELECT * FROM serving_heads WHERE model = :model"), key).first()
    newest = head and (loaded_time(head.interval_end), loaded_time(head.interval_start))
    if newest and newest > (run.interval.end, run.interval.start):
        if run.mode == "replace":
            _never_shown(connection, key)
    else:
        if head is not None and run.mode == "replace":
            connection.execute(
                text("""
                    UPDATE prediction_runs SET superseded_at = :now
                    WHERE run_id = :old AND superseded_at IS NULL"""),
                {"old": head.run_id, "now": key["now"]},
            )
        connection.execute(
            text("""
                INSERT INTO serving_heads (model, mode, run_id, interval_start, interval_end,
                  published_at, due_from, fresh_until)
                VALUES (:model, :mode, :run_id, :start, :end, :now, :start, :end)
                ON CONFLICT (model) DO UPDATE SET mode = excluded.mode, run_id = excluded.run_id,
                  interval_start = excluded.interval_start, interval_end = excluded.interval_end,
                  published_at = excluded.published_at"""),
            {**key, "mode": run.mode},
        )
    _advance_watermark(connection, run, key)


def _set_aside(warehouse: Warehouse) -> None:
    """Tidy up after a publication, which has succeeded whatever comes of it."""
    try:
        warehouse.database.rows.set_aside()
    except DBAPIError as error:
        log.warning("superseded tables stay in the way of look-ups: %s", first_words(error))


def _never_shown(connection: Connection, key: Mapping[str, Any]) -> None:
    connection.execute(
        text("UPDATE prediction_runs SET superseded_at = :now WHERE run_id = :run_id"), key
    )


def _advance_watermark(connection: Connection, run: Run, key: Mapping[str, Any]) -> None:
    """Move `fresh_until` over every published interval that joins it.

    In replace mode the newest run alone is what readers see, so its end is the watermark.
    """
    if run.mode == "replace":
        connection.execute(
            text("UPDATE serving_heads SET fresh_until = interval_end WHERE model = :model"), key
        )
        return
    reached = connection.scalar(
        text("SELECT fresh_until FROM serving_heads WHERE model = :model"), key
    )
    while further := connection.scalar(
        text("""
            SELECT max(interval_end) FROM prediction_runs
            WHERE model = :model AND state IN ('published', 'retired')
              AND interval_end > :reached
              -- Not by its index, which would lead through every older run.
              AND NOT interval_start > :reached"""),
        {**key, "reached": reached},
    ):
        reached = further
    connection.execute(
        text("UPDATE serving_heads SET fresh_until = :reached WHERE model = :model"),
        {**key, "reached": reached},
    )
