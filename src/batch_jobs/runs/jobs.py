"""The verbs of a run: score (stage its rows) and publish; `planning.Planner` claims it before."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.exc import IntegrityError

from batch_jobs import clock
from batch_jobs.catalog import model_names
from batch_jobs.database.leases import BEAT, at_work, new_token, renew
from batch_jobs.database.missed_rows import missed
from batch_jobs.database.transactions import repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import (
    BatchJobsError,
    CircuitBreakerError,
    ContractError,
    FencedError,
    IncompleteError,
    InputError,
    ModelFileError,
    UnavailableError,
)
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line, redact
from batch_jobs.registry import old_versions
from batch_jobs.registry.deployment import Deployment, Place, opened
from batch_jobs.runs import ledger, publication, refusals, retention, staging
from batch_jobs.runs.audit import Staged
from batch_jobs.runs.ledger import Part, Run
from batch_jobs.runs.planning import Champion, Planner
from batch_jobs.runs.plausibility import require_plausible
from batch_jobs.runs.prescoring import Prescorer, stage_prescored
from batch_jobs.runs.retention import Pruned
from batch_jobs.scoring.counts import Counts, Progress

if TYPE_CHECKING:
    from batch_jobs.scoring.predict import Predictor

log = logging.getLogger(__name__)


def score(
    place: Place,
    name: str,
    run_id: int,
    part: int,
    token: str,
    progress: Progress | None = None,
) -> Counts:
    """Read, check, predict and stage one part of a run, chunk by chunk.

    Args:
        place: where everything is.
        name: which model.
        run_id: the run that claimed the interval.
        part: which part of it.
        token: of this try.
        progress: called with the number of rows of each chunk.

    Whatever it raises but the following two, the run is failed with that reason, and the last good
    predictions stay; another try of the part makes it good.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        UnavailableError: something did not answer; the run stays open for another try.
    """
    deployment = opened(place)
    deployment.model(name)  # what is wrong with its file is no fault of this run
    warehouse = deployment.warehouse
    try:
        with at_work(warehouse, [run_id]):
            taken, found = _score_part(warehouse, deployment, name, run_id, part, token, progress)
            if found is None:
                log.info("run %d part %d is staged already", run_id, part)
                return taken.counts
            failpoint("score.all_staged")
            staging.close_part(warehouse, taken, token, *found)
            failpoint("score.closed")
    except (FencedError, IncompleteError, UnavailableError):
        raise
    except BaseException as error:
        _fail_part(deployment, run_id, part, token, error)
        raise
    counts = found[0]
    log.info("run %d part %d: %s", run_id, part, counts)
    return counts


def _fail_part(
    deployment: Deployment, run_id: int, part: int, token: str, error: BaseException
) -> None:
    """Record why a part has failed its run, if that can be done: the error itself goes first."""
    told = redact(str(error)) if isinstance(error, BatchJobsError) else first_line(error)
    try:
        refused = _asked(deployment, run_id) if isinstance(error, ContractError) else None
        staging.fail_part(deployment.warehouse, run_id, part, token, told, refused)
    except Exception as problem:  # noqa: BLE001 - memory or a disk may be full
        log.warning("run %d is not marked as failed: %s", run_id, first_line(problem))


@repeatable
def _score_part(
    warehouse: Warehouse,
    deployment: Deployment,
    name: str,
    run_id: int,
    part: int,
    token: str,
    progress: Progress | None,
) -> tuple[Part, tuple[Counts, tuple[float, float] | None, bytes | None] | None]:
    """Stage a part, from its first row on whenever the source is lost half-way through.

    Returns:
        The part, and what came of it; None if there was nothing to do.
    """
    from batch_jobs.runs.scoring import duplicates, score_part
    from batch_jobs.scoring.profile_bytes import encoded_sum

    def load() -> Predictor:
        return deployment.predictor(name, run.model_version, profiles=True)

    run, taken = staging.open_part(warehouse, run_id, part, token)
    if taken.staged or run.is_done:
        return taken, None
    failpoint("score.opened")
    if run.claimed_at is None or clock.now() - run.claimed_at > BEAT:
        renew(warehouse, [run_id])
    trained = deployment.trained(name, run.model_version)
    try:
        if isinstance(deployment, Prescorer) and (found := deployment.prescored(run, taken)):
            stage_prescored(warehouse, taken, token, found)
            return taken, (found.counts, found.scores, encoded_sum([found.profile]))
        scored = score_part(warehouse, trained, load, run, taken, token, progress)
    except IntegrityError as error:
        if not warehouse.database.is_doubled_key(error):
            raise
        raise duplicates(warehouse, trained, run.interval) from error
    if scored[0].rejected and staging.has_doubled_reject(warehouse, run):
        raise duplicates(warehouse, trained, run.interval)
    return taken, scored


def publish(place: Place, run_id: int) -> Run:
    """Make a staged run visible to readers in one transaction; see `publication.publish`.

    Raises:
        CircuitBreakerError: the run looks too wrong to be seen; it is failed.
        IncompleteError: the run is not complete; it is failed.
        ContractError: the source has rows of the interval, and its query does not find them; the
            run is failed.
        FencedError: a newer attempt has claimed the interval.
    """
    deployment = opened(place)
    warehouse = deployment.warehouse

    def trained(run: Run) -> BatchModel:
        return deployment.trained(run.model, run.model_version)

    def inspect(run: Run, staged: Staged) -> None:
        if run.mode == "merge" and (
            problem := missed(warehouse, trained(run), run.interval, read=staged.counts.read)
        ):
            raise problem
        model = deployment.model(run.model)
        require_plausible(warehouse, model, run, staged, partial(trained, run))

    try:
        with at_work(warehouse, [run_id]):
            run = publication.publish(warehouse, run_id, inspect)
    except IntegrityError as error:
        from batch_jobs.runs.scoring import duplicates

        if not warehouse.database.is_doubled_key(error):
            raise
        run = ledger.find_run(warehouse, run_id)
        problem = duplicates(warehouse, trained(run), run.interval)
        staging.fail(warehouse, run_id, str(problem), _asked(deployment, run_id))
        raise problem from error
    except (CircuitBreakerError, ContractError) as error:
        staging.fail(warehouse, run_id, str(error), _asked(deployment, run_id))
        raise
    except IncompleteError as error:
        staging.fail(warehouse, run_id, str(error))
        raise
    log.info("published %s %s as run %d", run.model, run.interval, run.run_id)
    return run


def _asked(deployment: Deployment, run_id: int) -> str | None:
    """What a run was asked that is refused; see `refusals.question`."""
    run = ledger.find_run(deployment.warehouse, run_id)
    trained = deployment.trained(run.model, run.model_version)
    return refusals.question(deployment.warehouse, trained, run.interval, run.model_version)


def predict(  # noqa: PLR0913 - as many as its command has options
    place: Place,
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
    """Plan, score and publish one interval in this process."""
    deployment = opened(place)
    token = token or new_token()
    planner = Planner(deployment, name, token, parts=parts)
    run = planner.claim(interval, champion=champion, force=force, accept=accept)
    return score_and_publish(deployment, run, token, progress)


def score_and_publish(
    place: Place,
    run: Run,
    token: str,
    progress: Progress | None = None,
) -> Run:
    """Score every part of a claimed run in this process and publish it; see the two verbs."""
    if run.is_done:
        return run
    deployment = opened(place)
    for part in ledger.parts_of(deployment.warehouse, run.run_id):
        score(deployment, run.model, run.run_id, part, token, progress)
    return publish(deployment, run.run_id)


def prune(place: Place, name: str | None = None) -> list[Pruned]:
    """Remove what readers have not seen for longer than a model keeps it; of one model or of all.

    And the artifacts of versions that nobody goes back to. The rows that readers see stay, but for
    those that are older than the model's `expire`.

    Raises:
        InputError: unknown model, or no warehouse; of several models whose files are broken, once
            the others are done.
        WarehouseUnavailableError: the database did not answer; the next prune goes on from there.
    """
    deployment = opened(place)
    names = model_names(deployment.settings.models) if name is None else [name]
    warehouse, store = deployment.warehouse, deployment.store
    pruned, broken = [], []
    for each in names:
        try:
            model = deployment.model(each)
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
