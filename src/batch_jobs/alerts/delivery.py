"""Delivery: what waits in the outbox is sent, oldest first, while there is time."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from datetime import datetime

from batch_jobs.alerts import messages, outbox
from batch_jobs.alerts.messages import Incident
from batch_jobs.database.warehouse import Warehouse

log = logging.getLogger(__name__)


def send_waiting(
    warehouse: Warehouse,
    post: Callable[[str, float], str | None],
    seconds: float,
    now: Callable[[], datetime],
) -> None:
    """Send what waits, until something is not taken; that waits for the next run.

    Args:
        warehouse: with the outbox.
        post: sends a text within so many seconds; what was wrong if it was not taken.
        seconds: how long this may take.
        now: what time it is.
    """
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 1 and (waiting := outbox.claim(warehouse, now())):
        text = messages.delayed(waiting.text, waiting.created_at, now())
        problem = post(text, left)
        if problem is not None:
            outbox.mark_failed(warehouse, waiting, problem)
            log.warning("an alert waits for the next run, Slack did not take it: %s", problem)
            return
        outbox.mark_sent(warehouse, waiting, now())


def record_broken_file(
    warehouse: Warehouse, path: str, error: str, now: datetime, *, is_new: bool
) -> None:
    """Put a DAG file that does not load into the outbox: once, and then counted once an hour.

    Args:
        warehouse: with the outbox.
        path: the file.
        error: why it does not load, without secrets.
        now: what time it is.
        is_new: whether the file loaded until now, so that the incidents before are over.
    """
    # Process ids and addresses differ from one parse to the next; the error is the same.
    cause = re.sub(r"0x[0-9a-f]+|\d+", "#", error)
    # A file is parsed every 30 seconds; once an hour is enough to count.
    occurrence = now.isoformat() if is_new else f"{now:%Y-%m-%dT%H}"

    def compose(incident: Incident) -> str:
        return messages.file_failed(path, error, incident)

    if is_new:
        outbox.close_incidents(warehouse, [path], now)
    failure = outbox.Failure(f"import {path} {cause} {occurrence}", path, cause)
    outbox.record_failure(warehouse, failure, compose, now)
