"""What time it is; a replay lives through the past, so there it is another time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from batch_jobs.interval import require_aware

_set: list[datetime] = []


def now() -> datetime:
    """The present moment in UTC: the machine's, unless this process lives at another one."""
    return _set[-1] if _set else datetime.now(UTC)


@contextmanager
def set_to(moment: datetime) -> Iterator[None]:
    """Let it be that moment for this whole process, until the block is left.

    Raises:
        IntervalError: a naive time.
    """
    _set.append(require_aware(moment))
    try:
        yield
    finally:
        _set.pop()
