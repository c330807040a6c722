"""The one transaction after which readers see a run, whole, or still the one before."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, text

from batch_jobs.errors import IncompleteError
from batch_jobs.failpoints import failpoint
from batch_jobs.ledger import Counts, Run, counts_of, load_run, span
from batch_jobs.staging import require_owner
from batch_jobs.warehouse import Warehouse, stored_time


def publish(warehouse: Warehouse, run_id: int) -> Run:
    """Make a staged run visible; publishing a published run again changes nothing.

    Inside one transaction: the claim and the counts are checked once more, an earlier run of the
    same interval is superseded, and the pointer moves, never back: rows of an older interval do
    not replace rows of a newer one.

    Raises:
        FencedError: a newer attempt has claimed the interval.
        IncompleteError: a part is not staged, the counts do not add up, the run has failed, or it
            would replace the whole population by nothing.
    """
    with warehouse.write() as connection:
        run = require_owner(connection, run_id)
        if run.state != "staging":
            return run
        failpoint("publish.locked")
        counts = _audit(connection, run)
        failpoint("publish.audited")
        now = _after_the_last(connection, run.model)
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
            {**key, **vars(counts)},
        )
        if run.mode == "merge":
            _merge_rows(connection, key)
        failpoint("publish.before_pointer")
        _move_head(connection, run, key)
        failpoint("publish.before_commit")
        return load_run(connection, run_id)


def _audit(connection: Connection, run: Run) -> Counts:
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
    counts = sum((counts_of(part) for part in parts), Counts())
    stored = _stored(connection, run.run_id)
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
    return counts


def _stored(connection: Connection, run_id: int) -> Row[Any]:
    return connection.execute(
        text("""
            SELECT (SELECT count(*) FROM predictions WHERE run_id = :run_id) AS scored,
                   (SELECT count(*) FROM rejected_rows WHERE run_id = :run_id) AS rejected"""),
        {"run_id": run_id},
    ).one()


def _after_the_last(connection: Connection, model: str) -> str:
    """Now, but never before the newest publication: the history stays in order if a clock jumps."""
    now = stored_time(datetime.now(UTC))
    last = connection.scalar(
        text("SELECT max(published_at) FROM prediction_runs WHERE model = :model"),
        {"model": model},
    )
    return max(now, last or now)


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
                JOIN current_rows AS c ON c.model = :model AND c.entity_id = p.entity_id
                JOIN prediction_runs AS r ON r.run_id = c.run_id
                WHERE p.run_id = :run_id
                  AND (r.interval_end, r.interval_start) {compared} (:end, :start)"""),  # noqa: S608
            key,
        )
    connection.execute(
        text("""
            INSERT INTO current_rows (model, entity_id, run_id)
            SELECT :model, p.entity_id, :run_id
            FROM predictions AS p
            LEFT JOIN superseded_rows AS s ON s.run_id = p.run_id AND s.entity_id = p.entity_id
            WHERE p.run_id = :run_id AND s.run_id IS NULL
            ON CONFLICT (model, entity_id) DO UPDATE SET run_id = excluded.run_id"""),
        key,
    )


def _move_head(connection: Connection, run: Run, key: Mapping[str, Any]) -> None:
    head = connection.execute(text("SELECT * FROM serving_heads WHERE model = :model"), key).first()
    if head is not None and (head.interval_end, head.interval_start) > (key["end"], key["start"]):
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
            WHERE model = :model AND state = 'published'
              AND interval_start <= :reached AND interval_end > :reached"""),
        {**key, "reached": reached},
    ):
        reached = further
    connection.execute(
        text("UPDATE serving_heads SET fresh_until = :reached WHERE model = :model"),
        {**key, "reached": reached},
    )
