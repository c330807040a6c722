"""Every way to fail, under a real Airflow: each gives one message, and none shows the secret."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from batch_jobs.alerts import incidents, outbox_status
from batch_jobs.alerts.channels import Channel
from batch_jobs.alerts.reporter import Reporter
from batch_jobs.alerts.slack import Webhook
from batch_jobs.database.warehouse import Warehouse
from demo.local import LocalAirflow
from tests.conftest import ROOT
from tests.support.airflow_cases import (
    PATIENCE,
    free_port,
    gone,
    miss_the_heartbeat,
    patient,
    until,
)
from tests.support.slack_endpoint import CANARY, SlackEndpoint, listening

COMMON = """
import os
import signal
import sys
import time
from datetime import timedelta

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

from batch_jobs.errors import IncompleteError
from utils.slack_alert import fail_alert, record_error, recovery_alert


def dag(name, callback=record_error, **settings):
    return DAG(
        f"predict_{name}",
        schedule=None,
        is_paused_upon_creation=False,
        on_failure_callback=fail_alert,
        on_success_callback=recovery_alert,
        default_args={"on_failure_callback": callback, "retry_delay": timedelta(seconds=1)},
        **settings,
    )


def fail(*_, dag_run, **__):
    if not (dag_run.conf or {}).get("mended"):
        raise ValueError("3 rows <!channel> are wrong\\nrow 1: ...")


def echo():
    raise IncompleteError("run 1: part 0 has not been staged")


def kill(victim):
    os.kill(victim(), signal.SIGKILL)
    os._exit(1)


def wait():
    time.sleep(600)
"""
WAYS_TO_FAIL = """
with dag("exception"):
    PythonOperator(task_id="act", python_callable=fail, retries=1)
with dag("execution_timeout"):
    limit = timedelta(seconds=1)
    PythonOperator(task_id="act", python_callable=wait, execution_timeout=limit)
with dag("task_killed"):
    PythonOperator(task_id="act", python_callable=kill, op_args=[os.getpid])
with dag("supervisor_killed"):
    PythonOperator(task_id="act", python_callable=kill, op_args=[os.getppid])
with dag("dagrun_timeout", dagrun_timeout=timedelta(seconds=3)):
    PythonOperator(task_id="act", python_callable=wait)
with dag("task_marked"):
    PythonOperator(task_id="act", python_callable=wait)
with dag("run_marked"):
    PythonOperator(task_id="act", python_callable=wait)
with dag("upstream_failed"):
    act = PythonOperator(task_id="act", python_callable=fail)
    act >> PythonOperator(task_id="after", python_callable=wait)
with dag("mapped"):
    PythonOperator.partial(task_id="act", python_callable=fail).expand(op_args=[[1], [2], [3]])
with dag("echoed"):
    act = PythonOperator(task_id="act", python_callable=kill, op_args=[os.getpid])
    act >> PythonOperator(task_id="publish", python_callable=echo, trigger_rule="all_done")
with dag("both_levels", callback=fail_alert):
    PythonOperator(task_id="act", python_callable=fail)
"""
NOT_LOADING_IN_WORKERS = """
if "scheduler" in sys.argv:
    raise ImportError("not installed where tasks run")
with dag("worker_cannot_import"):
    PythonOperator(task_id="act", python_callable=wait)
"""
LOADING_AT_FIRST = """
with dag("file_breaks"):
    PythonOperator(task_id="act", python_callable=wait)
"""
KILLED = "act was killed (out of memory?)*"
TOLD = {
    "exception": "`ValueError: 3 rows &lt;!channel&gt; are wrong`",
    "execution_timeout": "act took too long*",
    "task_killed": KILLED,
    "supervisor_killed": KILLED,
    "dagrun_timeout": "A run took too long*",
    "task_marked": "A task was marked failed by hand*",
    "run_marked": "A run was marked failed by hand*",
    "upstream_failed": "`ValueError: ",
    "mapped": "`ValueError: ",
    "both_levels": "`ValueError: ",
    "worker_cannot_import": KILLED,
    "echoed": KILLED,
}


@dataclass
class Outcome:
    """What came of failing in every way.

    Attributes:
        texts: the messages that Slack received.
        shown: whatever Airflow wrote anywhere, by file.
    """

    texts: list[str]
    shown: dict[Path, bytes]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Fail in every way under an Airflow with its own folder, then mend one of them."""
    folder = tmp_path_factory.mktemp("alerts")
    root = folder / "root"
    (root / "dags").mkdir(parents=True)
    for name in ("plugins", "utils"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "airflow.cfg.template", root)
    files = {"ways": WAYS_TO_FAIL, "workers": NOT_LOADING_IN_WORKERS, "breaks": LOADING_AT_FIRST}
    for name, dags in files.items():
        (root / "dags" / f"{name}.py").write_text(COMMON + dags)
    url = f"sqlite:///{folder}/warehouse.db"
    environment = patient(folder / "patient")
    environment |= {
        "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(root)]),
        "BATCH_JOBS_WAREHOUSE": url,
        "BATCH_JOBS_MODEL_STORE": str(folder / "models"),
        # Minutes of Airflow's patience, as seconds.
        "AIRFLOW__CORE__PARALLELISM": "8",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "2",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
        "AIRFLOW__WORKERS__MISSING_DAG_RETRIES": "1",
        "AIRFLOW__WORKERS__MISSING_DAG_RETRY_DELAY": "1",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "DEBUG",
    }
    with listening() as slack:
        airflow = LocalAirflow(root, folder / "airflow", free_port(), environment)
        with airflow:
            airflow.wait_healthy(PATIENCE)
            _fail_in_every_way(airflow, slack, Warehouse(url), root / "dags" / "breaks.py")
        texts = list(slack.texts)
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return Outcome(texts, {path: path.read_bytes() for path in files})


def _fail_in_every_way(
    airflow: LocalAirflow, slack: SlackEndpoint, warehouse: Warehouse, breaking: Path
) -> None:
    """Fail in every way, the first while Slack is out of order; then mend one DAG."""
    # A connection in Airflow's database, not in the environment: every process must find it there.
    connection = {
        "connection_id": "slack_webhook",
        "conn_type": "http",
        "host": slack.base,
        "password": f"/{CANARY}",
    }
    airflow.api("POST", "/connections", connection)
    dags = {f"predict_{name}" for name in [*TOLD, "file_breaks"]}
    until(
        lambda: {dag["dag_id"] for dag in airflow.api("GET", "/dags")["dags"]} == dags,
        "the DAG files",
    )
    slack.mode = "close"
    runs = {"exception": _trigger(airflow, "exception")}
    until(lambda: len(slack.requests) == 2, "two tries of a message")
    slack.mode = "ok"

    waiting = ("dagrun_timeout", "task_marked", "run_marked")
    others = [name for name in TOLD if name not in {"exception", *waiting}]
    runs |= {name: _trigger(airflow, name) for name in (*waiting, *others)}
    breaking.write_text(COMMON + "raise ImportError('gone')")
    for name, what, body in (
        ("task_marked", "/taskInstances/act", {"new_state": "failed"}),
        ("run_marked", "", {"state": "failed"}),
    ):
        until(lambda name=name: _task(airflow, runs[name])["state"] == "running", name)
        airflow.api("PATCH", runs[name] + what, body)
    killed = runs["supervisor_killed"]
    until(
        lambda: (pid := _task(airflow, killed)["pid"]) is not None and gone(pid), "the task to die"
    )
    miss_the_heartbeat(airflow, "supervisor_killed")

    until(lambda: len(incidents.open_incidents(warehouse)) >= len(TOLD) + 1, "an incident of each")
    # After a refusal nobody asks Slack for 30 seconds; then whoever comes sends what waits.
    until(lambda: not _is_resting(warehouse), "the alerts to be due")
    Reporter(warehouse, lambda: [Channel("slack", Webhook(slack.url))]).flush(60)
    _trigger(airflow, "exception", {"mended": True})
    until(lambda: any("works again" in text for text in slack.texts), "the recovery")


def _trigger(airflow: LocalAirflow, name: str, conf: dict[str, bool] | None = None) -> str:
    """Start a run; answers its path in the REST API."""
    path = f"/dags/predict_{name}/dagRuns"
    run = airflow.api("POST", path, {"logical_date": None, "conf": conf or {}})
    return f"{path}/{run['dag_run_id']}"


def _task(airflow: LocalAirflow, run: str) -> Any:
    """The only task of a run, as the REST API tells of it."""
    return airflow.api("GET", f"{run}/taskInstances/act")


def _is_resting(warehouse: Warehouse) -> bool:
    now = datetime.now(UTC)
    lacking = outbox_status.undelivered(warehouse, now)
    return any(each.next_try is not None and each.next_try > now for each in lacking)


@pytest.mark.parametrize("name", TOLD)
def test_failure_is_told_once(outcome, name):
    """One failed run is one message, whichever way it failed, and it says which way."""
    (text,) = [text for text in outcome.texts if f"_circle: *{name}: " in text]

    assert TOLD[name] in text


def test_file_that_stops_loading_is_told_once(outcome):
    """No run fails, since none starts; the message names the file."""
    (text,) = [text for text in outcome.texts if "does not load" in text]

    assert text.startswith(":red_circle: *DAG file breaks.py does not load*\n")
    assert "`ImportError: gone`" in text


def test_recovery_is_told_once(outcome):
    """The run that works again says so, and nothing else was sent."""
    recoveries = [text for text in outcome.texts if "works again" in text]

    assert [text.split("\n")[0] for text in recoveries] == [
        ":large_green_circle: *exception works again*"
    ]
    assert len(outcome.texts) == len(TOLD) + 2


def test_failed_task_is_told_by_name(outcome):
    """DAG, task and run; the address is of this machine only, and leads nobody to the log."""
    (text,) = [text for text in outcome.texts if "_circle: *exception: act failed*" in text]

    assert " · predict_exception · task act · after 2 tries · " in text
    assert " · run manual__" in text
    assert "127.0.0.1" not in text


def test_killed_task_is_named_and_not_the_one_that_echoes_it(outcome):
    """The later task has an exception, the killed one has none; and yet it is the root."""
    (text,) = [text for text in outcome.texts if "_circle: *echoed: " in text]

    assert " · task act · " in text
    assert "IncompleteError" not in text


def test_secret_is_in_no_log_and_no_database(outcome):
    """Output of every process, logs of every task, Airflow's and our database: not even quoted."""
    secret = CANARY.rpartition("/")[2].encode()
    logs = [path for path in outcome.shown if path.suffix == ".log"]

    assert [path for path, shown in outcome.shown.items() if secret in shown] == []
    assert any("scheduler" in path.name for path in logs)
    assert any("dag_processor" in str(path) for path in logs)
    assert any("dag_id=predict_exception" in str(path) for path in logs)
