"""The time machine: live through a past year with the very verbs that the DAGs are made of.

A virtual clock goes from tick to tick. Every due interval is planned, scored and published by the
champion of that moment; at every tick of the training schedule a challenger learns from what was
known then, is evaluated, and is promoted or not. All of it goes into a warehouse of its own beside
the real one, whose source tables it reads.

Some things are done once instead of at every tick: the features of a week are read, checked and
predicted in one go, which an additive query allows (an interval of each week is read by itself, to
see that it is so), before each interval is planned, staged and published; and no interval is looked
through for rows that came late, since a past does not change. While one process
scores a week, another trains on what will be known at its end and reads the next one.
"""

from __future__ import annotations

import json
import logging
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from datetime import datetime
from typing import Any

from batch_jobs import clock
from batch_jobs.backtest.features import read_features
from batch_jobs.backtest.process import other_process, quietly, require_staying
from batch_jobs.backtest.replay import (
    TABLES,
    Replay,
    Training,
    due_intervals,
    read_trainings,
    trainings,
)
from batch_jobs.backtest.report import report
from batch_jobs.database import leases
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import (
    BatchJobsError,
    ConfigurationError,
    InputError,
    IntervalError,
    NoChampionError,
    WarehouseUnavailableError,
)
from batch_jobs.interval import Interval, due_between, floor_to_grid
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.registry import champions, promotion
from batch_jobs.runs import coverage, jobs
from batch_jobs.runs.planning import Planner
from batch_jobs.runs.prescoring import Prescorer
from batch_jobs.scoring.counts import Progress
from batch_jobs.training import train as training

log = logging.getLogger(__name__)

# Fields that a team may change while a replay goes on: what is watched, and where tasks run.
UNREPLAYED = {"estimator", "monitor", "placement", "train_placement"}


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
    if next(due_intervals(model, replay.span), None) is None:
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
    with other_process() as other, quietly():
        earlier = other.submit(read_features, replay, before)
        trained = other.submit(_train, replay, before.end) if replay.trains_at(before.end) else None
        coming = other.submit(read_features, replay, weeks[0])
        _result(earlier)
        for week, following in zip(weeks, [*weeks[1:], None], strict=True):
            if trained:
                live.train(week.start, _result(trained))
            _result(coming)
            if following:
                trained = other.submit(_train, replay, week.end)
                coming = other.submit(read_features, replay, following)
            live.through(week)


class _Life:
    """What happens to a model, tick by tick, as far as it has not happened yet."""

    def __init__(self, replay: Replay, progress: Progress) -> None:
        self._model = replay.model
        self._deployment = Prescorer(replay.settings)
        self._warehouse = self._deployment.warehouse
        self._progress = progress
        self._token = leases.new_token()
        self._planner = Planner(self._deployment, replay.name, self._token)
        self._reached = coverage.fresh_until(self._warehouse, replay.name)
        self._trained = {training.as_of for training in read_trainings(self._warehouse)}

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
        champion = champions.champion(self._warehouse, self._model.name)
        if champion is not None and self._model.mode == "merge":
            self._deployment.prescore(self._model.name, champion.version, week)

    def _tick(self, interval: Interval) -> None:
        try:
            for run in self._planner.plan_due(interval):
                jobs.score_and_publish(self._deployment, run, self._token)
        except WarehouseUnavailableError:
            raise
        except NoChampionError:
            pass  # before the first training nothing is served
        except BatchJobsError as error:  # as a failed task; the next tick tries again
            log.warning("%s: %s", interval, first_line(error))

    def _promoted(self, as_of: datetime) -> Training:
        answer = promotion.promote(self._deployment, self._model.name, actor="replay")
        return Training(
            as_of=stored_time(as_of),
            outcome="kept" if answer.outcome == "kept" else "promoted",
            version=answer.version.version,
            champion=answer.champion,
            reason=answer.reason,
            metrics=dict(answer.version.metrics),
        )

    def _failed(self, as_of: datetime, reason: str) -> Training:
        champion = champions.champion(self._warehouse, self._model.name)
        serves = champion.version if champion else None
        return Training(stored_time(as_of), "failed", None, serves, reason, {})


def _request(replay: Replay, model: BatchModel) -> dict[str, Any]:
    """What must be the same for a replay to go on."""
    return {
        "model": replay.name,
        "start": stored_time(replay.span.start),
        "end": stored_time(replay.span.end),
        "gate": model.gate.rule,
        "file": model.model_dump_json(exclude=UNREPLAYED),
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
    require_staying()
    if stored_time(as_of) in {training.as_of for training in trainings(replay)}:
        return None
    with clock.set_to(as_of):
        try:
            training.train(replay.settings, replay.name, as_of)
        except ConfigurationError:
            raise
        except InputError as error:
            return first_line(error)
    return None
