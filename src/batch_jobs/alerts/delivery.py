"""Delivery: what waits in the outbox is sent to each channel, in order, while there is time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from uuid import uuid4

from batch_jobs.alerts import incidents, news, outbox, parcels, webhooks
from batch_jobs.alerts.channels import Channel
from batch_jobs.alerts.problems import EVENT
from batch_jobs.database.warehouse import Warehouse

log = logging.getLogger(__name__)


def collect(warehouse: Warehouse, channels: Iterable[Channel], now: datetime) -> None:
    """Write what is due by now: what was held back or muted and lasts, new champions, and events.

    Events are written where a channel is sent them.
    """
    incidents.tell_due(warehouse, now)
    news.write_promotions(warehouse, now)
    if any(EVENT in channel.severities for channel in channels):
        webhooks.write_events(warehouse, now)


def is_anything_waiting(warehouse: Warehouse, channels: Iterable[Channel], now: datetime) -> bool:
    """Whether any channel may be sent something now."""
    return any(
        parcels.waiting(warehouse, channel.name, channel.severities, now) for channel in channels
    )


def send_waiting(
    warehouse: Warehouse,
    channels: Iterable[Channel],
    seconds: float,
    now: Callable[[], datetime],
) -> int:
    """Send what waits, to each channel until it refuses; how many parcels were taken.

    Args:
        warehouse: with the outbox.
        channels: where to.
        seconds: how long this may take.
        now: what time it is.
    """
    deadline = time.monotonic() + seconds
    return sum(_send_to(warehouse, channel, deadline, now) for channel in channels)


def _send_to(
    warehouse: Warehouse, channel: Channel, deadline: float, now: Callable[[], datetime]
) -> int:
    holder, sent = str(uuid4()), 0
    if not parcels.waiting(warehouse, channel.name, channel.severities, now()):
        return 0
    if not outbox.take_hold(warehouse, channel.name, channel.severities, holder, now()):
        return 0
    while (left := deadline - time.monotonic()) > 1:
        parcel = parcels.next_parcel(warehouse, channel.name, channel.severities, now())
        if parcel is None:
            break
        answer = channel.way.send(parcel.message, left)
        if answer.problem is not None:
            outbox.mark_failed(warehouse, channel.name, parcel.ids, answer, now())
            log.warning("a message waits, %s did not take it: %s", channel.name, answer.problem)
            return sent
        outbox.mark_sent(warehouse, channel.name, parcel.ids, now())
        sent += 1
    outbox.release(warehouse, channel.name, holder)
    return sent
