"""What delivery adds to messages: that one is late, several in one, what may not have arrived."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from batch_jobs.alerts import mrkdwn
from batch_jobs.alerts.problems import Message

LATE = timedelta(minutes=5)
MOST_LINES = 20


def late(message: Message, created_at: datetime, now: datetime) -> Message:
    """The message; one that had to wait says since when."""
    if now - created_at < LATE:
        return message
    return _noted(message, f"_Could not be sent before; written {mrkdwn.moment(created_at)}._")


def doubtful(message: Message, lines: Sequence[str]) -> Message:
    """The message, with a line for each that was sent twice before and never answered."""
    if not lines:
        return message
    shown = [f"• {line}" for line in lines[:MOST_LINES]]
    return _noted(message, "\n".join(["_These may not have arrived:_", *shown, *_more(lines)]))


def together(lines: Sequence[str], since: datetime, now: datetime) -> Message:
    """Several messages that had to wait, in one."""
    title = f"{len(lines)} messages that could not be sent {mrkdwn.span(since, now)}"
    shown = "\n".join([*(f"• {line}" for line in lines[:MOST_LINES]), *_more(lines)])
    return Message(
        line=title,
        text=f"*{title}*\n{shown}",
        blocks=(mrkdwn.header(title), *mrkdwn.sections(shown)),
    )


def _more(lines: Sequence[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    return [f"and {left} more: `batch-jobs incidents --all`"] if left > 0 else []


def _noted(message: Message, note: str) -> Message:
    blocks = (*message.blocks, *mrkdwn.context(note)) if message.blocks else ()
    return replace(message, text=f"{message.text}\n{note}", blocks=blocks)
