"""When what is published keeps its promise, and when it is stale.

The promise: each interval of the model's schedule is published within the model's `timeout` of its
end. `fresh_until` is the end of the newest one up to which all are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from croniter import croniter

from batch_jobs.model import BatchModel


@dataclass(frozen=True)
class Freshness:
    """How fresh a model's predictions are.

    Attributes:
        stale: whether the promise is broken; None where the model file is not known.
        age_seconds: time since `fresh_until`.
    """

    stale: bool | None
    age_seconds: int


def freshness(model: BatchModel | None, fresh_until: datetime, now: datetime) -> Freshness:
    """How fresh a model is at a moment.

    Args:
        model: whose schedule and timeout make the promise.
        fresh_until: of `serving_status`.
        now: the moment.
    """
    age = max(0, int((now - fresh_until).total_seconds()))
    if model is None:
        return Freshness(None, age)
    due = next_tick(model.schedule, fresh_until)
    return Freshness(now > due + model.timeout, age)


@lru_cache(maxsize=1024)
def next_tick(schedule: str, after: datetime) -> datetime:
    """When a schedule is due next after a moment."""
    tick: datetime = croniter(schedule, after).get_next(datetime)
    return tick
