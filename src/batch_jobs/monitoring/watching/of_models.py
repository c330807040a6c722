"""What may be wrong with a model: pure functions of what a look has found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from croniter import croniter

from batch_jobs.alerts.mrkdwn import length
from batch_jobs.alerts.problems import Problem
from batch_jobs.model import BatchModel
from batch_jobs.monitoring.watching.facts import Facts
from batch_jobs.monitoring.watching.words import many, moment

# Time that whoever starts, trains and publishes may take on a busy machine, beyond what it takes.
GRACE = timedelta(minutes=1)
# An attempt that says nothing for longer than another one waits for it.
SILENT = timedelta(minutes=10)


@dataclass(frozen=True)
class Due:
    """What a model owes its readers.

    Attributes:
        since: end of the first due interval that is not published.
        late_from: when that is no longer a delay but a fault.
    """

    since: datetime
    late_from: datetime


def promise(model: BatchModel, fresh_until: datetime, lateness: timedelta) -> Due:
    """When a model is overdue that has published everything up to a moment.

    A run may take the model's `timeout`. But once the interval after the missing one is due as
    well, and took longer than publications of late, the first one is not on its way any more.

    Args:
        model: whose schedule and timeout make the promise.
        fresh_until: end of the newest interval up to which all are published.
        lateness: how long after its end an interval was published at the latest, of the last ones.
    """
    first = next_tick(model.schedule, fresh_until)
    second = next_tick(model.schedule, first)
    return Due(first, min(first + model.timeout, second + lateness) + GRACE)


@lru_cache(maxsize=1024)
def next_tick(schedule: str, after: datetime) -> datetime:
    """The first tick of a cron grid after a moment."""
    tick: datetime = croniter(schedule, after).get_next(datetime)
    return tick


def overdue(facts: Facts) -> Iterator[Problem]:
    """A due interval is not published, and nothing newer is either."""
    for found in facts.models:
        if not (found.model and found.fresh_until and found.served):
            continue
        due = promise(found.model, found.fresh_until, found.lateness)
        newest = promise(found.model, found.served.interval_end, found.lateness)
        if facts.now <= newest.late_from:
            continue
        yield Problem(
            cause="overdue",
            model=found.name,
            title=f"nothing was published for {length(facts.now - newest.since)}",
            detail=f"the interval up to {moment(due.since)} is due and was not published; it was "
            f"promised for {moment(due.late_from)}",
            next_step=f"see what `predict_{found.name}` does in Airflow; `batch-jobs gaps "
            f"{found.name}` lists what is missing, and the next run publishes what is not older "
            f"than {length(found.model.look_back)} by itself",
            subject=f"predict_{found.name}",
        )


def gap(facts: Facts) -> Iterator[Problem]:
    """Newer intervals are published, and an older one is not."""
    for found in facts.models:
        if not (found.model and found.gaps):
            continue
        oldest = found.gaps[0]
        if facts.now <= promise(found.model, oldest.start, found.lateness).late_from:
            continue
        healed = facts.now - oldest.start < found.model.look_back
        cure = f"`batch-jobs backfill {found.name} --start {oldest.start.isoformat()} --end "
        cure += f"{found.gaps[-1].end.isoformat()}`"
        yield Problem(
            cause="gap",
            model=found.name,
            title=f"{many(len(found.gaps), 'interval is', 'intervals are')} missing behind the "
            f"newest one",
            detail=f"from {moment(oldest.start)} to {moment(found.gaps[-1].end)}",
            severity="warn",
            impact="readers of the newest predictions see no difference; rows of those intervals "
            "have none",
            next_step=f"each run tries again for {length(found.model.look_back)}; at once: {cure}"
            if healed
            else cure,
            subject=f"predict_{found.name}",
        )


def hanging_attempt(facts: Facts) -> Iterator[Problem]:
    """An attempt works for longer than it may, or has fallen silent and nobody took over."""
    for found in facts.models:
        for attempt in found.attempts if found.model else ():
            took, silent = facts.now - attempt.began, facts.now - attempt.heard
            longest = found.model.timeout if found.model else timedelta.max
            if silent > SILENT:
                said = f"run {attempt.run_id} was not heard of since {moment(attempt.heard)}"
            elif took > longest + GRACE:
                said = f"run {attempt.run_id} works since {moment(attempt.began)}, longer than the "
                said += f"model's timeout of {length(longest)}"
            else:
                continue
            covered = found.fresh_until and attempt.interval.end <= found.fresh_until
            if covered or took > timedelta(days=1):  # nobody waits for it any more
                continue
            yield Problem(
                cause="attempt-hangs",
                model=found.name,
                title=f"the attempt at {attempt.interval} hangs",
                detail=said,
                next_step=f"mark its task in `predict_{found.name}` as failed, or kill its "
                f"process: the next run takes the interval over",
                subject=f"predict_{found.name}",
            )
            break


def source_silent(facts: Facts) -> Iterator[Problem]:
    """The source gives no rows, for longer than it ever did."""
    for found in facts.models:
        if found.silence:
            yield Problem(
                cause="source-silent",
                model=found.name,
                title="the source is silent",
                detail=found.silence,
                next_step="see whether whatever fills the source tables still does; once rows come "
                "again, the missed intervals are published by themselves",
                subject=f"predict_{found.name}",
            )


def source_unasked(facts: Facts) -> Iterator[Problem]:
    """Whether the source is silent could not be found out."""
    for found in facts.models:
        if found.unjudged:
            yield Problem(
                cause="source-unasked",
                model=found.name,
                title="the watch cannot ask the source",
                detail=found.unjudged,
                severity="warn",
                next_step="let whoever runs the watch read the source tables, and see whether the "
                "model's features query still works",
            )
