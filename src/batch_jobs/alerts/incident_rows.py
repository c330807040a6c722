"""Incidents as rows of the warehouse; each function works in the transaction of its caller."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from batch_jobs.alerts import mutes
from batch_jobs.alerts.problems import Incident, Problem
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.redaction import redact

LISTED = 500
FLAPS = 2


@dataclass(frozen=True, kw_only=True)
class Row(Incident):
    """An incident with what only its teller needs.

    Attributes:
        due_at: when it is told first.
        told_at: when it was told last.
        is_passing: whether it is over as soon as it is told.
        is_muted: whether somebody has muted it.
        last_opened_at: when it was met first, or came again after it was over.
    """

    due_at: datetime
    last_opened_at: datetime
    told_at: datetime | None = None
    is_passing: bool = False
    is_muted: bool = False


def redacted(problem: Problem) -> Problem:
    """The problem, without a secret in it."""
    return replace(
        problem,
        title=redact(problem.title),
        detail=redact(problem.detail),
        impact=problem.impact and redact(problem.impact),
        next_step=problem.next_step and redact(problem.next_step),
        subject=problem.subject and redact(problem.subject),
        links={label: redact(url) for label, url in problem.links.items()},
        facts=tuple(map(redact, problem.facts)),
    )


def note(connection: Connection, key: str, now: datetime) -> bool:
    """Note an occurrence; False if it is known already."""
    added = connection.execute(
        text("""
            INSERT INTO incident_reports (key, reported_at) VALUES (:key, :now)
            ON CONFLICT (key) DO NOTHING"""),
        {"key": key, "now": stored_time(now)},
    )
    return bool(added.rowcount == 1)


def open_of(connection: Connection, model: str | None, causes: Collection[str]) -> list[Row]:
    """The open incidents of a model with these causes, oldest first; see `mutes.fits`."""
    found = connection.execute(
        text("""
            SELECT * FROM incident_rows
            WHERE COALESCE(model, '') = :model AND resolved_at IS NULL ORDER BY incident_id"""),
        {"model": model or ""},
    )
    rows = map(_loaded, found)
    return [row for row in rows if any(mutes.fits(row.problem.cause, each) for each in causes)]


def untold(connection: Connection, now: datetime) -> list[Row]:
    """The open incidents that are due and were never told."""
    found = connection.execute(
        text("""
            SELECT * FROM incident_rows WHERE resolved_at IS NULL AND told = 0 AND due_at <= :now
            ORDER BY incident_id"""),
        {"now": stored_time(now)},
    )
    rows = list(map(_loaded, found))
    return [
        replace(row, is_muted=mutes.is_muted(connection, row.problem.model, row.problem.cause, now))
        for row in rows
    ]


def listed(connection: Connection, model: str | None, *, is_all: bool) -> list[Incident]:
    """Incidents for a person, oldest first; of all, the newest."""
    found = connection.execute(
        text("""
            SELECT * FROM (
              SELECT * FROM incident_rows
              WHERE (CAST(:model AS text) IS NULL OR model = :model)
                AND (:is_all = 1 OR resolved_at IS NULL)
              ORDER BY incident_id DESC LIMIT :most) AS newest
            ORDER BY incident_id"""),
        {"model": model, "is_all": int(is_all), "most": LISTED},
    )
    return list(map(_loaded, found))


def add(
    connection: Connection, problem: Problem, now: datetime, due_at: datetime, *, is_passing: bool
) -> Row:
    """Open an incident."""
    found = connection.execute(
        text("""
            INSERT INTO incident_rows
              (model, cause, severity, title, detail, impact, next_step, subject, links, facts,
               is_passing, occurrences, opened_at, last_at, due_at)
            VALUES
              (:model, :cause, :severity, :title, :detail, :impact, :next_step, :subject, :links,
               :facts, :is_passing, 1, :now, :now, :due_at)
            RETURNING *"""),
        {
            **_stored(problem),
            "is_passing": int(is_passing),
            "now": stored_time(now),
            "due_at": stored_time(due_at),
        },
    )
    return _loaded(found.one())


def reopened(connection: Connection, problem: Problem, since: datetime, now: datetime) -> list[Row]:
    """The last incident of the same cause, open again, if it comes and goes since then."""
    found = connection.execute(
        text("""
            SELECT incident_id, reopened_at FROM incident_rows
            WHERE COALESCE(model, '') = :model AND cause = :cause AND is_passing = 0
              AND resolved_at > :since AND resolved_at <= :now AND told > 0
            ORDER BY incident_id DESC"""),
        {
            "model": problem.model or "",
            "cause": problem.cause,
            "since": stored_time(since),
            "now": stored_time(now),
        },
    ).all()
    if not found or (len(found) < FLAPS and found[0].reopened_at is None):
        return []
    rows = connection.execute(
        text("""
            UPDATE incident_rows SET resolved_at = NULL, reopened_at = :now
            WHERE incident_id = :id RETURNING *"""),
        {"id": found[0].incident_id, "now": stored_time(now)},
    )
    return list(map(_loaded, rows))


def count(
    connection: Connection, found: Row, problem: Problem, now: datetime, due_at: datetime | None
) -> Row:
    """Count one more occurrence, and keep how it was met this time.

    Args:
        connection: of the caller.
        found: the incident.
        problem: as it was met.
        now: when.
        due_at: until when to hold it back now; None as before.
    """
    row = connection.execute(
        text("""
            UPDATE incident_rows SET
              severity = :severity, title = :title, detail = :detail, impact = :impact,
              next_step = :next_step, subject = :subject, links = :links, facts = :facts,
              occurrences = occurrences + 1, last_at = :now, due_at = :due_at
            WHERE incident_id = :incident_id RETURNING *"""),
        {
            **{name: value for name, value in _stored(problem).items() if name != "cause"},
            "now": stored_time(now),
            "due_at": stored_time(due_at or found.due_at),
            "incident_id": found.incident_id,
        },
    )
    return _loaded(row.one())


def mark_told(connection: Connection, row: Row, now: datetime) -> None:
    """Note that a message about it was written."""
    connection.execute(
        text("""
            UPDATE incident_rows SET told = told + 1, told_at = :now,
              resolved_at = CASE WHEN is_passing = 1 THEN :now ELSE resolved_at END
            WHERE incident_id = :id"""),
        {"id": row.incident_id, "now": stored_time(now)},
    )


def end(connection: Connection, row: Row, now: datetime) -> Row:
    """Note that it is over."""
    connection.execute(
        text("UPDATE incident_rows SET resolved_at = :now WHERE incident_id = :id"),
        {"id": row.incident_id, "now": stored_time(now)},
    )
    return replace(row, resolved_at=now)


def forget(connection: Connection, before: datetime) -> None:
    """Remove what was over before then, and the names of what was reported before."""
    for statement in (
        "DELETE FROM incident_rows WHERE resolved_at < :before",
        "DELETE FROM incident_reports WHERE reported_at < :before",
    ):
        connection.execute(text(statement), {"before": stored_time(before)})


def _stored(problem: Problem) -> dict[str, Any]:
    return {
        **vars(problem),
        "links": json.dumps(dict(problem.links)),
        "facts": json.dumps(problem.facts),
    }


def _loaded(row: Any) -> Row:
    problem = Problem(
        cause=row.cause,
        model=row.model,
        title=row.title,
        detail=row.detail,
        severity=row.severity,
        impact=row.impact,
        next_step=row.next_step,
        links=json.loads(row.links),
        subject=row.subject,
        facts=tuple(json.loads(row.facts)),
    )
    return Row(
        incident_id=row.incident_id,
        problem=problem,
        occurrences=row.occurrences,
        opened_at=loaded_time(row.opened_at),
        last_at=loaded_time(row.last_at),
        told=row.told,
        resolved_at=row.resolved_at and loaded_time(row.resolved_at),
        due_at=loaded_time(row.due_at),
        told_at=row.told_at and loaded_time(row.told_at),
        is_passing=bool(row.is_passing),
        last_opened_at=loaded_time(row.reopened_at or row.opened_at),
    )
