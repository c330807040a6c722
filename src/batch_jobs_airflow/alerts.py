"""Alerts: every failure is told once, or kept until it can be; never with a secret in it.

    with DAG(
        ...,
        on_failure_callback=fail_alert,
        on_success_callback=recovery_alert,
        default_args={"on_failure_callback": record_error},
    )

Airflow calls a task's callback only if the task itself lives to see its failure, and a DAG's
callback always but without the exception. So the task's callback notes the exception and the
DAG's callback tells of the run; `the listener` sees to what neither is told.

Callbacks are killed after 20 seconds and their exceptions are lost, so everything here is bounded
and nothing raises. Importing this file is cheap: DAG files do it every 30 seconds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from uuid import uuid4

from batch_jobs.errors import BatchJobsError, FormError
from batch_jobs.redaction import first_line, redact
from batch_jobs_airflow.context import (
    WAS_AWAY,
    Context,
    attribute,
    dag_id_of,
    is_made_up_for,
    kind_of,
    model_of,
    name_of,
    redacted_line,
    run_id_of,
    run_key_of,
    span_of,
    task_try_of,
    was_away,
)
from batch_jobs_airflow.slack import channels, utc_now

if TYPE_CHECKING:
    from batch_jobs.alerts.problems import Message, Problem
    from batch_jobs.alerts.reporter import Reporter
    from batch_jobs.alerts.task_errors import TaskTry
    from batch_jobs.database.warehouse import Warehouse

log = logging.getLogger(__name__)

# Of whoever triggered the run, who finds it in the log.
OWN_MISTAKE = f"{FormError.__name__}: "
# A callback has 20 seconds: a task's to note its error.
NOTING_SECONDS = 14.0

P = ParamSpec("P")
T = TypeVar("T")


def _never_raises(function: Callable[P, T]) -> Callable[P, T | None]:
    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T | None:
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - an alert must not fail what it is about
            # No traceback: it would show the exception unredacted.
            log.error("%s failed: %s", function.__name__, first_line(error))  # noqa: TRY400
            return None

    return guarded


@_never_raises
def fail_alert(context: Context) -> None:
    """Tell that a DAG run failed; for `on_failure_callback` of a DAG, a task or both."""
    if record_failure(context):
        flush_alerts()


@_never_raises
def record_error(context: Context) -> None:
    """Note why a task failed, for `fail_alert`; for `on_failure_callback` of every task."""
    error, task = context.get("exception"), task_try_of(context)
    if error is not None and task is not None:
        _note(task, redacted_line(error))


@_never_raises
def recovery_alert(context: Context) -> None:
    """Tell that a DAG that had failed works again; for `on_success_callback` of a DAG."""
    # A single task's success does not mean that the DAG works.
    if "reason" in context and _record_success(context, always=False):
        flush_alerts()


@_never_raises
def success_alert(context: Context) -> None:
    """Tell of every success; for `on_success_callback` of a DAG or a task."""
    if _record_success(context, always=True):
        flush_alerts()


@_never_raises
def send_message(text: str, *, key: str | None = None) -> None:
    """Send a message, or keep it until it can be sent.

    Args:
        text: Slack's mrkdwn; what comes from outside must be escaped with
            `batch_jobs.alerts.mrkdwn.escape`. Secrets are taken out.
        key: what the message is about; a second message with the same key is not sent.
    """
    from batch_jobs.alerts import news

    send_news(news.free(redact(text)), key or f"message {uuid4()}")


@_never_raises
def send_news(message: Message, key: str) -> None:
    """Send a message that is made already, once for each key."""
    if _reporter().write(message, key):
        flush_alerts()


@_never_raises
def tell_problem(problem: Problem, key: str, hold: timedelta = timedelta()) -> None:
    """Tell of a problem that failed no run; see `incidents.report`."""
    if _reporter().report(problem, key, hold=hold):
        flush_alerts()


@_never_raises
def flush_alerts() -> None:
    """Send the messages that wait, the oldest first, for at most seven seconds."""
    _reporter().flush()


@_never_raises
def record_failure(context: Context) -> bool:
    """Report a failed run, without sending; if the warehouse is away, it is sent at once.

    Returns:
        Whether there may be something to send.
    """
    from batch_jobs.alerts import incidents
    from batch_jobs_airflow import failures

    run, at = run_key_of(context), utc_now()
    if was_away(context) and is_made_up_for(context):
        log.info("nobody is told of %s: %s The next run publishes what it left", run, WAS_AWAY)
        return False
    reporter, exception = _reporter(), context.get("exception")

    def is_own(failure: failures.Failure) -> bool:
        if failure.error is None or not failure.error.startswith(OWN_MISTAKE):
            return False
        log.info("nobody is told of %s: %s", run, failure.error)
        return True

    def put(warehouse: Warehouse) -> None:
        task = task_try_of(context)
        if task is not None and exception is not None:
            _remember(warehouse, task, redacted_line(exception), at)
        failure = failures.failure_of(context, failures.errors_of(context, warehouse))
        if not is_own(failure):
            hold = failures.BACKFILL_HOLD if failure.is_of_backfill else timedelta()
            incidents.report(
                warehouse,
                failure.problem,
                f"failed {run}",
                at,
                hold=hold,
                is_passing=failure.is_of_backfill,
            )

    def alone(error: BaseException) -> None:
        known = _spooled_errors(reporter, context)
        if exception is None and not known:
            # Why a task failed is kept where nothing can be read now; and that is a reason.
            reporter.report_warehouse(f"failed {run}", at, error)
            return
        failure = failures.failure_of(context, known)
        if not is_own(failure):
            reporter.report_alone(failure.problem, f"failed {run}", at, error)

    return reporter.put(put, alone)


@_never_raises
def import_error_alert(path: str, error: str, *, is_new: bool) -> None:
    """Tell that a DAG file does not load.

    Args:
        path: the file.
        error: the last line of its stack trace.
        is_new: whether the file loaded until now.
    """
    from batch_jobs_airflow import dag_files

    told = redacted_line(error or "no reason given")
    if dag_files.report(_reporter(), path, told, is_new=is_new):
        flush_alerts()


def _record_success(context: Context, *, always: bool) -> bool:
    from batch_jobs.alerts import incidents, news, outbox_messages
    from batch_jobs.alerts.incident_words import readers_see
    from batch_jobs.alerts.reporter import DEPLOYMENT_CAUSES
    from batch_jobs_airflow import dag_files, failures

    dag_id, of_dag, now = dag_id_of(context), "reason" in context, utc_now()
    model = model_of(dag_id)
    task = None if of_dag else task_try_of(context)
    name = None if task is None else name_of(task)
    key = f"succeeded {run_key_of(context)}" + (f" {name}" if name else "")
    reporter = _reporter()

    def put(warehouse: Warehouse) -> None:
        if of_dag:
            incidents.resolve(warehouse, None, DEPLOYMENT_CAUSES, now)
            dag_files.resolve(warehouse, attribute(context.get("dag"), "fileloc"), now)
            if _is_unhealed(dag_id):
                return  # it failed for intervals that are still missing
            causes = failures.causes_of(dag_id)
            if incidents.resolve(warehouse, model, causes, now):
                return
        if always:
            served = outbox_messages.served(warehouse, model) if model else None
            readers = readers_see(served, now) if model else None
            message = news.succeeded(dag_id, name, span_of(context), readers)
            outbox_messages.write_alone(warehouse, key, message, now)

    def alone(_: BaseException) -> None:
        message = news.succeeded(dag_id, name, span_of(context), None)
        reporter.write_alone(message, key, "news", now)

    return reporter.put(put, alone if always else None)


def _is_unhealed(dag_id: str) -> bool:
    """Whether an interval that was tried in vain is still missing; False if nobody can tell."""
    from batch_jobs.runs import attempts
    from batch_jobs_airflow.connections import airflow_settings

    model = model_of(dag_id)
    if kind_of(dag_id) != "predict" or model is None:
        return False
    try:
        return bool(attempts.unhealed(airflow_settings(), model))
    except BatchJobsError as error:
        log.warning("whether %s lacks an interval is not known: %s", dag_id, redacted_line(error))
        return False


def _note(task: TaskTry, error: str) -> None:
    """Keep an error for the DAG's callback: in the warehouse, or else beside it."""
    reporter, at = _reporter(), utc_now()

    def alone(_: BaseException) -> None:
        reporter.spool.add("error", at, task=vars(task), error=error)

    reporter.put(
        lambda warehouse: _remember(warehouse, task, error, at), alone, seconds=NOTING_SECONDS
    )


def _remember(warehouse: Warehouse, task: TaskTry, error: str, at: datetime) -> None:
    from batch_jobs.alerts import task_errors

    task_errors.remember_error(warehouse, task, error, at)


def _spooled_errors(reporter: Reporter, context: Context) -> list[tuple[TaskTry, str]]:
    """What tasks of a run on this machine failed with while the warehouse was away."""
    from batch_jobs.alerts.task_errors import TaskTry

    run = (dag_id_of(context), run_id_of(context))
    found = [event for event in reporter.spool.events() if event["kind"] == "error"]
    tried = [(TaskTry(**event["task"]), str(event["error"])) for event in found]
    return [(task, error) for task, error in tried if (task.dag_id, task.run_id) == run]


def _reporter() -> Reporter:
    from batch_jobs.alerts.reporter import Reporter
    from batch_jobs_airflow.connections import airflow_settings

    return Reporter(airflow_settings().warehouse, channels, utc_now)


if __name__ == "__main__":  # the listener starts this, away from the DAG processor
    import_error_alert(**json.loads(os.environ.pop("BATCH_JOBS_IMPORT_ERROR")))
