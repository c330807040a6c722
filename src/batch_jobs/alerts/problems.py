"""What is told of: a problem as it was met, and the incident that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

Severity = Literal["page", "warn", "news"]
# Of messages to programs: no person is sent them.
Event = Literal["event"]
EVENT: Event = "event"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, by its root cause.

    Attributes:
        cause: what is at the root of it, as it is muted by, such as `predict-killed`; what follows
            a `/` tells problems of one kind apart.
        model: the model it concerns; None if it concerns the whole deployment.
        title: what is wrong, in one line, without the model's name.
        detail: the first line of the error, or the figures.
        severity: `page` if readers are hurt or will be, `warn` if it can wait for the day, or
            `news`.
        impact: what it means for readers; None if what they see now is all there is to tell.
        next_step: what to do; commands in backticks. It is never cut off.
        links: labels, and the addresses that they lead to.
        subject: the DAG, file, host or service concerned.
        facts: short facts for one line, such as the task and its try.
    """

    cause: str
    model: str | None
    title: str
    detail: str = ""
    severity: Severity = "page"
    impact: str | None = None
    next_step: str | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    subject: str | None = None
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Incident:
    """One cause of trouble of one model, or of the deployment, until it is over.

    Attributes:
        incident_id: names it.
        problem: as it was met last.
        occurrences: how often it was met.
        opened_at: when it was met first.
        last_at: when it was met last.
        told: how many messages were written about it.
        resolved_at: when it was over; None while it lasts.
    """

    incident_id: int
    problem: Problem
    occurrences: int
    opened_at: datetime
    last_at: datetime
    told: int = 0
    resolved_at: datetime | None = None


@dataclass(frozen=True)
class Served:
    """The newest predictions that readers see of one model."""

    model_version: str
    interval_start: datetime
    interval_end: datetime
    published_at: datetime
    row_count: int


@dataclass(frozen=True)
class Message:
    """What a channel is sent.

    Attributes:
        line: all of it in one line, for summaries.
        text: as Slack's mrkdwn, for channels without blocks.
        blocks: as Slack's Block Kit.
    """

    line: str
    text: str
    blocks: tuple[Mapping[str, object], ...] = ()
