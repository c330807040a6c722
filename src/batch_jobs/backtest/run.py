"""The time machine: live through a past year with the very verbs that the DAGs are made of.

A virtual clock goes from tick to tick. Every due interval is planned, scored and published by the
champion of that moment; at every tick of the training schedule a challenger learns from what was
known then, is judged, and is promoted or not. All of it goes into a warehouse of its own beside
the real one, whose source tables it reads.

Some things are done once instead of at every tick: the features of a week are read, checked and
predicted in one go, which an additive query allows (an interval of each week is read by itself, to
see that it is so), before each interval is planned, staged and published; and no interval is looked
through for rows that came late, since a past does not change. While one process
scores a week, another trains on what will be known at its end and reads the next one.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import pairwise
from multiprocessing import get_context, parent_process
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event, Thread, Timer
from typing import IO, TYPE_CHECKING, Any

from croniter import croniter
from sqlalchemy import Connection

from batch_jobs import clock
from batch_jobs.catalog import load_model
from batch_jobs.database import leases
from batch_jobs.database.connections import text
from batch_jobs.database.warehouse import Warehouse, bounds, loaded_time, repeatable, stored_time
from batch_jobs.errors import (
    BatchJobsError,
    ConfigurationError,
    ContractError,
    InputError,
    IntervalError,
    NoChampionError,
    WarehouseUnavailableError,
)
from batch_jobs.interruption import EXIT_CODE
from batch_jobs.interval import Interval, due_between, floor_to_grid
from batch_jobs.model import BatchModel, Rule
from batch_jobs.redaction import first_line
from batch_jobs.registry import promotion
from batch_jobs.registry import versions as registry
from batch_jobs.runs import jobs, ledger
from batch_jobs.runs.planning import Planner
from batch_jobs.runs.prescoring import Prescorer
from batch_jobs.scoring.counts import Progress
from batch_jobs.settings import HASH_ONLY, Settings, let_threads_sleep
from batch_jobs.training import dataset
from batch_jobs.training import train as lifecycle

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

TABLES = """
CREATE TABLE replay_request (request TEXT NOT NULL);
CREATE TABLE replay_seconds (seconds DOUBLE PRECISION NOT NULL);
CREATE TABLE replay_weeks (week_start TEXT PRIMARY KEY);
CREATE TABLE replay_trainings (as_of TEXT PRIMARY KEY, training TEXT NOT NULL);
"""
FETCHED_AT_ONCE = 20_000
FEATURES = "replay_features"  # the table of all weeks' features
LEAVING_SECONDS = 1  # of the other process, when it is interrupted
_leaving = Event()


@dataclass(frozen=True)
class Training:
    """What came of one training.

    Attributes:
        as_of: when it was.
        outcome: `promoted`, `kept` (the champion goes on), or `failed`.
        version: what was trained, if it did not fail.
        champion: who served from then on, if anybody.
        reason: why so.
        metrics: of the challenger on the hold-out rows.
    """

    as_of: str
    outcome: str
    version: str | None
    champion: str | None
    reason: str
    metrics: dict[str, float]


@dataclass(frozen=True)
class Replay:
    """One replay, ready to be lived through or gone on with.

    Attributes:
        origin: settings of the deployment that is replayed.
        name: which model.
        span: the time replayed; the intervals that lie in it whole are scored.
        folder: where its model store is, and on SQLite its warehouse.
        rule: of the gate, instead of the one in the model file.
    """

    origin: Settings
    name: str
    span: Interval
    folder: Path
    rule: Rule | None = None

    @property
    def model(self) -> BatchModel:
        """As its file has it, but for the gate's rule."""
        model = load_model(self.name, self.origin.models)
        gate = model.gate.model_copy(update={"rule": self.rule or model.gate.rule})
        return model.model_copy(update={"gate": gate})

    @property
    def settings(self) -> Settings:
        """With its own warehouse and store, and the model as it is replayed."""
        model = self.model
        aside = f"replay_{self.name}_{model.gate.rule}"
        warehouse = Warehouse(self.origin.warehouse).beside(self.folder, aside)
        own = Warehouse(warehouse).database.own(FEATURES)
        return replace(
            self.origin,
            warehouse=warehouse,
            model_store=str(self.folder / "models"),
            models=(_as_replayed(model, own), *self.origin.models),
            signing_key=None,
            verify_key=HASH_ONLY,
        )

    @property
    def weeks(self) -> list[Interval]:
        """The time replayed, cut at the ticks of training."""
        ticks = croniter(self.model.train_schedule, self.span.start)
        cuts = [self.span.start]
        while (tick := ticks.get_next(datetime)) < self.span.end:
            cuts.append(tick)
        return [Interval(start, end) for start, end in pairwise([*cuts, self.span.end])]

    def trains_at(self, moment: datetime) -> bool:
        """Whether the moment is a tick of training."""
        return floor_to_grid(self.model.train_schedule, moment) == moment


def live(
    replay: Replay, *, fresh: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Live through a replay, or through what is left of it, and tell what became of it.

    Args:
        replay: which.
        fresh: begin anew what was begun, or done, before.
        progress: called with the number of intervals that were lived through since the last call.

    Raises:
        InputError: see `prepare` and `run`.
        BatchJobsError: the process that trains died; the same call goes on from there.
    """
    began = time.monotonic()
    prepare(replay, fresh=fresh)
    try:
        run(replay, progress)
    finally:
        spent = _spend(Warehouse(replay.settings.warehouse), time.monotonic() - began)
    return report(replay) | {"seconds": round(spent, 1)}


def shared_figures(replays: Sequence[Replay]) -> list[dict[str, Any]]:
    """The figures of each replay on the rows that all of them have published."""
    from batch_jobs.evaluation import ground_truth

    found = [predictions(replay) for replay in replays]
    keys = ["entity_id", "interval_start"]
    shared = found[0][keys]
    for rows in found[1:]:
        shared = shared.merge(rows[keys], on=keys)
    rest = [rows.merge(shared, on=keys) for rows in found]
    return [
        ground_truth.figures(rows, _classes(replay, rows))
        for replay, rows in zip(replays, rest, strict=True)
    ]


def _classes(replay: Replay, rows: pd.DataFrame) -> Sequence[str] | None:
    """The classes that the versions which scored some rows know."""
    from batch_jobs.evaluation import ground_truth

    warehouse = Warehouse(replay.settings.warehouse)
    versions = [
        registry.find_version(warehouse, replay.name, version).manifest
        for version in rows["model_version"].unique()
    ]
    return ground_truth.classes_of(rows, versions)


def prepare(replay: Replay, *, fresh: bool = False) -> None:
    """Make the warehouse of a replay, or find the one that was begun.

    Args:
        replay: which.
        fresh: begin anew what was begun, or done, before.

    Raises:
        InputError: unknown model, a span that holds no interval or lies in the future, or the
            folder has another replay.
    """
    model = replay.model
    replay.span.require_past(clock.now())
    if next(_due(model, replay.span), None) is None:
        raise IntervalError(f"{replay.span} holds no whole interval of the grid {model.schedule}")
    Warehouse.existing(replay.origin.warehouse)
    replay.folder.mkdir(parents=True, exist_ok=True)
    warehouse = Warehouse(replay.settings.warehouse)
    if fresh:
        warehouse.database.remove()
    warehouse.ensure_schema()
    wanted = _request(replay, model)
    begun = json.loads(_begin(warehouse, json.dumps(wanted)))
    differing = [f"{key} {value}" for key, value in begun.items() if wanted[key] != value]
    if differing:
        shown = ", ".join(text if len(text) < 50 else text.split()[0] for text in differing)
        raise ConfigurationError(
            f"{warehouse} has another replay ({shown}); give another --folder, or --fresh to begin "
            f"anew"
        )


def run(replay: Replay, progress: Progress | None = None) -> None:
    """Live through a replay, or through what is left of it.

    Args:
        replay: prepared.
        progress: called with the number of intervals that were lived through since the last call.

    Raises:
        ContractError: the features query is not additive.
        BatchJobsError: the other process died.
    """
    weeks, live = replay.weeks, _Life(replay, progress or (lambda _: None))
    before = Interval(replay.span.start - replay.model.history, replay.span.start)
    with _other_process() as other, _quietly():
        earlier = other.submit(_read_features, replay, before)
        trained = other.submit(_train, replay, before.end) if replay.trains_at(before.end) else None
        coming = other.submit(_read_features, replay, weeks[0])
        _result(earlier)
        for week, following in zip(weeks, [*weeks[1:], None], strict=True):
            if trained:
                live.train(week.start, _result(trained))
            _result(coming)
            if following:
                trained = other.submit(_train, replay, week.end)
                coming = other.submit(_read_features, replay, following)
            live.through(week)


def trainings(replay: Replay) -> list[Training]:
    """What came of every training so far, oldest first."""
    return _trainings(Warehouse(replay.settings.warehouse))


def report(replay: Replay) -> dict[str, Any]:
    """What became of a replay: counts, metrics of what was published, week by week and in all.

    An outcome counts if it was known at the end of the time replayed.
    """
    from batch_jobs.evaluation import ground_truth

    warehouse, rows = Warehouse(replay.settings.warehouse), predictions(replay)
    runs, history = _runs(warehouse, replay.name), trainings(replay)
    classes = _classes(replay, rows)
    promotions = sum(training.outcome == "promoted" for training in history)
    return {
        "model": replay.name,
        "start": stored_time(replay.span.start),
        "end": stored_time(replay.span.end),
        "gate": replay.model.gate.rule,
        "intervals": sum(1 for _ in _due(replay.model, replay.span)),
        "published": len(runs[runs["state"] == "published"]),
        "failed": len(runs[runs["state"] == "failed"]),
        "trainings": len(history),
        "promotions": promotions,
        "refusals": len(history) - promotions,
        "rows_rejected": int(runs["rows_rejected"].sum()),
        **ground_truth.figures(rows, classes),
        "weeks": [
            {"start": stored_time(week.start)}
            | {"rows_rejected": int(_within(runs, week)["rows_rejected"].sum())}
            | ground_truth.figures(_within(rows, week), classes)
            for week in replay.weeks
        ],
        "history": [asdict(training) for training in history],
        "scores": ground_truth.histogram(rows),
    }


def predictions(replay: Replay) -> pd.DataFrame:
    """Every published prediction with its outcome; see `outcomes.with_outcomes`."""
    import pandas as pd

    from batch_jobs.evaluation import ground_truth
    from batch_jobs.scoring import contract

    warehouse, model, span = Warehouse(replay.settings.warehouse), replay.model, replay.span
    own = warehouse.database.own
    published = _read(
        warehouse,
        f"""
        SELECT p.entity_id, p.score, p.label AS predicted, r.model_version, r.interval_start,
          r.interval_end
        FROM {own("predictions")} AS p
        JOIN {own("prediction_runs")} AS r ON r.run_id = p.run_id
        WHERE r.model = :model AND r.state = 'published'
        ORDER BY r.run_id, p.entity_id""",  # noqa: S608
        model.name,
    )
    # A population's labels are those of a moment, as in training.
    asked = [span] if model.mode == "merge" else list(_due(model, span))
    read = [dataset.read_whole(warehouse, model.labels_query, each) for each in asked]
    labels = contract.check_labels(model, pd.concat(read, ignore_index=True))
    return ground_truth.with_outcomes(published, labels[labels["known_at"] <= span.end])


def _runs(warehouse: Warehouse, name: str) -> pd.DataFrame:
    return _read(
        warehouse,
        f"""
        SELECT interval_start, interval_end, state, COALESCE(rows_rejected, 0) AS rows_rejected
        FROM {warehouse.database.own("prediction_runs")}
        WHERE model = :model ORDER BY run_id""",  # noqa: S608
        name,
    )


@repeatable
def _read(warehouse: Warehouse, query: str, name: str) -> pd.DataFrame:
    import pandas as pd

    from batch_jobs.database.columns import times

    rows = pd.concat(list(warehouse.stream(query, {"model": name}, 100_000)), ignore_index=True)
    return rows.assign(**{name: times(rows[name]) for name in ("interval_start", "interval_end")})


def _within(rows: pd.DataFrame, week: Interval) -> pd.DataFrame:
    """The rows of intervals that end in a week."""
    ends = rows["interval_end"]
    return rows[(ends > week.start) & (ends <= week.end)]


class _Life:
    """What happens to a model, tick by tick, as far as it has not happened yet."""

    def __init__(self, replay: Replay, progress: Progress) -> None:
        self._settings = replay.settings
        self._model = replay.model
        self._warehouse = Warehouse(self._settings.warehouse)
        self._progress = progress
        self._token = leases.new_token()
        self._predictors = Prescorer(self._settings)
        self._planner = Planner(self._settings, replay.name, self._token)
        self._reached = ledger.fresh_until(self._warehouse, replay.name)
        self._trained = {training.as_of for training in _trainings(self._warehouse)}

    def through(self, week: Interval) -> None:
        """Publish the intervals that end in a week."""
        # One that begins before the week is due in it, too.
        since = floor_to_grid(self._model.schedule, week.start)
        self._prescore(Interval(since, week.end))
        for interval in due_between(self._model.schedule, since, week.end):
            if interval.end > week.start:
                if self._reached is None or interval.end > self._reached:
                    with clock.set_to(interval.end):
                        self._tick(interval)
                self._progress(1)

    def train(self, as_of: datetime, outcome: str | None) -> None:
        """Promote what was trained, if the gate says so, and remember what came of it.

        Args:
            as_of: when it was trained.
            outcome: why that failed, if it did.
        """
        if stored_time(as_of) in self._trained:
            return
        with clock.set_to(as_of):
            training = self._promoted(as_of) if outcome is None else self._failed(as_of, outcome)
        _remember(self._warehouse, training)
        log.info("%s: %s: %s", training.as_of, training.outcome, training.reason)

    def _prescore(self, week: Interval) -> None:
        """Predict a week at once, since its champion is known and stays."""
        champion = registry.champion(self._warehouse, self._model.name)
        if champion is not None and self._model.mode == "merge":
            model = load_model(self._model.name, self._settings.models)
            self._predictors.prescore(self._warehouse, model, champion.version, week)

    def _tick(self, interval: Interval) -> None:
        try:
            for run in self._planner.plan_due(interval):
                jobs.score_and_publish(
                    self._settings, run, self._token, predictors=self._predictors
                )
        except WarehouseUnavailableError:
            raise
        except NoChampionError:
            pass  # before the first training nothing is served
        except BatchJobsError as error:  # as a failed task; the next tick tries again
            log.warning("%s: %s", interval, first_line(error))

    def _promoted(self, as_of: datetime) -> Training:
        answer = promotion.promote(self._settings, self._model.name, actor="replay")
        return Training(
            as_of=stored_time(as_of),
            outcome="kept" if answer.outcome == "kept" else "promoted",
            version=answer.version.version,
            champion=answer.champion,
            reason=answer.reason,
            metrics=dict(answer.version.metrics),
        )

    def _failed(self, as_of: datetime, reason: str) -> Training:
        champion = registry.champion(self._warehouse, self._model.name)
        serves = champion.version if champion else None
        return Training(stored_time(as_of), "failed", None, serves, reason, {})


def _due(model: BatchModel, span: Interval) -> Iterator[Interval]:
    return due_between(model.schedule, span.start, span.end)


def _as_replayed(model: BatchModel, table: str) -> BatchModel:
    """The model with its features read from the table that each week's are kept in."""
    if model.mode == "replace":
        return model
    query = f"""
        SELECT {_columns(model)} FROM {table}
        WHERE replay_moment >= :start AND replay_moment < :end"""  # noqa: S608
    return model.model_copy(update={"features_query": query, "rescore_late": False})


def _columns(model: BatchModel) -> str:
    return ", ".join(f'"{name}"' for name in ("entity_id", "as_of", *model.features))


def _request(replay: Replay, model: BatchModel) -> dict[str, Any]:
    """What must be the same for a replay to go on."""
    return {
        "model": replay.name,
        "start": stored_time(replay.span.start),
        "end": stored_time(replay.span.end),
        "gate": model.gate.rule,
        "file": model.model_dump_json(exclude={"estimator"}),
    }


@repeatable
def _begin(warehouse: Warehouse, request: str) -> str:
    """The request that the replay was begun with: this one, if it was not begun yet."""
    with warehouse.write() as connection:
        if not warehouse.database.has_table(connection, "replay_request"):
            warehouse.database.run_script(connection, TABLES)
            connection.execute(text("INSERT INTO replay_request VALUES (:r)"), {"r": request})
        return str(connection.scalar(text("SELECT request FROM replay_request")))


@repeatable
def _spend(warehouse: Warehouse, seconds: float) -> float:
    """Add to the time that the replay has taken, and return all of it."""
    with warehouse.write() as connection:
        connection.execute(text("INSERT INTO replay_seconds VALUES (:s)"), {"s": seconds})
        return float(connection.scalar(text("SELECT sum(seconds) FROM replay_seconds")) or 0)


@repeatable
def _remember(warehouse: Warehouse, training: Training) -> None:
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO replay_trainings VALUES (:as_of, :training)
                ON CONFLICT (as_of) DO NOTHING"""),
            {"as_of": training.as_of, "training": json.dumps(asdict(training))},
        )


@repeatable
def _trainings(warehouse: Warehouse) -> list[Training]:
    with warehouse.read() as connection:
        stored = connection.scalars(text("SELECT training FROM replay_trainings ORDER BY as_of"))
        return [Training(**json.loads(one)) for one in stored]


@contextmanager
def _other_process() -> Iterator[ProcessPoolExecutor]:
    """One that begins anew, since a fork would share what this one has open."""
    other = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin_process)
    pid = other.submit(os.getpid)
    try:
        yield other
    except KeyboardInterrupt:
        if pid.done() and not pid.exception():  # it may not have heard of it
            with suppress(ProcessLookupError):
                os.kill(pid.result(), signal.SIGINT)
        raise
    finally:
        other.shutdown(wait=True, cancel_futures=True)


def _begin_process() -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, _leave)
    let_threads_sleep()
    logging.getLogger("batch_jobs").setLevel(logging.ERROR)


def _leave(*_: object) -> None:
    """End soon and without a word, which the parent has; the driver ends the query first."""
    _leaving.set()
    Timer(LEAVING_SECONDS, os._exit, [EXIT_CODE]).start()
    sys.stderr = io.StringIO()  # where multiprocessing would print how it came here
    raise KeyboardInterrupt


def _require_staying() -> None:
    """Begin nothing more in a process that is leaving."""
    if _leaving.is_set():
        raise KeyboardInterrupt


def _end_with_parent() -> None:
    """A killed parent cannot stop its pool, which would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _quietly() -> Iterator[None]:
    """Tell what comes of each week, not of each of its thousand intervals."""
    library = logging.getLogger("batch_jobs")
    before = library.level
    log.setLevel(before)
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(before)


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise BatchJobsError(
            "the process that trains has died, perhaps for want of memory; the same command goes "
            "on where it stopped"
        ) from error


def _train(replay: Replay, as_of: datetime) -> str | None:
    """Train as of a moment, in the other process; why it failed, if it did."""
    _require_staying()
    if stored_time(as_of) in {training.as_of for training in trainings(replay)}:
        return None
    with clock.set_to(as_of):
        try:
            lifecycle.train(replay.settings, replay.name, as_of)
        except ConfigurationError:
            raise
        except InputError as error:
            return first_line(error)
    return None


def _read_features(replay: Replay, week: Interval) -> None:
    """Keep the features of a week, in the other process, unless they are kept already."""
    _require_staying()
    model = replay.model
    if model.mode == "merge":
        source = Warehouse(replay.settings.warehouse)
        source.require_query(f"features_query of {model.name}", model.features_query, bounds(week))
        _keep_features(source, model, week)


def _keep_features(warehouse: Warehouse, model: BatchModel, week: Interval) -> None:
    """Read the features of a week, and then keep them: no transaction waits for another one."""
    query = f"""
        SELECT {warehouse.database.moment("as_of")} AS replay_moment, {_columns(model)}
        FROM (\n{model.features_query}\n) AS f ORDER BY replay_moment, entity_id"""  # noqa: S608
    if _is_kept(warehouse, week):
        return
    with TemporaryFile() as file:
        _spool(warehouse, model, week, query, file)
        _keep(warehouse, model, week, query, file)


@repeatable
def _is_kept(warehouse: Warehouse, week: Interval) -> bool:
    known = "SELECT 1 FROM replay_weeks WHERE week_start = :start"
    with warehouse.read() as connection:
        return connection.scalar(text(known), {"start": stored_time(week.start)}) is not None


@repeatable
def _spool(
    warehouse: Warehouse, model: BatchModel, week: Interval, query: str, file: IO[bytes]
) -> None:
    """Write the rows of a week to a file, by chunks, as they should be."""
    file.seek(0)
    file.truncate()
    with warehouse.source() as source:
        rows = source.execution_options(stream_results=True).execute(text(query), bounds(week))
        chunk = rows.fetchmany(FETCHED_AT_ONCE)
        _require_within(model, week, chunk)
        _require_additive(source, query, model, week, chunk)
        while chunk:
            pickle.dump([tuple(row) for row in chunk], file, pickle.HIGHEST_PROTOCOL)
            chunk = rows.fetchmany(FETCHED_AT_ONCE)
            _require_within(model, week, chunk)


@repeatable
def _keep(
    warehouse: Warehouse, model: BatchModel, week: Interval, query: str, file: IO[bytes]
) -> None:
    """Keep the rows of a file as the features of a week."""
    file.seek(0)
    key = {"start": stored_time(week.start)}
    with warehouse.write() as connection:
        if connection.scalar(text("SELECT 1 FROM replay_weeks WHERE week_start = :start"), key):
            return  # by a COMMIT whose answer was lost
        _make_table(warehouse, connection, model, query, week)
        for rows in _spooled(file):
            names = ", ".join(f":c{place}" for place in range(len(rows[0])))
            connection.execute(
                text(f"INSERT INTO replay_features VALUES ({names})"),  # noqa: S608
                [{f"c{n}": value for n, value in enumerate(row)} for row in rows],
            )
        connection.execute(text("INSERT INTO replay_weeks VALUES (:start)"), key)


def _spooled(file: IO[bytes]) -> Iterator[list[tuple[Any, ...]]]:
    """The chunks of a file that this process has written itself."""
    with suppress(EOFError):
        while True:
            yield pickle.load(file)  # noqa: S301


def _make_table(
    warehouse: Warehouse, connection: Connection, model: BatchModel, query: str, week: Interval
) -> None:
    """Make the table of features, if it is not there; its columns are what the query gives."""
    if warehouse.database.has_table(connection, "replay_features"):
        return
    literal = text(query).bindparams(**bounds(week))
    sql = literal.compile(connection, compile_kwargs={"literal_binds": True}).string
    columns = ["replay_moment", "entity_id", "as_of", *model.features]
    warehouse.database.make_like(connection, FEATURES, sql, columns)
    connection.execute(text("CREATE INDEX replay_features_at ON replay_features (replay_moment)"))


def _require_within(model: BatchModel, week: Interval, rows: Any) -> None:
    start, end = bounds(week)["start"], bounds(week)["end"]
    outside = [
        row.entity_id
        for row in rows
        if row.replay_moment is None
        or not start <= stored_time(loaded_time(row.replay_moment)) < end
    ]
    if outside:
        raise ContractError(
            f"features_query of {model.name}",
            [f"as_of is outside {week} in {len(outside):,} rows (e.g. {outside[0]!r})"],
        )


def _require_additive(
    source: Connection, query: str, model: BatchModel, week: Interval, rows: Any
) -> None:
    """Read the interval of the middle row by itself: it must be as in the week's."""
    if not rows:
        return
    moments = [loaded_time(row.replay_moment) for row in rows]
    start = floor_to_grid(model.schedule, moments[len(moments) // 2])
    end = min(croniter(model.schedule, start).get_next(datetime), week.end)
    start = max(start, week.start)
    if len(rows) == FETCHED_AT_ONCE and moments[-1] < end:
        return  # more rows of the interval are to come
    alone = source.execute(text(query), bounds(Interval(start, end))).all()
    among = [row for row, moment in zip(rows, moments, strict=True) if start <= moment < end]
    if sorted(map(repr, alone)) != sorted(map(repr, among)):
        problem = (
            f"is not additive: the interval from {start.isoformat()} on has other rows if it is "
            f"read by itself; `batch-jobs check {model.name}` tells which"
        )
        raise ContractError(f"features_query of {model.name}", [problem])
