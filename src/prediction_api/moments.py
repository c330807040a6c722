"""Moments that somebody asks for."""

from __future__ import annotations

from datetime import datetime, timedelta

from batch_jobs import clock
from batch_jobs.errors import IntervalError
from batch_jobs.interval import parse_time
from prediction_api.problems import ProblemError

APART = timedelta(seconds=1)  # by which a client's clock may be ahead of ours


def past_moment(text: str, name: str = "as_of") -> datetime:
    """The moment that a text says, which has been: what was seen then never changes.

    Raises:
        ProblemError: it says none, or one that has still to come.
    """
    try:
        moment = parse_time(text)
    except IntervalError:
        raise ProblemError(
            422, f"{name} is no ISO 8601 time with an offset, such as 2026-11-22T15:00:00Z"
        ) from None
    now = clock.now()
    if moment > now + APART:
        raise ProblemError(
            422,
            f"{name} is {moment:%Y-%m-%dT%H:%M:%SZ}, which has still to come: it is "
            f"{now:%Y-%m-%dT%H:%M:%SZ} now",
        )
    return min(moment, now)
