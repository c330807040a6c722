"""What a failed DAG run is, by its root: the problem, told by the task that failed first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from batch_jobs_airflow.context import (
    MARKED_FAILED,
    UNKNOWN,
    WAS_AWAY,
    Context,
    attribute,
    dag_id_of,
    failed_tasks,
    kind_of,
    link_to_log,
    model_of,
    name_of,
    redacted_line,
    run_id_of,
    span_of,
    task_instance_of,
    task_try_of,
    tries_of,
    was_away,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batch_jobs.alerts.causes import Cause
    from batch_jobs.alerts.problems import Problem, Severity
    from batch_jobs.alerts.task_errors import TaskTry
    from batch_jobs.database.warehouse import Warehouse

# How long the failures of a backfill are held back, to be summed up.
BACKFILL_HOLD = timedelta(minutes=10)

_KILLED_DETAIL = (
    "It left no exception: it was killed (out of memory?), its worker was lost, or the DAG file "
    "could not be loaded there."
)
_KILLED_STEP = (
    "If memory was short, lower `chunk_rows` or raise `parts` in the model file; the next run "
    "heals the gap."
)
# By why Airflow says that a run failed: the cause, the title, what it means and how urgent it is.
_REASONS: dict[str, tuple[str, str, str, Severity]] = {
    "timed_out": (
        "run-timeout",
        "A run took too long",
        "It took longer than its dagrun_timeout.",
        "page",
    ),
    "all_tasks_deadlocked": (
        "deadlock",
        "No task could run",
        "Each waits for another one.",
        "page",
    ),
    MARKED_FAILED: ("marked-failed", "A run was marked failed by hand", "", "warn"),
}
# Tasks beside the predictions, which are published whatever becomes of these.
_BESIDE = {"prune", "answer", "monitor"}
_OF_THE_DAG: dict[str, tuple[Severity | None, str | None]] = {
    "train": ("warn", "Predictions go on with the champion as it is."),
    "monitor": ("warn", "The predictions themselves are published."),
}


@dataclass(frozen=True)
class Failure:
    """A failed run.

    Attributes:
        problem: what to tell.
        error: of the task at the root of it; None if it left none.
        is_of_backfill: whether it is one of many that a person started together.
    """

    problem: Problem
    error: str | None
    is_of_backfill: bool


def causes_of(dag_id: str) -> tuple[str, ...]:
    """What is over when a DAG works again."""
    if model_of(dag_id) is None:
        return (f"{dag_id}:*",)
    kind = kind_of(dag_id)
    return (f"{kind}-*", "model-file", *(["source-silent"] if kind == "predict" else []))


def failure_of(context: Context, errors: Sequence[tuple[TaskTry, str]]) -> Failure:
    """What failed, by the task that failed first.

    Args:
        context: Airflow's.
        errors: what the tasks of the run left, in the order in which they failed.
    """
    context, error = _root(context, errors)
    problem = _problem(context, error)
    is_of_backfill = attribute(context.get("dag_run"), "run_type") == "backfill"
    if is_of_backfill and problem.model is not None:
        problem = replace(
            problem,
            cause=f"backfill-{problem.cause.partition('-')[2]}",
            title=f"a backfill had failures: {problem.title}",
            severity="warn",
        )
    return Failure(problem, error, is_of_backfill)


def _root(context: Context, errors: Sequence[tuple[TaskTry, str]]) -> tuple[Context, str | None]:
    """The context about the task at the root, and its error; the last one often only echoes it."""
    from batch_jobs.alerts.causes import ECHOES, OWN_MISTAKE

    task = task_try_of(context)
    exception = context.get("exception")
    if task is None or exception is not None:
        return context, None if exception is None else redacted_line(exception)
    own = dict(errors).get(task)
    if context.get("reason") != "task_failure":
        return context, own
    echoes = [each for each in errors if each[1].startswith(ECHOES)]
    mistakes = [each for each in errors if each[1].startswith(OWN_MISTAKE)]
    first = [each for each in errors if each not in echoes and each not in mistakes]
    if not first and (echoes or not errors):
        known = {name_of(each) for each, _ in errors}
        killed = [each for each in failed_tasks(context) if name_of(each) not in known]
        if killed:
            return _about(context, killed[0]), None
    first = [*first, *echoes, *mistakes]
    if not first:
        return context, None
    found, error = first[0]
    return (context if name_of(found) == name_of(task) else _about(context, found)), error


def _about(context: Context, task: TaskTry) -> Context:
    """The context, about another task of the run."""
    last = task_instance_of(context)
    path = quote(task.task_id) + (f"/mapped/{task.map_index}" if task.map_index >= 0 else "")
    log_url = str(attribute(last, "log_url") or "").rpartition("/tasks/")[0]
    number = f"?try_number={task.try_number}" if task.try_number else ""
    log_url = log_url and f"{log_url}/tasks/{path}{number}"
    known = {"log_url": log_url, "task": attribute(last, "task")}
    return {**context, "ti": SimpleNamespace(**vars(task), **known), "task_instance": None}


def _problem(context: Context, error: str | None) -> Problem:
    from batch_jobs.alerts.problems import Problem

    dag_id, task = dag_id_of(context), task_try_of(context)
    model, kind = model_of(dag_id), kind_of(dag_id)
    severity, impact = _OF_THE_DAG.get(kind, (None, None))
    if task is not None and task.task_id in _BESIDE:
        severity, impact = _OF_THE_DAG["monitor"]
    told: dict[str, Any] = _by_reason(context, error) or _by_error(task, error, model)
    scope = told.pop("scope", "dag")
    if scope == "dag":
        told["cause"] = f"{kind}-{told['cause']}" if model else f"{dag_id}:{told['cause']}"
    is_outside = scope == "deployment"
    found = Problem(
        **{**told, "model": None if is_outside else model},
        subject=dag_id,
        impact=None if is_outside else impact,
        facts=_facts(context),
        links=_links(context),
    )
    return replace(found, severity=severity) if severity and not is_outside else found


def _by_reason(context: Context, error: str | None) -> dict[str, Any] | None:
    reason = context.get("reason")
    if was_away(context):
        return {
            "cause": "away",
            "title": "a run was cut off while Airflow was away",
            "detail": WAS_AWAY,
            "severity": "warn",
        }
    if reason in _REASONS:
        cause, title, detail, severity = _REASONS[str(reason)]
        return {"cause": cause, "title": title, "detail": detail, "severity": severity}
    if error == MARKED_FAILED:
        title = "A task was marked failed by hand"
        return {"cause": "marked-failed", "title": title, "severity": "warn"}
    return None


def _by_error(task: TaskTry | None, error: str | None, model: str | None) -> dict[str, Any]:
    from batch_jobs.alerts.causes import KILLED, classify, step_in

    name = "A run" if task is None else name_of(task)
    if error is None and task is None:
        return {"cause": "unknown", "title": "A run failed", "detail": "no reason given"}
    if error is None or error == UNKNOWN:
        return {
            "cause": KILLED,
            "title": f"{name} was killed (out of memory?)",
            "detail": _KILLED_DETAIL,
            "next_step": _KILLED_STEP,
        }
    cause: Cause = classify(error)
    step = step_in(cause.error)
    detail = cause.error.removesuffix(step).rstrip("; :") if step else cause.error
    if cause.name == "timeout":  # of Airflow's text, a process id is all there is
        detail = "It took longer than its execution_timeout."
    step = step or (cause.kind.next_step or "").format(task=name, model=model or "MODEL")
    return {
        "cause": cause.name,
        "title": cause.kind.title.format(task=name),
        "detail": detail,
        "severity": cause.kind.severity,
        "next_step": step or "The last line of its log says more: mend the cause, then clear it.",
        "scope": cause.kind.scope,
    }


def _facts(context: Context) -> tuple[str, ...]:
    from batch_jobs.alerts.mrkdwn import span

    task, tries, interval = task_try_of(context), tries_of(context), span_of(context)
    user = attribute(context.get("dag_run"), "triggering_user_name")
    facts = [
        dag_id_of(context),
        f"task {name_of(task)}" if task else None,
        f"after {tries} tries" if tries > 1 else None,
        f"interval {span(*interval)}" if interval else "manual run without interval",
        f"started by {user}" if user else None,
        None if link_to_log(context) else f"run {run_id_of(context)}",
    ]
    return tuple(fact for fact in facts if fact)


def _links(context: Context) -> dict[str, str]:
    url = link_to_log(context)
    return {"Open the log": url} if url else {}


def errors_of(context: Context, warehouse: Warehouse) -> list[tuple[TaskTry, str]]:
    """What the tasks of a run left, since it started, anew if it was cleared."""
    from batch_jobs.alerts import task_errors

    since = attribute(context.get("dag_run"), "start_date")
    return task_errors.errors_of(warehouse, dag_id_of(context), run_id_of(context), since)
