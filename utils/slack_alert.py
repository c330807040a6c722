"""Slack: every failure is told once, or kept until it can be; never with a secret in it.

    with DAG(
        ...,
        on_failure_callback=fail_alert,
        on_success_callback=recovery_alert,
        default_args={"on_failure_callback": record_error},
    )

Airflow calls a task's callback only if the task itself lives to see its failure, and a DAG's
callback always but without the exception. So the task's callback notes the exception and the
DAG's callback sends the message; `plugins/alert_listener.py` sees to what neither is told.

Callbacks are killed after 20 seconds and their exceptions are lost, so everything here is bounded
and nothing raises. Importing this file is cheap: DAG files do it every 30 seconds.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from threading import Thread
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar
from urllib.parse import quote, urlsplit
from uuid import uuid4

from batch_jobs.errors import BatchJobsError, FormError
from batch_jobs.interval import parse_time
from batch_jobs.redaction import first_line, redact

if TYPE_CHECKING:
    from slack_sdk import WebhookClient

    from batch_jobs.alerts.messages import FailedRun, Incident
    from batch_jobs.alerts.task_errors import TaskTry
    from batch_jobs.database.warehouse import Warehouse

log = logging.getLogger(__name__)

SLACK_CONNECTION_ID = "slack_webhook"
MARKED_FAILED = "marked failed by hand"
UNKNOWN = "unknown"
# Of whoever triggered the run, who finds it in the log.
OWN_MISTAKE = f"{FormError.__name__}: "
# A callback has 20 seconds: a task's to note its error, a DAG's to compose, to look and to send.
NOTING_SECONDS = 14.0
COMPOSING_SECONDS = 8.0
LOOKING_SECONDS = 3.0
SENDING_SECONDS = 7.0

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
_AWAY = (
    "Airflow was away when the run's time was up, so its tasks did not end; if it is still wanted, "
    "clear it."
)
_KILLED = (
    "The task left no exception: it was killed (out of memory?), its worker was lost, "
    "or the DAG file could not be loaded there."
)
Context = Mapping[str, Any]
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
    error, task = context.get("exception"), _task_try(context)
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
    from batch_jobs.alerts import outbox

    warehouse = _warehouse()
    if _within(LOOKING_SECONDS, lambda: outbox.waiting(warehouse, _now())):
        slack = _slack()
        if slack is not None:
            _within(SENDING_SECONDS + 1, lambda: _send_waiting(warehouse, slack))


@_never_raises
def record_failure(context: Context) -> None:
    """Put a failed run into the outbox, without sending; if there is no outbox, send at once."""
    from batch_jobs.alerts import messages, outbox, task_errors

    run, exception = _run_key(context), context.get("exception")
    if _was_away(context) and _is_made_up_for(context):
        log.info("nobody is told of %s: %s The next run publishes what it left", run, _AWAY)
        return

    def put(warehouse: Warehouse, now: datetime) -> None:
        told = _of_the_first(context, warehouse)
        task, error = _task_try(told), None
        if task is not None and exception is not None:
            error = _remember(warehouse, task, exception)
        elif task is not None:
            error = task_errors.recall_error(warehouse, task)
        cause, failed = _describe(told, error)
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
        error = UNKNOWN if exception is None else _first_line(exception)
        _, failed = _describe(context, error)
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
    from batch_jobs.alerts import messages, outbox

    error = _first_line(error or "no reason given")
    # Process ids and addresses differ from one parse to the next; the error is the same.
    cause = re.sub(r"0x[0-9a-f]+|\d+", "#", error)
    # A file is parsed every 30 seconds; once an hour is enough to count.
    occurrence = _now().isoformat() if is_new else f"{_now():%Y-%m-%dT%H}"

    def compose(incident: Incident) -> str:
        return messages.file_failed(path, error, incident)

    def put(warehouse: Warehouse, now: datetime) -> None:
        if is_new:
            outbox.close_incidents(warehouse, [path], now)
        failure = outbox.Failure(f"import {path} {cause} {occurrence}", path, cause)
        outbox.record_failure(warehouse, failure, compose, now)

    _put(put, (lambda now: compose(messages.Incident(1, now))) if is_new else None)
    flush_alerts()


def _record_success(context: Context, *, always: bool) -> None:
    from batch_jobs.alerts import messages, outbox

    dag_id, of_dag = _dag_id(context), "reason" in context
    file = _get(context.get("dag"), "fileloc")
    subjects = [dag_id, str(file)] if file else [dag_id]
    task = None if of_dag else _task_try(context)
    name = None if task is None else _name(task)
    key = f"succeeded {_run_key(context)}" + (f" {name}" if name else "")

    def put(warehouse: Warehouse, now: datetime) -> None:
        readers = _readers(warehouse, _model(dag_id), now)

        def recovered(incident: Incident) -> str:
            return messages.recovered(dag_id, incident, now, readers)

        if of_dag and _is_unhealed(dag_id):
            return  # it failed for intervals that are still missing
        if of_dag and outbox.close_incidents(warehouse, subjects, now, (key, recovered)):
            return
        if always:
            text = messages.succeeded(dag_id, name, _span(context), readers)
            outbox.record(warehouse, key, text, now)

    def alone(_: datetime) -> str:
        return messages.succeeded(dag_id, name, _span(context), None)

    _put(put, alone if always else None)


def _is_unhealed(dag_id: str) -> bool:
    """Whether an interval that was tried in vain is still missing; False if nobody can tell."""
    from batch_jobs.runs import attempts
    from utils.tasks import airflow_settings

    kind, model = dag_id.partition("_")[0], _model(dag_id)
    if kind != "predict" or model is None:
        return False
    try:
        return bool(attempts.unhealed(airflow_settings(), model))
    except BatchJobsError as error:
        log.warning("whether %s lacks an interval is not known: %s", dag_id, _first_line(error))
        return False


def _put(
    put: Callable[[Warehouse, datetime], object], alone: Callable[[datetime], str] | None
) -> None:
    """Put a message into the outbox; with no outbox, rather send it twice than not at all.

    Args:
        put: does so.
        alone: makes the message if there is no outbox; None if it can then be done without.
    """
    now = _now()
    try:
        warehouse = _warehouse()

        def prepared() -> None:
            if alone is not None:
                warehouse.ensure_schema()
            put(warehouse, now)

        _within(COMPOSING_SECONDS, prepared)
    except Exception as error:  # noqa: BLE001 - whatever it is, the alert comes first
        log.warning("the outbox of alerts cannot be used: %s", _first_line(error))
        if alone is not None:
            _send_alone(alone(now))


def _send_alone(text: str) -> None:
    slack = _slack()
    if slack is None:
        log.warning("this alert could neither be sent nor kept: %s", text)
        return
    problem = _within(SENDING_SECONDS + 1, lambda: _post(slack, text, SENDING_SECONDS))
    if problem:
        log.warning("this alert could neither be sent (%s) nor kept: %s", problem, text)


def _warehouse() -> Warehouse:
    from batch_jobs.database.warehouse import Warehouse
    from utils.tasks import airflow_settings

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


def _now() -> datetime:
    return datetime.now(UTC)


def _first_line(error: BaseException | str) -> str:
    from airflow.sdk.log import redact as redact_known  # type: ignore[attr-defined]

    # A task translates our errors into Airflow's, whose names say only whether to try again.
    is_airflows = type(error).__module__.startswith("airflow.")
    told = (is_airflows and _get(error, "__cause__")) or error
    # Airflow's masker knows the secrets of the connections that this process has read.
    return str(redact_known(first_line(told)))


# --- What Airflow's context tells; any of its keys and attributes may be missing


def _get(source: object, name: str) -> Any:
    with suppress(Exception):  # a property of Airflow's may raise anything
        return getattr(source, name, None)
    return None


def _task_instance(context: Context) -> Any:
    return context.get("task_instance") or context.get("ti")


def _dag_id(context: Context) -> str:
    sources = (_task_instance(context), context.get("dag_run"), context.get("dag"))
    return next((str(found) for found in (_get(s, "dag_id") for s in sources) if found), "unknown")


def _run_id(context: Context) -> str:
    found = context.get("run_id") or _get(context.get("dag_run"), "run_id")
    return str(found or _get(_task_instance(context), "run_id") or "unknown")


def _run_key(context: Context) -> str:
    """Names the run, and anew each time that it is cleared and runs again."""
    cleared = _get(context.get("dag_run"), "clear_number")
    return f"{_dag_id(context)} {_run_id(context)}" + ("" if cleared is None else f" #{cleared}")


def _task_try(context: Context) -> TaskTry | None:
    from batch_jobs.alerts.task_errors import TaskTry

    ti = _task_instance(context)
    task_id = _get(ti, "task_id")
    if not task_id:
        return None
    map_index, number = (
        found if isinstance(found := _get(ti, name), int) else unknown
        for name, unknown in (("map_index", -1), ("try_number", 0))
    )
    return TaskTry(_dag_id(context), _run_id(context), str(task_id), map_index, number)


def _name(task: TaskTry) -> str:
    return f"{task.task_id}[{task.map_index}]" if task.map_index >= 0 else task.task_id


def _span(context: Context) -> tuple[datetime, datetime] | None:
    """The interval that the trigger form asked for, or else the run's own; None if neither."""
    dag_run = context.get("dag_run")
    asked = _get(dag_run, "conf")
    with suppress(KeyError, TypeError, BatchJobsError):  # anything can be asked for
        return parse_time(asked["interval_start"]), parse_time(asked["interval_end"])
    start, end = (
        context.get(name) or _get(dag_run, name)
        for name in ("data_interval_start", "data_interval_end")
    )
    return (start, end) if start and end else None


def _model(dag_id: str) -> str | None:
    kind, _, model = dag_id.partition("_")
    return model if kind in {"predict", "train"} and model else None


def _of_the_first(context: Context, warehouse: Warehouse) -> Context:
    """A DAG's context about the task that failed first; the last one often only echoes it."""
    from batch_jobs.alerts import task_errors

    last, task = _task_instance(context), _task_try(context)
    if context.get("reason") != "task_failure" or task is None:
        return context
    first = task_errors.first_failed(warehouse, task, _get(context.get("dag_run"), "start_date"))
    if first is None or _name(first) == _name(task):
        return context
    path = quote(first.task_id) + (f"/mapped/{first.map_index}" if first.map_index >= 0 else "")
    log_url = str(_get(last, "log_url") or "").rpartition("/tasks/")[0]
    log_url = log_url and f"{log_url}/tasks/{path}?try_number={first.try_number}"
    known = {"log_url": log_url, "task": _get(last, "task")}
    return {**context, "ti": SimpleNamespace(**vars(first), **known), "task_instance": None}


def _attempt(context: Context) -> tuple[int, int] | None:
    ti = _task_instance(context)
    number, most = _get(ti, "try_number"), _get(ti, "max_tries")
    # A DAG's callback finds no max_tries in the task instance, but the task.
    retries = _get(context.get("task") or _get(ti, "task"), "retries")
    if not isinstance(number, int) or number < 1:  # nothing was tried
        return None
    tries = [found + 1 for found in (most, retries) if isinstance(found, int)]
    return number, max(number, *tries) if tries else number


def _was_away(context: Context) -> bool:
    """Whether a run is over time because Airflow was stopped, and not because it took so long."""
    run, limit = context.get("dag_run"), _get(context.get("dag"), "dagrun_timeout")
    start, end = _get(run, "start_date"), _get(run, "end_date")
    if context.get("reason") != "timed_out" or not (start and end and limit):
        return False
    return bool(end - start > limit + AWAY)


def _is_made_up_for(context: Context) -> bool:
    """Whether the next run does by itself what this one left."""
    kind = _dag_id(context).partition("_")[0]
    return kind == "predict" and _get(context.get("dag_run"), "run_type") == "scheduled"


def _log_url(context: Context) -> str | None:
    if url := _get(_task_instance(context), "log_url"):
        return str(url)
    from airflow.configuration import conf

    base = conf.get("api", "base_url", fallback="").rstrip("/")
    run = f"dags/{quote(_dag_id(context))}/runs/{quote(_run_id(context))}"
    return f"{base}/{run}" if base else None


def _describe(context: Context, error: str | None) -> tuple[str, FailedRun]:
    """The cause, by which incidents are told apart, and what to tell."""
    from batch_jobs.alerts.messages import FailedRun

    task, reason, dag_id = _task_try(context), context.get("reason"), _dag_id(context)
    if _was_away(context):
        cause, what = "away", _AWAY
    elif reason in _REASONS:
        cause, what = str(reason), _REASONS[reason]
    elif error is not None:
        cause = error.partition(":")[0]
        what = _ERRORS.get(cause, error)
    elif task is not None:
        cause, what = "killed", _KILLED
    else:
        cause = what = _first_line(str(reason or "no reason given"))
    if task is not None and reason not in _REASONS:
        cause = f"{task.task_id} {cause}"
    return cause, FailedRun(
        dag_id=dag_id,
        model=_model(dag_id),
        task=None if task is None else _name(task),
        attempt=_attempt(context),
        span=_span(context),
        what=what,
        is_exception=what == error,
        log_url=_log_url(context),
    )


def _remember(warehouse: Warehouse, task: TaskTry, exception: BaseException | str) -> str:
    from batch_jobs.alerts import task_errors

    error = _first_line(exception)
    task_errors.remember_error(warehouse, task, error, _now())
    return error


def _readers(warehouse: Warehouse, model: str | None, now: datetime) -> str | None:
    from batch_jobs.alerts import messages, outbox

    if model is None:
        return None
    with suppress(Exception):  # the alert is worth more than this line of it
        return messages.readers_see(outbox.served(warehouse, model), now)
    return None


# --- Sending


class _Slack(NamedTuple):
    """The way to Slack, and what must never be seen of it."""

    client: WebhookClient
    secrets: frozenset[str]


def _slack() -> _Slack | None:
    """The way to Slack by the connection; None, and one line in the log, if there is none."""
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook
    from airflow.sdk import Connection
    from airflow.sdk.log import mask_secret

    from batch_jobs.alerts.slack import SILENT, webhook_url

    try:
        found = Connection.get(SLACK_CONNECTION_ID)
    except Exception:  # noqa: BLE001 - not found, and whatever a secrets backend raises
        log.warning("nothing is sent to Slack: no connection %s found", SLACK_CONNECTION_ID)
        return None
    url = webhook_url(found)
    if url is None:
        log.warning(
            "nothing is sent to Slack: connection %s has no webhook's secret path as its password",
            SLACK_CONNECTION_ID,
        )
        return None
    path = urlsplit(url).path
    parts = (url, path, path.lstrip("/"), path.partition("/services/")[2], found.password or "")
    secrets = frozenset(part for part in map(str.strip, parts) if len(part) >= 8)
    for secret in secrets:
        mask_secret(secret)
        mask_secret(quote(secret, safe=""))

    class Hook(SlackWebhookHook):
        """The provider's hook, given the connection in the one form that it always understands."""

        @classmethod
        def get_connection(cls, conn_id: str) -> Connection:
            return Connection(conn_id=conn_id, password=url, extra=found.extra)

    hook = Hook(slack_webhook_conn_id=SLACK_CONNECTION_ID, retry_handlers=[], logger=SILENT)
    client = hook.client
    if not any(name.endswith("proxy") for name in found.extra_dejson):
        # slack_sdk would use HTTPS_PROXY for every address; urllib respects NO_PROXY.
        client.proxy = None
    return _Slack(client, secrets)


def _post(slack: _Slack, text: str, seconds: float) -> str | None:
    from batch_jobs.alerts.slack import post

    return post(slack.client, redact(text, slack.secrets), seconds, slack.secrets)


def _send_waiting(warehouse: Warehouse, slack: _Slack) -> None:
    from batch_jobs.alerts import messages, outbox

    deadline = time.monotonic() + SENDING_SECONDS
    while (left := deadline - time.monotonic()) > 1 and (
        waiting := outbox.claim(warehouse, _now())
    ):
        text = messages.delayed(waiting.text, waiting.created_at, _now())
        problem = _post(slack, text, left)
        if problem is not None:
            outbox.mark_failed(warehouse, waiting, problem)
            log.warning("an alert waits for the next run, Slack did not take it: %s", problem)
            return
        outbox.mark_sent(warehouse, waiting, _now())


if __name__ == "__main__":  # plugins/alert_listener.py starts this, away from the DAG processor
    import_error_alert(**json.loads(os.environ.pop("BATCH_JOBS_IMPORT_ERROR")))
