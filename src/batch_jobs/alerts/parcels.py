"""Parcels: what a channel is sent next, one message or several that had to wait."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, bindparam

from batch_jobs.alerts import delivery_words
from batch_jobs.alerts.outbox import LEASE, LONGEST_PAUSE
from batch_jobs.alerts.problems import EVENT, Message
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse

SENT_AGAIN = 1  # how often what may have arrived is sent again
GIVE_UP = timedelta(days=3)
# After an outage, more messages than these are put together, if they are not of what still lasts.
BURST = 4
MOST_OPEN = 8


@dataclass(frozen=True)
class Parcel:
    """What the holder of a channel alone may send.

    Attributes:
        ids: of the messages in it, and of those that it mentions.
        key: the stable id of its first message.
        message: what to send.
    """

    ids: tuple[int, ...]
    key: str
    message: Message


_WAITING = """
    FROM outbox_messages AS m
    LEFT JOIN outbox_channels AS c ON c.channel = :channel
    LEFT JOIN outbox_deliveries AS d ON d.message_id = m.message_id AND d.channel = :channel
    LEFT JOIN incident_rows AS i ON i.incident_id = m.incident_id
    WHERE m.dropped_at IS NULL AND m.severity IN :severities
      AND (c.since IS NULL OR m.created_at >= c.since)
      AND d.sent_at IS NULL AND d.given_up_at IS NULL
"""


def _select(columns: str, rest: str = "") -> Any:
    return text(f"SELECT {columns} {_WAITING} {rest}").bindparams(
        bindparam("severities", expanding=True)
    )


def waiting(warehouse: Warehouse, channel: str, severities: Collection[str], now: datetime) -> int:
    """How many messages may be sent to a channel now."""
    with warehouse.read() as connection:
        rests: Any = connection.scalar(
            text("SELECT not_before FROM outbox_channels WHERE channel = :channel"),
            {"channel": channel},
        )
        if rests is not None and now < loaded_time(rests) < now + 2 * LONGEST_PAUSE:
            return 0
        found = connection.scalar(
            _select("count(*)", "AND COALESCE(d.unanswered, 0) <= :again"),
            {"channel": channel, "severities": list(severities), "again": SENT_AGAIN},
        )
    return int(found or 0)


def next_parcel(
    warehouse: Warehouse, channel: str, severities: Collection[str], now: datetime
) -> Parcel | None:
    """What to send next to a channel that one holds; None if nothing waits.

    It is noted as tried, before it is sent: if the sender dies, somebody sends it again.
    """
    with warehouse.write() as connection:
        _give_up(connection, channel, severities, now)
        rows = connection.execute(
            _select(
                """m.message_id, m.key, m.severity, m.line, m.text, m.blocks, m.created_at,
                   COALESCE(d.unanswered, 0) AS unanswered,
                   CASE WHEN i.incident_id IS NOT NULL AND i.resolved_at IS NULL
                        THEN 1 ELSE 0 END AS is_open""",
                # What is never taken stands in nobody's way.
                """ORDER BY CASE WHEN d.attempts >= 10
                     OR d.attempts >= 3 AND d.error LIKE 'Slack answered 400%'
                     THEN 1 ELSE 0 END, m.message_id""",
            ),
            {"channel": channel, "severities": list(severities)},
        ).all()
        found = [row for row in rows if row.unanswered <= SENT_AGAIN]
        if not found:
            return None
        mentioned = [row for row in rows if row.unanswered > SENT_AGAIN]
        parcel = _parcel(found, mentioned, now)
        _note_try(connection, channel, parcel.ids, now)
    return parcel


def _parcel(found: list[Any], mentioned: list[Any], now: datetime) -> Parcel:
    if found[0].severity == EVENT:  # programs read it: each alone, and nothing else beside it
        only = found[0]
        return Parcel((only.message_id,), only.key, Message(only.line, only.text))
    chosen = _chosen(found, now)
    first = chosen[0]
    created_at = min(loaded_time(row.created_at) for row in chosen)
    if len(chosen) == 1:
        message = Message(first.line, first.text, tuple(json.loads(first.blocks)))
        message = delivery_words.late(message, created_at, now)
    else:
        message = delivery_words.together([row.line for row in chosen], created_at, now)
    message = delivery_words.doubtful(message, [row.line for row in mentioned])
    return Parcel(tuple(row.message_id for row in [*chosen, *mentioned]), first.key, message)


def _chosen(found: list[Any], now: datetime) -> list[Any]:
    """The first; or, of many that had to wait, all that tell of what is over or was news."""
    oldest = min(loaded_time(row.created_at) for row in found)
    if len(found) >= BURST and now - oldest >= delivery_words.LATE:
        lasting = sum(row.is_open for row in found)
        over = [row for row in found if not row.is_open or lasting > MOST_OPEN]
        if len(over) > 1:
            return over
    return found[:1]


def _note_try(connection: Connection, channel: str, ids: Collection[int], now: datetime) -> None:
    connection.execute(
        text("""
            INSERT INTO outbox_deliveries (message_id, channel, attempts, tried_at)
            VALUES (:id, :channel, 1, :now)
            ON CONFLICT (message_id, channel) DO UPDATE
            SET attempts = outbox_deliveries.attempts + 1, tried_at = excluded.tried_at,
                error = NULL"""),
        [{"id": each, "channel": channel, "now": stored_time(now)} for each in ids],
    )
    connection.execute(
        text("UPDATE outbox_channels SET held_until = :until WHERE channel = :channel"),
        {"channel": channel, "until": stored_time(now + LEASE)},
    )


def _give_up(
    connection: Connection, channel: str, severities: Collection[str], now: datetime
) -> None:
    old = connection.execute(
        _select("m.message_id", "AND m.created_at <= :oldest"),
        {
            "channel": channel,
            "severities": list(severities),
            "oldest": stored_time(now - GIVE_UP),
        },
    ).scalars()
    rows = [{"id": each, "channel": channel, "now": stored_time(now)} for each in old]
    if rows:
        connection.execute(
            text("""
                INSERT INTO outbox_deliveries (message_id, channel, given_up_at)
                VALUES (:id, :channel, :now)
                ON CONFLICT (message_id, channel) DO UPDATE SET given_up_at = :now"""),
            rows,
        )
