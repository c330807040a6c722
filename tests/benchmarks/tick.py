"""What a tick costs under Airflow, beside a DAG of as many tasks that do nothing.

    python -m tests.benchmarks.tick [--json] [--repetitions 5] [--databases sqlite postgresql]

A tick of the prediction DAG scores an empty interval, or one of 1,000 rows. Both DAGs run by turns
in the same Airflow on this machine, on a warehouse in SQLite and then on one in PostgreSQL. A verb
is then run in a process of its own, twice: what the first time takes longer is Python's importing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sqlalchemy import text
from sqlalchemy.engine import make_url

from batch_jobs.database import leases
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.monitoring.monitor import monitor as look
from batch_jobs.registry import promotion
from batch_jobs.registry.deployment import Deployment
from batch_jobs.requests import worker
from batch_jobs.runs import jobs
from batch_jobs.settings import Settings, let_threads_sleep
from batch_jobs.training import train
from demo.local import ROOT, LocalAirflow
from tests.support.planned import plan
from tests.support.postgres_server import PostgresServer

HERE = Path(__file__).parent
MODEL = "clicks"
DAGS = {"noop": "noop", "empty": f"predict_{MODEL}", "1000 rows": f"predict_{MODEL}"}
CASES = tuple(DAGS)[1:]
DATABASES = ("sqlite", "postgresql")
VERBS = ("plan", "score", "publish", "monitor", "prune", "answer")
ROWS, STEP = 1000, timedelta(minutes=10)
FULL_FROM = datetime(2024, 3, 1, tzinfo=UTC)
EMPTY_FROM = FULL_FROM + timedelta(days=100)
PATIENCE = 300
Took = dict[str, float]


def interval_of(case: str, number: int) -> Interval:
    """The interval of that number that is empty or has 1,000 rows."""
    start = (EMPTY_FROM if case == "empty" else FULL_FROM) + number * STEP
    return Interval(start, start + STEP)


def prepare(settings: Settings, intervals: int) -> None:
    """Fill the source and train the model.

    Args:
        settings: of a database with nothing in it.
        intervals: how many of 1,000 rows there are.
    """
    warehouse = Warehouse(settings.warehouse)
    warehouse.ensure_schema()
    chance = random.Random(0)
    starts = [FULL_FROM - timedelta(days=2) + n * STEP for n in range(48 * 6)]
    times = [start for start in starts for _ in range(10)]
    times += [FULL_FROM + n * STEP for n in range(intervals) for _ in range(ROWS)]
    rows = [
        {
            "id": f"click-{number:07}",
            "at": stored_time(at),
            "settled": stored_time(at + timedelta(minutes=1)),
            "price": chance.uniform(1, 100),
            "visits": (visits := chance.randrange(50)),
            "country": chance.choice(["kr", "us", "de"]),
            "bought": int(chance.randrange(50) < visits),
        }
        for number, at in enumerate(times)
    ]
    with warehouse.write_source() as connection:
        server = connection.dialect.name == "postgresql"
        table, time_ = ("public.clicks", "timestamptz") if server else ("clicks", "TEXT")
        connection.execute(
            text(
                f"CREATE TABLE {table} (entity_id TEXT, clicked_at {time_}, settled_at {time_}, "
                "price DOUBLE PRECISION, visits INTEGER, country TEXT, bought INTEGER)"
            )
        )
        connection.execute(text(f"CREATE INDEX clicks_at ON {table} (clicked_at)"))
        names = ":id, :at, :settled, :price, :visits, :country, :bought"
        connection.execute(text(f"INSERT INTO {table} VALUES ({names})"), rows)
    train.train(settings, MODEL, FULL_FROM)
    answer = promotion.promote(settings, MODEL, actor="benchmark")
    if answer.champion is None:
        raise SystemExit(f"the model was not promoted: {answer.reason}")


class Ticks:
    """Starts DAG runs and tells how long they took."""

    def __init__(self, airflow: LocalAirflow) -> None:
        self._airflow = airflow

    def begin(self) -> None:
        """Let both DAGs run, and each once, so that nothing happens for the first time later."""
        self._until(lambda: set(DAGS.values()) <= self._known())
        dag = f"/dags/{DAGS['empty']}"
        self._airflow.api("PATCH", f"{dag}?update_mask=is_paused", {"is_paused": False})
        self._until(lambda: self._airflow.api("GET", f"{dag}/dagRuns")["dag_runs"])
        (run,) = self._airflow.api("GET", f"{dag}/dagRuns")["dag_runs"]
        self._ended(f"{dag}/dagRuns/{run['dag_run_id']}")

    def use(self, url: str) -> None:
        """Let tasks use another warehouse, through Airflow's connection."""
        parts = make_url(url)
        self._airflow.api(
            "POST",
            "/connections",
            {
                "connection_id": "warehouse",
                "conn_type": "postgres",
                "host": parts.host,
                "port": parts.port,
                "login": parts.username,
                "password": parts.password,
                "schema": parts.database,
            },
        )

    def run(self, case: str, number: int) -> Took:
        """Run a DAG once: seconds from the trigger to its end, and of each task."""
        path = f"/dags/{DAGS[case]}/dagRuns"
        conf = {}
        if case != "noop":
            span = interval_of(case, number)
            conf = {
                "interval_start": span.start.isoformat(),
                "interval_end": span.end.isoformat(),
            }
        begun = self._airflow.api("POST", path, {"logical_date": None, "conf": conf})
        run = self._ended(f"{path}/{begun['dag_run_id']}")
        if run["state"] != "success":
            raise SystemExit(f"{case} {number}: the run failed; see {self._airflow.logs}")
        tasks = self._airflow.api("GET", f"{path}/{run['dag_run_id']}/taskInstances")
        took = {each["task_id"]: each["duration"] for each in tasks["task_instances"]}
        if set(took) != set(VERBS):
            raise SystemExit(f"{DAGS[case]} has the tasks {sorted(took)}: mend noop.py and VERBS")
        begin, end = (datetime.fromisoformat(run[when]) for when in ("queued_at", "end_date"))
        return {"run": (end - begin).total_seconds(), **took}

    def _known(self) -> set[str]:
        return {dag["dag_id"] for dag in self._airflow.api("GET", "/dags")["dags"]}

    def _ended(self, path: str) -> dict[str, Any]:
        self._until(lambda: self._airflow.api("GET", path)["end_date"])
        run: dict[str, Any] = self._airflow.api("GET", path)
        return run

    def _until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"Airflow took longer than {PATIENCE} s; see {self._airflow.logs}")
            time.sleep(0.2)


def time_verb(settings: Settings, case: str, verb: str, number: int) -> tuple[float, float]:
    """Run one verb on two intervals: seconds of the first time in this process, and the second.

    The verbs before it are run in a process of their own.
    """
    took = []
    for interval in (interval_of(case, number), interval_of(case, number + 1)):
        known = find_run(settings, interval)
        began = time.perf_counter()
        if verb == "plan":
            plan(settings, MODEL, interval, leases.new_token())
        elif verb == "score":
            jobs.score(settings, MODEL, known, 0, leases.new_token())
        elif verb == "publish":
            jobs.publish(settings, known)
        elif verb == "monitor":
            look(Deployment(settings), MODEL, outcomes=False)
        elif verb == "prune":
            jobs.prune(settings, MODEL)
        else:
            worker.answer(settings, MODEL, leases.new_token())
        took.append(time.perf_counter() - began)
    return took[0], took[1]


def find_run(settings: Settings, interval: Interval) -> int:
    """The newest run of an interval; 0 if there is none."""
    with Warehouse(settings.warehouse).read() as connection:
        found: int = connection.scalar(
            text("SELECT coalesce(max(run_id), 0) FROM prediction_runs WHERE interval_start = :at"),
            {"at": stored_time(interval.start)},
        )
    return found


def in_processes(settings: Settings, case: str, numbers: Sequence[int]) -> dict[str, list[float]]:
    """Seconds that each verb takes by itself: `{verb: [first time, second time]}`, medians."""
    environ = {
        **os.environ,
        "BATCH_JOBS_WAREHOUSE": settings.warehouse,
        "BATCH_JOBS_MODEL_STORE": settings.model_store,
        "BATCH_JOBS_MODELS": ",".join(settings.models),
    }
    found: dict[str, list[tuple[float, float]]] = {verb: [] for verb in VERBS}
    for number in numbers:
        for verb in VERBS:
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.tick",
                "--verb",
                case,
                verb,
            ]
            answer = subprocess.run(
                [*command, str(number)],
                env=environ,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                check=True,
            )
            found[verb].append(tuple(json.loads(answer.stdout.splitlines()[-1])))
    return {
        verb: [median(column) for column in zip(*took, strict=True)] for verb, took in found.items()
    }


def measure(airflow: LocalAirflow, databases: dict[str, Settings], repetitions: int) -> list[Any]:
    """Every case on every database, side by side with the no-op DAG: medians."""
    ticks, records = Ticks(airflow), []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("ticks", total=(repetitions + 1) * len(DAGS) * len(databases))
        ticks.begin()
        for database, settings in databases.items():
            if database == "postgresql":
                ticks.use(settings.warehouse)
            took: dict[str, list[Took]] = {case: [] for case in DAGS}
            for number in range(repetitions + 1):
                for case in DAGS:
                    took[case].append(ticks.run(case, number))
                    progress.advance(bar)
            # The first time is a warm-up.
            each = {
                case: {name: median(run[name] for run in runs[1:]) for name in ("run", *VERBS)}
                for case, runs in took.items()
            }
            records += [record(database, case, each) for case in CASES]
    return records


def record(database: str, case: str, each: dict[str, Took]) -> dict[str, Any]:
    """What is told of one case on one database."""
    tick, noop = each[case], each["noop"]
    return {
        "database": database,
        "case": case,
        "seconds": round(tick["run"], 2),
        "noop_seconds": round(noop["run"], 2),
        "ratio": round(tick["run"] / noop["run"], 2),
        "task_seconds": {verb: round(tick[verb], 2) for verb in VERBS},
        "noop_task_seconds": {verb: round(noop[verb], 2) for verb in VERBS},
    }


def add_verbs(records: list[Any], databases: dict[str, Settings], repetitions: int) -> None:
    """Add to each case what its verbs take outside Airflow, the first time and the second."""
    for each in records:
        numbers = range(100, 100 + 2 * repetitions, 2)
        each["verb_seconds"] = {
            verb: {"first": round(first, 3), "second": round(second, 3)}
            for verb, (first, second) in in_processes(
                databases[each["database"]], each["case"], numbers
            ).items()
        }


def show(records: list[Any]) -> None:
    """Print a table of ratios and one of what the tasks do with their time."""
    console = Console()
    table = _table(
        "A tick under Airflow beside as many tasks that do nothing",
        ("Warehouse", "Interval"),
        ("Seconds", "No-op", "Ratio", "In tasks", "No-op"),
    )
    for each in records:
        table.add_row(
            each["database"],
            each["case"],
            f"{each['seconds']:.1f}",
            f"{each['noop_seconds']:.1f}",
            f"{each['ratio']:.1f}",
            f"{sum(each['task_seconds'].values()):.1f}",
            f"{sum(each['noop_task_seconds'].values()):.1f}",
        )
    console.print(table)
    table = _table(
        "Where the tasks' seconds go",
        ("Warehouse", "Interval", "Task"),
        ("In Airflow", "No-op", "Importing", "Working"),
    )
    for each in records:
        for verb in VERBS:
            took = each["verb_seconds"][verb]
            table.add_row(
                each["database"],
                each["case"],
                verb,
                f"{each['task_seconds'][verb]:.2f}",
                f"{each['noop_task_seconds'][verb]:.2f}",
                f"{max(took['first'] - took['second'], 0):.2f}",
                f"{took['second']:.2f}",
            )
    console.print()
    console.print(table)


def _table(title: str, words: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    """An empty table whose first columns are words."""
    table = Table(title=title, box=None)
    for heading in words:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def under_airflow(folder: Path, environ: dict[str, str]) -> LocalAirflow:
    """An Airflow with our prediction DAGs and the one that does nothing."""
    root = folder / "root"
    (root / "dags").mkdir(parents=True)
    (root / "dags" / "predict.py").symlink_to(ROOT / "dags" / "predict.py")
    (root / "dags" / "noop.py").symlink_to(HERE / "tick_dags" / "noop.py")
    for name in ("plugins", "utils"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "airflow.cfg.template", root)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return LocalAirflow(root, folder / "airflow", port, environ)


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark, or one verb of it."""
    parser = argparse.ArgumentParser(prog="tick", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the records as the last line")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    parser.add_argument("--verb", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    let_threads_sleep()
    if asked.verb:
        import batch_jobs_airflow.prediction_tasks  # noqa: F401 - Airflow and the DAG file are there when a task begins

        case, verb, number = asked.verb
        took = time_verb(Settings.from_environ(), case, verb, int(number))
        sys.stdout.write(json.dumps(took) + "\n")
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # and end Airflow
    with (
        tempfile.TemporaryDirectory(prefix="batch-jobs-tick-") as name,
        PostgresServer() as server,
    ):
        folder = Path(name)
        server.create_database("ticks")
        urls = {
            "sqlite": f"sqlite:///{folder}/warehouse.db",
            "postgresql": server.url("ticks"),
        }
        databases = {
            database: Settings(url, str(folder / "models"), ("tests.benchmarks.tick_models",))
            for database, url in urls.items()
            if database in asked.databases
        }
        for settings in databases.values():
            prepare(settings, 200)
        environ = {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}",
            "BATCH_JOBS_WAREHOUSE": urls["sqlite"],
            "BATCH_JOBS_MODEL_STORE": str(folder / "models"),
            "BATCH_JOBS_MODELS": "tests.benchmarks.tick_models",
        }
        with under_airflow(folder, environ) as airflow:
            airflow.wait_healthy()
            records = measure(airflow, databases, asked.repetitions)
        add_verbs(records, databases, max(asked.repetitions // 2, 1))
    show(records)
    if asked.json:
        sys.stdout.write(json.dumps(records) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
