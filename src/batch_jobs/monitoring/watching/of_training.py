"""What may be wrong with a model before it predicts: pure functions of what a look found out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from batch_jobs.alerts.mrkdwn import length
from batch_jobs.alerts.problems import Problem
from batch_jobs.interval import floor_to_grid
from batch_jobs.monitoring.watching.facts import Facts, ModelFacts
from batch_jobs.monitoring.watching.of_models import GRACE, promise
from batch_jobs.monitoring.watching.words import many, moment

REFUSED_OFTEN = 2
# From then on somebody who has not answered should be reminded.
HALF = 2


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
            detail=f"{many(len(found.trained), 'version is', 'versions are')} trained and none is "
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
            detail = f"in {length(patience - waited)} it is refused without an answer"
            step = "answer under *Required Actions* in Airflow"
        elif asked.is_answered:
            title = "nobody said in time whether the new version may serve, so it does not"
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
