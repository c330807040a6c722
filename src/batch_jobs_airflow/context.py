"""What Airflow's context tells; any of its keys and attributes may be missing."""

from __future__ import annotations

import ctypes
import logging
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from batch_jobs.errors import BatchJobsError
from batch_jobs.interval import parse_time
from batch_jobs.redaction import first_line

if TYPE_CHECKING:
    from batch_jobs.alerts.task_errors import TaskTry

log = logging.getLogger(__name__)

KINDS = {"predict", "train", "rollback", "monitor"}
# An error is kept with its advice, which must not be cut.
ERROR_LENGTH = 2_000
MARKED_FAILED = "marked failed by hand"
UNKNOWN = "unknown"

# Airflow looks every few seconds whether a run's time is up, unless it is away.
AWAY = timedelta(minutes=1)

WAS_AWAY = (
    "Airflow was away when the run's time was up, so its tasks did not end; if it is still wanted, "
    "clear it."
)

Context = Mapping[str, Any]


def redacted_line(error: BaseException | str) -> str:
    """The first line of an error, as long as its advice may be, without secrets."""
    from airflow.sdk.log import redact as redact_known  # type: ignore[attr-defined]

    # A task translates our errors into Airflow's, whose names say only whether to try again.
    is_airflows = type(error).__module__.startswith("airflow.")
    told = (is_airflows and attribute(error, "__cause__")) or error
    # Airflow's masker knows the secrets of the connections that this process has read.
    return str(redact_known(first_line(told, length=ERROR_LENGTH)))


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


def kind_of(dag_id: str) -> str:
    """What a DAG does: the first word of its id."""
    return dag_id.partition("_")[0]


def model_of(dag_id: str) -> str | None:
    """The model that a DAG serves, by its id."""
    kind, _, model = dag_id.partition("_")
    return model if kind in KINDS and model else None


def actor_of(dag_run: Any) -> str:
    """Who does what a run does: the person who started it, if one did, and the run."""
    run, user = f"airflow {dag_run.run_id}", attribute(dag_run, "triggering_user_name")
    return f"{user} ({run})" if user else run


def tries_of(context: Context) -> int:
    """How often the task was tried; 0 if it was not."""
    number = attribute(task_instance_of(context), "try_number")
    return number if isinstance(number, int) and number > 0 else 0


def failed_tasks(context: Context) -> list[TaskTry]:
    """The tasks of the run that failed, in the order of the DAG; none if Airflow does not tell.

    It tells in tasks and in callbacks, and nowhere else.
    """
    from batch_jobs.alerts.task_errors import TaskTry

    dag_id, run_id = dag_id_of(context), run_id_of(context)
    tasks = attribute(context.get("dag"), "task_dict") or {}
    try:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        found = RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run_id])
    except Exception as error:  # noqa: BLE001 - whatever the way to Airflow's server raises
        log.debug("the states of the tasks of %s are not known: %s", run_id, first_line(error))
        return []
    failed = []
    for name, state in found.get(run_id, {}).items():
        if state != "failed":
            continue
        task_id, index = (name, -1) if name in tasks else _mapped(name)
        retries = attribute(tasks.get(task_id), "retries")
        number = retries + 1 if isinstance(retries, int) else 0
        failed.append(TaskTry(dag_id, run_id, task_id, index, number))
    order = list(tasks)
    return sorted(
        failed,
        key=lambda each: (
            order.index(each.task_id) if each.task_id in order else len(order),
            each.map_index,
        ),
    )


def _mapped(name: str) -> tuple[str, int]:
    """Task and index of a name as Airflow makes it of the two."""
    task_id, _, index = name.rpartition("_")
    return (task_id, int(index)) if task_id and index.isdecimal() else (name, -1)


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


def link_to_log(context: Context) -> str | None:
    """Where the log is, if somebody who reads the message elsewhere can open it.

    An address of this machine alone, as Airflow makes it where `[api] base_url` is not set, leads
    nobody anywhere.
    """
    from batch_jobs.alerts.links import is_of_this_machine

    url = attribute(task_instance_of(context), "log_url")
    if not url:
        from airflow.configuration import conf

        base = conf.get("api", "base_url", fallback="").rstrip("/")
        run = f"dags/{quote(dag_id_of(context))}/runs/{quote(run_id_of(context))}"
        url = f"{base}/{run}" if base else None
    return str(url) if url and not is_of_this_machine(str(url)) else None


def die_with_supervisor() -> None:
    """Ask Linux to kill this task if its supervisor dies, so that it cannot outlive its retry.

    The fence in the warehouse keeps such a task harmless anyway; this keeps it from being one.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
