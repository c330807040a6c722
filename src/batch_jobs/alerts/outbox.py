"""The outbox: messages wait in the warehouse until each channel has them.

A message is written first and sent afterwards, so what could not be sent is sent by whoever comes
next. One sender at a time holds a channel, for a moment: so messages arrive in their order, a
recovery after its failure; a sender that dies gives way to another one, and delivery is at least
once (https://microservices.io/patterns/data/transactional-outbox.html). After a refusal nobody asks
the channel for a while that grows, or for as long as it says. A message that was sent and not
answered may have arrived: it is sent once more, ten minutes later, and from then on only mentioned.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection, bindparam

from batch_jobs.alerts.problems import EVENT
from batch_jobs.alerts.slack import Answer
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.redaction import first_line

LEASE = timedelta(seconds=30)
PAUSES = tuple(timedelta(seconds=each) for each in (30, 60, 120, 300, 600))
UNANSWERED_PAUSE = timedelta(minutes=10)
LONGEST_PAUSE = timedelta(hours=1)
EVENTS_BEFORE = timedelta(hours=1)  # that a program is told of when it is told for the first time


def take_hold(
    warehouse: Warehouse, channel: str, severities: Collection[str], holder: str, now: datetime
) -> bool:
    """Hold a channel for 30 seconds; False if somebody else does, or it rests after a refusal."""
    with warehouse.write() as connection:
        _know(connection, channel, severities, now)
        held = connection.execute(
            text("""
                UPDATE outbox_channels SET held_by = :holder, held_until = :until
                WHERE channel = :channel
                  AND (held_until IS NULL OR held_until <= :now OR held_until > :far)
                  AND (not_before IS NULL OR not_before <= :now OR not_before > :farthest)"""),
            {
                "channel": channel,
                "holder": holder,
                "now": stored_time(now),
                "until": stored_time(now + LEASE),
                # Of a clock that ran backwards since.
                "far": stored_time(now + 2 * LEASE),
                "farthest": stored_time(now + 2 * LONGEST_PAUSE),
            },
        )
        return bool(held.rowcount == 1)


def release(warehouse: Warehouse, channel: str, holder: str) -> None:
    """Let others hold the channel."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE outbox_channels SET held_by = NULL, held_until = NULL
                WHERE channel = :channel AND held_by = :holder"""),
            {"channel": channel, "holder": holder},
        )


def wake(warehouse: Warehouse, channel: str) -> None:
    """Let a channel that rests be tried now: somebody says that it was mended."""
    with warehouse.write() as connection:
        connection.execute(
            text("UPDATE outbox_channels SET not_before = NULL WHERE channel = :channel"),
            {"channel": channel},
        )


def _know(connection: Connection, channel: str, severities: Collection[str], now: datetime) -> None:
    """Know a channel from now on; the first one for people is also sent what waits since before."""
    if EVENT in severities:
        since = now - EVENTS_BEFORE
    else:
        before = text("SELECT count(*) FROM outbox_channels WHERE severities <> :event")
        known = connection.scalar(before, {"event": EVENT})
        since = now if known else datetime(1970, 1, 1, tzinfo=UTC)
    connection.execute(
        text("""
            INSERT INTO outbox_channels (channel, since, severities)
            VALUES (:channel, :since, :severities)
            ON CONFLICT (channel) DO UPDATE SET severities = excluded.severities"""),
        {
            "channel": channel,
            "since": stored_time(since),
            "severities": " ".join(sorted(severities)),
        },
    )


def mark_sent(warehouse: Warehouse, channel: str, ids: Collection[int], now: datetime) -> None:
    """Note that a channel has these messages."""
    with warehouse.write() as connection:
        mark_sent_within(connection, channel, ids, now)
        connection.execute(
            text("""
                UPDATE outbox_channels SET refusals = 0, refused_since = NULL, error = NULL,
                  not_before = NULL WHERE channel = :channel"""),
            {"channel": channel},
        )


def mark_sent_within(
    connection: Connection, channel: str, ids: Collection[int], now: datetime
) -> None:
    """Note that a channel has these messages, in the transaction of the caller."""
    connection.execute(
        text("""
            INSERT INTO outbox_deliveries (message_id, channel, attempts, tried_at, sent_at)
            VALUES (:id, :channel, 1, :now, :now)
            ON CONFLICT (message_id, channel) DO UPDATE SET sent_at = :now, error = NULL"""),
        [{"id": each, "channel": channel, "now": stored_time(now)} for each in ids],
    )


def mark_failed(
    warehouse: Warehouse, channel: str, ids: Collection[int], answer: Answer, now: datetime
) -> None:
    """Note why a channel did not take these messages, and let it rest."""
    error = first_line(answer.problem or "no reason given")
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE outbox_deliveries SET error = :error, unanswered = unanswered + :unanswered
                WHERE channel = :channel AND message_id IN :ids
            """).bindparams(bindparam("ids", expanding=True)),
            {
                "channel": channel,
                "ids": list(ids),
                "error": error,
                "unanswered": int(answer.is_unanswered),
            },
        )
        refusals = connection.scalar(
            text("SELECT refusals FROM outbox_channels WHERE channel = :channel"),
            {"channel": channel},
        )
        connection.execute(
            text("""
                UPDATE outbox_channels SET refusals = refusals + 1, error = :error,
                  refused_since = COALESCE(refused_since, :now), not_before = :not_before,
                  held_by = NULL, held_until = NULL
                WHERE channel = :channel"""),
            {
                "channel": channel,
                "error": error,
                "now": stored_time(now),
                "not_before": stored_time(now + _rest(answer, int(refusals or 0))),
            },
        )


def _rest(answer: Answer, refusals: int) -> timedelta:
    if answer.is_unanswered:
        return UNANSWERED_PAUSE
    asked = timedelta(seconds=min(answer.pause or 0, LONGEST_PAUSE.total_seconds()))
    return max(asked, PAUSES[min(refusals, len(PAUSES) - 1)])
