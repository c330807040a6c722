"""The ledger: which runs there are, what came of their rows, and which intervals are missing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from batch_jobs.database.connections import text
from batch_jobs.database.shared_rows import own_table
from batch_jobs.database.transactions import loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import IncompleteError
from batch_jobs.interval import Interval
from batch_jobs.scoring.counts import Counts, counts_of

# An interval whose run was published is no gap, even if retention has removed the rows since.
COVERS = "state IN ('published', 'retired')"


@dataclass(frozen=True)
class Run:
    """One attempt at one interval of one model; counts are None until it is published."""

    run_id: int
    model: str
    interval: Interval
    model_version: str
    mode: str
    state: str
    token: str
    rows_table: str
    hindsight: bool = False
    accepted: str | None = None
    error: str | None = None
    counts: Counts | None = None
    published_at: datetime | None = None
    claimed_at: datetime | None = None  # or when its attempt was last heard of

    @property
    def has_own_table(self) -> bool:
        """Whether its rows are in a table that no other run shares."""
        return self.rows_table == own_table(self.run_id)

    @property
    def is_done(self) -> bool:
        """Whether it was published, so that there is nothing left to score; it may be retired."""
        return self.state in ("published", "retired")

    def as_dict(self) -> dict[str, Any]:
        """The run as its row of the ledger: plain values under the names of `prediction_runs`."""
        plain = {
            "run_id": self.run_id,
            "model": self.model,
            "interval_start": self.interval.start.isoformat(),
            "interval_end": self.interval.end.isoformat(),
            "state": self.state,
            "model_version": self.model_version,
        }
        counts = {} if self.counts is None else asdict(self.counts)
        published = self.published_at and self.published_at.isoformat()
        return {
            **plain,
            **{f"rows_{name}": count for name, count in counts.items()},
            "published_at": published,
            "error": self.error,
        }


@dataclass(frozen=True)
class Part:
    """The key range `[key_from, key_to)` that one scoring task reads; None is open-ended."""

    run_id: int
    part: int
    key_from: str | None
    key_to: str | None
    staged: bool
    counts: Counts


@repeatable
def published_run(warehouse: Warehouse, model: str, interval: Interval) -> Run | None:
    """The run that was published last for exactly this interval, if any was; it may be retired."""
    with warehouse.read() as connection:
        run_id = connection.scalar(
            text(f"""
                SELECT run_id FROM prediction_runs WHERE model = :model AND {COVERS}
                AND interval_start = :start AND interval_end = :end
                ORDER BY published_at DESC, run_id DESC LIMIT 1"""),  # noqa: S608
            span(model, interval),
        )
        return None if run_id is None else load_run(connection, run_id)


@repeatable
def published_between(warehouse: Warehouse, model: str, span_: Interval) -> list[Run]:
    """The published runs whose interval touches a span and has not expired, oldest first."""
    with warehouse.read() as connection:
        found = connection.scalars(
            text("""
                SELECT run_id FROM prediction_runs WHERE model = :model AND state = 'published'
                AND superseded_at IS NULL AND interval_start < :end AND interval_end > :start
                ORDER BY interval_start, interval_end"""),
            span(model, span_),
        ).all()
        return [load_run(connection, run_id) for run_id in found]


@repeatable
def seen_of_version(warehouse: Warehouse, model: str, version: str) -> list[Run]:
    """The published runs of a model version of which readers still see a row, oldest first."""
    with warehouse.read() as connection:
        found = connection.scalars(
            text("""
                SELECT run_id FROM prediction_runs AS r
                WHERE model = :model AND state = 'published' AND model_version = :version
                AND superseded_at IS NULL
                AND (EXISTS (SELECT 1 FROM serving_heads AS h WHERE h.run_id = r.run_id)
                     OR EXISTS (SELECT 1 FROM current_rows AS c WHERE c.run_id = r.run_id))
                ORDER BY interval_start, interval_end"""),
            {"model": model, "version": version},
        ).all()
        return [load_run(connection, run_id) for run_id in found]


@repeatable
def find_run(warehouse: Warehouse, run_id: int) -> Run:
    """The run of that number; see `load_run`."""
    with warehouse.read() as connection:
        return load_run(connection, run_id)


@repeatable
def newest_attempt(warehouse: Warehouse, model: str, interval: Interval) -> Run:
    """The run of the attempt that has claimed exactly this interval last."""
    with warehouse.read() as connection:
        run_id = connection.scalar(
            text("""
                SELECT run_id FROM prediction_runs
                WHERE model = :model AND interval_start = :start AND interval_end = :end
                ORDER BY token DESC LIMIT 1"""),
            span(model, interval),
        )
        return load_run(connection, run_id)


@repeatable
def parts_of(warehouse: Warehouse, run_id: int) -> list[int]:
    """The numbers of a run's parts."""
    with warehouse.read() as connection:
        return list(
            connection.scalars(
                text("SELECT part FROM run_parts WHERE run_id = :run_id ORDER BY part"),
                {"run_id": run_id},
            )
        )


def load_run(connection: Connection, run_id: int) -> Run:
    """Read one run inside the caller's transaction.

    Raises:
        IncompleteError: the ledger has no such run.
    """
    row = connection.execute(
        text("SELECT * FROM prediction_runs WHERE run_id = :run_id"), {"run_id": run_id}
    ).first()
    if row is None:
        raise IncompleteError(f"the ledger has no run {run_id}")
    return Run(
        run_id=row.run_id,
        model=row.model,
        interval=interval_of(row),
        model_version=row.model_version,
        mode=row.mode,
        state=row.state,
        token=row.token,
        rows_table=row.rows_table,
        hindsight=bool(row.hindsight),
        accepted=row.accepted,
        error=row.error,
        counts=None if row.published_at is None else counts_of(row),
        published_at=None if row.published_at is None else loaded_time(row.published_at),
        claimed_at=loaded_time(row.claimed_at),
    )


def interval_of(row: Row[Any]) -> Interval:
    """The interval in a row of `prediction_runs`."""
    return Interval(loaded_time(row.interval_start), loaded_time(row.interval_end))


def span(model: str, interval: Interval) -> dict[str, str]:
    """The bound values `:model`, `:start` and `:end` of one interval."""
    return {
        "model": model,
        "start": stored_time(interval.start),
        "end": stored_time(interval.end),
    }
