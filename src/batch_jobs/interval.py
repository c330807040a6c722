"""Half-open intervals of time in UTC, and the grid a cron schedule cuts time into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import takewhile
from typing import NamedTuple

from croniter import croniter

from batch_jobs.errors import IntervalError


def parse_time(text: str) -> datetime:
    """Read an ISO 8601 time with a UTC offset; the answer is in UTC.

    Raises:
        IntervalError: not ISO 8601, or without an offset.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise IntervalError(
            f"{text!r} is not an ISO 8601 time, such as 2026-11-22T15:00:00Z"
        ) from None
    return require_aware(time)


def require_aware(time: datetime) -> datetime:
    """Return the time in UTC.

    Raises:
        IntervalError: the time has no UTC offset, or no place in UTC's calendar.
    """
    if time.tzinfo is None:
        raise IntervalError(
            f"{time.isoformat()} has no UTC offset; write {time.isoformat()}Z if it is UTC"
        )
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise IntervalError(f"{time.isoformat()} is out of range in UTC") from None


@dataclass(frozen=True, order=True)
class Interval:
    """The half-open span `[start, end)` of UTC time whose rows one run scores.

    Raises:
        IntervalError: a naive time, or an end that is not after the start.
    """

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", require_aware(self.start))
        object.__setattr__(self, "end", require_aware(self.end))
        if self.end <= self.start:
            raise IntervalError(
                f"an interval must end after it starts, got [{self.start.isoformat()}, "
                f"{self.end.isoformat()})"
            )

    @classmethod
    def parse(cls, start: str, end: str) -> Interval:
        """Read an interval from two ISO 8601 times."""
        return cls(parse_time(start), parse_time(end))

    def require_past(self, now: datetime) -> Interval:
        """Return the interval itself.

        Raises:
            IntervalError: it ends after `now`, so its rows are not all there yet.
        """
        if self.end > now:
            raise IntervalError(
                f"the interval {self} ends in the future; it can be scored from "
                f"{self.end.isoformat()} on (now: {now.isoformat(timespec='seconds')})"
            )
        return self

    def __str__(self) -> str:
        return f"[{self.start:%Y-%m-%dT%H:%M:%SZ}, {self.end:%Y-%m-%dT%H:%M:%SZ})"


class Volume(NamedTuple):
    """How many rows a stretch of time had; of UTC times, without the checks of an interval."""

    start: datetime
    end: datetime
    rows: int

    @property
    def length(self) -> timedelta:
        """From start to end."""
        return self.end - self.start


def newest_due(schedule: str, now: datetime) -> Interval:
    """The last interval of the cron grid that had ended at `now`."""
    end = floor_to_grid(schedule, now)
    return Interval(croniter(schedule, end).get_prev(datetime), end)


def floor_to_grid(schedule: str, time: datetime) -> datetime:
    """The newest tick of the cron grid that is not after `time`."""
    # get_prev is strict, so a step forward first keeps a time that is itself a tick.
    ahead = croniter(schedule, require_aware(time)).get_next(datetime)
    previous: datetime = croniter(schedule, ahead).get_prev(datetime)
    return previous


def period_at(schedule: str, time: datetime) -> timedelta:
    """How long the interval of the cron grid is that contains `time`."""
    left = floor_to_grid(schedule, time)
    right: datetime = croniter(schedule, left).get_next(datetime)
    return right - left


def due_between(schedule: str, start: datetime, end: datetime) -> Iterator[Interval]:
    """The intervals of the cron grid that lie inside `[start, end)`, oldest first."""
    start, end = require_aware(start), require_aware(end)
    ticks = _ticks(schedule, floor_to_grid(schedule, start))
    left = next(tick for tick in ticks if tick >= start)
    while (right := next(ticks)) <= end:
        yield Interval(left, right)
        left = right


def _ticks(schedule: str, tick: datetime) -> Iterator[datetime]:
    """A tick of the cron grid and all after it.

    In UTC all days that have a tick have those of the same times, and croniter takes 50 µs for one.
    """
    times = _times_of_day(schedule)
    while True:
        midnight = tick.replace(hour=0, minute=0)
        yield from (each for each in (midnight + time for time in times) if each >= tick)
        tick = croniter(schedule, midnight + times[-1]).get_next(datetime)


@lru_cache
def _times_of_day(schedule: str) -> tuple[timedelta, ...]:
    """When the cron grid has ticks, on days on which it has any."""
    first = croniter(schedule, datetime(2024, 1, 1, tzinfo=UTC)).get_next(datetime)
    midnight = first.replace(hour=0, minute=0)
    ticks = croniter(schedule, midnight - timedelta.resolution)
    day = takewhile(lambda tick: tick < midnight + timedelta(days=1), ticks.all_next(datetime))
    return tuple(tick - midnight for tick in day)
