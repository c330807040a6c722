"""The verbs of serving: plan (claim an interval), score (stage its rows), publish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from uuid6 import uuid7

from batch_jobs import ledger, publication, staging
from batch_jobs.artifacts import ModelStore
from batch_jobs.catalog import load_model
from batch_jobs.errors import (
    BatchJobsError,
    ContractError,
    FencedError,
    IncompleteError,
    WarehouseUnavailableError,
)
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval, due_between, newest_due
from batch_jobs.ledger import Counts, Run
from batch_jobs.lifecycle import load_estimator, require_champion
from batch_jobs.model import BatchModel
from batch_jobs.registry import find_version
from batch_jobs.settings import Settings
from batch_jobs.staging import Claim
from batch_jobs.warehouse import Warehouse, bounds, loaded_time, repeatable, stored_time

log = logging.getLogger(__name__)

# An attempt that claimed an interval longer ago than this is taken for dead when gaps are healed.
ABANDONED_AFTER = timedelta(hours=1)
Progress = Callable[[int], None]


def new_token() -> str:
    """An attempt token for the command line: a UUIDv7, so that a later attempt has a higher one."""
    return str(uuid7())


def plan(
    settings: Settings,
    name: str,
    interval: Interval,
    token: str,
    *,
    parts: int | None = None,
    force: bool = False,
) -> Run:
    """Claim one interval for scoring by the champion.

    An interval that is published already is left alone, and its published run is the answer,
    unless a new attempt is forced.

    Raises:
        InputError: unknown model, future interval, no champion, or a query that does not compile.
        FencedError: a newer attempt has claimed the interval.
    """
    model = load_model(name, settings.models)
    interval.require_past(datetime.now(UTC))
    warehouse = Warehouse.existing(settings.warehouse)
    published = ledger.published_run(warehouse, name, interval)
    if published is not None and not force:
        log.info("%s %s is already published as run %d", name, interval, published.run_id)
        return published
    version = require_champion(warehouse, name)
    subject = f"features_query of {name}"
    warehouse.require_query(subject, model.features_query, bounds(interval))
    staging.sweep(warehouse, name, datetime.now(UTC) - ABANDONED_AFTER)
    failpoint("plan.before_claim")
    wanted = Claim(
        model=name,
        interval=interval,
        token=token,
        model_version=version.version,
        mode=model.mode,
        key_ranges=_key_ranges(warehouse, model, interval, parts or model.parts),
    )
    run = staging.claim(warehouse, wanted)
    failpoint("plan.claimed")
    log.info("claimed %s %s as run %d for %s", name, interval, run.run_id, version.version)
    return run


def plan_due(settings: Settings, name: str, newest: Interval, token: str) -> list[Run]:
    """Claim the newest interval, and before it the missed ones, oldest first.

    Missed are the due intervals within the model's look-back that were never published and that no
    other attempt is scoring now; in replace mode the newest run makes up for all of them.

    Raises:
        InputError: unknown model, future interval, no champion, or a query that does not compile.
        FencedError: a newer attempt has claimed the newest interval.
    """
    model = load_model(name, settings.models)
    newest.require_past(datetime.now(UTC))
    warehouse = Warehouse.existing(settings.warehouse)
    missed: list[Interval] = []
    if model.mode == "merge":
        oldest = newest.start - model.look_back
        missed = ledger.gaps(warehouse, name, model.schedule, newest.start, since=oldest)
        fresh = ledger.fresh_until(warehouse, name)
        if fresh is not None and fresh < oldest:
            log.warning(
                "due intervals from %s on are older than the look-back of %s and stay "
                "unpublished; publish them with `batch-jobs backfill %s --start %s --end %s`",
                fresh.isoformat(),
                model.look_back,
                name,
                fresh.isoformat(),
                oldest.isoformat(),
            )
        busy = ledger.being_staged(warehouse, name, datetime.now(UTC) - ABANDONED_AFTER)
        missed = [gap for gap in missed if gap not in busy]
    if missed:
        log.info("%d missed intervals are published first, from %s on", len(missed), missed[0])
    runs = []
    for gap in missed:
        try:
            runs.append(plan(settings, name, gap, token))
        except FencedError as error:
            log.info("left to a newer attempt: %s", error)
    return [*runs, plan(settings, name, newest, token)]


def score(
    settings: Settings,
    name: str,
    run_id: int,
    part: int,
    token: str,
    progress: Progress | None = None,
) -> Counts:
    """Read, check, predict and stage one part of a run, chunk by chunk.

    Raises:
        InputError: rows that do not fit the contract, or an artifact that does not load; the run
            is failed and the last good predictions stay.
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
    """
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    run, opened = staging.open_part(warehouse, run_id, part, token)
    if opened.staged or run.state != "staging":
        log.info("run %d part %d is staged already", run_id, part)
        return opened.counts
    failpoint("score.opened")
    try:
        counts, scores = _score_part(warehouse, settings, model, run_id, part, token, progress)
        failpoint("score.all_staged")
        staging.close_part(warehouse, opened, token, counts, scores)
        failpoint("score.closed")
    except (FencedError, WarehouseUnavailableError):
        raise
    except BatchJobsError as error:
        staging.fail_part(warehouse, opened, token, str(error))
        raise
    log.info("run %d part %d: %s", run_id, part, counts)
    return counts


@repeatable
def _score_part(
    warehouse: Warehouse,
    settings: Settings,
    model: BatchModel,
    run_id: int,
    part: int,
    token: str,
    progress: Progress | None,
) -> tuple[Counts, tuple[float, float] | None]:
    """Stage a part, from its first row on whenever the source is lost half-way through."""
    from batch_jobs.streaming import score_part

    def load() -> Any:
        version = find_version(warehouse, model.name, run.model_version)
        return load_estimator(ModelStore(settings.model_store), model, version)

    run, opened = staging.open_part(warehouse, run_id, part, token)
    try:
        counts, scores = score_part(warehouse, model, load, run, opened, token, progress)
    except IntegrityError as error:
        raise _duplicates(warehouse, model, run.interval) from error
    if counts.rejected and staging.has_doubled_reject(warehouse, run):
        raise _duplicates(warehouse, model, run.interval)
    return counts, scores


def publish(settings: Settings, run_id: int) -> Run:
    """Make a staged run visible to readers in one transaction; see `publication.publish`."""
    warehouse = Warehouse.existing(settings.warehouse)
    try:
        run = publication.publish(warehouse, run_id)
    except IncompleteError as error:
        staging.fail(warehouse, run_id, str(error))
        raise
    log.info("published %s %s as run %d", run.model, run.interval, run.run_id)
    return run


def predict(
    settings: Settings,
    name: str,
    interval: Interval,
    *,
    token: str | None = None,
    parts: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Plan, score and publish one interval in this process; see the three verbs."""
    token = token or new_token()
    run = plan(settings, name, interval, token, parts=parts, force=force)
    if run.state == "published":
        return run
    for part in range(parts or load_model(name, settings.models).parts):
        score(settings, name, run.run_id, part, token, progress)
    return publish(settings, run.run_id)


def backfill(
    settings: Settings,
    name: str,
    span: Interval,
    *,
    force: bool = False,
    progress: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Publish every due interval inside a span of time, oldest first.

    What is published already is left alone, unless forced. What readers see as current never
    moves back: rows of newer intervals stay.
    """
    model = load_model(name, settings.models)
    span.require_past(datetime.now(UTC))
    runs = []
    for interval in due_between(model.schedule, span.start, span.end):
        runs.append(predict(settings, name, interval, force=force))
        if progress:
            progress(runs[-1])
    return runs


def gaps(settings: Settings, name: str) -> list[Interval]:
    """The due intervals of a model that were never published, oldest first."""
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    newest = newest_due(model.schedule, datetime.now(UTC))
    return ledger.gaps(warehouse, name, model.schedule, newest.end)


def status(settings: Settings, name: str | None = None) -> list[dict[str, Any]]:
    """What readers see of each model: the rows of the view `serving_status`."""
    warehouse = Warehouse.existing(settings.warehouse)
    names = [load_model(name, settings.models).name] if name else None
    with warehouse.read() as connection:
        rows = connection.execute(text("SELECT * FROM serving_status ORDER BY model")).mappings()
        return [_plain(dict(row)) for row in rows if names is None or row["model"] in names]


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose times are text, from whichever database."""
    times = ("interval_start", "interval_end", "published_at", "fresh_until")
    return {**row, **{name: stored_time(loaded_time(row[name])) for name in times}}


def _key_ranges(
    warehouse: Warehouse, model: BatchModel, interval: Interval, parts: int
) -> Sequence[tuple[str | None, str | None]]:
    """Cut the keys of an interval into as many ranges of equal row count; the ends are open."""
    if parts == 1:
        return [(None, None)]
    with warehouse.read() as connection:
        cuts = connection.scalars(
            text(f"""
                SELECT min(entity_id) FROM (
                  SELECT entity_id, ntile(:parts) OVER (ORDER BY entity_id) AS part
                  FROM (\n{model.features_query}\n) AS f) AS ranked
                WHERE part > 1 GROUP BY part ORDER BY part"""),  # noqa: S608
            {**bounds(interval), "parts": parts},
        ).all()
    edges = [None, *cuts, *[None] * (parts - len(cuts))]
    ranges = list(pairwise(edges))
    # Fewer rows than parts: the ranges behind the last cut are empty, and must not be open-ended.
    return [pair if place <= len(cuts) else ("", "") for place, pair in enumerate(ranges)]


def _duplicates(warehouse: Warehouse, model: BatchModel, interval: Interval) -> ContractError:
    with warehouse.read() as connection:
        found = connection.execute(
            text(f"""
                SELECT entity_id, count(*) AS times FROM (\n{model.features_query}\n) AS f
                GROUP BY entity_id HAVING count(*) > 1 ORDER BY entity_id"""),  # noqa: S608
            bounds(interval),
        ).all()
    samples = ", ".join(repr(row.entity_id) for row in found[:3])
    rows = sum(row.times for row in found)
    return ContractError(
        f"features_query of {model.name}",
        [f"entity_id is duplicated in {rows:,} rows (e.g. {samples})"],
    )
