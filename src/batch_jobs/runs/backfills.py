"""Publish many intervals: those of a span, or those that a rolled back version has scored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from batch_jobs import clock
from batch_jobs.database.leases import at_work, new_token
from batch_jobs.database.missed_rows import DAY
from batch_jobs.errors import ContractError, InputError, IntervalsError, UnavailableError
from batch_jobs.interval import Interval
from batch_jobs.redaction import first_line
from batch_jobs.registry import champions, promotion
from batch_jobs.registry.deployment import Place, opened
from batch_jobs.registry.promotion import Promotion
from batch_jobs.runs import ledger
from batch_jobs.runs.jobs import score_and_publish
from batch_jobs.runs.ledger import Run
from batch_jobs.runs.planning import Champion, Planner
from batch_jobs.runs.prescoring import Prescorer

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10  # intervals that fail one after the other, before a backfill gives up


def backfill(
    place: Place,
    name: str,
    span: Interval,
    *,
    champion: Champion = "then",
    force: bool = False,
    accept: str | None = None,
    progress: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Publish every due interval inside a span of time, oldest first.

    What is published already is left alone, unless rows have come late for it or a new attempt is
    forced. What readers see as current never moves back: rows of newer intervals stay.

    Args:
        place: where everything is.
        name: which model.
        span: must lie in the past.
        champion: `then` scores with the version that served when the interval ended, or with the
            one that serves now if none did; `current` with the one that serves now. What a version
            scores that was trained after the interval is marked as hindsight in the ledger.
        force: score again what is published.
        accept: why rows may be published whatever the circuit breaker says.
        progress: called with each run.
    """
    span.require_past(clock.now())
    deployment, token = Prescorer(opened(place).settings), new_token()
    planner = Planner(deployment, name, token)
    late = {run.interval: run for run in ([] if force else planner.late(span))}
    seen = ("", span.start)  # which version has predicted all until when

    def publish_one(interval: Interval) -> Run:
        nonlocal seen
        again = late.get(interval)
        run = (
            planner.claim_again(again)
            if again
            else planner.claim(interval, champion=champion, force=force, accept=accept)
        )
        is_ahead = seen[0] == run.model_version and interval.end <= seen[1]
        if run.mode == "merge" and not (run.is_done or is_ahead):
            day = Interval(interval.start, max(min(interval.start + DAY, span.end), interval.end))
            seen = (run.model_version, day.end)
            with at_work(deployment.warehouse, [run.run_id]):
                deployment.prescore(name, run.model_version, day)
        return score_and_publish(deployment, run, token)

    return _on_each(planner.due_within(span), publish_one, progress)


def rollback(
    place: Place,
    name: str,
    to: str,
    *,
    actor: str,
    reason: str,
    progress: Callable[[Run], None] | None = None,
) -> tuple[Promotion, list[Run]]:
    """Make an earlier version the champion again, and let it score what readers see of the later.

    The pointer moves first, so that no new run uses the later version; then every interval of
    which readers still see its rows is scored again, oldest first, each published in one
    transaction. Calling it again goes on where it was interrupted.

    Args:
        place: where everything is.
        name: which model.
        to: the version that shall serve again.
        actor: who wants it.
        reason: why; both are recorded.
        progress: called with each run.

    Returns:
        What became of the wish, and the runs that were scored again.

    Raises:
        ArtifactError: no such version, or its file is missing, changed or unfit.
    """
    deployment = opened(place)
    answer = promotion.rollback(deployment, name, to, actor=actor, reason=reason)
    warehouse = deployment.warehouse
    left = champions.rolled_back_from(warehouse, name)
    token = new_token()
    planner = Planner(deployment, name, token)
    seen = ledger.seen_of_version(warehouse, name, left) if left else []

    def score_again(interval: Interval) -> Run:
        run = planner.claim(interval, force=True)
        return score_and_publish(deployment, run, token)

    return answer, _on_each([run.interval for run in seen], score_again, progress)


def _on_each(
    intervals: Iterable[Interval],
    publish_one: Callable[[Interval], Run],
    progress: Callable[[Run], None] | None,
) -> list[Run]:
    """Publish one interval after the other: one that fails keeps back no later one.

    Raises:
        UnavailableError: at once; so is what is wrong with more than the rows of an interval.
        BatchJobsError: after the last interval, if just that one was not published.
        IntervalsError: after the last one, if several were not; or at once, if `MOST_IN_A_ROW` were
            not, whose cause will hardly be in each of them.
    """
    runs, failed, in_a_row = [], {}, 0
    for interval in intervals:
        try:
            runs.append(publish_one(interval))
        except Exception as error:
            if isinstance(error, UnavailableError | InputError) and not isinstance(
                error, ContractError
            ):
                raise
            log.warning("%s is not published: %s", interval, first_line(error))
            failed[interval] = error
            in_a_row += 1
            if in_a_row == MOST_IN_A_ROW:
                break
        else:
            in_a_row = 0
            if progress:
                progress(runs[-1])
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        raise IntervalsError(failed)
    return runs
