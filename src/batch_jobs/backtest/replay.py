"""A replay: which model lives through which past, and where what came of it is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from croniter import croniter

from batch_jobs.catalog import load_model
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval, due_between, floor_to_grid
from batch_jobs.model import BatchModel, Rule
from batch_jobs.settings import HASH_ONLY, Settings

FEATURES = "replay_features"  # the table of all weeks' features
TABLES = """
CREATE TABLE replay_request (request TEXT NOT NULL);
CREATE TABLE replay_seconds (seconds DOUBLE PRECISION NOT NULL);
CREATE TABLE replay_weeks (week_start TEXT PRIMARY KEY);
CREATE TABLE replay_trainings (as_of TEXT PRIMARY KEY, training TEXT NOT NULL);
"""


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
            models=(as_replayed(model, own), *self.origin.models),
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


def replayed_columns(model: BatchModel) -> str:
    """The columns that a replay keeps of each row, as SQL."""
    return ", ".join(f'"{name}"' for name in ("entity_id", "as_of", *model.features))


def trainings(replay: Replay) -> list[Training]:
    """What came of every training so far, oldest first."""
    return read_trainings(Warehouse(replay.settings.warehouse))


def due_intervals(model: BatchModel, span: Interval) -> Iterator[Interval]:
    """The intervals of a model that end within a span."""
    return due_between(model.schedule, span.start, span.end)


def as_replayed(model: BatchModel, table: str) -> BatchModel:
    """The model with its features read from the table that each week's are kept in."""
    if model.mode == "replace":
        return model
    query = f"""
        SELECT {replayed_columns(model)} FROM {table}
        WHERE replay_moment >= :start AND replay_moment < :end"""  # noqa: S608
    return model.model_copy(update={"features_query": query, "rescore_late": False})


@repeatable
def read_trainings(warehouse: Warehouse) -> list[Training]:
    """What came of every training that the warehouse of a replay has, oldest first."""
    with warehouse.read() as connection:
        stored = connection.scalars(text("SELECT training FROM replay_trainings ORDER BY as_of"))
        return [Training(**json.loads(one)) for one in stored]
