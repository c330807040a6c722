"""The verbs of serving: plan (claim an interval), score (stage its rows), publish."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from uuid6 import uuid7

from batch_jobs import ledger, publication, staging
from batch_jobs.artifacts import ModelStore
from batch_jobs.catalog import load_model
from batch_jobs.errors import BatchJobsError, ContractError, FencedError, IncompleteError
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval, due_between, newest_due
from batch_jobs.ledger import Counts, Part, Run
from batch_jobs.lifecycle import load_estimator, require_champion
from batch_jobs.model import BatchModel
from batch_jobs.registry import find_version
from batch_jobs.settings import Settings
from batch_jobs.warehouse import Warehouse, bounds

if TYPE_CHECKING:
    import pandas as pd

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
    staging.sweep(warehouse, name)
    failpoint("plan.before_claim")
    run = staging.claim(
        warehouse,
        model=name,
        interval=interval,
        token=token,
        model_version=version.version,
        mode=model.mode,
        key_ranges=_key_ranges(warehouse, model, interval, parts or model.parts),
    )
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
    if opened.staged or run.state == "published":
        log.info("run %d part %d is staged already", run_id, part)
        return opened.counts
    failpoint("score.opened")
    try:
        version = find_version(warehouse, name, run.model_version)
        estimator = load_estimator(ModelStore(settings.model_store), model, version)
        counts = Counts()
        for chunk in _read(warehouse, model, run.interval, opened):
            failpoint("score.before_chunk")
            counts += _score_chunk(warehouse, model, estimator, run, opened, token, chunk)
            failpoint("score.chunk_staged")
            if progress:
                progress(len(chunk))
        if counts.rejected and staging.has_doubled_reject(warehouse, run_id):
            raise _duplicates(warehouse, model, run.interval)
        failpoint("score.all_staged")
        staging.close_part(warehouse, opened, token, counts)
        failpoint("score.closed")
    except FencedError:
        raise
    except BatchJobsError as error:
        staging.fail_part(warehouse, opened, token, str(error))
        raise
    log.info("run %d part %d: %s", run_id, part, counts)
    return counts


def publish(settings: Settings, run_id: int) -> Run:
    """Make a staged run visible to readers in one transaction; see `publication.publish`."""
    warehouse = Warehouse.existing(settings.warehouse)
    try:
        run = publication.publish(warehouse, run_id)
    except IncompleteError as error:
        staging.fail(warehouse, run_id, str(error))
        raise
    failpoint("publish.committed")
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
        return [dict(row) for row in rows if names is None or row["model"] in names]


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


def _read(
    warehouse: Warehouse, model: BatchModel, interval: Interval, part: Part
) -> Iterator[pd.DataFrame]:
    query, values = model.features_query, dict(bounds(interval))
    wanted = {}
    if part.key_from is not None:
        wanted["key_from"] = (part.key_from, "entity_id >= :key_from")
    if part.key_to is not None:
        # A key that is NULL belongs to the first range: it must be read to be refused.
        null = " OR entity_id IS NULL" if part.key_from is None else ""
        wanted["key_to"] = (part.key_to, f"(entity_id < :key_to{null})")
    if wanted:
        condition = " AND ".join(sql for _, sql in wanted.values())
        query = f"SELECT * FROM (\n{query}\n) AS f WHERE {condition}"  # noqa: S608
        values |= {name: key for name, (key, _) in wanted.items()}
    return warehouse.stream(query, values, model.chunk_rows)


def _score_chunk(
    warehouse: Warehouse,
    model: BatchModel,
    estimator: Any,
    run: Run,
    part: Part,
    token: str,
    chunk: pd.DataFrame,
) -> Counts:
    import numpy as np

    from batch_jobs.contract import check_features
    from batch_jobs.scoring import as_inputs, probabilities, scores_and_labels

    checked = check_features(model, chunk, run.interval)
    rows, rejected = checked.rows, checked.rejected
    scored: list[tuple[str, float, str | None]] = []
    if len(rows):
        answer = probabilities(estimator, as_inputs(rows, model.features))
        scores, labels = scores_and_labels(estimator, answer)
        finite = np.isfinite(scores)
        keys = rows["entity_id"].tolist()
        triples = zip(keys, scores.tolist(), labels, strict=True)
        scored = [triple for triple, good in zip(triples, finite, strict=True) if good]
        rejected = rejected + [
            (keys[place], f"the model answered {scores[place]}", rows.loc[place].to_dict())
            for place in np.flatnonzero(~finite)
        ]
    try:
        staging.stage(warehouse, part, token, scored, rejected)
    except IntegrityError as error:
        raise _duplicates(warehouse, model, run.interval) from error
    return Counts(read=len(chunk), scored=len(scored), rejected=len(rejected))


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
