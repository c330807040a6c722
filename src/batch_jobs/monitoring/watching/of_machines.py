"""What may be wrong with Airflow, the warehouse, services and disks: pure functions of a look."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from batch_jobs.alerts.problems import Problem, Severity
from batch_jobs.monitoring.watching.facts import Disk, Facts
from batch_jobs.monitoring.watching.of_models import in_service
from batch_jobs.monitoring.watching.words import GIB, length, moment, size

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
# Numbers that nobody moves for so long do not live: our own questions count in them.
STILL = timedelta(seconds=45)
STILL_OF_AIRFLOW = timedelta(minutes=5)
NEARLY_FULL = (0.05, 5 * GIB)  # of the disk, and no more than this
FULL = (0.01, GIB)
SOON = timedelta(hours=12)
HALF_FULL = 0.25  # free: a disk that empties faster than this is looked at closely


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
    """A DAG file does not load."""
    for broken in (facts.airflow and facts.airflow.broken_files) or ():
        yield Problem(
            cause=f"dag-file/{broken.path}",
            model=None,
            title=f"DAG file {broken.path} does not load",
            detail=broken.error,
            impact="its DAGs do not run until it does",
            next_step="mend the file; Airflow reads it again within a minute",
            subject=broken.path,
        )


def dag_paused(facts: Facts) -> Iterator[Problem]:
    """A DAG of a model in service is paused."""
    for found in facts.models:
        for verb in ("predict", "train"):
            dag_id = f"{verb}_{found.name}"
            dag = ((facts.airflow and facts.airflow.dags) or {}).get(dag_id)
            if dag is None or not dag.is_paused or dag.is_stale or not in_service(facts, found):
                continue
            predicts = verb == "predict"
            yield Problem(
                cause=f"dag-paused/{verb}",
                model=found.name,
                title=f"{dag_id} is paused",
                severity="page" if predicts else "warn",
                impact="nothing new is published"
                if predicts
                else f"predictions go on with {found.champion}",
                next_step="unpause it in Airflow, or mute this with the reason",
                links={"Airflow": f"{facts.airflow.url}/dags/{dag_id}"} if facts.airflow else {},
                subject=dag_id,
            )


def dag_missing(facts: Facts) -> Iterator[Problem]:
    """A model in service has no DAG."""
    dags = facts.airflow.dags if facts.airflow else None
    for found in facts.models if dags is not None else ():
        for verb in ("predict", "train"):
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
                    impact="nothing new is published" if verb == "predict" else None,
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


def warehouse_away(facts: Facts) -> Iterator[Problem]:
    """The warehouse gives no answer: one incident, whatever follows from it."""
    if facts.warehouse.away:
        yield Problem(
            cause="warehouse-away",
            model=None,
            title="the warehouse does not answer",
            detail=facts.warehouse.away,
            impact="nothing is published or trained; whoever reads it sees errors or what was last "
            "read",
            next_step="see whether the database is up, reachable, and lets batch-jobs log in",
            subject=facts.warehouse.shown,
        )


def warehouse_locked(facts: Facts) -> Iterator[Problem]:
    """It can be read, and nobody can write."""
    if facts.warehouse.locked:
        yield Problem(
            cause="warehouse-locked",
            model=None,
            title="nobody can write to the warehouse",
            detail=facts.warehouse.locked,
            impact="readers still see the last good predictions; nothing new is published",
            next_step="find out who holds it: on SQLite `fuser` on its file, on PostgreSQL "
            "`pg_stat_activity`; end what hangs",
            subject=facts.warehouse.shown,
        )


def outbox(facts: Facts) -> Iterator[Problem]:
    """Messages wait, and no channel takes them."""
    if facts.warehouse.undelivered:
        yield Problem(
            cause="outbox",
            model=None,
            title=f"{facts.warehouse.undelivered:,} messages could not be delivered",
            detail=facts.warehouse.undelivered_why,
            impact="nobody hears of anything else that is wrong",
            next_step="see the connection `slack_webhook`, and try it: `batch-jobs alert --test`",
            subject="outbox",
        )


def disk(facts: Facts) -> Iterator[Problem]:
    """A disk is nearly full, or will be soon."""
    for found in facts.disks:
        share = found.free / max(found.total, 1)
        full, nearly = (share < limit and found.free < most for limit, most in (FULL, NEARLY_FULL))
        soon = found.full_in is not None and found.full_in < SOON and share < HALF_FULL
        if not (full or nearly or soon):
            continue
        yield Problem(
            cause=f"disk/{found.what.removeprefix('the ').replace(' ', '-')}",
            model=None,
            title=f"the disk of {found.what} {_filling(found, nearly=full or nearly)}",
            detail=f"{size(found.free)} of {size(found.total)} are free at {found.folder}",
            severity="page" if full else "warn",
            impact="once it is full nothing is published, trained or logged",
            next_step="remove what is not needed (`batch-jobs prune`, Airflow's logs), or enlarge "
            "it",
            subject=found.folder,
        )


def _filling(found: Disk, *, nearly: bool) -> str:
    if nearly or found.full_in is None:
        return "is nearly full"
    return f"will be full in {length(found.full_in)} if this goes on"


def service_away(facts: Facts) -> Iterator[Problem]:
    """Somebody who serves over HTTP gives no good answer."""
    for found in facts.services:
        if found.away:
            numbers = "metrics" in found.name
            yield Problem(
                cause=f"service-away/{found.name.replace(' ', '-')}",
                model=None,
                title=f"the {found.name} gives no answer",
                detail=found.away,
                severity="warn" if numbers else "page",
                impact="what watches them sees nothing"
                if numbers
                else "apps that ask it get no predictions",
                next_step="see whether it runs, and its log",
                links={found.name: found.url},
                subject=found.name,
            )


def numbers_still(facts: Facts) -> Iterator[Problem]:
    """Numbers are told, and do not move: they are not of now."""
    for found in facts.services:
        limit = STILL_OF_AIRFLOW if "Airflow" in found.name else STILL
        if found.still_for > limit:
            yield Problem(
                cause=f"numbers-still/{found.name.replace(' ', '-')}",
                model=None,
                title=f"the {found.name} are frozen",
                detail=f"no number has changed for {length(found.still_for)}, though being asked "
                f"changes some",
                severity="warn",
                impact="what watches them takes old figures for new ones",
                next_step="see whether a proxy or a cache answers, and start the server again",
                links={found.name: found.url},
                subject=found.name,
            )


def clock_back(facts: Facts) -> Iterator[Problem]:
    """The clock has gone back, so that ages are not to be trusted."""
    if facts.behind:
        yield Problem(
            cause="clock",
            model=None,
            title=f"the clock of this machine went back by {length(facts.behind)}",
            detail=f"it is {facts.now.isoformat(timespec='seconds')} here",
            severity="warn",
            impact="until it has caught up, nobody can say what is overdue",
            next_step="see whether it is set by NTP",
            subject="clock",
        )
