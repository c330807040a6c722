"""Alerts for what no callback is told: a DAG file that stops loading, a run marked failed by hand.

Airflow runs this file in every process of its own, tasks included, so it imports next to nothing,
and its hooks look at one word before they do anything. They are called in the middle of a
database transaction, in requests and loops that must not wait for Slack.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin

if TYPE_CHECKING:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance

log = logging.getLogger(__name__)

NOTING_SECONDS = 5.0
IMPORT_ERROR_VARIABLE = "BATCH_JOBS_IMPORT_ERROR"
_TASK = ("dag_id", "run_id", "task_id", "map_index", "try_number")
_RUN = ("dag_id", "run_id", "clear_number", "conf", "data_interval_start", "data_interval_end")


class AlertListener:
    """The hooks; in the scheduler and in tasks they do nothing."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[str, str]] = {}

    @hookimpl
    def on_new_dag_import_error(self, filename: str, stacktrace: str) -> None:
        """In the DAG processor: a file that loaded does not load any more."""
        self._told[filename] = _this_hour(stacktrace)
        _tell_apart(filename, stacktrace, is_new=True)

    @hookimpl
    def on_existing_dag_import_error(self, filename: str, stacktrace: str) -> None:
        """In the DAG processor, twice a minute: a file still does not load; told once an hour."""
        if self._told.get(filename) != (told := _this_hour(stacktrace)):
            self._told[filename] = told
            _tell_apart(filename, stacktrace, is_new=False)

    @hookimpl
    def on_task_instance_failed(
        self, previous_state: object, task_instance: TaskInstance, error: object
    ) -> None:
        """In the API server: a task was marked failed by hand; its run fails next, and asks why."""
        if previous_state is None and str(error).startswith("TaskInstance's state was manually"):
            ti = _plain(task_instance, _TASK)
            _tell(lambda alerts, why: alerts.record_error({"ti": ti, "exception": why}))

    @hookimpl
    def on_dag_run_failed(self, dag_run: DagRun, msg: str) -> None:
        """In the API server: a run was marked failed by hand, so Airflow calls no callback."""
        if msg.startswith("Dag Run's state was manually set"):
            run = _plain(dag_run, _RUN)
            if getattr(dag_run.dag, "has_on_failure_callback", True):  # it asks to hear of failures
                _tell(lambda alerts, why: alerts.record_failure({"dag_run": run, "reason": why}))


def _this_hour(stacktrace: str) -> tuple[str, str]:
    """The hour and the error, less its numbers: process ids differ from one parse to the next."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H}", re.sub(r"\d+", "#", stacktrace)


def _plain(row: object, names: tuple[str, ...]) -> SimpleNamespace:
    """The values of a database row, free of its session, which belongs to this thread."""
    return SimpleNamespace(**{name: getattr(row, name, None) for name in names})


def _tell(note: Callable[[ModuleType, str], None]) -> None:
    """Note an alert in the outbox, wait for that, and send it afterwards, all in a thread.

    Airflow's database sessions are one a thread: here, looking up a connection would end the
    transaction of the request.
    """
    noted = threading.Event()

    def run() -> None:
        try:
            from batch_jobs_airflow import alerts
            from batch_jobs_airflow.context import MARKED_FAILED

            note(alerts, MARKED_FAILED)
            noted.set()
            alerts.flush_alerts()
        except Exception:
            log.exception("an alert could not be given")
        finally:
            noted.set()

    threading.Thread(target=run, name="alert-listener", daemon=True).start()
    noted.wait(NOTING_SECONDS)


def _tell_apart(filename: str, stacktrace: str, *, is_new: bool) -> None:
    """Tell of an import error in a process of its own.

    The DAG processor forks a child for each parse. A thread beside that could leave the child a
    lock that nobody opens, and our modules, once loaded here, would never be read anew there.
    """
    lines = [line for line in stacktrace.splitlines() if line.strip()]
    error = {"path": filename, "error": "".join(lines[-1:])[:4000], "is_new": is_new}
    try:
        process = subprocess.Popen(  # not as an argument, which every user of the machine sees
            [sys.executable, "-m", "batch_jobs_airflow.alerts"],
            env={**os.environ, IMPORT_ERROR_VARIABLE: json.dumps(error)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        threading.Thread(target=process.wait, name="alert-listener", daemon=True).start()
    except Exception:
        log.exception("an alert could not be given")


class AlertListenerPlugin(AirflowPlugin):
    """Registers the listener with Airflow."""

    name = "batch_jobs_alerts"
    listeners: list[object] = [AlertListener()]  # noqa: RUF012 - as Airflow declares it
