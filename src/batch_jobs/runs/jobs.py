"""The verbs of serving: plan (claim an interval), score (stage its rows), publish."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import IntegrityError

from batch_jobs import clock
from batch_jobs.catalog import load_model, model_names
from batch_jobs.database.connections import text
from batch_jobs.database.leases import BEAT, LEASE, at_work, new_token, renew
from batch_jobs.database.missed_rows import DAY, missed
from batch_jobs.database.warehouse import Warehouse, bounds, loaded_time, repeatable, stored_time
from batch_jobs.errors import (
    BatchJobsError,
    CircuitBreakerError,
    ContractError,
    FencedError,
    IncompleteError,
    InputError,
    IntervalsError,
    ModelFileError,
    UnavailableError,
)
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval, newest_due, period_at
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line, redact
from batch_jobs.registry import old_versions, promotion
from batch_jobs.registry import versions as registry
from batch_jobs.registry.loading import Predictors
from batch_jobs.registry.promotion import Promotion
from batch_jobs.registry.store import ModelStore
from batch_jobs.runs import circuit_breaker, ledger, publication, refusals, retention, staging
from batch_jobs.runs.ledger import Part, Run
from batch_jobs.runs.planning import Champion, Planner
from batch_jobs.runs.prescoring import Prescorer, stage_prescored
from batch_jobs.runs.publication import Staged
from batch_jobs.runs.retention import Pruned
from batch_jobs.scoring.counts import Counts, Progress
from batch_jobs.settings import Settings

if TYPE_CHECKING:
    from batch_jobs.scoring.predict import Predictor

log = logging.getLogger(__name__)

# What the circuit breaker compares with: a month knows weekends and nights.
RECENT = timedelta(weeks=4)
# What mostly tells already that it is as quiet as always, in a tenth of the time.
LAST_NIGHTS = timedelta(days=2)
POPULATIONS = 5
MOST_IN_A_ROW = 10  # intervals that fail one after the other, before a backfill gives up


def plan(  # noqa: PLR0913 - as many as its command has options
    settings: Settings,
    name: str,
    interval: Interval,
    token: str,
    *,
    parts: int | None = None,
    champion: Champion = "current",
    force: bool = False,
    accept: str | None = None,
) -> Run:
    """Claim one interval for scoring by the champion.

    An interval that is published already is left alone, and its published run is the answer,
    unless a new attempt is forced; see `planning.Planner.claim` for the rest.

    Raises:
        InputError: unknown model, future interval, no champion, or a query that does not compile.
        FencedError: a newer attempt has claimed the interval.
    """
    planner = Planner(settings, name, token, parts=parts)
    return planner.claim(interval, champion=champion, force=force, accept=accept)


def plan_each(
    settings: Settings,
    name: str,
    intervals: Sequence[Interval],
    token: str,
    *,
    champion: Champion = "current",
    force: bool = False,
    accept: str | None = None,
) -> list[Run]:
    """Claim several intervals, oldest first; see `Planner.claim_each`.

    Raises:
        InputError: unknown model, future interval, no champion, or a query that does not compile.
        FencedError: a newer attempt has claimed every one of them.
    """
    planner = Planner(settings, name, token)
    return planner.claim_each(intervals, champion=champion, force=force, accept=accept)


def plan_due(settings: Settings, name: str, newest: Interval, token: str) -> list[Run]:
    """Claim the newest interval, and before it those that need it; see `Planner.plan_due`.

    Raises:
        InputError: unknown model, future interval, no champion, or a query that does not compile.
    """
    return Planner(settings, name, token).plan_due(newest)


def score(
    settings: Settings,
    name: str,
    run_id: int,
    part: int,
    token: str,
    progress: Progress | None = None,
    predictors: Prescorer | None = None,
) -> Counts:
    """Read, check, predict and stage one part of a run, chunk by chunk.

    Args:
        settings: where everything is.
        name: which model.
        run_id: the run that claimed the interval.
        part: which part of it.
        token: of this try.
        progress: called with the number of rows of each chunk.
        predictors: shared with other runs of the same attempt.

    Whatever it raises but the following two, the run is failed with that reason, and the last good
    predictions stay; another try of the part makes it good.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        UnavailableError: something did not answer; the run stays open for another try.
    """
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    try:
        with at_work(warehouse, [run_id]):
            opened, found = _score_part(
                warehouse, model, run_id, part, token, progress, predictors or Prescorer(settings)
            )
            if found is None:
                log.info("run %d part %d is staged already", run_id, part)
                return opened.counts
            failpoint("score.all_staged")
            staging.close_part(warehouse, opened, token, *found)
            failpoint("score.closed")
    except (FencedError, IncompleteError, UnavailableError):
        raise
    except BaseException as error:
        _fail_part(warehouse, run_id, part, token, error, partial(_asked, settings))
        raise
    counts = found[0]
    log.info("run %d part %d: %s", run_id, part, counts)
    return counts


def _fail_part(
    warehouse: Warehouse,
    run_id: int,
    part: int,
    token: str,
    error: BaseException,
    asked: Callable[[int], str | None],
) -> None:
    """Record why a part has failed its run, if that can be done: the error itself goes first."""
    told = redact(str(error)) if isinstance(error, BatchJobsError) else first_line(error)
    try:
        refused = asked(run_id) if isinstance(error, ContractError) else None
        staging.fail_part(warehouse, run_id, part, token, told, refused)
    except Exception as problem:  # noqa: BLE001 - memory or a disk may be full
        log.warning("run %d is not marked as failed: %s", run_id, first_line(problem))


@repeatable
def _score_part(
    warehouse: Warehouse,
    model: BatchModel,
    run_id: int,
    part: int,
    token: str,
    progress: Progress | None,
    predictors: Prescorer,
) -> tuple[Part, tuple[Counts, tuple[float, float] | None] | None]:
    """Stage a part, from its first row on whenever the source is lost half-way through.

    Returns:
        The part, and what came of it; None if there was nothing to do.
    """
    from batch_jobs.runs.scoring import duplicates, score_part

    def load() -> Predictor:
        return predictors.of(warehouse, model, run.model_version)

    run, opened = staging.open_part(warehouse, run_id, part, token)
    if opened.staged or run.is_done:
        return opened, None
    failpoint("score.opened")
    if run.claimed_at is None or clock.now() - run.claimed_at > BEAT:
        renew(warehouse, [run_id])
    trained = predictors.trained(warehouse, model, run.model_version)
    try:
        if found := predictors.prescored(run, opened):
            stage_prescored(warehouse, opened, token, found)
            return opened, (found.counts, found.scores)
        counts, scores = score_part(warehouse, trained, load, run, opened, token, progress)
    except IntegrityError as error:
        raise duplicates(warehouse, trained, run.interval) from error
    if counts.rejected and staging.has_doubled_reject(warehouse, run):
        raise duplicates(warehouse, trained, run.interval)
    return opened, (counts, scores)


def publish(settings: Settings, run_id: int) -> Run:
    """Make a staged run visible to readers in one transaction; see `publication.publish`.

    Raises:
        CircuitBreakerError: the run looks too wrong to be seen; it is failed.
        IncompleteError: the run is not complete; it is failed.
        ContractError: the source has rows of the interval, and its query does not find them; the
            run is failed.
        FencedError: a newer attempt has claimed the interval.
    """
    warehouse = Warehouse.existing(settings.warehouse)

    def trained(run: Run) -> BatchModel:
        model = load_model(run.model, settings.models)
        return Predictors(settings).trained(warehouse, model, run.model_version)

    def judge(run: Run, staged: Staged) -> None:
        if run.mode == "merge" and (
            problem := missed(warehouse, trained(run), run.interval, read=staged.counts.read)
        ):
            raise problem
        model = load_model(run.model, settings.models)
        _judge(warehouse, model, run, staged, partial(trained, run))

    try:
        with at_work(warehouse, [run_id]):
            run = publication.publish(warehouse, run_id, judge)
    except IntegrityError as error:
        from batch_jobs.runs.scoring import duplicates

        run = ledger.find_run(warehouse, run_id)
        problem = duplicates(warehouse, trained(run), run.interval)
        staging.fail(warehouse, run_id, str(problem), _asked(settings, run_id))
        raise problem from error
    except (CircuitBreakerError, ContractError) as error:
        staging.fail(warehouse, run_id, str(error), _asked(settings, run_id))
        raise
    except IncompleteError as error:
        staging.fail(warehouse, run_id, str(error))
        raise
    log.info("published %s %s as run %d", run.model, run.interval, run.run_id)
    return run


def _asked(settings: Settings, run_id: int) -> str | None:
    """What a run was asked that is refused; see `refusals.question`."""
    warehouse = Warehouse.existing(settings.warehouse)
    run = ledger.find_run(warehouse, run_id)
    model = load_model(run.model, settings.models)
    trained = Predictors(settings).trained(warehouse, model, run.model_version)
    return refusals.question(warehouse, trained, run.interval, run.model_version)


def unhealed(settings: Settings, name: str) -> list[Interval]:
    """Intervals within the look-back that were tried in vain and that nobody has published."""
    model = load_model(name, settings.models)
    warehouse, now = Warehouse.existing(settings.warehouse), clock.now()
    return ledger.unhealed(warehouse, name, now - model.look_back, now - LEASE)


@contextmanager
def attempt(settings: Settings, run_ids: Sequence[int]) -> Iterator[None]:
    """Hold the leases of runs that a task has taken up, also while another one has its turn."""
    warehouse = Warehouse.existing(settings.warehouse)
    renew(warehouse, run_ids)
    with at_work(warehouse, run_ids):
        yield


def await_newer(settings: Settings, run_id: int, patience: timedelta = LEASE) -> Run:
    """The published run of the newer attempt that has fenced a run off, once there is one.

    Args:
        settings: where everything is.
        run_id: the run that was fenced off.
        patience: how long to wait for an attempt that is heard of.

    Raises:
        FencedError: the newer attempt has failed, is not heard of, or takes longer than that.
    """
    warehouse = Warehouse.existing(settings.warehouse)
    fenced = ledger.find_run(warehouse, run_id)
    until = time.monotonic() + patience.total_seconds()
    told = False
    while True:
        newer = ledger.newest_attempt(warehouse, fenced.model, fenced.interval)
        if newer.published_at is not None:
            return newer
        left = until - time.monotonic()
        problem = _why_not(newer, is_late=left <= 0)
        if problem:
            raise FencedError(
                f"run {run_id} of {fenced.model} {fenced.interval} was fenced off by the newer run "
                f"{newer.run_id}, which {problem}"
            )
        if not told:
            log.info("waiting for run %d, which has claimed %s", newer.run_id, newer.interval)
            told = True
        time.sleep(min(left, 1))


def _why_not(newer: Run, *, is_late: bool) -> str | None:
    """Why nothing is to be expected of a newer attempt any more, if so."""
    if newer.state == "failed":
        return f"has failed: {newer.error}"
    heard = newer.claimed_at
    if heard is None or clock.now() - heard > LEASE:
        return f"was not heard of since {heard}; the next run publishes the interval"
    return "goes on without having published yet" if is_late else None


def predict(  # noqa: PLR0913 - as many as its command has options
    settings: Settings,
    name: str,
    interval: Interval,
    *,
    token: str | None = None,
    parts: int | None = None,
    champion: Champion = "current",
    force: bool = False,
    accept: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Plan, score and publish one interval in this process; see the three verbs."""
    token = token or new_token()
    run = plan(
        settings,
        name,
        interval,
        token,
        parts=parts,
        champion=champion,
        force=force,
        accept=accept,
    )
    return score_and_publish(settings, run, token, progress)


def score_and_publish(
    settings: Settings,
    run: Run,
    token: str,
    progress: Progress | None = None,
    predictors: Prescorer | None = None,
) -> Run:
    """Score every part of a claimed run in this process and publish it; see the two verbs."""
    if run.is_done:
        return run
    warehouse = Warehouse.existing(settings.warehouse)
    for part in ledger.parts_of(warehouse, run.run_id):
        score(settings, run.model, run.run_id, part, token, progress, predictors)
    return publish(settings, run.run_id)


def backfill(
    settings: Settings,
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
        settings: where everything is.
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
    token = new_token()
    warehouse, model = Warehouse.existing(settings.warehouse), load_model(name, settings.models)
    planner, predictors = Planner(settings, name, token), Prescorer(settings)
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
            with at_work(warehouse, [run.run_id]):
                predictors.prescore(warehouse, model, run.model_version, day)
        return score_and_publish(settings, run, token, predictors=predictors)

    return _on_each(planner.due_within(span), publish_one, progress)


def rollback(
    settings: Settings,
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
        settings: where everything is.
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
    answer = promotion.rollback(settings, name, to, actor=actor, reason=reason)
    warehouse = Warehouse.existing(settings.warehouse)
    left = registry.rolled_back_from(warehouse, name)
    token = new_token()
    planner, predictors = Planner(settings, name, token), Prescorer(settings)
    seen = ledger.seen_of_version(warehouse, name, left) if left else []

    def score_again(interval: Interval) -> Run:
        run = planner.claim(interval, force=True)
        return score_and_publish(settings, run, token, predictors=predictors)

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


def gaps(settings: Settings, name: str) -> list[Interval]:
    """The due intervals of a model that were never published, oldest first."""
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    newest = newest_due(model.schedule, clock.now())
    return ledger.gaps(warehouse, name, model.schedule, newest.end)


def prune(settings: Settings, name: str | None = None) -> list[Pruned]:
    """Remove what readers have not seen for longer than a model keeps it; of one model or of all.

    And the artifacts of versions that nobody goes back to. The rows that readers see stay, but for
    those that are older than the model's `expire`.

    Raises:
        InputError: unknown model, or no warehouse; of several models whose files are broken, once
            the others are done.
        WarehouseUnavailableError: the database did not answer; the next prune goes on from there.
    """
    names = model_names(settings.models) if name is None else [name]
    warehouse = Warehouse.existing(settings.warehouse)
    store = ModelStore(settings.model_store, settings.model_cache)
    pruned, broken = [], []
    for each in names:
        try:
            model = load_model(each, settings.models)
        except ModelFileError as error:
            broken.append(error)
            continue
        rows = retention.prune(warehouse, model.name, model.keep, model.expire)
        artifacts = old_versions.remove(
            warehouse, store, model.name, model.keep, model.keep_versions
        )
        pruned.append(replace(rows, artifacts=artifacts))
        log.info("%s: %s", model.name, pruned[-1])
    if broken:
        raise InputError("; ".join(map(str, broken))) from broken[0]
    return pruned


def status(settings: Settings, name: str | None = None) -> list[dict[str, Any]]:
    """What readers see of each model, and what will serve them: a row a model.

    Args:
        settings: where everything is.
        name: which model; None for all that have a version or predictions.

    Returns:
        The columns of the view `serving_status`, of which all but the model's name are None before
        the first publication; with `champion`, `versions` (how many can be loaded) and `notes`
        (what a person should know, or do next).

    Raises:
        UnknownModelError: there is no such model.
    """
    names = [load_model(name, settings.models).name] if name else None
    warehouse = Warehouse.existing(settings.warehouse)
    columns, published = _published(warehouse)
    counts = registry.counts(warehouse)
    return [
        dict.fromkeys(columns)
        | {"model": each, **published.get(each, {}), "versions": counts.get(each, 0)}
        | _serving(settings, warehouse, each, published.get(each), counts.get(each, 0))
        for each in names or sorted({*published, *counts})
    ]


@repeatable
def _published(warehouse: Warehouse) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The columns of `serving_status`, and its rows by model; times are text."""
    with warehouse.read() as connection:
        found = connection.execute(text("SELECT * FROM serving_status"))
        columns, rows = list(found.keys()), found.mappings().all()
    times = ("interval_start", "interval_end", "published_at", "fresh_until")
    return columns, {
        row["model"]: {**row, **{name: stored_time(loaded_time(row[name])) for name in times}}
        for row in rows
    }


def _serving(
    settings: Settings,
    warehouse: Warehouse,
    name: str,
    published: Mapping[str, Any] | None,
    versions: int,
) -> dict[str, Any]:
    """The champion of a model, and what there is to say about it."""
    champion = registry.champion(warehouse, name)
    if champion is None:
        said = f"no version is promoted: `batch-jobs promote {name}`"
        if not versions:
            said = f"no version is trained: `batch-jobs train {name}`"
        return {"champion": None, "notes": [said]}
    notes = []
    if published is None:
        notes.append(f"nothing is published yet; {champion.version} serves from the first run on")
    elif published["model_version"] != champion.version:
        notes.append(f"{champion.version} was promoted, and serves from the next run on")
    try:
        differs = registry.file_differs(load_model(name, settings.models), champion)
    except BatchJobsError as error:
        differs = str(error)
    return {"champion": champion.version, "notes": [*notes, *([differs] if differs else [])]}


def _judge(
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
        earlier = ledger.rows_read_before(warehouse, run, POPULATIONS)
        found.append(circuit_breaker.odd_population(limits, counts.read, earlier))
    elif counts.read:
        if counts.read >= circuit_breaker.MANY:
            volumes = ledger.volumes(warehouse, run, run.interval.start - RECENT)
            most = circuit_breaker.fullest(volumes, run.interval.end - run.interval.start)
            found.append(circuit_breaker.surge(limits, counts.read, most))
    else:
        found.append(_silence(warehouse, model, run, trained))
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


def _silence(
    warehouse: Warehouse, model: BatchModel, run: Run, trained: Callable[[], BatchModel]
) -> str | None:
    """What is wrong with an interval without rows, if the source seems to be dead."""
    end, period = run.interval.end, period_at(model.schedule, run.interval.start)
    for recent in (LAST_NIGHTS, RECENT):
        volumes = ledger.volumes(warehouse, run, run.interval.start - recent)
        last = max((volume.end for volume in volumes if volume.rows), default=None)
        rest = max(period, 2 * circuit_breaker.longest_silence(volumes))
        if last and model.limits.silence is None and end - last <= rest:
            return None
    if last is None:
        return None
    judge = partial(circuit_breaker.silent_too_long, model.limits, volumes)
    problem = judge(last, end, period)
    if problem is None:
        return None
    # The source knows better than the ledger, which lacks what was not published.
    newest = _newest_row(warehouse, trained(), Interval(last, max(clock.now(), end)))
    if newest is None:
        return problem
    return None if newest >= end else judge(newest, end, period)


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
