"""What one look of the watch has found out; the detectors judge by nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batch_jobs.alerts.problems import Served
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel


@dataclass(frozen=True)
class Component:
    """A process of Airflow, as its health tells.

    Attributes:
        status: `healthy` or `unhealthy`; None if it never ran.
        heard: when it was heard of last.
    """

    status: str | None
    heard: datetime | None


@dataclass(frozen=True)
class Dag:
    """A DAG that Airflow knows.

    Attributes:
        is_paused: whether somebody has paused it.
        is_stale: whether its file no longer has it, or no longer loads.
    """

    is_paused: bool
    is_stale: bool


@dataclass(frozen=True)
class BrokenFile:
    """A DAG file that does not load."""

    path: str
    error: str


@dataclass(frozen=True)
class Running:
    """A DAG run that is running."""

    dag_id: str
    run_id: str
    since: datetime


@dataclass(frozen=True)
class Question:
    """The newest question to a person whether a version of a model may serve.

    Attributes:
        asked_at: when it was asked.
        waits: whether its task waits for the answer.
        is_answered: whether there is an answer: a person's, or at the end of patience nobody's.
        by: whose.
    """

    asked_at: datetime
    waits: bool
    is_answered: bool
    by: str | None


@dataclass(frozen=True)
class Airflow:
    """What Airflow's REST API told.

    Attributes:
        url: where it is.
        away: why the API server gave no answer, if it gave none; then nothing else is known.
        components: its processes, by name.
        refused: why nothing but its health was told, if so.
        dags: by id; None if not told, as the three after it.
        broken_files: that do not load.
        running: DAG runs.
        questions: by model, of those whose gate asks a person.
    """

    url: str
    away: str | None = None
    components: Mapping[str, Component] = field(default_factory=dict)
    refused: str | None = None
    dags: Mapping[str, Dag] | None = None
    broken_files: Sequence[BrokenFile] | None = None
    running: Sequence[Running] | None = None
    questions: Mapping[str, Question] | None = None


@dataclass(frozen=True)
class Attempt:
    """The newest attempt at an interval, which has not finished.

    Attributes:
        run_id: its run.
        interval: of it.
        began: when it claimed the interval.
        heard: when it was heard of last.
    """

    run_id: int
    interval: Interval
    began: datetime
    heard: datetime


@dataclass(frozen=True)
class Trained:
    """A version, as far as training and gate are concerned.

    Attributes:
        version: its name.
        as_of: the moment as of which it was trained.
        created_at: when that was done.
        may_serve: whether the gate lets it serve.
        undecided: whether the gate leaves it to a person.
        reasons: of the gate.
    """

    version: str
    as_of: datetime
    created_at: datetime
    may_serve: bool
    undecided: bool
    reasons: str


@dataclass(frozen=True)
class ModelFacts:
    """One model, as its file and the ledger tell.

    Attributes:
        name: of the model.
        model: what its file says; None if it cannot be read.
        broken: why not.
        served: what readers see; None if nothing was ever published.
        fresh_until: up to where every due interval is published.
        lateness: how long after its end an interval was published at the latest, of the last ones.
        gaps: due intervals before the newest published one that no run covers, oldest first.
        attempts: that have not finished.
        champion: the version that serves, and since when.
        promoted_at: since when.
        trained: its newest versions, the newest first.
        silence: what is wrong with the source, if it seems to be dead.
        unjudged: why that could not be found out, if so.
    """

    name: str
    model: BatchModel | None = None
    broken: str | None = None
    served: Served | None = None
    fresh_until: datetime | None = None
    lateness: timedelta = timedelta()
    gaps: Sequence[Interval] = ()
    attempts: Sequence[Attempt] = ()
    champion: str | None = None
    promoted_at: datetime | None = None
    trained: Sequence[Trained] = ()
    silence: str | None = None
    unjudged: str | None = None


@dataclass(frozen=True)
class Warehouse:
    """What the warehouse told.

    Attributes:
        shown: where it is, without secrets.
        away: why it gave no answer, if it gave none; then nothing else is known.
        locked: why nobody could write, if nobody could.
        models: by name.
        undelivered: how many messages wait for longer than they should.
        undelivered_why: what the channel said last.
        open: the open incidents: what each is about, by model and cause.
    """

    shown: str
    away: str | None = None
    locked: str | None = None
    models: Mapping[str, ModelFacts] = field(default_factory=dict)
    undelivered: int = 0
    undelivered_why: str = ""
    open: Mapping[tuple[str | None, str], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Disk:
    """The disk of a folder.

    Attributes:
        what: is kept there, such as `warehouse`.
        folder: that was looked at.
        total: bytes.
        free: bytes.
        full_in: when it will be full, if it goes on filling as it has; None if it does not fill.
    """

    what: str
    folder: str
    total: int
    free: int
    full_in: timedelta | None = None


@dataclass(frozen=True)
class Service:
    """Somebody who answers over HTTP.

    Attributes:
        name: of it.
        url: that was asked.
        away: why there was no good answer, if there was none.
        still_for: for how long its numbers have been the same, though they should move.
    """

    name: str
    url: str
    away: str | None = None
    still_for: timedelta = timedelta()


@dataclass(frozen=True)
class Facts:
    """Everything that a look has found out; None is what nobody was asked for.

    Attributes:
        now: the moment of the look.
        warehouse: what it told.
        airflow: what it told; None if there is none to ask.
        services: the prediction API, and addresses of numbers.
        disks: of this machine.
        behind: how far the clock has gone back since the last look.
    """

    now: datetime
    warehouse: Warehouse
    airflow: Airflow | None = None
    services: Sequence[Service] = ()
    disks: Sequence[Disk] = ()
    behind: timedelta = timedelta()

    @property
    def models(self) -> Sequence[ModelFacts]:
        """Those that the warehouse told of."""
        return tuple(self.warehouse.models.values())
