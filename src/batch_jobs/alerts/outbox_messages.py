"""The messages of the outbox, written in the transaction of what they are about."""

from __future__ import annotations

import json
from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam

from batch_jobs.alerts.problems import Event, Message, Served, Severity
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse

KEEP = timedelta(days=90)


def write(
    connection: Connection,
    key: str,
    message: Message,
    now: datetime,
    *,
    severity: Severity | Event,
    incident_id: int | None = None,
) -> bool:
    """Write a message that each channel is to be sent; False if one of that key is there already.

    Args:
        connection: of the transaction that also writes what the message is about.
        key: the stable id of the message.
        message: redacted and escaped.
        now: the time.
        severity: by which channels choose what they are sent.
        incident_id: the incident that it tells of.
    """
    added = connection.execute(
        text("""
            INSERT INTO outbox_messages
              (key, incident_id, severity, line, text, blocks, created_at)
            VALUES (:key, :incident_id, :severity, :line, :text, :blocks, :now)
            ON CONFLICT (key) DO NOTHING"""),
        {
            "key": key,
            "incident_id": incident_id,
            "severity": severity,
            "line": message.line,
            "text": message.text,
            "blocks": json.dumps([dict(block) for block in message.blocks]),
            "now": stored_time(now),
        },
    )
    _forget(connection, now - KEEP)
    return bool(added.rowcount == 1)


def write_alone(
    warehouse: Warehouse,
    key: str,
    message: Message,
    now: datetime,
    severity: Severity | Event = "news",
) -> bool:
    """As `write`, in a transaction of its own: of what is about no incident."""
    with warehouse.write() as connection:
        return write(connection, key, message, now, severity=severity)


def is_known_outside(connection: Connection, incident_ids: Collection[int]) -> bool:
    """Whether any channel has, may have, or is just being sent a message about these."""
    found = connection.scalar(
        text("""
            SELECT count(*) FROM outbox_deliveries AS d
            JOIN outbox_messages AS m ON m.message_id = d.message_id
            WHERE m.incident_id IN :ids
              AND (d.sent_at IS NOT NULL OR d.unanswered > 0
                   OR d.tried_at IS NOT NULL AND d.error IS NULL)
        """).bindparams(bindparam("ids", expanding=True)),
        {"ids": list(incident_ids)},
    )
    return bool(found)


def drop(connection: Connection, incident_ids: Collection[int], now: datetime) -> None:
    """Send nothing any more of what was written about these."""
    connection.execute(
        text("""
            UPDATE outbox_messages SET dropped_at = :now
            WHERE incident_id IN :ids AND dropped_at IS NULL
        """).bindparams(bindparam("ids", expanding=True)),
        {"ids": list(incident_ids), "now": stored_time(now)},
    )


def served(warehouse: Warehouse, model: str) -> Served | None:
    """What readers of a model's predictions see now; None if nothing was ever published."""
    with warehouse.read() as connection:
        return served_within(connection, model)


def served_within(connection: Connection, model: str | None) -> Served | None:
    """As `served`, in the transaction of the caller; None of no model."""
    row = connection.execute(
        text("""
            SELECT model_version, interval_start, interval_end, published_at, row_count
            FROM serving_status WHERE model = :model"""),
        {"model": model},
    ).one_or_none()
    if row is None:
        return None
    start, end, published = map(loaded_time, (row[1], row[2], row[3]))
    return Served(row.model_version, start, end, published, row.row_count)


def _forget(connection: Connection, before: datetime) -> None:
    """Remove what is older, whatever became of it; what waits is given up long before."""
    for statement in (
        "DELETE FROM outbox_messages WHERE created_at < :before",
        "DELETE FROM outbox_deliveries WHERE tried_at < :before",
    ):
        connection.execute(text(statement), {"before": stored_time(before)})
