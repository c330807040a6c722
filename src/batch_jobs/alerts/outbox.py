"""The outbox: alerts wait in the warehouse until Slack has them.

A message is recorded first and sent afterwards, so what could not be sent is sent by the next run.
A sender leases a message for a moment; if it dies, the message waits again. Delivery is therefore
at least once (https://microservices.io/patterns/data/transactional-outbox.html). After a refusal
nobody asks Slack for 30 seconds, so that many callbacks in a row do not each wait for it.

Failures of one subject (a DAG, a file) with one cause are one incident until the subject works
again: the first is told, the others are counted, and reminders come after 1 h, 4 h, then daily.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam

from batch_jobs.alerts.messages import Incident, Served
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.redaction import first_line

LEASE = timedelta(seconds=30)
REMINDERS = (timedelta(hours=1), timedelta(hours=4), timedelta(days=1))
GIVE_UP = timedelta(days=3)
KEEP = timedelta(days=90)


@dataclass(frozen=True)
class Failure:
    """One failure of one subject.

    Attributes:
        key: names this one occurrence, however often and from wherever it is reported.
        subject: the DAG or file that failed.
        cause: failures of one subject and one cause are one incident.
    """

    key: str
    subject: str
    cause: str


@dataclass(frozen=True)
class Pending:
    """A message that the holder of this object alone may send until the lease ends."""

    key: str
    text: str
    created_at: datetime


def record_failure(
    warehouse: Warehouse, failure: Failure, compose: Callable[[Incident], str], now: datetime
) -> bool:
    """Count a failure in its incident; True if a message about it now waits to be sent.

    Args:
        warehouse: where the outbox is.
        failure: what failed; a second report with the same key changes nothing.
        compose: makes the message, from the incident including this failure.
        now: the time of the failure.
    """
    found = {"subject": failure.subject, "cause": failure.cause}
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, f"alerts of {failure.subject}")
        known = text("SELECT 1 FROM alerts WHERE key = :key")
        if connection.scalar(known, {"key": failure.key}) is not None:
            return False
        earlier = connection.execute(
            text("""
                SELECT count(*) AS failures, count(text) AS told, min(created_at) AS since,
                       max(CASE WHEN text IS NOT NULL THEN created_at END) AS told_at
                FROM alerts
                WHERE subject = :subject AND cause = :cause AND closed_at IS NULL
            """),
            found,
        ).one()
        due = not earlier.told or now - loaded_time(earlier.told_at) >= _gap(earlier.told)
        since = loaded_time(earlier.since) if earlier.failures else now
        message = compose(Incident(earlier.failures + 1, since)) if due else None
        connection.execute(
            text("""
                INSERT INTO alerts (key, subject, cause, text, created_at)
                VALUES (:key, :subject, :cause, :text, :now)
            """),
            {**found, "key": failure.key, "text": message, "now": stored_time(now)},
        )
        _forget_old(connection, now)
    return due


def _gap(told: int) -> timedelta:
    return REMINDERS[min(told, len(REMINDERS)) - 1]


def record(warehouse: Warehouse, key: str, message: str, now: datetime) -> bool:
    """Put a message into the outbox once per key; False if the key is already known."""
    with warehouse.write() as connection:
        added = connection.execute(
            text("""
                INSERT INTO alerts (key, text, created_at) VALUES (:key, :text, :now)
                ON CONFLICT (key) DO NOTHING
            """),
            {"key": key, "text": message, "now": stored_time(now)},
        )
        _forget_old(connection, now)
        return added.rowcount == 1


def _forget_old(connection: Connection, now: datetime) -> None:
    """Remove what is older than `KEEP`, but for when an incident began that goes on."""
    connection.execute(
        text("""
            DELETE FROM alerts
            WHERE created_at < :old
              AND (closed_at IS NOT NULL OR subject IS NULL
                   OR EXISTS (SELECT 1 FROM alerts AS first
                              WHERE first.subject = alerts.subject AND first.cause = alerts.cause
                                AND first.closed_at IS NULL
                                AND first.created_at < alerts.created_at))"""),
        {"old": stored_time(now - KEEP)},
    )


def close_incidents(
    warehouse: Warehouse,
    subjects: Sequence[str],
    now: datetime,
    recovery: tuple[str, Callable[[Incident], str]] | None = None,
) -> bool:
    """End the open incidents of the subjects, because they work again; False if there were none.

    Args:
        warehouse: where the outbox is.
        subjects: the DAG and its file.
        now: when it worked again.
        recovery: key of the message that says so, and how to make it from all the incidents
            together; None to close without a word.
    """
    search: dict[str, Any] = {"subjects": list(subjects), "now": stored_time(now)}
    of_subjects = text("""
        SELECT count(*) AS failures, min(created_at) AS since
        FROM alerts WHERE subject IN :subjects AND closed_at IS NULL
    """).bindparams(bindparam("subjects", expanding=True))
    with warehouse.read() as connection:  # most successes follow a success: take no write lock
        if not connection.execute(of_subjects, search).one().failures:
            return False
    with warehouse.write() as connection:
        for subject in sorted(subjects):
            warehouse.database.lock_model(connection, f"alerts of {subject}")
        found = connection.execute(of_subjects, search).one()
        if not found.failures:
            return False
        connection.execute(
            text("""
                UPDATE alerts SET closed_at = :now WHERE subject IN :subjects AND closed_at IS NULL
            """).bindparams(bindparam("subjects", expanding=True)),
            search,
        )
        if recovery is not None:
            key, compose = recovery
            message = compose(Incident(found.failures, loaded_time(found.since)))
            connection.execute(
                text("""
                    INSERT INTO alerts (key, text, created_at) VALUES (:key, :text, :now)
                    ON CONFLICT (key) DO NOTHING
                """),
                {"key": key, "text": message, "now": stored_time(now)},
            )
        _forget_old(connection, now)
    return True


_WAITING = """
    text IS NOT NULL AND sent_at IS NULL AND created_at > :oldest
    AND (claimed_at IS NULL OR claimed_at <= :expired)
    AND NOT EXISTS (SELECT 1 FROM alerts AS refused WHERE refused.sent_at IS NULL
                    AND refused.error IS NOT NULL AND refused.claimed_at > :expired)
"""
# A message that Slack will never take stands in nobody's way.
_ORDER = "attempts >= 10, created_at"


def waiting(warehouse: Warehouse, now: datetime) -> int:
    """How many messages may be sent now."""
    with warehouse.read() as connection:
        found = connection.scalar(
            text(f"SELECT count(*) FROM alerts WHERE {_WAITING}"),  # noqa: S608 - a constant
            _limits(now),
        )
    return int(found or 0)


def claim(warehouse: Warehouse, now: datetime) -> Pending | None:
    """Lease the oldest waiting message for 30 seconds; None if there is none."""
    with warehouse.write() as connection:
        row = connection.execute(
            text(f"""
                UPDATE alerts SET claimed_at = :now, attempts = attempts + 1
                WHERE key = (SELECT key FROM alerts WHERE {_WAITING} ORDER BY {_ORDER} LIMIT 1
                             {warehouse.database.free_for_update})
                RETURNING key, text, created_at
            """),  # noqa: S608 - a constant
            {**_limits(now), "now": stored_time(now)},
        ).one_or_none()
    return Pending(row.key, row.text, loaded_time(row.created_at)) if row else None


def _limits(now: datetime) -> dict[str, str]:
    return {"oldest": stored_time(now - GIVE_UP), "expired": stored_time(now - LEASE)}


def mark_sent(warehouse: Warehouse, pending: Pending, now: datetime) -> None:
    """Note that Slack has the message."""
    with warehouse.write() as connection:
        connection.execute(
            text("UPDATE alerts SET sent_at = :now, error = NULL WHERE key = :key"),
            {"key": pending.key, "now": stored_time(now)},
        )


def mark_failed(warehouse: Warehouse, pending: Pending, error: str) -> None:
    """Note why the message could not be sent; when its lease ends, it may be tried again."""
    with warehouse.write() as connection:
        connection.execute(
            text("UPDATE alerts SET error = :error WHERE key = :key"),
            {"key": pending.key, "error": first_line(error)},
        )


def served(warehouse: Warehouse, model: str) -> Served | None:
    """What readers of a model's predictions see now; None if nothing was ever published."""
    with warehouse.read() as connection:
        row = connection.execute(
            text("""
                SELECT model_version, interval_start, interval_end, published_at, row_count
                FROM serving_status WHERE model = :model
            """),
            {"model": model},
        ).one_or_none()
    if row is None:
        return None
    start, end, published = map(loaded_time, (row[1], row[2], row[3]))
    return Served(row.model_version, start, end, published, row.row_count)
