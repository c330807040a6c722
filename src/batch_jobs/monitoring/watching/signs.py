"""The watch's own sign of life, and what it remembers from one look to the next.

Both are a row of the warehouse, so that looks by cron remember, too, and so that whoever reads the
warehouse, or asks the prediction API whether it is ready, sees when the watch was heard of last.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.redaction import redact

NAME = "watch"
FORGOTTEN_AFTER = timedelta(days=7)  # a host that is no more


def beat(warehouse: Warehouse, now: datetime, every: timedelta | None) -> None:
    """Say that the watch of this host begins a look.

    Args:
        warehouse: where to.
        now: the moment.
        every: until the next look; None if nobody here knows.
    """
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO signs_of_life (name, host, seen_at, every_seconds)
                VALUES (:name, :host, :now, :every)
                ON CONFLICT (name, host) DO UPDATE
                SET seen_at = excluded.seen_at, every_seconds = excluded.every_seconds"""),
            {
                **_key(),
                "now": stored_time(now),
                "every": None if every is None else max(1, int(every.total_seconds())),
            },
        )
        connection.execute(
            text("DELETE FROM signs_of_life WHERE seen_at < :old"),
            {"old": stored_time(now - FORGOTTEN_AFTER)},
        )


def remember(
    warehouse: Warehouse, problems: int, memory: Mapping[str, Any], failed: str | None
) -> None:
    """Say how many problems the look has found, what to remember, and what it could not do."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE signs_of_life SET problems = :problems, memory = :memory, failed = :failed
                WHERE name = :name AND host = :host"""),
            {
                **_key(),
                "problems": problems,
                "memory": json.dumps(memory),
                "failed": None if failed is None else redact(failed),
            },
        )


def recall(warehouse: Warehouse) -> tuple[datetime | None, dict[str, Any]]:
    """When the watch of this host looked last, and what it has remembered."""
    with warehouse.read() as connection:
        found = connection.execute(
            text("SELECT seen_at, memory FROM signs_of_life WHERE name = :name AND host = :host"),
            _key(),
        ).first()
    if found is None:
        return None, {}
    memory = json.loads(found.memory) if isinstance(found.memory, str) else found.memory
    return loaded_time(found.seen_at), dict(memory or {})


def _key() -> dict[str, str]:
    return {"name": NAME, "host": socket.gethostname()}
