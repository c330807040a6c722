"""Slack: every failure is told once, or kept until it can be; never with a secret in it.

    with DAG(
        ...,
        on_failure_callback=fail_alert,
        on_success_callback=recovery_alert,
        default_args={"on_failure_callback": record_error},
    )

Airflow calls a task's callback only if the task itself lives to see its failure, and a DAG's
callback always but without the exception. So the task's callback notes the exception and the
DAG's callback sends the message; `the listener` sees to what neither is told.

Callbacks are killed after 20 seconds and their exceptions are lost, so everything here is bounded
and nothing raises. Importing this file is cheap: DAG files do it every 30 seconds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from functools import partial, wraps
from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, ParamSpec, TypeVar
from urllib.parse import quote
from uuid import uuid4

from batch_jobs.errors import BatchJobsError, FormError
from batch_jobs.redaction import first_line, redact
from batch_jobs_airflow.context import (
    UNKNOWN,
    WAS_AWAY,
    Context,
    attribute,
    dag_id_of,
    describe,
    is_made_up_for,
    model_of,
    name_of,
    redacted_line,
    run_key_of,
    span_of,
    task_instance_of,
    task_try_of,
    was_away,
)
from batch_jobs_airflow.slack import SENDING_SECONDS, post_to, utc_now, way_to_slack

if TYPE_CHECKING:
    from batch_jobs.alerts.messages import Incident
    from batch_jobs.alerts.task_errors import TaskTry
    from batch_jobs.database.warehouse import Warehouse

log = logging.getLogger(__name__)

# Of whoever triggered the run, who finds it in the log.
OWN_MISTAKE = f"{FormError.__name__}: "
# A callback has 20 seconds: a task's to note its error, a DAG's to compose, to look and to send.
NOTING_SECONDS = 14.0
COMPOSING_SECONDS = 8.0
LOOKING_SECONDS = 3.0

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
    """Tell Slack that a DAG run failed; for `on_failure_callback` of a DAG, a task or both."""
    record_failure(context)
    flush_alerts()


@_never_raises
def record_error(context: Context) -> None:
    """Note why a task failed, for `fail_alert`; for `on_failure_callback` of every task."""
    error, task = context.get("exception"), task_try_of(context)
    if error is not None and task is not None:
        warehouse = _warehouse()

        def note() -> None:
            warehouse.ensure_schema()
            _remember(warehouse, task, error)

        _within(NOTING_SECONDS, note)


@_never_raises
def recovery_alert(context: Context) -> None:
    """Tell Slack that a DAG that had failed works again; for `on_success_callback` of a DAG."""
    if "reason" in context:  # a single task's success does not mean that the DAG works
        _record_success(context, always=False)
        flush_alerts()


@_never_raises
def success_alert(context: Context) -> None:
    """Tell Slack of every success; for `on_success_callback` of a DAG or a task."""
    _record_success(context, always=True)
    flush_alerts()


@_never_raises
def send_message(text: str, *, key: str | None = None) -> None:
    """Send a message to Slack, or keep it for the next run.

    Args:
        text: Slack's mrkdwn; what comes from outside must be escaped with
            `batch_jobs.alerts.messages.escape`. Secrets are taken out.
        key: what the message is about; a second message with the same key is not sent.
    """
    from batch_jobs.alerts import outbox

    text = redact(text)
    key = key or f"message {uuid4()}"
    _put(lambda warehouse, now: outbox.record(warehouse, key, text, now), lambda _: text)
    flush_alerts()


@_never_raises
def flush_alerts() -> None:
    """Send the messages that wait, the oldest first, for at most seven seconds."""
    from batch_jobs.alerts import delivery, outbox

    warehouse = _warehouse()
    if _within(LOOKING_SECONDS, lambda: outbox.waiting(warehouse, utc_now())):
        slack = way_to_slack()
        if slack is not None:
            post = partial(post_to, slack)
            _within(
                SENDING_SECONDS + 1,
                lambda: delivery.send_waiting(warehouse, post, SENDING_SECONDS, utc_now),
            )


@_never_raises
def record_failure(context: Context) -> None:
    """Put a failed run into the outbox, without sending; if there is no outbox, send at once."""
    from batch_jobs.alerts import messages, outbox, task_errors

    run, exception = run_key_of(context), context.get("exception")
    if was_away(context) and is_made_up_for(context):
        log.info("nobody is told of %s: %s The next run publishes what it left", run, WAS_AWAY)
        return

    def put(warehouse: Warehouse, now: datetime) -> None:
        told = _of_the_first(context, warehouse)
        task, error = task_try_of(told), None
        if task is not None and exception is not None:
            error = _remember(warehouse, task, exception)
        elif task is not None:
            error = task_errors.recall_error(warehouse, task)
        cause, failed = describe(told, error)
        if failed.is_exception and failed.what.startswith(OWN_MISTAKE):
            log.info("nobody is told of %s: %s", run, failed.what)
            return
        readers = _readers(warehouse, failed.model, now)
        outbox.record_failure(
            warehouse,
            outbox.Failure(f"failed {run}", failed.dag_id, cause),
            lambda incident: messages.run_failed(failed, incident, readers),
            now,
        )

    def alone(now: datetime) -> str:
        # Why a task failed is kept where nothing can be read now.
        error = UNKNOWN if exception is None else redacted_line(exception)
        _, failed = describe(context, error)
        return messages.run_failed(failed, messages.Incident(1, now), None)

    _put(put, alone)


@_never_raises
def import_error_alert(path: str, error: str, *, is_new: bool) -> None:
    """Tell Slack that a DAG file does not load.

    Args:
        path: the file.
        error: the last line of its stack trace.
        is_new: whether the file loaded until now.
    """
    from batch_jobs.alerts import delivery, messages

    error = redacted_line(error or "no reason given")

    def put(warehouse: Warehouse, now: datetime) -> None:
        delivery.record_broken_file(warehouse, path, error, now, is_new=is_new)

    def alone(now: datetime) -> str:
        return messages.file_failed(path, error, messages.Incident(1, now))

    _put(put, alone if is_new else None)
    flush_alerts()


def _record_success(context: Context, *, always: bool) -> None:
    from batch_jobs.alerts import messages, outbox

    dag_id, of_dag = dag_id_of(context), "reason" in context
    file = attribute(context.get("dag"), "fileloc")
    subjects = [dag_id, str(file)] if file else [dag_id]
    task = None if of_dag else task_try_of(context)
    name = None if task is None else name_of(task)
    key = f"succeeded {run_key_of(context)}" + (f" {name}" if name else "")

    def put(warehouse: Warehouse, now: datetime) -> None:
        readers = _readers(warehouse, model_of(dag_id), now)

        def recovered(incident: Incident) -> str:
            return messages.recovered(dag_id, incident, now, readers)

        if of_dag and _is_unhealed(dag_id):
            return  # it failed for intervals that are still missing
        if of_dag and outbox.close_incidents(warehouse, subjects, now, (key, recovered)):
            return
        if always:
            text = messages.succeeded(dag_id, name, span_of(context), readers)
            outbox.record(warehouse, key, text, now)

    def alone(_: datetime) -> str:
        return messages.succeeded(dag_id, name, span_of(context), None)

    _put(put, alone if always else None)


def _is_unhealed(dag_id: str) -> bool:
    """Whether an interval that was tried in vain is still missing; False if nobody can tell."""
    from batch_jobs.runs import attempts
    from batch_jobs_airflow.connections import airflow_settings

    kind, model = dag_id.partition("_")[0], model_of(dag_id)
    if kind != "predict" or model is None:
        return False
    try:
        return bool(attempts.unhealed(airflow_settings(), model))
    except BatchJobsError as error:
        log.warning("whether %s lacks an interval is not known: %s", dag_id, redacted_line(error))
        return False


def _put(
    put: Callable[[Warehouse, datetime], object], alone: Callable[[datetime], str] | None
) -> None:
    """Put a message into the outbox; with no outbox, rather send it twice than not at all.

    Args:
        put: does so.
        alone: makes the message if there is no outbox; None if it can then be done without.
    """
    now = utc_now()
    try:
        warehouse = _warehouse()

        def prepared() -> None:
            if alone is not None:
                warehouse.ensure_schema()
            put(warehouse, now)

        _within(COMPOSING_SECONDS, prepared)
    except Exception as error:  # noqa: BLE001 - whatever it is, the alert comes first
        log.warning("the outbox of alerts cannot be used: %s", redacted_line(error))
        if alone is not None:
            _send_alone(alone(now))


def _send_alone(text: str) -> None:
    slack = way_to_slack()
    if slack is None:
        log.warning("this alert could neither be sent nor kept: %s", text)
        return
    problem = _within(SENDING_SECONDS + 1, lambda: post_to(slack, text, SENDING_SECONDS))
    if problem:
        log.warning("this alert could neither be sent (%s) nor kept: %s", problem, text)


def _warehouse() -> Warehouse:
    from batch_jobs.database.warehouse import Warehouse
    from batch_jobs_airflow.connections import airflow_settings

    return Warehouse(airflow_settings().warehouse)


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Do the work in a thread of its own, so that nothing it waits for can hold us longer."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            future.set_exception(error)

    Thread(target=run, name="slack-alert", daemon=True).start()
    return future.result(timeout=seconds)


def _of_the_first(context: Context, warehouse: Warehouse) -> Context:
    """A DAG's context about the task that failed first; the last one often only echoes it."""
    from batch_jobs.alerts import task_errors

    last, task = task_instance_of(context), task_try_of(context)
    if context.get("reason") != "task_failure" or task is None:
        return context
    first = task_errors.first_failed(
        warehouse, task, attribute(context.get("dag_run"), "start_date")
    )
    if first is None or name_of(first) == name_of(task):
        return context
    path = quote(first.task_id) + (f"/mapped/{first.map_index}" if first.map_index >= 0 else "")
    log_url = str(attribute(last, "log_url") or "").rpartition("/tasks/")[0]
    log_url = log_url and f"{log_url}/tasks/{path}?try_number={first.try_number}"
    known = {"log_url": log_url, "task": attribute(last, "task")}
    return {**context, "ti": SimpleNamespace(**vars(first), **known), "task_instance": None}


def _remember(warehouse: Warehouse, task: TaskTry, exception: BaseException | str) -> str:
    from batch_jobs.alerts import task_errors

    error = redacted_line(exception)
    task_errors.remember_error(warehouse, task, error, utc_now())
    return error


def _readers(warehouse: Warehouse, model: str | None, now: datetime) -> str | None:
    from batch_jobs.alerts import messages, outbox

    if model is None:
        return None
    with suppress(Exception):  # the alert is worth more than this line of it
        return messages.readers_see(outbox.served(warehouse, model), now)
    return None


if __name__ == "__main__":  # the listener starts this, away from the DAG processor
    import_error_alert(**json.loads(os.environ.pop("BATCH_JOBS_IMPORT_ERROR")))
