"""A real Airflow whose tasks stop at named places, and what its cases come to."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import text

from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.registry import promotion
from batch_jobs.runs import jobs
from batch_jobs.settings import Settings
from batch_jobs.training import train
from demo.local import COMPONENTS, LocalAirflow
from tests.conftest import ROOT
from tests.support.slack_endpoint import SlackEndpoint

PATIENCE = 1500  # seconds after which a condition that does not come true is a failure
# Airflow's own time-outs, so long that a machine with other work to do does not come upon them.
PATIENT = {
    "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "600",
    "AIRFLOW__CORE__TASK_SUCCESS_OVERTIME": "600",
    "AIRFLOW__DAG_PROCESSOR__DAG_FILE_PROCESSOR_TIMEOUT": "900",
    "AIRFLOW__DAG_PROCESSOR__HEALTH_CHECK_THRESHOLD": "600",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "600",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "300",
    "AIRFLOW__SCHEDULER__TASK_QUEUED_TIMEOUT": "3600",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "600",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
    "AIRFLOW__WORKERS__MAX_FAILED_HEARTBEATS": "100",
}
MIDNIGHT = datetime(2024, 3, 1, tzinfo=UTC)
BEFORE = Interval(MIDNIGHT - timedelta(minutes=10), MIDNIGHT)
WANTED = Interval(MIDNIGHT, MIDNIGHT + timedelta(minutes=10))
VIEWS = ("current_predictions", "serving_status", "prediction_history")
ON_SQLITE = "_on_sqlite"  # how the names of the models end whose warehouse is not PostgreSQL
MODEL = '''
from datetime import timedelta

from batch_jobs import BatchModel, Gate, Number


def estimator():
    from sklearn.linear_model import LinearRegression

    return LinearRegression()


model = BatchModel(
    description="What is twice the amount?",
    features_query="""
        SELECT entity_id, placed_at AS as_of, amount FROM items
        WHERE placed_at >= :start AND placed_at < :end""",
    labels_query="""
        SELECT entity_id, 2 * amount AS label, settled_at AS known_at FROM items
        WHERE placed_at >= :start AND placed_at < :end""",
    features={"amount": Number()},
    estimator=estimator,
    history=timedelta(hours=4),
    holdout=timedelta(hours=1),
    chunk_rows=4,
    gate=Gate(min_rows=10),
)
'''
# Airflow reads a file `airflow_local_settings` in every process of its own. So do our alerts wait.
PATIENT_ALERTS = """
from batch_jobs.alerts import reporter
from batch_jobs_airflow import alerts, listener

reporter.COMPOSING_SECONDS = reporter.LOOKING_SECONDS = reporter.SENDING_SECONDS = 300
alerts.NOTING_SECONDS = listener.NOTING_SECONDS = 300
"""
# In tasks this one also stops what it is told to.
LOCAL_SETTINGS = '''
import ctypes
import logging
import os
import signal
from datetime import timedelta
from pathlib import Path

import pandas  # once for all tasks, which are forked from this process
import pyarrow
import sklearn.linear_model
from airflow.sdk.definitions.timetables.simple import NullTimetable

from batch_jobs import failpoints

ROOT = Path(__file__).parent
FOLDER = ROOT / "stops"


def dag_policy(dag):
    dag.timetable = NullTimetable()
    dag.is_paused_upon_creation = False


def task_policy(task):
    if task.dag_id.endswith("_on_sqlite"):
        url = f"sqlite:///{ROOT}/warehouse.db"
        before(task, lambda _: os.environ.update(BATCH_JOBS_WAREHOUSE=url))
    task.retry_delay = timedelta(seconds=1)
    task.execution_timeout = timedelta(hours=1)


def before(task, hook):
    """Do something in the task's process before the task."""
    if task.is_mapped:
        task.partial_kwargs["pre_execute"] = hook
    else:
        task._pre_execute_hook = hook


def act(place):
    """Note that the place was reached; wait there if the test has laid out a pipe."""
    name = os.environ["AIRFLOW_CTX_DAG_ID"].removeprefix("predict_")
    number = os.environ["AIRFLOW_CTX_TRY_NUMBER"]
    with open(FOLDER / f"{name}.trail", "a") as trail:
        print(os.getpid(), number, place, file=trail)
    pipe = FOLDER / f"{name}.{place}"
    mine = pipe.with_name(f"{name}.stopped.{os.getpid()}")
    try:
        pipe.rename(mine)  # one try gets it, and no other
    except FileNotFoundError:
        return
    if (FOLDER / f"{name}.outlives").exists():
        ctypes.CDLL(None).prctl(1, 0)  # PR_SET_PDEATHSIG: none
        to_file = logging.FileHandler(FOLDER / f"{name}.log")
        logging.getLogger("batch_jobs_airflow.prediction_tasks").addHandler(to_file)
    if name == "overtime":
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # as if the hour were over
    os.close(os.open(mine, os.O_RDONLY))  # until the test opens it, too


failpoints.arm(act)
'''


class LastingAirflow(LocalAirflow):
    """An Airflow that goes on without its scheduler until it gets another one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._again: list[subprocess.Popen[bytes]] = []

    def require_alive(self) -> None:
        """Let processes end."""

    def kill_scheduler(self) -> None:
        """Kill the scheduler alone; what it has started lives on."""
        scheduler = self.pid("scheduler")
        kill(scheduler)
        until(lambda: gone(scheduler), "the scheduler to end")

    def start_scheduler(self) -> None:
        """Start another scheduler; it ends with the others."""
        self.start_again("scheduler")

    def start_again(self, component: str) -> None:
        """Start a component that has ended, as what keeps them running does."""
        with (self.logs / f"{component}-2.log").open("w") as log:
            self._again.append(
                subprocess.Popen(
                    [sys.executable, "-m", "airflow", *COMPONENTS[component]],
                    cwd=self.root,
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def stop(self, patience: float = 6) -> None:
        """Also wait for what was started last, which are children of this process."""
        super().stop(patience)
        for process in self._again:
            process.wait()


class Cases:
    """What goes on in a running Airflow, one case to a model and its DAG.

    A case's first try that comes to a named place stops there, at a pipe.

    Args:
        root: made by `make_root`.
        airflow: which runs its DAGs.
        url: the PostgreSQL warehouse.
        slack: whom Airflow tells of failures.
    """

    def __init__(self, root: Path, airflow: LastingAirflow, url: str, slack: SlackEndpoint) -> None:
        self.airflow, self.slack = airflow, slack
        self._warehouses = {False: Warehouse(url), True: Warehouse(sqlite_url(root))}
        self.stops = root / "stops"
        self.runs: dict[str, str] = {}

    def api(self, method: str, path: str, json: Any = None) -> Any:
        """Call Airflow's REST API."""
        return self.airflow.api(method, path, json)

    def begin(self, name: str, run_id: str | None = None, **conf: Any) -> None:
        """Start a DAG run of a case."""
        conf = {
            "interval_start": WANTED.start.isoformat(),
            "interval_end": WANTED.end.isoformat(),
            **conf,
        }
        body = {"logical_date": None, "conf": conf}
        run = self.api(
            "POST",
            f"/dags/predict_{name}/dagRuns",
            body if run_id is None else {**body, "dag_run_id": run_id},
        )
        self.runs[name] = run["dag_run_id"]

    def run(self, name: str) -> str:
        """The path of a case's run in the REST API."""
        return f"/dags/predict_{name}/dagRuns/{self.runs[name]}"

    def stop_at(self, name: str, place: str, *, outlives: bool = False) -> None:
        """Let the next try that comes by stop at a place."""
        if outlives:
            (self.stops / f"{name}.outlives").touch()
        os.mkfifo(self.stops / f"{name}.{place}")

    def stopped(self, name: str) -> int:
        """The process of the task that has stopped."""
        (pipe,) = until(lambda: list(self.stops.glob(f"{name}.stopped.*")), f"{name} to stop")
        return int(pipe.suffix[1:])

    def let_go(self, pid: int) -> None:
        """Let a stopped task go on, unless it has ended."""
        (pipe,) = self.stops.glob(f"*.stopped.{pid}")

        def opened() -> bool:
            with suppress(OSError):  # nobody waits at the other end yet
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                return True
            return False

        until(lambda: gone(pid) or opened(), f"{pipe.name} to be waited at")
        pipe.unlink()

    def trail(self, name: str) -> list[tuple[int, int, str]]:
        """The places that a case's tasks came by: process, try and place."""
        lines = (self.stops / f"{name}.trail").read_text().splitlines()
        return [(int(pid), int(number), place) for pid, number, place in map(str.split, lines)]

    def states(self, name: str) -> dict[str, str]:
        """The states of the tasks of a case's run."""
        return {task["task_id"]: task["state"] for task in self._tasks(name)}

    def tries(self, name: str) -> dict[str, int]:
        """How often the tasks of a case's run were tried."""
        return {task["task_id"]: task["try_number"] for task in self._tasks(name)}

    def _tasks(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.api("GET", f"{self.run(name)}/taskInstances")[
            "task_instances"
        ]
        return found

    def ended(self, name: str) -> str:
        """The state of a case's run when it has ended."""

        def state() -> str | None:
            found: str = self.api("GET", self.run(name))["state"]
            return found if found in {"success", "failed"} else None

        return until(state, f"{name} to end")

    def ask(self, name: str, sql: str, **values: Any) -> list[tuple[Any, ...]]:
        """Rows of a query as tuples, from the warehouse of a case; `:name` is its model."""
        with self._warehouses[name.endswith(ON_SQLITE)].read() as connection:
            return [tuple(row) for row in connection.execute(text(sql), {"name": name, **values})]

    def seen(self, name: str) -> dict[str, float]:
        """What an app reads of a model now."""
        sql = "SELECT entity_id, score FROM current_predictions WHERE model = :name"
        return dict(self.ask(name, sql))

    def attempts(self, name: str) -> list[str]:
        """What the ledger says of the attempts at the wanted interval, oldest first."""
        rows = self.ask(
            name,
            "SELECT state FROM prediction_runs WHERE model = :name AND interval_start = :start "
            "ORDER BY run_id",
            start=stored_time(WANTED.start),
        )
        return [state for (state,) in rows]

    def everything(self, name: str) -> dict[str, list[tuple[Any, ...]]]:
        """All that the warehouse shows and knows of a model."""
        return {
            table: self.ask(name, f"SELECT * FROM {table} WHERE model = :name ORDER BY 1, 2")
            for table in (*VIEWS, "prediction_runs", "fences")
        }

    def clear(self, name: str, task_id: str) -> None:
        """Clear a task of a case's run and what comes after it, as the button in the UI does."""
        body = {
            "dry_run": False,
            "dag_run_id": self.runs[name],
            "task_ids": [task_id],
            "include_downstream": True,
            "only_failed": False,
        }
        self.api("POST", f"/dags/predict_{name}/clearTaskInstances", body)

    def told(self) -> Counter[str]:
        """How many messages Slack got about each case."""
        told = r":\w+_circle: \*(\w+)(?:: | works again|\* failed )"
        said = (re.match(told, text) for text in self.slack.texts)
        return Counter(found[1] for found in said if found)


def pass_an_hour(airflow: LocalAirflow, table: str, column: str, where: str) -> int:
    """Let what goes on have happened an hour earlier, in Airflow's database: how many rows."""
    database = sqlite3.connect(airflow.home / "airflow.db", timeout=PATIENCE)
    with closing(database), database:
        return database.execute(
            f"UPDATE {table} SET {column} = datetime({column}, '-1 hour') "
            f"WHERE {where} AND state = 'running'"
        ).rowcount


def miss_the_heartbeat(airflow: LocalAirflow, name: str) -> None:
    """Let Airflow see that a supervisor is no more; its last heartbeat may be on its way."""
    first = f"dag_id = 'predict_{name}' AND try_number = 1"
    until(
        lambda: not pass_an_hour(airflow, "task_instance", "last_heartbeat_at", first),
        f"Airflow to miss the heartbeat of {name}",
    )


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until a condition holds; its answer."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return answer


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(pid: int) -> None:
    """End a process by the signal that none can catch."""
    os.kill(pid, signal.SIGKILL)


def patient(folder: Path) -> dict[str, str]:
    """Variables with which Airflow and our alerts take their time, with a folder for a file."""
    folder.mkdir()
    (folder / "airflow_local_settings.py").write_text(PATIENT_ALERTS)
    return {**PATIENT, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def make_root(root: Path, names: Sequence[str]) -> None:
    """Lay out a clone whose DAGs stop where they are told to, with as many models as names."""
    for name in ("faulty", "stops"):
        (root / name).mkdir(parents=True)
    for name in ("dags", "plugins", "utils"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "airflow.cfg.template", root)
    (root / "airflow_local_settings.py").write_text(PATIENT_ALERTS + LOCAL_SETTINGS)
    (root / "faulty" / "__init__.py").touch()
    for name in names:
        (root / "faulty" / f"{name}.py").write_text(MODEL)


def publish_the_interval_before(settings: Settings, names: Sequence[str]) -> None:
    """Fill the source, train the models and publish the interval before the wanted one."""
    warehouse = Warehouse(settings.warehouse)
    warehouse.ensure_schema()
    items = [
        {
            "id": f"item-{minute}",
            "placed": stored_time(MIDNIGHT + timedelta(minutes=minute)),
            "settled": stored_time(MIDNIGHT + timedelta(minutes=minute + 1)),
            "amount": minute,
        }
        for minute in range(-6 * 60, 10)
    ]
    with warehouse.write() as connection:
        server = connection.dialect.name == "postgresql"
        table, time = ("public.items", "timestamptz") if server else ("items", "TEXT")
        columns = f"entity_id TEXT, placed_at {time}, settled_at {time}, amount DOUBLE PRECISION"
        connection.execute(text(f"CREATE TABLE {table} ({columns})"))
        connection.execute(
            text(f"INSERT INTO {table} VALUES (:id, :placed, :settled, :amount)"), items
        )
    for name in names:
        train.train(settings, name, BEFORE.start)
        promotion.promote(settings, name, actor="tests")
        jobs.predict(settings, name, BEFORE)


def sqlite_url(root: Path) -> str:
    """The warehouse of the models that say so."""
    return f"sqlite:///{root}/warehouse.db"


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
