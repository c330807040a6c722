"""Incidents: one for each model and cause, told once, reminded of, and told when it is over.

Whatever process, run, retry or host meets a problem reports it here; the first report opens an
incident and is told, later ones are counted, and reminders come after 1 h, 4 h, then daily, while
it is met. The message is written in the transaction that counts, so that neither is without the
other; `outbox` and `delivery` see to the rest. Where the warehouse is away, see `spool`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Connection

from batch_jobs.alerts import incident_rows, incident_words, mutes, outbox_messages
from batch_jobs.alerts.links import linked
from batch_jobs.alerts.problems import Incident, Problem, Severity
from batch_jobs.database.warehouse import Warehouse

__all__ = ["Incident", "Problem", "Severity", "open_incidents", "report", "resolve", "tell_due"]

REMINDERS = (timedelta(hours=1), timedelta(hours=4), timedelta(days=1))
KEEP = timedelta(days=90)
# Problems of one kind that are told apart at once; more of them are one.
TOLD_APART = 3
# What is held back to be summed up, is held back no longer.
LONGEST_HOLD = timedelta(hours=1)
# What was over twice in this time and comes again is the same incident still, and told as one.
FLAPPING = timedelta(hours=4)
_WEIGHT = {"page": 0, "warn": 1, "news": 2}


def report(
    warehouse: Warehouse,
    problem: Problem,
    key: str,
    now: datetime,
    *,
    hold: timedelta = timedelta(),
    is_passing: bool = False,
) -> bool:
    """Open the incident of a problem, or count one more occurrence of it.

    Args:
        warehouse: with the incidents.
        problem: what was met; secrets are taken out of its texts.
        key: names this one occurrence, however often and from wherever it is reported: a second
            report changes nothing.
        now: the time.
        hold: how long an incident must last before it is told; each report of a passing one
            holds it back anew, for an hour at the most.
        is_passing: whether it is over as soon as it is told, so that nothing has to resolve it: a
            backfill's failures.

    Returns:
        Whether a message about it now waits to be sent.
    """
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, f"incidents of {problem.model or ''}")
        return report_within(connection, problem, key, now, hold=hold, is_passing=is_passing)


def report_within(
    connection: Connection,
    problem: Problem,
    key: str,
    now: datetime,
    *,
    hold: timedelta = timedelta(),
    is_passing: bool = False,
) -> bool:
    """As `report`, in the transaction of the caller, who holds the lock of the model's incidents.

    On SQLite any write transaction holds it.
    """
    if not incident_rows.note(connection, key, now):
        return False
    problem = _gathered(connection, incident_rows.redacted(linked(problem)))
    known = incident_rows.open_of(connection, problem.model, [problem.cause])
    known = known or incident_rows.reopened(connection, problem, now - FLAPPING, now)
    if not known:
        row = incident_rows.add(connection, problem, now, now + hold, is_passing=is_passing)
    else:
        [found] = known
        held = min(found.opened_at + LONGEST_HOLD, now + hold) if is_passing and hold else None
        row = incident_rows.count(connection, found, problem, now, held)
    incident_rows.forget(connection, now - KEEP)
    return _tell_if_due(connection, row, now)


def tell_due(warehouse: Warehouse, now: datetime) -> int:
    """Write what was held back or muted and is now due, and lasts; how many messages that were."""
    with warehouse.read() as connection:  # mostly there is nothing: take no write lock
        found = [row for row in incident_rows.untold(connection, now) if not row.is_muted]
    told = 0
    for untold in found:
        with warehouse.write() as connection:
            warehouse.database.lock_model(connection, f"incidents of {untold.problem.model or ''}")
            fresh = incident_rows.open_of(connection, untold.problem.model, [untold.problem.cause])
            told += sum(_tell_if_due(connection, row, now) for row in fresh)
    return told


def resolve(
    warehouse: Warehouse,
    model: str | None,
    causes: Collection[str],
    now: datetime,
    *,
    is_told: bool = True,
) -> list[Incident]:
    """End the open incidents of a model with these causes, because it works again.

    One message tells it, after all that were sent about them. Of what no channel was told yet, one
    line tells that it was and is over, and what waited is dropped.

    Args:
        warehouse: with the incidents.
        model: whose; None for those of the whole deployment.
        causes: what is over; `*` at the end of one stands for any ending.
        now: the time.
        is_told: whether to tell it; a new champion, for one, says so itself.

    Returns:
        The incidents that this call has ended, oldest first.
    """
    with warehouse.read() as connection:  # most successes follow a success: take no write lock
        if not incident_rows.open_of(connection, model, causes):
            return []
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, f"incidents of {model or ''}")
        found = incident_rows.open_of(connection, model, causes)
        ended = [incident_rows.end(connection, row, now) for row in found]
        told = [row for row in ended if row.told_at and row.told_at >= row.last_opened_at]
        if told and is_told:
            _tell_the_end(connection, model, told, now)
        incident_rows.forget(connection, now - KEEP)
    return list(ended)


def open_incidents(
    warehouse: Warehouse,
    model: str | None = None,
    *,
    is_all: bool = False,
) -> list[Incident]:
    """The incidents that last, oldest first.

    Args:
        warehouse: with the incidents.
        model: whose; None for all, those of the deployment with them.
        is_all: whether those that are over are wanted, too.
    """
    with warehouse.read() as connection:
        return incident_rows.listed(connection, model, is_all=is_all)


def _gathered(connection: Connection, problem: Problem) -> Problem:
    """The problem; as one of many others if too many of its kind are told apart already.

    One that its kind says all of, such as a full disk, is the one of that kind that lasts: whoever
    met it first said more, or less, of it.
    """
    kind, apart, _ = problem.cause.partition("/")
    open_ones = incident_rows.open_of(connection, problem.model, [kind, f"{kind}/*"])
    known = {incident.problem.cause for incident in open_ones}
    if problem.cause in known or not known:
        return problem
    if not apart or kind in known:
        return replace(problem, cause=min(known))
    if len(known) < TOLD_APART:
        return problem
    return replace(problem, cause=f"{kind}/other")


def _tell_if_due(connection: Connection, row: incident_rows.Row, now: datetime) -> bool:
    if mutes.is_muted(connection, row.problem.model, row.problem.cause, now):
        return False
    if not row.told:
        is_due = row.due_at <= now
    else:
        gap = REMINDERS[min(row.told, len(REMINDERS)) - 1]
        is_due = row.told_at is not None and now - row.told_at >= gap and row.last_at > row.told_at
    if not is_due:
        return False
    if not outbox_messages.is_known_outside(connection, [row.incident_id]):
        # What still waits to be sent is told by this message, too.
        outbox_messages.drop(connection, [row.incident_id], now)
    served = outbox_messages.served_within(connection, row.problem.model)
    message = incident_words.told(row, served, now)
    outbox_messages.write(
        connection,
        f"incident {row.incident_id} message {row.told + 1}",
        message,
        now,
        severity=row.problem.severity,
        incident_id=row.incident_id,
    )
    incident_rows.mark_told(connection, row, now)
    return True


def _tell_the_end(
    connection: Connection, model: str | None, told: Sequence[Incident], now: datetime
) -> None:
    ids = [incident.incident_id for incident in told]
    severity = min((each.problem.severity for each in told), key=lambda each: _WEIGHT[each])
    if outbox_messages.is_known_outside(connection, ids):
        served = outbox_messages.served_within(connection, model)
        message = incident_words.recovered(told, served, now)
    else:
        outbox_messages.drop(connection, ids, now)
        message = incident_words.summed_up(told, now)
    times = sum(incident.told for incident in told)
    key = f"incident {' '.join(map(str, ids))} is over after message {times}"
    outbox_messages.write(connection, key, message, now, severity=severity, incident_id=ids[-1])
