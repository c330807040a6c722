"""What Airflow's context tells; any of its keys and attributes may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from batch_jobs.errors import BatchJobsError
from batch_jobs.interval import parse_time
from batch_jobs.redaction import first_line

if TYPE_CHECKING:
    from batch_jobs.alerts.messages import FailedRun
    from batch_jobs.alerts.task_errors import TaskTry


MARKED_FAILED = "marked failed by hand"
UNKNOWN = "unknown"

_REASONS = {
    "timed_out": "The run took longer than its dagrun_timeout.",
    "all_tasks_deadlocked": "No task could run: each waits for another one.",
    MARKED_FAILED: "The run was marked failed by hand.",
}

_ERRORS = {
    "AirflowTaskTimeout": "The task took longer than its execution_timeout.",
    MARKED_FAILED: "The task was marked failed by hand.",
    UNKNOWN: "Why cannot be told now, the warehouse does not answer; the log has the reason.",
}

# Airflow looks every few seconds whether a run's time is up, unless it is away.
AWAY = timedelta(minutes=1)

WAS_AWAY = (
    "Airflow was away when the run's time was up, so its tasks did not end; if it is still wanted, "
    "clear it."
)

_KILLED = (
    "The task left no exception: it was killed (out of memory?), its worker was lost, "
    "or the DAG file could not be loaded there."
)

Context = Mapping[str, Any]


def redacted_line(error: BaseException | str) -> str:
    """The first line of an error, without secrets."""
    from airflow.sdk.log import redact as redact_known  # type: ignore[attr-defined]

    # A task translates our errors into Airflow's, whose names say only whether to try again.
    is_airflows = type(error).__module__.startswith("airflow.")
    told = (is_airflows and attribute(error, "__cause__")) or error
    # Airflow's masker knows the secrets of the connections that this process has read.
    return str(redact_known(first_line(told)))


def attribute(source: object, name: str) -> Any:
    """An attribute that may be missing, or a property that may raise: then None."""
    with suppress(Exception):  # a property of Airflow's may raise anything
        return getattr(source, name, None)
    return None


def task_instance_of(context: Context) -> Any:
    """The task instance, if the context tells of one."""
    return context.get("task_instance") or context.get("ti")


def dag_id_of(context: Context) -> str:
    """The DAG's id."""
    sources = (task_instance_of(context), context.get("dag_run"), context.get("dag"))
    return next(
        (str(found) for found in (attribute(s, "dag_id") for s in sources) if found), "unknown"
    )


def run_id_of(context: Context) -> str:
    """The run's id."""
    found = context.get("run_id") or attribute(context.get("dag_run"), "run_id")
    return str(found or attribute(task_instance_of(context), "run_id") or "unknown")


def run_key_of(context: Context) -> str:
    """Names the run, and anew each time that it is cleared and runs again."""
    cleared = attribute(context.get("dag_run"), "clear_number")
    return f"{dag_id_of(context)} {run_id_of(context)}" + (
        "" if cleared is None else f" #{cleared}"
    )


def task_try_of(context: Context) -> TaskTry | None:
    """The try of a task that the context is about, if it is about one."""
    from batch_jobs.alerts.task_errors import TaskTry

    ti = task_instance_of(context)
    task_id = attribute(ti, "task_id")
    if not task_id:
        return None
    map_index, number = (
        found if isinstance(found := attribute(ti, name), int) else unknown
        for name, unknown in (("map_index", -1), ("try_number", 0))
    )
    return TaskTry(dag_id_of(context), run_id_of(context), str(task_id), map_index, number)


def name_of(task: TaskTry) -> str:
    """A task's id, with its index if it is mapped."""
    return f"{task.task_id}[{task.map_index}]" if task.map_index >= 0 else task.task_id


def span_of(context: Context) -> tuple[datetime, datetime] | None:
    """The interval that the trigger form asked for, or else the run's own; None if neither."""
    dag_run = context.get("dag_run")
    asked = attribute(dag_run, "conf")
    with suppress(KeyError, TypeError, BatchJobsError):  # anything can be asked for
        return parse_time(asked["interval_start"]), parse_time(asked["interval_end"])
    start, end = (
        context.get(name) or attribute(dag_run, name)
        for name in ("data_interval_start", "data_interval_end")
    )
    return (start, end) if start and end else None


def model_of(dag_id: str) -> str | None:
    """The model that a DAG serves, by its id."""
    kind, _, model = dag_id.partition("_")
    return model if kind in {"predict", "train"} and model else None


def _attempt(context: Context) -> tuple[int, int] | None:
    ti = task_instance_of(context)
    number, most = attribute(ti, "try_number"), attribute(ti, "max_tries")
    # A DAG's callback finds no max_tries in the task instance, but the task.
    retries = attribute(context.get("task") or attribute(ti, "task"), "retries")
    if not isinstance(number, int) or number < 1:  # nothing was tried
        return None
    tries = [found + 1 for found in (most, retries) if isinstance(found, int)]
    return number, max(number, *tries) if tries else number


def was_away(context: Context) -> bool:
    """Whether a run is over time because Airflow was stopped, and not because it took so long."""
    run, limit = context.get("dag_run"), attribute(context.get("dag"), "dagrun_timeout")
    start, end = attribute(run, "start_date"), attribute(run, "end_date")
    if context.get("reason") != "timed_out" or not (start and end and limit):
        return False
    return bool(end - start > limit + AWAY)


def is_made_up_for(context: Context) -> bool:
    """Whether the next run does by itself what this one left."""
    kind = dag_id_of(context).partition("_")[0]
    return kind == "predict" and attribute(context.get("dag_run"), "run_type") == "scheduled"


def log_url_of(context: Context) -> str | None:
    """Where the log is, as far as it can be told."""
    if url := attribute(task_instance_of(context), "log_url"):
        return str(url)
    from airflow.configuration import conf

    base = conf.get("api", "base_url", fallback="").rstrip("/")
    run = f"dags/{quote(dag_id_of(context))}/runs/{quote(run_id_of(context))}"
    return f"{base}/{run}" if base else None


def describe(context: Context, error: str | None) -> tuple[str, FailedRun]:
    """The cause, by which incidents are told apart, and what to tell."""
    from batch_jobs.alerts.messages import FailedRun

    task, reason, dag_id = task_try_of(context), context.get("reason"), dag_id_of(context)
    if was_away(context):
        cause, what = "away", WAS_AWAY
    elif reason in _REASONS:
        cause, what = str(reason), _REASONS[reason]
    elif error is not None:
        cause = error.partition(":")[0]
        what = _ERRORS.get(cause, error)
    elif task is not None:
        cause, what = "killed", _KILLED
    else:
        cause = what = redacted_line(str(reason or "no reason given"))
    if task is not None and reason not in _REASONS:
        cause = f"{task.task_id} {cause}"
    return cause, FailedRun(
        dag_id=dag_id,
        model=model_of(dag_id),
        task=None if task is None else name_of(task),
        attempt=_attempt(context),
        span=span_of(context),
        what=what,
        is_exception=what == error,
        log_url=log_url_of(context),
    )
