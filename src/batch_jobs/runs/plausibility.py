"""Let the circuit breaker look at what is staged, beside what was published before."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import bounds, loaded_time, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import CircuitBreakerError
from batch_jobs.interval import Interval, period_at
from batch_jobs.model import BatchModel
from batch_jobs.runs import circuit_breaker, coverage
from batch_jobs.runs.audit import Staged
from batch_jobs.runs.ledger import Run

log = logging.getLogger(__name__)

# What the circuit breaker compares with: a month knows weekends and nights.
RECENT = timedelta(weeks=4)

# What mostly tells already that it is as quiet as always, in a tenth of the time.
LAST_NIGHTS = timedelta(days=2)

POPULATIONS = 5


def require_plausible(
    warehouse: Warehouse,
    model: BatchModel,
    run: Run,
    staged: Staged,
    trained: Callable[[], BatchModel],
) -> None:
    """Let the circuit breaker look at what is staged, beside what was published before."""
    limits, counts, scores = model.limits, staged.counts, staged.scores
    found = [
        circuit_breaker.too_many_rejected(limits, counts.read, counts.rejected),
        circuit_breaker.constant_scores(limits, counts.scored, scores),
    ]
    if run.mode == "replace":
        earlier = coverage.rows_read_before(warehouse, run, POPULATIONS)
        found.append(circuit_breaker.odd_population(limits, counts.read, earlier))
    elif counts.read:
        if counts.read >= circuit_breaker.MANY:
            volumes = coverage.volumes(
                warehouse, run.model, run.interval.start, run.interval.start - RECENT
            )
            most = circuit_breaker.fullest(volumes, run.interval.end - run.interval.start)
            found.append(circuit_breaker.surge(limits, counts.read, most))
    else:
        found.append(silence(warehouse, model, run.interval, trained))
    problems = [problem for problem in found if problem]
    if not problems:
        return
    if run.accepted:
        log.warning("accepted (%s): %s", run.accepted, "; ".join(problems))
        return
    raise CircuitBreakerError(
        f"run {run.run_id} of {run.model} {run.interval}",
        problems,
        f"readers keep the last good predictions; if all is as it should be, run `batch-jobs "
        f"predict {run.model} --start {run.interval.start.isoformat()} --end "
        f"{run.interval.end.isoformat()} --accept REASON`",
    )


def silence(
    warehouse: Warehouse,
    model: BatchModel,
    interval: Interval,
    trained: Callable[[], BatchModel],
) -> str | None:
    """What is wrong with an interval without rows, if the source seems to be dead.

    Args:
        warehouse: with the ledger and the source.
        model: in `merge` mode, as its file is.
        interval: without rows, or not published.
        trained: the model as its version was trained, whose query reads the source.
    """
    start, end = interval.start, interval.end
    period = period_at(model.schedule, start)
    for recent in (LAST_NIGHTS, RECENT):
        volumes = coverage.volumes(warehouse, model.name, start, start - recent)
        last = max((volume.end for volume in volumes if volume.rows), default=None)
        rest = max(period, 2 * circuit_breaker.longest_silence(volumes))
        if last and model.limits.silence is None and end - last <= rest:
            return None
    if last is None:
        return None
    silence_since = partial(circuit_breaker.silent_too_long, model.limits, volumes)
    problem = silence_since(last, end, period)
    if problem is None:
        return None
    # The source knows better than the ledger, which lacks what was not published.
    newest = _newest_row(warehouse, trained(), Interval(last, max(clock.now(), end)))
    if newest is None:
        return problem
    return None if newest >= end else silence_since(newest, end, period)


@repeatable
def _newest_row(warehouse: Warehouse, model: BatchModel, interval: Interval) -> datetime | None:
    """The newest `as_of` that the source has in an interval."""
    as_of = warehouse.database.moment("f.as_of")
    with warehouse.source() as connection:
        stored = connection.scalar(
            text(f"SELECT max({as_of}) FROM (\n{model.features_query}\n) AS f"),  # noqa: S608
            bounds(interval),
        )
        return None if stored is None else loaded_time(stored)
