"""`./run demo`: train on real flights and publish predictions under a real Airflow, live."""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from zoneinfo import ZoneInfo

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Row, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from batch_jobs.catalog import load_model
from batch_jobs.database.transactions import bounds, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.interval import Interval, due_between, floor_to_grid, newest_due
from batch_jobs.registry import champions, versions
from batch_jobs.settings import Settings
from demo.api import LocalApi
from demo.local import (
    ADMIN,
    DEFAULT_PORT,
    LocalAirflow,
    LocalAirflowError,
    obstacle,
    one_line,
    require_free,
)
from demo.watch import LocalWatch

MODEL = "flight_delay"
TRAIN, PREDICT, MONITOR = (f"{verb}_{MODEL}" for verb in ("train", "predict", "monitor"))
PATIENCE = timedelta(minutes=15)
ROWS_SHOWN = 12
BAR = 7
DEFAULT_API_PORT = 8000
LIKELY = 0.5
NEW_YORK = ZoneInfo("America/New_York")


Answer = dict[str, Any]
Found = TypeVar("Found")


class DemoError(Exception):
    """A DAG run of the demo failed or never ended."""

    exit_code = 1


class Screen:
    """Tells a person what goes on: a spinner on a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    def say(self, message: str | Text | Table = "") -> None:
        """Print lines or a table."""
        self._console.print(message, markup=False)

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Show that something is going on, and how long it took; gives a function for details."""
        began, last, shown = time.monotonic(), "", 0.0
        terminal = self._console.is_terminal
        with self._console.status(name, refresh_per_second=4) as status:

            def tell(detail: str) -> None:
                nonlocal last, shown
                if terminal:
                    status.update(f"{name}  [dim]{time.monotonic() - began:.0f} s  {detail}[/dim]")
                elif detail != last and time.monotonic() - shown > 1:
                    self.say(f"    {detail}")
                    last, shown = detail, time.monotonic()

            if not terminal:
                self.say(f"... {name}")
            yield tell
        done = Text.assemble(
            ("ok", "green"), f"  {name}  ", (f"{time.monotonic() - began:.0f} s", "dim")
        )
        self.say(done)

    def total(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._began


class Demo:
    """The demo's way through Airflow's REST API and the warehouse."""

    def __init__(self, airflow: LocalAirflow, settings: Settings, screen: Screen) -> None:
        self._airflow, self._screen = airflow, screen
        self._warehouse = Warehouse(settings.warehouse)
        self._file = Path(make_url(settings.warehouse).database or "").absolute()
        self._model = load_model(MODEL, settings.models)
        self._began = datetime.now(UTC)

    def load(self) -> None:
        """Fill the source tables, unless they are filled already."""
        from batch_jobs.samples.load import load

        with self._screen.step("Loading the flights of a year into the warehouse") as tell:
            self._warehouse.ensure_schema()
            load(
                self._warehouse,
                datetime.now(UTC),
                lambda done, rows: tell(f"{done:,} of {rows:,} rows"),
            )

    def wait_for_airflow(self) -> None:
        """Wait until every process works and both DAGs are known."""
        with self._screen.step(f"Starting Airflow on {self._airflow.url}") as tell:
            self._airflow.wait_healthy(
                progress=lambda health: tell(
                    "  ".join(f"{name} {'ok' if well else '...'}" for name, well in health.items())
                )
            )
            for dag_id in (TRAIN, PREDICT, MONITOR):
                self._until(f"{dag_id} to be read", partial(self._known, dag_id))

    def train(self) -> None:
        """Let Airflow train and promote, unless there is a champion."""
        first = champions.champion(self._warehouse, MODEL) is None
        newest = self._newest_run(TRAIN)
        self._unpause(TRAIN)
        if first:
            with self._screen.step("Training: Airflow runs the DAG " + TRAIN) as tell:
                run = newest or self._until("a training", lambda: self._newest_run(TRAIN))
                if self._is_left_over(run):
                    self._until(f"the end of {run['dag_run_id']}", partial(self._ended, run, tell))
                    if champions.champion(self._warehouse, MODEL) is None:
                        self._finish(self._trigger(TRAIN, {}), tell)
                else:
                    self._finish(run, tell)
        champion = champions.champion(self._warehouse, MODEL)
        if champion is None:
            version = versions.newest_version(self._warehouse, MODEL)
            reasons = "; ".join(version.gate["reasons"]) if version else "no version was registered"
            raise DemoError(f"{TRAIN} ended without a champion: {reasons}")
        metrics = "  ".join(f"{name} {value:.3f}" for name, value in champion.metrics.items())
        self._screen.say(f"    champion {champion.version}  {metrics}")

    def monitor(self) -> None:
        """Let Airflow look once a day how the model is doing."""
        self._unpause(MONITOR)

    def predict(self) -> Row[Any]:
        """Let Airflow publish the newest due interval; the newest run that holds predictions."""
        due = newest_due(self._model.schedule, datetime.now(UTC))
        self._unpause(PREDICT)
        with self._screen.step("Predicting: Airflow runs the DAG " + PREDICT) as tell:
            newest = self._until("predictions", lambda: self._published(due, tell))
        if newest.rows_scored:
            return newest
        self._screen.say(
            f"    It is {datetime.now(NEW_YORK):%H:%M} in New York: from {_clock(due.start)} to"
            f" {_clock(due.end)} UTC no flight was two hours from its departure."
        )
        span = self._newest_with_flights(due.start)
        with self._screen.step(f"Predicting {span}, the newest that holds flights") as tell:
            run = self._run_of(span)
            if run is None:
                conf = {
                    "interval_start": stored_time(span.start),
                    "interval_end": stored_time(span.end),
                }
                self._finish(self._trigger(PREDICT, conf), tell)
                run = self._run_of(span)
        if run is None or not run.rows_scored:
            raise DemoError(f"{PREDICT} ended without predictions for {span}; its log says why")
        return run

    def show(self, run: Row[Any]) -> None:
        """Show the predictions of one run: the probability to arrive over 15 minutes late."""
        rows = self._query(
            """
            SELECT f.*, p.score, p.published_at, p.model_version
            FROM current_predictions AS p JOIN flights AS f ON f.entity_id = p.entity_id
            WHERE p.model = :model AND p.run_id = :run_id ORDER BY p.score DESC""",
            run_id=run.run_id,
        )
        span = f"{_clock(run.interval_start)}-{_clock(run.interval_end)} UTC"
        more = f" The {ROWS_SHOWN} likeliest:" if len(rows) > ROWS_SHOWN else ""
        table = Table(
            title=f"{len(rows)} flights, {span}: will they arrive over 15 minutes late?{more}",
            title_justify="left",
            box=None,
            pad_edge=False,
        )
        for heading in ("Flight", "Route", "NY", "UTC", "Late", "Model version", "Published"):
            table.add_column(heading, no_wrap=True)
        for row in rows[:ROWS_SHOWN]:
            table.add_row(
                f"{row.carrier} {row.flight}",
                f"{row.origin}-{row.dest}",
                f"{row.local_hour:02}:{row.local_minute:02}",
                _clock(row.scheduled_departure),
                _bar(row.score),
                row.model_version,
                _clock(row.published_at),
            )
        self._screen.say()
        self._screen.say(table)

    def ask(self, api: LocalApi, run: Row[Any], *, asking: bool) -> None:
        """Tell how to ask for a prediction of a run over HTTP; if asking, also the answer."""
        with self._screen.step(f"Starting the prediction API on {api.url}"):
            self._until("the prediction API", api.ready)
        rows = self._query(
            "SELECT entity_id FROM current_predictions WHERE model = :model AND run_id = :run_id"
            " ORDER BY score DESC LIMIT 1",
            run_id=run.run_id,
        )
        url = f"{api.url}/models/{MODEL}/predictions/{quote(rows[0].entity_id, safe=':')}"
        self._screen.say(f"\nOver HTTP     curl {shlex.quote(url)}")
        if asking:
            self._screen.say(f"answers       {httpx.get(url).raise_for_status().text}")
        page = f"{api.url} while `./run api` runs" if asking else api.url
        self._screen.say(f"Page          {page}")

    def explain(self) -> None:
        """Tell where the predictions are and how to read them."""
        (status,) = self._query("SELECT * FROM serving_status WHERE model = :model")
        query = (
            "SELECT entity_id, score, model_version FROM current_predictions "
            "ORDER BY published_at DESC, score DESC LIMIT 5"
        )
        code = (
            f'import sqlite3; print(*sqlite3.connect("{self._file.as_uri()}?mode=ro", uri=True)'
            f'.execute("{query}"), sep="\\n")'
        )
        self._screen.say(f"""
Predictions   view current_predictions in {self._file}
Status        view serving_status: {status.row_count} rows in the newest run, model \
{status.model_version}, fresh until {_clock(status.fresh_until)} UTC
With SQL      {shlex.join([sys.executable, "-c", code])}""")
        if sqlite3 := shutil.which("sqlite3"):
            command = shlex.join([Path(sqlite3).name, "-readonly", str(self._file)])
            self._screen.say(f"or            {command} '{query}'")

    def stay(self, api: LocalApi, watch: LocalWatch) -> None:
        """Tell of every interval that is published, until a signal comes."""
        watch.start()
        self._screen.say(f"""\
Airflow       {self._airflow.url}  user {ADMIN}  password {self._airflow.password}
Watch         hears what is silent, and tells it in {watch.log} and in Slack if that is set
Logs          {self._airflow.logs}

Stays up and publishes every ten minutes; Ctrl-C stops it.""")
        told = self._newest_run_id()
        warned: set[str] = set()
        while True:
            self._airflow.require_alive()
            api.ready()
            if watch.has_ended() and "watch" not in warned:
                warned.add("watch")
                self._screen.say(f"the watch ended; see {watch.log}")
            for new in self._query(
                "SELECT * FROM prediction_runs WHERE model = :model AND run_id > :told"
                " AND state = 'published' ORDER BY run_id",
                told=told,
            ):
                self._screen.say(f"{_clock(new.published_at)} UTC  published {_summary(new)}")
                told = new.run_id
            with suppress(httpx.TimeoutException):
                for run in filter(None, map(self._newest_run, (TRAIN, PREDICT))):
                    told_of = run["dag_run_id"] in warned or self._is_left_over(run)
                    if run["state"] == "failed" and not told_of:
                        warned.add(run["dag_run_id"])
                        self._screen.say(self._autopsy(run))
            time.sleep(3)

    def _query(self, sql: str, **values: Any) -> Sequence[Row[Any]]:
        with self._warehouse.read() as connection:
            return connection.execute(text(sql), {"model": MODEL, **values}).all()

    def _newest_run_id(self) -> int:
        newest: int = self._query(
            "SELECT coalesce(max(run_id), 0) FROM prediction_runs WHERE model = :model"
        )[0][0]
        return newest

    def _published(self, due: Interval, tell: Callable[[str], None]) -> Row[Any] | None:
        """The newest published run, once it is as new as the interval that was due."""
        rows = self._query(
            "SELECT * FROM prediction_runs WHERE model = :model AND state = 'published'"
            " AND interval_end >= :end ORDER BY interval_end DESC LIMIT 1",
            end=stored_time(due.end),
        )
        newest = self._newest_run(PREDICT)
        if not rows and newest is not None and _time(newest["run_after"]) >= due.end:
            tell(self._states(newest))
            if newest["state"] == "failed":
                if not self._is_left_over(newest):
                    raise DemoError(self._autopsy(newest))
                self._trigger(PREDICT, {})
        return rows[0] if rows else None

    def _newest_with_flights(self, before: datetime) -> Interval:
        """The newest interval before a time in which flights were due for a prediction."""
        newest = self._query(
            "SELECT max(as_of) FROM flights WHERE as_of < :before", before=stored_time(before)
        )[0][0]
        schedule = self._model.schedule
        start = floor_to_grid(schedule, _time(newest))
        return next(due_between(schedule, start, before))

    def _run_of(self, span: Interval) -> Row[Any] | None:
        rows = self._query(
            "SELECT * FROM prediction_runs WHERE model = :model AND state = 'published'"
            " AND interval_start = :start AND interval_end = :end",
            **bounds(span),
        )
        return rows[0] if rows else None

    def _until(self, what: str, look: Callable[[], Found | None]) -> Found:
        """Look twice a second until something is there, while Airflow lives."""
        deadline = time.monotonic() + PATIENCE.total_seconds()
        while (found := look()) is None:
            self._airflow.require_alive()
            if time.monotonic() > deadline:
                raise DemoError(f"waited {PATIENCE} for {what}; see {self._airflow.logs}")
            time.sleep(0.5)
        return found

    def _known(self, dag_id: str) -> bool | None:
        try:
            return bool(self._airflow.api("GET", f"/dags/{dag_id}"))
        except httpx.HTTPStatusError:
            return None

    def _unpause(self, dag_id: str) -> None:
        path = f"/dags/{dag_id}?update_mask=is_paused"
        self._airflow.api("PATCH", path, {"is_paused": False})

    def _trigger(self, dag_id: str, conf: dict[str, str]) -> Answer:
        body = {"logical_date": None, "conf": conf}
        answer: Answer = self._airflow.api("POST", f"/dags/{dag_id}/dagRuns", body)
        return answer

    def _newest_run(self, dag_id: str) -> Answer | None:
        path = f"/dags/{dag_id}/dagRuns?order_by=-run_after&limit=1"
        runs: list[Answer] = self._airflow.api("GET", path)["dag_runs"]
        return runs[0] if runs else None

    def _is_left_over(self, run: Answer) -> bool:
        """Whether a DAG run was begun by a demo before this one, which may have crashed."""
        return bool(run["start_date"]) and _time(run["start_date"]) < self._began

    def _ended(self, run: Answer, tell: Callable[[str], None]) -> Answer | None:
        """A DAG run once it has ended."""
        tell(self._states(run))
        now: Answer = self._airflow.api("GET", _path(run))
        return now if now["state"] in ("success", "failed") else None

    def _finish(self, run: Answer, tell: Callable[[str], None]) -> None:
        """Wait for the end of a DAG run."""
        ended = self._until(f"the end of {run['dag_id']}", partial(self._ended, run, tell))
        if ended["state"] == "failed":
            raise DemoError(self._autopsy(run))

    def _tasks(self, run: Answer) -> list[Answer]:
        tasks: list[Answer] = self._airflow.api("GET", _path(run) + "/taskInstances")[
            "task_instances"
        ]
        return tasks

    def _states(self, run: Answer) -> str:
        return "  ".join(f"{task['task_id']} {task['state'] or '...'}" for task in self._tasks(run))

    def _autopsy(self, run: Answer) -> str:
        """Which tasks of a DAG run failed, the end of their logs, and where those are."""
        parts = [f"{run['dag_id']} failed ({run['dag_run_id']})"]
        for task in self._tasks(run):
            if task["state"] == "failed":
                folder = Path(self._airflow.home, "logs", f"dag_id={run['dag_id']}")
                folder = folder / f"run_id={run['dag_run_id']}" / f"task_id={task['task_id']}"
                logs = sorted(folder.rglob("*.log"), key=lambda log: log.stat().st_mtime)
                parts.append(f"task {task['task_id']}; the end of {logs[-1] if logs else folder}:")
                parts += [f"    {line}" for line in _log_lines(logs[-1])[-12:]] if logs else []
        return "\n".join(parts)


def _path(run: Answer) -> str:
    return f"/dags/{run['dag_id']}/dagRuns/{quote(run['dag_run_id'], safe='')}"


def _log_lines(log: Path) -> list[str]:
    """The messages of a task's log, whose lines are JSON."""
    lines = []
    for line in log.read_text("utf-8", errors="replace").splitlines():
        with suppress(ValueError, KeyError, TypeError):
            record = json.loads(line)
            lines.append(str(record["event"]))
            lines += [
                f"{error['exc_type']}: {error['exc_value']}"
                for error in record.get("error_detail") or []
            ]
    return [line for line in lines if line and not line.startswith("::")]


def _summary(run: Row[Any]) -> str:
    span = f"{_clock(run.interval_start)}-{_clock(run.interval_end)} UTC"
    return f"{span}: {run.rows_scored} flights, model {run.model_version}, run {run.run_id}"


def _bar(score: float) -> Text:
    filled = round(score * BAR)
    colour = "red" if score >= LIKELY else "yellow" if score >= LIKELY / 2 else "green"
    bar, rest = ("█" * filled, colour), ("░" * (BAR - filled), "dim")
    return Text.assemble(bar, rest, (f" {score:4.0%}", colour))


def _time(value: str) -> datetime:
    return datetime.fromisoformat(value).astimezone(UTC)


def _clock(value: str | datetime) -> str:
    return f"{_time(value) if isinstance(value, str) else value:%H:%M}"


def _stop_on_signals() -> None:
    """Make SIGTERM and SIGHUP unwind the program as Ctrl-C does, also if Ctrl-C was ignored."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run demo", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--once", action="store_true", help="end after the first published predictions"
    )
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="of Airflow's UI (default: %(default)s)"
    )
    parser.add_argument(
        "--api-port",
        type=int,
        default=DEFAULT_API_PORT,
        help="of the predictions' page and API (default: %(default)s)",
    )
    return parser.parse_args(words)


def _with_obstacle(said: str, folder: Path) -> str:
    """What went wrong, behind why nothing can be written, if nothing can: that explains it all."""
    found = obstacle(folder)
    return said if found is None else f"{found} ({said})"


def main(words: Sequence[str] | None = None) -> int:
    """Run the demo; 0 if it ended well or was stopped while up, 130 if it was stopped before."""
    arguments, screen = _arguments(words), Screen()
    airflow = LocalAirflow(port=arguments.port)
    api = LocalApi(arguments.api_port, airflow.environment(), airflow.logs / "api.log")
    watch = LocalWatch(airflow, api.url, airflow.logs / "watch.log")
    up = False
    _stop_on_signals()
    try:
        demo = Demo(airflow, Settings.from_environ(), screen)
        try:
            airflow.start()
            require_free(arguments.api_port, "--api-port")
            demo.load()
            api.start(MODEL)
            demo.wait_for_airflow()
            demo.train()
            run = demo.predict()
            demo.monitor()
            demo.show(run)
            demo.ask(api, run, asking=arguments.once)
            demo.explain()
            screen.say(f"Ready after {screen.total():.0f} s.")
            up = True
            if not arguments.once:
                demo.stay(api, watch)
        finally:
            watch.stop()
            api.stop()
            airflow.stop()
    except KeyboardInterrupt:
        screen.say("Stopped.")
        return 0 if up else 130
    except (BatchJobsError, DemoError, LocalAirflowError) as error:
        screen.say(f"./run demo: {_with_obstacle(str(error), airflow.home.parent)}")
        return error.exit_code
    except (OSError, SQLAlchemyError) as error:
        screen.say(f"./run demo: {_with_obstacle(one_line(error), airflow.home.parent)}")
        return 1
    except httpx.HTTPError as error:
        said = f"Airflow's API server did not answer: {error}; see {airflow.logs}"
        screen.say(f"./run demo: {_with_obstacle(said, airflow.home.parent)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
