"""What may be wrong with Airflow and its DAGs: pure functions of what a look has found out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from batch_jobs.alerts.causes import of_dag_file
from batch_jobs.alerts.mrkdwn import length
from batch_jobs.alerts.problems import Problem, Severity
from batch_jobs.monitoring.watching.facts import BrokenFile, Facts
from batch_jobs.monitoring.watching.of_training import in_service
from batch_jobs.monitoring.watching.words import moment

# What stops, and what to do, where a process of Airflow does not work.
HURTS: dict[str, tuple[str, Severity, str, str]] = {
    "scheduler": (
        "Airflow's scheduler",
        "page",
        "no DAG runs: nothing is published or trained until it works",
        "start it again (`airflow scheduler`), and see its log",
    ),
    "dag_processor": (
        "Airflow's DAG processor",
        "page",
        "what Airflow tells of failed runs is not told, and changed DAG files are not read",
        "start it again (`airflow dag-processor`), and see its log",
    ),
    "triggerer": (
        "Airflow's triggerer",
        "warn",
        "nobody hears an approval, and Airflow's own deadlines are not told",
        "start it again (`airflow triggerer`), and see its log",
    ),
    "metadatabase": (
        "Airflow's database",
        "page",
        "no DAG runs until it answers",
        "see whether the database of Airflow is up, and has room",
    ),
}


def airflow_away(facts: Facts) -> Iterator[Problem]:
    """The API server gives no answer."""
    if facts.airflow and facts.airflow.away:
        yield Problem(
            cause="airflow-away",
            model=None,
            title="Airflow's API server does not answer",
            detail=facts.airflow.away,
            impact="tasks cannot report to it, so nothing is published or trained",
            next_step="start it again (`airflow api-server`), and see its log",
            links={"Airflow": facts.airflow.url},
            subject="api-server",
        )


def airflow_refuses(facts: Facts) -> Iterator[Problem]:
    """It answers, and does not tell the watch what it wants to know."""
    if facts.airflow and facts.airflow.refused:
        yield Problem(
            cause="airflow-refuses",
            model=None,
            title="Airflow does not tell the watch of its DAGs",
            detail=facts.airflow.refused,
            severity="warn",
            impact="nobody would hear that a DAG is paused, missing or broken",
            next_step="set BATCH_JOBS_AIRFLOW_USER and BATCH_JOBS_AIRFLOW_PASSWORD, or "
            "BATCH_JOBS_AIRFLOW_TOKEN, of a user who may read DAGs, runs and import errors",
            subject="api-server",
        )


def unhealthy(facts: Facts) -> Iterator[Problem]:
    """A process of Airflow is not heard of; each is a problem of its own."""
    for name, component in (facts.airflow.components if facts.airflow else {}).items():
        if component.status == "healthy" or (component.status is None and name == "triggerer"):
            continue
        who, severity, impact, step = HURTS[name]
        yield Problem(
            cause=f"airflow-{name.replace('_', '-')}",
            model=None,
            title=f"{who} is not heard of",
            detail=f"its last heartbeat was at {moment(component.heard)}, "
            f"{length(facts.now - component.heard)} ago"
            if component.heard
            else "there was no heartbeat",
            severity=severity,
            impact=impact,
            next_step=step,
            links={"Airflow": facts.airflow.url} if facts.airflow else {},
            subject=name.replace("_", "-"),
        )


def broken_file(facts: Facts) -> Iterator[Problem]:
    """A DAG file does not load; one incident with what the DAG processor itself tells of it."""
    known = {
        file.rpartition("/")[2]: cause
        for (_, cause), files in facts.warehouse.open.items()
        if cause.startswith("dag-file/")
        for file in files.split(", ")
    }
    alike: dict[str, list[BrokenFile]] = {}
    for broken in (facts.airflow and facts.airflow.broken_files) or ():
        cause = known.get(broken.path.rpartition("/")[2]) or of_dag_file(broken.error)
        alike.setdefault(cause, []).append(broken)
    for cause, files in alike.items():
        one = len(files) == 1
        yield Problem(
            cause=cause,
            model=None,
            title=f"DAG file {files[0].path} does not load"
            if one
            else f"{len(files)} DAG files do not load",
            detail=files[0].error,
            impact="its DAGs do not run until it does" if one else "nor do their DAGs run",
            next_step="mend the file, or what it imports; Airflow reads it again within a minute",
            subject=", ".join(file.path for file in files),
        )


VERBS = ("predict", "train", "monitor")


def _impact(verb: str, champion: str | None) -> str:
    """What it means for readers that the DAG of a verb does not run."""
    if verb == "monitor":
        return "nobody judges what is published by its outcomes"
    if verb == "predict":
        return "nothing new is published"
    return f"predictions go on with {champion}" if champion else "no version serves"


def dag_paused(facts: Facts) -> Iterator[Problem]:
    """A DAG of a model in service is paused."""
    for found in facts.models:
        for verb in VERBS:
            dag_id = f"{verb}_{found.name}"
            dag = ((facts.airflow and facts.airflow.dags) or {}).get(dag_id)
            if dag is None or not dag.is_paused or dag.is_stale or not in_service(facts, found):
                continue
            yield Problem(
                cause=f"dag-paused/{verb}",
                model=found.name,
                title=f"{dag_id} is paused",
                severity="page" if verb == "predict" else "warn",
                impact=_impact(verb, found.champion),
                next_step="unpause it in Airflow, or mute this with the reason",
                links={"Airflow": f"{facts.airflow.url}/dags/{dag_id}"} if facts.airflow else {},
                subject=dag_id,
            )


def dag_missing(facts: Facts) -> Iterator[Problem]:
    """A model in service has no DAG."""
    dags = facts.airflow.dags if facts.airflow else None
    for found in facts.models if dags is not None else ():
        for verb in VERBS:
            dag = (dags or {}).get(f"{verb}_{found.name}")
            if (dag is None or dag.is_stale) and in_service(facts, found):
                yield Problem(
                    cause=f"dag-missing/{verb}",
                    model=found.name,
                    title=f"Airflow does not know {verb}_{found.name}",
                    detail="it was there once, and its file no longer has it"
                    if dag
                    else "no DAG file has it",
                    severity="page" if verb == "predict" else "warn",
                    impact=_impact(verb, found.champion),
                    next_step=f"see that {found.name}.py is in a package that BATCH_JOBS_MODELS "
                    f"names where the DAG processor runs",
                    subject=f"{verb}_{found.name}",
                )


def hanging_run(facts: Facts) -> Iterator[Problem]:
    """A DAG run goes on for longer than its model allows."""
    for found in facts.models if facts.airflow else ():
        for run in (facts.airflow and facts.airflow.running) or ():
            verb = run.dag_id.removesuffix(f"_{found.name}")
            if found.model is None or verb not in ("predict", "train") or verb == run.dag_id:
                continue
            longest = found.model.timeout
            if verb == "train":
                approval = found.model.gate.approval or timedelta()
                longest = found.model.train_timeout + approval
            if facts.now - run.since > longest + timedelta(minutes=2):
                yield Problem(
                    cause=f"run-hangs/{verb}",
                    model=found.name,
                    title=f"a run of {run.dag_id} hangs",
                    detail=f"{run.run_id} runs since {moment(run.since)}, longer than "
                    f"{length(longest)}",
                    severity="page" if verb == "predict" else "warn",
                    next_step="mark the run as failed in Airflow, and see that its processes end",
                    subject=run.dag_id,
                )
