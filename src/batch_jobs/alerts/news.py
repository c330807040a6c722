"""News: what nobody must mend, but some want to hear: champions, refusals, approvals.

A change of champion is read from `promotions`, which only grows: whoever made it, by whatever door,
and whatever happened to him since, it is told once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from batch_jobs.alerts import incidents, mrkdwn, outbox_messages
from batch_jobs.alerts.incident_words import DOTS
from batch_jobs.alerts.problems import Message
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.redaction import redact

# What is older is no news.
FRESH = timedelta(days=1)
# A new champion ends these.
ENDED_BY_A_CHAMPION = ("gate-*", "no-champion", "approval-*")
DOT = DOTS["news"]


@dataclass(frozen=True)
class Change:
    """A change of champion.

    Attributes:
        model: whose.
        version: who serves now.
        previous: who served before; None if nobody did.
        is_rollback: whether an earlier version came back.
        actor: who wanted it.
        reason: why.
    """

    model: str
    version: str
    previous: str | None
    is_rollback: bool
    actor: str
    reason: str


def write_promotions(warehouse: Warehouse, now: datetime) -> int:
    """Write a message for each new champion that has none; how many those were."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT p.promotion_id, p.model, p.version, p.previous_version, p.action, p.actor,
                       p.reason
                FROM promotions AS p
                WHERE p.promoted_at > :fresh AND p.promoted_at <= :now AND NOT EXISTS (
                  SELECT 1 FROM outbox_messages AS m
                  WHERE m.key = 'promotion ' || CAST(p.promotion_id AS text))
                ORDER BY p.promotion_id"""),
            {"fresh": stored_time(now - FRESH), "now": stored_time(now)},
        ).all()
    return sum(_write(warehouse, row, now) for row in rows)


def _write(warehouse: Warehouse, row: Any, now: datetime) -> bool:
    change = Change(
        row.model,
        row.version,
        row.previous_version,
        row.action == "rollback",
        redact(row.actor),
        redact(row.reason),
    )
    incidents.resolve(warehouse, row.model, ENDED_BY_A_CHAMPION, now, is_told=False)
    key = f"promotion {row.promotion_id}"
    return outbox_messages.write_alone(warehouse, key, champion_changed(change), now)


def champion_changed(change: Change) -> Message:
    """Another version serves."""
    how = "was rolled back" if change.is_rollback else "has a new champion"
    title = f"{change.model} {how if change.previous else 'has its first champion'}"
    serves = f"Version {mrkdwn.code(change.version)} serves now" + (
        f"; before, {mrkdwn.code(change.previous)} did." if change.previous else "."
    )
    why = f"By {mrkdwn.escape(change.actor)}: {mrkdwn.escape(change.reason)}"
    undo = (
        f"To go back: `batch-jobs rollback {change.model} --to {change.previous} --reason WHY`"
        if change.previous
        else None
    )
    return _message(title, serves, why, undo)


def approval_wanted(
    model: str, version: str, reasons: str, patience: timedelta, url: str | None
) -> Message:
    """A new version waits for a person's word."""
    return _message(
        f"{model}: may {version} serve?",
        f"The gate lets it: {mrkdwn.escape(reasons)}.",
        f"Without an answer within {mrkdwn.length(patience)} it is refused.",
        (mrkdwn.link(url, "Approve or reject") if url else None)
        or "Answer in Airflow, under *Required Actions*.",
    )


def succeeded(
    dag_id: str, task: str | None, span: tuple[datetime, datetime] | None, readers: str | None
) -> Message:
    """A DAG run, or a task of it, succeeded."""
    title = f"{dag_id} succeeded"
    return _message(
        title,
        f"Task {mrkdwn.bold(task)}" if task else None,
        f"Interval {mrkdwn.span(*span)}" if span else "Manual run without interval",
        readers,
        dot=":large_green_circle:",
    )


def free(text: str) -> Message:
    """A message in somebody's own words, as mrkdwn."""
    return Message(mrkdwn.shortened(text.partition("\n")[0], 300), text)


def champion_stays(model: str, version: str, champion: str | None, reason: str) -> Message:
    """A version was not promoted."""
    serves = (
        f"Version {mrkdwn.code(champion)} goes on serving." if champion else "No version serves."
    )
    return _message(
        f"{model}: {version} is not promoted",
        serves,
        mrkdwn.with_code(redact(reason)),
    )


def trial(channels: str, host: str) -> Message:
    """A message that is sent to try the way."""
    return _message(
        "A test of batch-jobs: alerts arrive here",
        f"Sent from {mrkdwn.code(host)} to {mrkdwn.escape(channels)}. Nothing is wrong.",
    )


def _message(title: str, *lines: str | None, dot: str = DOT) -> Message:
    told = [line for line in lines if line]
    blocks: tuple[Mapping[str, object], ...] = (
        mrkdwn.header(f"{dot} {title}"),
        *(block for line in told for block in mrkdwn.sections(line)),
    )
    return Message(
        line=mrkdwn.shortened(f"{dot} {mrkdwn.escape(title)}", 300),
        text="\n".join([f"{dot} {mrkdwn.bold(title)}", *told]),
        blocks=blocks,
    )
