"""How the watch puts things."""

from __future__ import annotations

from datetime import UTC, datetime

GIB = 1024**3


def moment(time: datetime) -> str:
    """A time, to the minute."""
    return f"{time.astimezone(UTC):%d %b %H:%M} UTC"


def capital(text: str) -> str:
    """The text as a heading; an identifier at its beginning stays as it is."""
    first = text.partition(" ")[0]
    return text if "_" in first or not first.isalpha() else text[0].upper() + text[1:]


def sentence(text: str) -> str:
    """The text as a sentence of its own."""
    return capital(text) + ("" if text.endswith((".", "…", "`")) else ".")


def size(count: int) -> str:
    """Bytes, for a person."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 1024**2:.0f} MiB"


def many(count: int, one: str, more: str) -> str:
    """A count, and of what."""
    return f"{count:,} {one if count == 1 else more}"
