"""What the outbox could not deliver, for `status`, the watch and whoever wonders."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from batch_jobs.alerts.mrkdwn import counted, moment
from batch_jobs.alerts.parcels import GIVE_UP
from batch_jobs.alerts.problems import EVENT
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse

SHOWN = timedelta(days=7)


@dataclass(frozen=True)
class Undelivered:
    """What a channel lacks.

    Attributes:
        channel: which; None if no channel was ever known.
        waiting: how many messages wait for it.
        oldest: when the oldest of them was written.
        refused_since: since when it has taken none; None if it did not refuse the last one.
        error: why it did not take the last one.
        next_try: when it is tried again.
        given_up: how many were given up in the last week.
    """

    channel: str | None
    waiting: int = 0
    oldest: datetime | None = None
    refused_since: datetime | None = None
    error: str | None = None
    next_try: datetime | None = None
    given_up: int = 0

    def __str__(self) -> str:
        what = "events" if (self.channel or "").startswith("webhook-") else "alerts"
        where = f"{what} to {self.channel}" if self.channel else "alerts, for want of a channel"
        parts = []
        if self.waiting:
            since = f" since {moment(self.oldest)}" if self.oldest else ""
            waits = "waits" if self.waiting == 1 else "wait"
            parts.append(f"{counted(self.waiting, 'message')} {waits}{since}")
        if self.error:
            parts.append(f"it was last refused with: {self.error}")
        if self.waiting and self.next_try:
            parts.append(f"it is tried again from {moment(self.next_try)} on")
        if self.given_up:
            days = GIVE_UP.days
            parts.append(f"{counted(self.given_up, 'message')} given up after {days} days")
        return f"{where}: {'; '.join(parts)}"


def undelivered(warehouse: Warehouse, now: datetime) -> list[Undelivered]:
    """What each channel lacks, of those that lack anything."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT c.channel, c.severities, c.refused_since, c.error, c.not_before,
                  count(CASE WHEN d.sent_at IS NULL AND d.given_up_at IS NULL
                             AND m.created_at > :oldest THEN 1 END) AS waiting,
                  min(CASE WHEN d.sent_at IS NULL AND d.given_up_at IS NULL
                           AND m.created_at > :oldest THEN m.created_at END) AS oldest,
                  count(CASE WHEN d.given_up_at > :shown THEN 1 END) AS given_up
                FROM outbox_channels AS c
                LEFT JOIN outbox_messages AS m
                  ON m.dropped_at IS NULL AND m.created_at >= c.since
                  AND c.severities LIKE '%' || m.severity || '%'
                LEFT JOIN outbox_deliveries AS d
                  ON d.message_id = m.message_id AND d.channel = c.channel
                GROUP BY c.channel, c.severities, c.refused_since, c.error, c.not_before
                ORDER BY c.channel"""),
            {"oldest": stored_time(now - GIVE_UP), "shown": stored_time(now - SHOWN)},
        ).all()
        found = [_of_row(row) for row in rows]
        if not any(row.severities != EVENT for row in rows):
            alone = connection.execute(
                text("""
                    SELECT count(*) AS waiting, min(created_at) AS oldest FROM outbox_messages
                    WHERE dropped_at IS NULL AND created_at > :oldest AND severity <> :event"""),
                {"oldest": stored_time(now - GIVE_UP), "event": EVENT},
            ).one()
            oldest = alone.oldest and loaded_time(alone.oldest)
            found.append(Undelivered(None, alone.waiting, oldest))
    return [each for each in found if each.waiting or each.given_up]


def _of_row(row: Any) -> Undelivered:
    return Undelivered(
        row.channel,
        row.waiting,
        row.oldest and loaded_time(row.oldest),
        row.refused_since and loaded_time(row.refused_since),
        row.error,
        row.not_before and loaded_time(row.not_before),
        row.given_up,
    )
