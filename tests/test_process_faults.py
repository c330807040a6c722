"""Processes that die, hang and come back under a real Airflow: the interval is published once."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from sqlalchemy import text

from batch_jobs import lifecycle, serving
from batch_jobs.interval import Interval
from batch_jobs.settings import Settings
from batch_jobs.warehouse import Warehouse, stored_time
from tests.conftest import ROOT
from tests.postgres_server import PostgresServer
from tests.slack_endpoint import SlackEndpoint, listening
from utils.local import LocalAirflow

SECONDS = 180
MIDNIGHT = datetime(2024, 3, 1, tzinfo=UTC)
BEFORE = Interval(MIDNIGHT - timedelta(minutes=10), MIDNIGHT)
WANTED = Interval(MIDNIGHT, MIDNIGHT + timedelta(minutes=10))
# Where the first try that comes by stops, by model. Each model is a case, and has a DAG of its own,
# so that the cases wait for Airflow's patience side by side. PostgreSQL is the warehouse of most.
STOPS = {
    "orphan": "score.chunk_staged",
    "outliving": "score.chunk_staged",
    "late_claimer": "plan.before_claim",
    "terminated": "score.chunk_staged",
    "overtime": "score.chunk_staged",
    "overdue": "score.chunk_staged",
    "cleared": "score.chunk_staged",
    "replaced": "score.chunk_staged",
    "recreated": "score.chunk_staged",
    "committed": "publish.committed",
    "finished": None,
    "unattended": "score.chunk_staged",
    "abandoned": "score.chunk_staged",
    "outliving_on_sqlite": "score.chunk_staged",
    "replaced_on_sqlite": "score.chunk_staged",
    "committed_on_sqlite": "publish.committed",
}
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
        SELECT entity_id, 2 * amount AS label, placed_at AS known_at FROM items
        WHERE placed_at >= :start AND placed_at < :end""",
    features={"amount": Number()},
    estimator=estimator,
    history=timedelta(hours=4),
    holdout=timedelta(hours=1),
    chunk_rows=4,
    gate=Gate(min_rows=10),
)
'''
# Airflow reads this file in every process of its own; in tasks it also stops what it is told to.
LOCAL_SETTINGS = '''
import ctypes
import logging
import os
import signal
from datetime import timedelta
from pathlib import Path

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
        logging.getLogger("utils.tasks").addHandler(logging.FileHandler(FOLDER / f"{name}.log"))
    if name == "overtime":
        signal.setitimer(signal.ITIMER_REAL, 0.1)  # as if the hour were over
    os.close(os.open(mine, os.O_RDONLY))  # until the test opens it, too


failpoints.arm(act)
'''


pytestmark = pytest.mark.timeout(600)


class LastingAirflow(LocalAirflow):
    """An Airflow that goes on without its scheduler until it gets another one."""

    _scheduler: subprocess.Popen[bytes] | None = None

    def require_alive(self) -> None:
        """Let processes end."""

    def kill_scheduler(self) -> None:
        """Kill the scheduler alone; what it has started lives on."""
        scheduler = self.pid("scheduler")
        kill(scheduler)
        until(lambda: gone(scheduler), "the scheduler to end")

    def start_scheduler(self) -> None:
        """Start another scheduler; it ends with the others."""
        with (self.logs / "scheduler-2.log").open("w") as log:
            self._scheduler = subprocess.Popen(
                [sys.executable, "-m", "airflow", "scheduler", "--skip-serve-logs"],
                cwd=self.root,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self, patience: float = 6) -> None:
        """Also wait for the scheduler that was started last, which is a child of this process."""
        super().stop(patience)
        if self._scheduler is not None:
            self._scheduler.wait()


class Cases:
    """A running Airflow, its warehouse, and the pipes at which its tasks stop."""

    def __init__(self, root: Path, airflow: LocalAirflow, url: str, slack: SlackEndpoint) -> None:
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
        with self._warehouses[name.endswith("_on_sqlite")].read() as connection:
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


def until(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """Wait until a condition holds; its answer."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)
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


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Cases]:
    """Every case's run has been started, on top of a published interval."""
    folder = tmp_path_factory.mktemp("faults")
    postgres.create_database("process_faults")
    # A task that waits at a pipe must not lose its session to that.
    patience = quote("-c idle_in_transaction_session_timeout=10min")
    postgres_url = f"{postgres.url('process_faults')}?options={patience}"
    root = folder / "root"
    for name in ("faulty", "stops"):
        (root / name).mkdir(parents=True)
    for name in ("dags", "plugins", "utils"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "airflow.cfg.template", root)
    (root / "airflow_local_settings.py").write_text(LOCAL_SETTINGS)
    (root / "faulty" / "__init__.py").touch()
    for name in STOPS:
        (root / "faulty" / f"{name}.py").write_text(MODEL)
    settings = Settings(postgres_url, str(folder / "models"), ("faulty",))
    with listening() as slack:
        environ = {
            "PYTHONPATH": f"{root}{os.pathsep}{ROOT / 'src'}",
            "BATCH_JOBS_WAREHOUSE": postgres_url,
            "BATCH_JOBS_MODEL_STORE": settings.model_store,
            "BATCH_JOBS_MODELS": "faulty",
            "AIRFLOW_CONN_SLACK_WEBHOOK": slack.connection(),
            "AIRFLOW__CORE__PARALLELISM": str(len(STOPS) + 2),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "3",
        }
        with LastingAirflow(root, folder / "airflow", _free_port(), environ) as airflow:
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(root)
                for on_sqlite, at in ((False, postgres_url), (True, sqlite_url(root))):
                    names = [name for name in STOPS if name.endswith("_on_sqlite") == on_sqlite]
                    _publish_the_interval_before(replace(settings, warehouse=at), names)
            airflow.wait_healthy()
            made = Cases(root, airflow, postgres_url, slack)
            until(lambda: len(made.api("GET", "/dags")["dags"]) >= 2 * len(STOPS), "the DAG files")
            for name, place in STOPS.items():
                if place is not None:
                    made.stop_at(name, place, outlives=name.startswith(("outliving", "late")))
                made.begin(name)
            yield made
    postgres.drop_database("process_faults")


def _publish_the_interval_before(settings: Settings, names: Sequence[str]) -> None:
    """Fill the source, train the models and publish the interval before the wanted one."""
    warehouse = Warehouse(settings.warehouse)
    warehouse.ensure_schema()
    items = [
        {
            "id": f"item-{minute}",
            "placed": stored_time(MIDNIGHT + timedelta(minutes=minute)),
            "amount": minute,
        }
        for minute in range(-6 * 60, 10)
    ]
    with warehouse.write() as connection:
        server = connection.dialect.name == "postgresql"
        table, time = ("public.items", "timestamptz") if server else ("items", "TEXT")
        columns = f"entity_id TEXT, placed_at {time}, amount DOUBLE PRECISION"
        connection.execute(text(f"CREATE TABLE {table} ({columns})"))
        connection.execute(text(f"INSERT INTO {table} VALUES (:id, :placed, :amount)"), items)
    for name in names:
        lifecycle.train(settings, name, BEFORE.start)
        lifecycle.promote(settings, name, actor="tests")
        serving.predict(settings, name, BEFORE)


def sqlite_url(root: Path) -> str:
    """The warehouse of the models that say so."""
    return f"sqlite:///{root}/warehouse.db"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def orphans(cases: Cases) -> dict[str, int]:
    """The processes of the tasks whose supervisors have been killed."""
    names = [name for name in STOPS if name.startswith(("outliving", "late", "orphan"))]
    found = {name: cases.stopped(name) for name in names}
    for process in found.values():
        kill(psutil.Process(process).ppid())
    return found


def rows(*minutes: int) -> dict[str, Any]:
    """What readers get of the items of some minutes: twice the amount."""
    return {f"item-{minute}": pytest.approx(2 * minute, abs=1e-6) for minute in minutes}


LAST_GOOD = rows(*range(-10, 0))
PUBLISHED = rows(*range(-10, 10))
VIEWS = ("current_predictions", "serving_status", "prediction_history")


def assert_published_once(
    cases: Cases, name: str, *, attempts: list[str], tries: dict[str, int]
) -> None:
    """Airflow says that all went well, and readers see the interval once, after the last one.

    Args:
        cases: where.
        name: the case.
        attempts: what the ledger says of the attempts at the interval, oldest first.
        tries: how often a task was tried, for those that were tried more than once.
    """
    assert cases.ended(name) == "success"
    assert set(cases.states(name).values()) == {"success"}
    assert {task: number for task, number in cases.tries(name).items() if number > 1} == tries
    assert cases.attempts(name) == attempts
    assert cases.seen(name) == PUBLISHED
    newest = """
        SELECT rows_read, rows_scored, r.state FROM prediction_runs AS r
        JOIN serving_status AS s ON s.run_id = r.run_id AND s.model = :name"""
    assert cases.ask(name, newest) == [(10, 10, "published")]
    shown = "SELECT count(*), count(superseded_at) FROM prediction_history WHERE model = :name"
    assert cases.ask(name, shown) == [(20, 0)]


def everything(cases: Cases, name: str) -> dict[str, list[tuple[Any, ...]]]:
    """All that the warehouse shows and knows of a model."""
    return {
        table: cases.ask(name, f"SELECT * FROM {table} WHERE model = :name ORDER BY 1, 2")
        for table in (*VIEWS, "prediction_runs", "fences")
    }


def test_a_task_dies_with_its_supervisor(cases, orphans):
    """Linux kills it at once; Airflow misses its heartbeat minutes later, and tries again."""
    until(lambda: gone(orphans["orphan"]), "the task to die")
    assert cases.states("orphan")["score"] == "running"
    assert cases.seen("orphan") == LAST_GOOD

    miss_the_heartbeat(cases, "orphan")

    assert_published_once(cases, "orphan", attempts=["published"], tries={"score": 2})


@pytest.mark.parametrize("name", ["outliving", "outliving_on_sqlite"])
def test_a_task_that_outlives_its_supervisor_is_fenced_off(cases, orphans, name):
    """It wakes up after its retry has published: it stages no further row and changes nothing."""
    miss_the_heartbeat(cases, name)
    assert_published_once(cases, name, attempts=["published"], tries={"score": 2})
    assert not gone(orphans[name])
    before = everything(cases, name)

    cases.let_go(orphans[name])

    until(lambda: gone(orphans[name]), "the orphan to end")
    assert "a newer try is scoring this part" in (cases.stops / f"{name}.log").read_text()
    own = [place for pid, _, place in cases.trail(name) if pid == orphans[name]]
    assert "score.all_staged" not in own
    assert everything(cases, name) == before


def test_a_claim_that_comes_too_late_is_refused(cases, orphans):
    """An orphan wakes up before it has claimed, after its retry has claimed and published."""
    process = orphans["late_claimer"]
    miss_the_heartbeat(cases, "late_claimer")
    assert_published_once(cases, "late_claimer", attempts=["published"], tries={"plan": 2})
    assert not gone(process)
    before = everything(cases, "late_claimer")

    cases.let_go(process)

    until(lambda: gone(process), "the orphan to end")
    own = [place for pid, _, place in cases.trail("late_claimer") if pid == process]
    assert own == ["plan.before_claim"]
    assert everything(cases, "late_claimer") == before


@pytest.mark.parametrize("name", ["committed", "committed_on_sqlite"])
def test_a_task_killed_after_its_commit_has_published(cases, name):
    """Airflow has heard of no success and tries again; the retry finds all done."""
    process = cases.stopped(name)
    assert cases.seen(name) == PUBLISHED
    before = everything(cases, name)

    kill(process)

    assert_published_once(cases, name, attempts=["published"], tries={"publish": 2})
    assert everything(cases, name) == before


def test_a_terminated_task_publishes_once(cases):
    """SIGTERM, from a person or a machine that shuts down, leaves nothing half done."""
    process = cases.stopped("terminated")

    os.kill(process, signal.SIGTERM)

    assert cases.seen("terminated") == LAST_GOOD
    cases.let_go(process)
    assert cases.ended("terminated") == "success"
    tried = cases.tries("terminated")["score"]
    tries = {"score": tried} if tried > 1 else {}
    assert_published_once(cases, "terminated", attempts=["published"], tries=tries)


def test_a_cleared_running_task_gives_way_to_its_next_try(cases):
    """Its process ends, what it staged is removed, and the run goes on."""
    process = cases.stopped("cleared")

    clear(cases, "cleared", "score")

    assert_published_once(cases, "cleared", attempts=["published"], tries={"score": 2})
    until(lambda: gone(process), "the first try to end")
    assert cases.seen("cleared") == PUBLISHED


@pytest.mark.parametrize("name", ["replaced", "replaced_on_sqlite"])
def test_a_cleared_plan_gives_a_new_attempt_while_the_old_one_scores(cases, name):
    """The new attempt claims the interval and fails the old one, which ends."""
    process = cases.stopped(name)

    clear(cases, name, "plan")

    tries = {"plan": 2, "score": 2}
    assert_published_once(cases, name, attempts=["failed", "published"], tries=tries)
    until(lambda: gone(process), "the first attempt to end")
    assert cases.seen(name) == PUBLISHED


def test_a_deleted_run_that_is_made_again_publishes(cases):
    """Under the same name: a new attempt, and after that one has published no other."""
    process = cases.stopped("recreated")
    run_id = cases.runs["recreated"]
    cases.api("PATCH", cases.run("recreated"), {"state": "failed"})
    until(lambda: gone(process), "the task to end")
    assert cases.seen("recreated") == LAST_GOOD

    cases.api("DELETE", cases.run("recreated"))
    cases.begin("recreated", run_id)

    assert_published_once(cases, "recreated", attempts=["failed", "published"], tries={})
    before = everything(cases, "recreated")
    cases.api("DELETE", cases.run("recreated"))
    cases.begin("recreated", run_id)
    assert cases.ended("recreated") == "success"
    assert set(cases.states("recreated").values()) == {"skipped"}
    assert everything(cases, "recreated") == before


def test_a_task_that_takes_too_long_is_tried_again(cases):
    """Its execution_timeout strikes in the middle of staging; the retry starts afresh."""
    process = cases.stopped("overtime")

    assert_published_once(cases, "overtime", attempts=["published"], tries={"score": 2})
    assert gone(process)


def test_a_run_that_takes_too_long_fails_and_the_next_one_publishes(cases):
    """Its dagrun_timeout strikes in the middle of staging; readers keep the last good rows."""
    process = cases.stopped("overdue")

    assert pass_an_hour(cases, "dag_run", "start_date", "dag_id = 'predict_overdue'") == 1

    assert cases.ended("overdue") == "failed"
    until(lambda: gone(process), "the task to end")
    assert cases.attempts("overdue") == ["staging"]
    assert cases.seen("overdue") == LAST_GOOD
    until(lambda: told(cases)["overdue"] == 1, "the alert")
    cases.begin("overdue")
    assert_published_once(cases, "overdue", attempts=["failed", "published"], tries={})


def test_a_finished_run_that_is_cleared_changes_nothing(cases):
    """What is published stays published by the same run; nothing is scored again."""
    assert_published_once(cases, "finished", attempts=["published"], tries={})
    before = everything(cases, "finished")

    clear(cases, "finished", "plan")

    until(lambda: cases.tries("finished")["plan"] == 2, "plan to run again")
    assert cases.ended("finished") == "success"
    assert set(cases.states("finished").values()) == {"skipped"}
    assert everything(cases, "finished") == before


def test_a_forced_run_supersedes_the_published_one_in_one_moment(cases):
    """Until the commit readers see all rows of the old run, and from then on all of the new one."""
    assert cases.ended("finished") == "success"
    cases.stop_at("finished", "publish.before_commit")
    before = {view: everything(cases, "finished")[view] for view in VIEWS}

    cases.begin("finished", force=True)

    process = cases.stopped("finished")
    assert {view: everything(cases, "finished")[view] for view in VIEWS} == before
    cases.let_go(process)
    assert cases.ended("finished") == "success"
    assert set(cases.states("finished").values()) == {"success"}
    assert cases.attempts("finished") == ["superseded", "published"]
    assert cases.seen("finished") == PUBLISHED


def test_a_killed_scheduler_takes_up_its_runs_again(cases):
    """A task that ended meanwhile is not repeated, and one that goes on gives way to a new try."""
    ending, hanging = cases.stopped("unattended"), cases.stopped("abandoned")
    cases.airflow.kill_scheduler()
    assert pass_an_hour(cases, "job", "latest_heartbeat", "job_type = 'SchedulerJob'") == 1
    cases.let_go(ending)
    until(lambda: cases.states("unattended")["score"] == "success", "the task to end")
    assert cases.seen("unattended") == LAST_GOOD
    assert not gone(hanging)

    cases.airflow.start_scheduler()

    assert_published_once(cases, "unattended", attempts=["published"], tries={})
    assert_published_once(cases, "abandoned", attempts=["published"], tries={"score": 2})
    until(lambda: gone(hanging), "the first try to end")


def test_slack_heard_of_failed_runs_only(cases):
    """Not of retries. Alerts come in order, so the last one of all comes when all are there."""
    cases.begin("terminated", interval_end="2100-01-01T00:00:00Z")
    assert cases.ended("terminated") == "failed"
    until(lambda: told(cases)["terminated"] == 1, "the last alert")

    # A failure and the recovery; each is there already if its own test has passed.
    most = {"overdue": 2, "recreated": 2, "terminated": 1}
    assert {name: count for name, count in told(cases).items() if count > most.get(name, 0)} == {}


def clear(cases: Cases, name: str, task_id: str) -> None:
    """Clear a task of a case's run and what comes after it, as the button in the UI does."""
    body = {
        "dry_run": False,
        "dag_run_id": cases.runs[name],
        "task_ids": [task_id],
        "include_downstream": True,
        "only_failed": False,
    }
    cases.api("POST", f"/dags/predict_{name}/clearTaskInstances", body)


def pass_an_hour(cases: Cases, table: str, column: str, where: str) -> int:
    """Let something that goes on have happened an hour earlier, in Airflow's database."""
    database = sqlite3.connect(cases.airflow.home / "airflow.db", timeout=60)
    with closing(database), database:
        return database.execute(
            f"UPDATE {table} SET {column} = datetime({column}, '-1 hour') "
            f"WHERE {where} AND state = 'running'"
        ).rowcount


def miss_the_heartbeat(cases: Cases, name: str) -> None:
    """Let Airflow see that a task's supervisor is no more; a last heartbeat may be on its way."""
    first = f"dag_id = 'predict_{name}' AND try_number = 1"
    until(
        lambda: not pass_an_hour(cases, "task_instance", "last_heartbeat_at", first),
        f"Airflow to miss the heartbeat of {name}",
    )


def told(cases: Cases) -> Counter[str]:
    """How many messages Slack got about each case."""
    return Counter(
        name for text in cases.slack.texts for name in STOPS if f"*predict_{name}*" in text
    )
