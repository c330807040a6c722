"""Slack's mrkdwn and Block Kit: escaped, within their limits, and never cut in a command.

What comes from outside (exceptions, ids, configuration) is escaped, so that it can neither ping a
channel nor become a link (https://docs.slack.dev/messaging/formatting-message-text#escaping).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta

# https://docs.slack.dev/reference/block-kit/blocks
HEADER_LENGTH = 150
TEXT_LENGTH = 3_000
Block = Mapping[str, object]


def escape(text: str) -> str:
    """The text with nothing in it that Slack would take for a mention or a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unescaped(text: str) -> str:
    """An escaped text as it reads where nothing is marked up."""
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def bold(text: str) -> str:
    """In bold."""
    return f"*{escape(text.replace('*', ' '))}*"


def code(text: str) -> str:
    """As code, on one line."""
    return f"`{escape(text.replace('`', chr(39)))}`"


def with_code(text: str) -> str:
    """Escaped, but for the backticks around commands; one that lacks its fellow is a quote."""
    if text.count("`") % 2:
        text = text.replace("`", "'")
    return escape(text)


def link(url: str, label: str) -> str:
    """A link that is one whatever is in the address."""
    for character, quoted in (("|", "%7C"), ("<", "%3C"), (">", "%3E"), (" ", "%20")):
        url = url.replace(character, quoted)
    return f"<{url.replace('&', '&amp;')}|{escape(label)}>"


def shortened(text: str, length: int) -> str:
    """At most so many characters, cut between words if there are any, with `…` for the rest.

    Of an escaped text no escape is cut in two.
    """
    if len(text) <= length:
        return text
    cut = text[: length - 1]
    if "&" in cut[-5:] and ";" not in cut[cut.rindex("&") :]:
        cut = cut[: cut.rindex("&")]
    words = cut.rpartition(" ")[0]
    return (words if len(words) > length // 2 else cut) + "…"


def header(text: str) -> Block:
    """A line in large letters."""
    return {
        "type": "header",
        "text": {"type": "plain_text", "text": shortened(text, HEADER_LENGTH), "emoji": True},
    }


def sections(text: str | None) -> Iterator[Block]:
    """The text in as many blocks as it needs, parted between words."""
    while text:
        part = text
        if len(text) > TEXT_LENGTH:
            part = text[:TEXT_LENGTH].rpartition(" ")[0] or shortened(text, TEXT_LENGTH)[:-1]
        yield {"type": "section", "text": {"type": "mrkdwn", "text": part}}
        text = text[len(part) :].lstrip()


def context(text: str | None) -> Iterator[Block]:
    """A line in small letters; nothing of None."""
    if text:
        fitting = shortened(text, TEXT_LENGTH)
        yield {"type": "context", "elements": [{"type": "mrkdwn", "text": fitting}]}


def moment(time: datetime) -> str:
    """A time, to the minute."""
    return f"{time.astimezone(UTC):%d %b %H:%M} UTC"


def span(start: datetime, end: datetime) -> str:
    """From a time to another, to the minute."""
    start, end = start.astimezone(UTC), end.astimezone(UTC)
    if start == end:
        return moment(end)
    to = f"{end:%H:%M}" if start.date() == end.date() else f"{end:%d %b %H:%M}"
    return f"{start:%d %b %H:%M} - {to} UTC"


def length(span: timedelta) -> str:
    """A span in the two units that matter, rounded down."""
    seconds = max(0, int(span.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    minutes = seconds // 60
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} days"


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
