"""What may be wrong with a model: pure functions of what a look has found out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from croniter import croniter

from batch_jobs.alerts.problems import Problem
from batch_jobs.interval import floor_to_grid
from batch_jobs.model import BatchModel
from batch_jobs.monitoring.watching.facts import Facts, ModelFacts
from batch_jobs.monitoring.watching.words import length, moment

# Time that whoever starts, trains and publishes may take on a busy machine, beyond what it takes.
GRACE = timedelta(minutes=1)
# An attempt that says nothing for longer than another one waits for it.
SILENT = timedelta(minutes=10)
REFUSED_OFTEN = 2
# From then on somebody who has not answered should be reminded.
HALF = 2


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


def in_service(facts: Facts, found: ModelFacts) -> bool:
    """Whether anybody wants the model to be served in batch.

    One that has published is. So is one of which a DAG was unpaused; where nobody knows DAGs, one
    that has a champion.
    """
    if found.served is not None:
        return True
    dags = facts.airflow.dags if facts.airflow else None
    if dags is None:
        return facts.airflow is None and found.champion is not None
    own = [dags.get(f"{verb}_{found.name}") for verb in ("predict", "train")]
    return any(dag is not None and not dag.is_paused and not dag.is_stale for dag in own)


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
            title=f"{_many(len(found.gaps), 'interval is', 'intervals are')} missing behind the "
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


def no_champion(facts: Facts) -> Iterator[Problem]:
    """Versions were trained, and none of them serves."""
    for found in facts.models:
        if found.champion or not in_service(facts, found):
            continue
        newest = found.trained[0] if found.trained else None
        if newest and facts.now - newest.created_at < _patience(found):
            continue
        running = (facts.airflow and facts.airflow.running) or ()
        if any(run.dag_id == f"train_{found.name}" for run in running):
            continue  # it is being trained; a run that hangs is told as such
        yield Problem(
            cause="no-champion",
            model=found.name,
            title="there is no champion",
            detail=f"{_many(len(found.trained), 'version is', 'versions are')} trained and none is "
            f"promoted: {newest.reasons}"
            if newest
            else "no version was ever trained",
            impact="nothing is predicted",
            next_step=f"`batch-jobs promote {found.name} {newest.version} --reason …` lets it serve"
            if newest
            else f"trigger `train_{found.name}`",
            subject=f"train_{found.name}",
        )


def _patience(found: ModelFacts) -> timedelta:
    """How long a version may take from its training to its promotion."""
    return _approval(found) + 10 * GRACE


def _approval(found: ModelFacts) -> timedelta:
    return (found.model.gate.approval if found.model else None) or timedelta()


def never_ran(facts: Facts) -> Iterator[Problem]:
    """There is a champion, and nothing was ever published."""
    for found in facts.models:
        if found.served or not (found.model and found.promoted_at and in_service(facts, found)):
            continue
        due = promise(found.model, found.promoted_at, timedelta())
        if facts.now > due.late_from:
            yield Problem(
                cause="never-ran",
                model=found.name,
                title="nothing was ever published",
                detail=f"{found.champion} serves since {moment(found.promoted_at)}, and no "
                f"interval was published",
                impact="readers see nothing",
                next_step=f"unpause `predict_{found.name}` in Airflow, or see why it fails",
                subject=f"predict_{found.name}",
            )


def training_overdue(facts: Facts) -> Iterator[Problem]:
    """A training was due, and no version has come of it."""
    for found in facts.models:
        if not (found.model and found.trained and in_service(facts, found)):
            continue
        newest = found.trained[0]
        due = floor_to_grid(found.model.train_schedule, facts.now)
        if newest.as_of >= due or facts.now - due <= found.model.train_timeout + GRACE:
            continue
        yield Problem(
            cause="training-overdue",
            model=found.name,
            title=f"the training of {moment(due)} did not come",
            detail=f"the newest version is {newest.version}, trained as of {moment(newest.as_of)}",
            severity="warn",
            impact=f"predictions go on with {found.champion}" if found.champion else None,
            next_step=f"see what `train_{found.name}` does in Airflow, and trigger it",
            subject=f"train_{found.name}",
        )


def gate_refuses(facts: Facts) -> Iterator[Problem]:
    """The gate refuses one training after the other."""
    for found in facts.models:
        refused = 0
        for version in found.trained:
            if version.may_serve or version.undecided or version.version == found.champion:
                break
            refused += 1
        if found.champion and refused >= REFUSED_OFTEN:
            newest = found.trained[0]
            yield Problem(
                cause="gate-refuses",
                model=found.name,
                title=f"the gate has refused the last {refused} trainings",
                detail=newest.reasons,
                severity="warn",
                impact=f"predictions go on with {found.champion}, serving since "
                f"{moment(found.promoted_at)}"
                if found.promoted_at
                else None,
                next_step=f"read the evaluation of {newest.version}; `batch-jobs promote "
                f"{found.name} {newest.version} --reason …` lets it serve all the same",
                subject=f"train_{found.name}",
            )


def approval(facts: Facts) -> Iterator[Problem]:
    """Nobody answers whether a version may serve, or nobody has."""
    questions = (facts.airflow.questions if facts.airflow else None) or {}
    for found in facts.models:
        asked, patience = questions.get(found.name), _approval(found)
        if asked is None or not patience:
            continue
        waited = facts.now - asked.asked_at
        newer = found.promoted_at is not None and found.promoted_at > asked.asked_at
        if newer or asked.by or (asked.waits and waited < patience / HALF):
            continue
        if asked.waits and not asked.is_answered:
            title = f"nobody has answered for {length(waited)} whether the new version may serve"
            detail = f"in {length(patience - waited)} the champion stays"
            step = "answer under *Required Actions* in Airflow"
        elif asked.is_answered:
            title = "nobody said whether the new version may serve, and the champion stays"
            detail = f"asked {moment(asked.asked_at)}, for {length(patience)}"
            step = f"trigger `train_{found.name}`, or `batch-jobs promote {found.name} VERSION "
            step += "--reason …`"
        else:
            continue  # the task was ended by other means, as its failure tells
        yield Problem(
            cause="approval",
            model=found.name,
            title=title,
            detail=detail,
            severity="warn",
            impact=f"predictions go on with {found.champion}" if found.champion else None,
            next_step=step,
            links={"Required actions": f"{facts.airflow.url}/required_actions"}
            if facts.airflow
            else {},
            subject=f"train_{found.name}",
        )


def model_file(facts: Facts) -> Iterator[Problem]:
    """The file of a model that is served is gone, or makes no model."""
    for found in facts.models:
        if found.broken and in_service(facts, found):
            yield Problem(
                cause="model-file",
                model=found.name,
                title="the model file cannot be read",
                detail=found.broken,
                next_step=f"mend or restore `{found.name}.py`; `batch-jobs check {found.name}` "
                f"tells whether it is right",
                subject=f"{found.name}.py",
            )


def _many(count: int, one: str, more: str) -> str:
    return f"{count:,} {one if count == 1 else more}"
