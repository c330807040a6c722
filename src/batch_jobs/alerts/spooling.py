"""What is in the spool, brought over to the warehouse as if it had been reported there."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from batch_jobs.alerts import incident_rows, incidents, outbox, outbox_messages, task_errors
from batch_jobs.alerts.problems import Message, Problem
from batch_jobs.alerts.spool import Event, Spool
from batch_jobs.alerts.task_errors import TaskTry
from batch_jobs.database.connections import text
from batch_jobs.database.warehouse import Warehouse


def bring_over(warehouse: Warehouse, spool: Spool) -> int:
    """Bring the spool's events over, in order; how many those were.

    Each is noted with what it brings, so that one whose transaction was done is not brought twice
    if this process dies before the file is emptied.
    """
    if spool.is_empty():
        return 0
    with spool.taken() as events:
        untold = {event["of"] for event in events if event["kind"] == "untold"}
        for event in events:
            _bring(warehouse, event, is_told=event["id"] not in untold)
        return len(events)


def _bring(warehouse: Warehouse, event: Event, *, is_told: bool) -> None:
    at = datetime.fromisoformat(event["at"])
    if event["kind"] == "error":
        task_errors.remember_error(warehouse, TaskTry(**event["task"]), event["error"], at)
    elif event["kind"] == "message":
        with warehouse.write() as connection:
            written = outbox_messages.write(
                connection, event["key"], _message(event), at, severity=event["severity"]
            )
            if written and is_told:
                _mark_told(connection, event["key"], event["channels"], at)
    elif event["kind"] == "problem":
        _bring_problem(warehouse, event, at, is_told=is_told)


def _bring_problem(warehouse: Warehouse, event: Event, at: datetime, *, is_told: bool) -> None:
    problem = _problem(event["problem"])
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, f"incidents of {problem.model or ''}")
        incidents.report_within(connection, problem, event["key"], at)
        if not event["told"] or not is_told:
            return
        for row in incident_rows.open_of(connection, problem.model, [problem.cause]):
            key = f"incident {row.incident_id} message {row.told}"
            _mark_told(connection, key, event["channels"], at)


def _mark_told(connection: Connection, key: str, channels: Collection[str], at: datetime) -> None:
    ids = connection.scalars(
        text("SELECT message_id FROM outbox_messages WHERE key = :key"), {"key": key}
    ).all()
    for channel in channels:
        outbox.mark_sent_within(connection, channel, ids, at)


def _problem(fields: dict[str, Any]) -> Problem:
    return Problem(**{**fields, "facts": tuple(fields["facts"])})


def _message(event: Event) -> Message:
    return Message(event["line"], event["text"], tuple(event["blocks"]))
