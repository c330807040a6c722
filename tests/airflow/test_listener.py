"""The listener hears what no callback is told, and costs the other processes nothing."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import EntryPoints, PackageNotFoundError
from types import SimpleNamespace

import pytest
from airflow import plugins_manager, settings
from airflow._shared.listeners.spec import taskinstance
from airflow.listeners.listener import ListenerManager
from airflow.listeners.spec import dagrun, importerrors

from batch_jobs.alerts import outbox_status, task_errors
from batch_jobs.alerts.task_errors import TaskTry
from batch_jobs.database.warehouse import Warehouse
from batch_jobs_airflow import alerts, context, listener
from tests.conftest import ROOT
from tests.support.faults import PATIENCE
from tests.support.slack_endpoint import slack_endpoint

__all__ = ["slack_endpoint"]
PLUGIN = ROOT / "plugins" / "alert_listener.py"
MANUALLY = "Dag Run's state was manually set to `failed`."
TASK_MANUALLY = "TaskInstance's state was manually set to `failed`."
START = datetime(2026, 11, 22, 14, 50, tzinfo=UTC)


@pytest.fixture
def hook():
    """The hooks, called as Airflow calls them, by name and against its own specification."""
    manager = ListenerManager()
    for spec in (dagrun, importerrors, taskinstance):
        manager.add_hookspecs(spec)
    manager.add_listener(listener.AlertListener())
    manager.pm.check_pending()
    return manager.hook


@pytest.fixture
def slack(slack_endpoint, tmp_path, monkeypatch):
    """The stand-in for Slack, a connection that leads there, and a warehouse."""
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", f"sqlite:///{tmp_path}/warehouse.db")
    monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", str(tmp_path))
    monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", slack_endpoint.connection())
    return slack_endpoint


@pytest.fixture
def apart(monkeypatch):
    """What would be told in processes of their own."""
    told = []

    def start(command, env, **_):
        told.append(json.loads(env[listener.IMPORT_ERROR_VARIABLE]))
        return SimpleNamespace(wait=lambda: 0)

    monkeypatch.setattr(listener.subprocess, "Popen", start)
    return told


def dag_run(**changes):
    """A DAG run as the database has it."""
    fields = {
        "dag_id": "predict_iris",
        "run_id": "scheduled__1",
        "clear_number": 0,
        "conf": {},
        "data_interval_start": START,
        "data_interval_end": START + timedelta(minutes=10),
        "dag": SimpleNamespace(has_on_failure_callback=True),
    }
    return SimpleNamespace(**{**fields, **changes})


def test_run_marked_failed_by_hand_is_told(slack, hook):
    """The API server is the only one that knows, and tells."""
    hook.on_dag_run_failed(dag_run=dag_run(), msg=MANUALLY)

    assert slack.wait_for(1, PATIENCE)
    title, _, facts = slack.texts[0].split("\n")[:3]
    assert title == ":large_orange_circle: *iris: A run was marked failed by hand*"
    assert " · predict_iris · interval 22 Nov 14:50 - 15:00 UTC" in facts


def test_alert_is_noted_before_the_hook_returns(slack, hook, monkeypatch):
    """A server that stops right after the request loses nothing: the outbox has the alert."""
    monkeypatch.setattr(alerts, "flush_alerts", lambda: None)
    hook.on_dag_run_failed(dag_run=dag_run(), msg=MANUALLY)

    warehouse = Warehouse(os.environ["BATCH_JOBS_WAREHOUSE"])
    [lacking] = outbox_status.undelivered(warehouse, datetime.now(UTC))
    assert lacking.waiting == 1


def test_reason_of_a_task_marked_failed_is_noted_for_the_callback(slack, hook):
    """The DAG's callback then tells that it was a person, not a crash."""
    task = TaskTry("predict_iris", "scheduled__1", "score", -1, 1)
    hook.on_task_instance_failed(
        previous_state=None, task_instance=SimpleNamespace(**vars(task)), error=TASK_MANUALLY
    )

    warehouse = Warehouse(os.environ["BATCH_JOBS_WAREHOUSE"])
    assert task_errors.recall_error(warehouse, task) == context.MARKED_FAILED


@pytest.mark.parametrize("message", ["task_failure", "timed_out", "all_tasks_deadlocked"])
def test_scheduler_is_not_kept(hook, monkeypatch, message):
    """A run that Airflow itself ends has its callback; the scheduler's loop does nothing here."""
    monkeypatch.setattr(listener, "_tell", pytest.fail)
    hook.on_dag_run_failed(dag_run=None, msg=message)


def test_task_process_is_not_kept(hook, monkeypatch):
    """A task that fails has its own callback."""
    monkeypatch.setattr(listener, "_tell", pytest.fail)
    hook.on_task_instance_failed(
        previous_state="running", task_instance=None, error=ValueError(TASK_MANUALLY)
    )


def test_dag_that_asks_for_no_alerts_gets_none(hook, monkeypatch):
    """Other people's DAGs in the same Airflow are their own business."""
    monkeypatch.setattr(listener, "_tell", pytest.fail)
    other = SimpleNamespace(has_on_failure_callback=False)
    hook.on_dag_run_failed(dag_run=dag_run(dag=other), msg=MANUALLY)


def test_new_import_error_is_told_apart_at_once(hook, apart):
    """The DAG processor starts a process and goes on; it hands over the last line only."""
    hook.on_new_dag_import_error(
        filename="/dags/a.py", stacktrace="Traceback\n  x\nKeyError: 'a'\n"
    )

    assert apart == [{"path": "/dags/a.py", "error": "KeyError: 'a'", "is_new": True}]


def test_existing_import_error_is_told_once_an_hour(hook, apart, monkeypatch):
    """A broken file is parsed twice a minute, and its process ids differ each time."""
    hours = iter([14, 14, 14, 15, 15])

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 11, 22, next(hours), tzinfo=tz)

    monkeypatch.setattr(listener, "datetime", Clock)
    hook.on_new_dag_import_error(filename="/dags/a.py", stacktrace="Timeout, PID: 1")
    for number in range(2, 6):
        hook.on_existing_dag_import_error(
            filename="/dags/a.py", stacktrace=f"Timeout, PID: {number}"
        )

    assert [told["is_new"] for told in apart] == [True, False]


def test_import_error_that_turns_into_another_is_told(hook, apart):
    """A half-mended file is another error."""
    hook.on_new_dag_import_error(filename="/dags/a.py", stacktrace="ImportError: a")
    hook.on_existing_dag_import_error(filename="/dags/a.py", stacktrace="ImportError: b")

    assert [told["error"] for told in apart] == ["ImportError: a", "ImportError: b"]


def test_process_apart_delivers(slack, hook, monkeypatch):
    """The real process reads its orders from the environment and sends the message."""
    monkeypatch.chdir(ROOT)
    hook.on_new_dag_import_error(filename="/dags/a.py", stacktrace="ImportError: no flights")

    assert slack.wait_for(1, PATIENCE)
    assert slack.texts[0].startswith(":red_circle: *DAG file a.py does not load*\n")


def test_hook_that_cannot_tell_raises_nothing(hook, monkeypatch, caplog):
    """Whatever is broken here, the request and the loop go on."""

    def broken(*_, **__):
        raise OSError("no processes left")

    monkeypatch.setattr(listener.subprocess, "Popen", broken)
    monkeypatch.setattr(alerts, "record_failure", broken)
    hook.on_new_dag_import_error(filename="a", stacktrace="b")
    hook.on_dag_run_failed(dag_run=dag_run(), msg=MANUALLY)

    assert caplog.text.count("an alert could not be given") == 2


def test_airflow_registers_the_listener_once_and_complains_of_no_second(monkeypatch):
    """The package's entry point gives it; the file in plugins/ then keeps silent."""
    monkeypatch.setattr(settings, "PLUGINS_FOLDER", str(PLUGIN.parent))
    monkeypatch.setitem(sys.modules, PLUGIN.stem, None)  # to which Airflow sets it
    plugins, errors = plugins_manager._get_plugins.__wrapped__()
    ours = [plugin for plugin in plugins if plugin.name == listener.AlertListenerPlugin.name]
    assert [type(plugin) for plugin in ours] == [listener.AlertListenerPlugin]
    assert [type(one) for one in ours[0].listeners] == [listener.AlertListener]
    assert errors == {}


@pytest.mark.parametrize("installed", [None, ()])
def test_the_plugins_folder_gives_the_listener_where_no_package_does(monkeypatch, installed):
    """The code may lie on the PYTHONPATH only, or its installed release be older than that."""

    def distribution(name):
        if installed is None:
            raise PackageNotFoundError(name)
        return SimpleNamespace(entry_points=EntryPoints(installed))

    monkeypatch.setattr("importlib.metadata.distribution", distribution)
    found = runpy.run_path(str(PLUGIN))["AlertListenerPlugin"]
    assert found is listener.AlertListenerPlugin


def test_loading_the_plugin_imports_nothing_of_ours():
    """Every process of Airflow's loads the listener, each task's too."""
    script = (
        "import sys, airflow.listeners, airflow.plugins_manager\n"
        "before = set(sys.modules)\n"
        f"import runpy; runpy.run_path({str(PLUGIN)!r})\n"
        "import batch_jobs_airflow.listener\n"
        "heavy = {'batch_jobs', 'batch_jobs_airflow.alerts', 'slack_sdk', 'pandas'}\n"
        "print(*((set(sys.modules) - before) & heavy))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == ""


def test_name_of_the_plugin_hides_no_package():
    """Airflow registers a plugin under the stem of its file, so that must be nobody's name."""
    assert importlib.util.find_spec(PLUGIN.stem) is None
