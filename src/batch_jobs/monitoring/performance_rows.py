"""The tables of how past windows fared: read, and restated under the same key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval

Grain = Literal["day", "week"]
PUBLISHED = "published"
_KEY = ("model", "grain", "window_start")


@dataclass(frozen=True)
class Figure:
    """One row of `model_performance`, which documents the columns."""

    slice: str
    contender: str
    metric: str
    estimated: bool
    value: float
    low: float
    high: float
    row_count: int
    label_count: int
    model_version: str
    worse_by: float | None = None
    worse_by_low: float | None = None
    worse_by_high: float | None = None


@dataclass(frozen=True)
class Window:
    """A past window of a model, and what its figures rest on; see `performance_windows`."""

    grain: Grain
    start: datetime
    end: datetime
    row_count: int
    label_count: int
    late_count: int
    digest: str
    labels_until: datetime
    labels_digest: str
    final: bool
    restated_at: datetime

    @property
    def interval(self) -> Interval:
        """From start to end."""
        return Interval(self.start, self.end)


@repeatable
def windows(warehouse: Warehouse, model: str) -> dict[tuple[Grain, datetime], Window]:
    """All windows of a model that were ever judged, by grain and start, oldest first."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT * FROM performance_windows WHERE model = :model
                ORDER BY window_start, grain"""),
            {"model": model},
        ).all()
    found = [
        Window(
            grain=row.grain,
            start=loaded_time(row.window_start),
            end=loaded_time(row.window_end),
            row_count=row.row_count,
            label_count=row.label_count,
            late_count=row.late_count,
            digest=row.digest,
            labels_until=loaded_time(row.labels_until),
            labels_digest=row.labels_digest,
            final=bool(row.final),
            restated_at=loaded_time(row.restated_at),
        )
        for row in rows
    ]
    return {(window.grain, window.start): window for window in found}


@repeatable
def figures(
    warehouse: Warehouse, model: str, grain: Grain, since: datetime
) -> dict[datetime, list[Figure]]:
    """The figures of the windows of a grain that begin at a moment or later, oldest first."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT * FROM model_performance_rows
                WHERE model = :model AND grain = :grain AND window_start >= :since
                ORDER BY window_start, slice, estimated, contender, metric"""),
            {"model": model, "grain": grain, "since": stored_time(since)},
        ).mappings()
        found: dict[datetime, list[Figure]] = {}
        for row in rows:
            values = {name: row[name] for name in Figure.__dataclass_fields__}
            values["estimated"] = bool(values["estimated"])
            found.setdefault(loaded_time(row["window_start"]), []).append(Figure(**values))
        return found


@repeatable
def restate(
    warehouse: Warehouse, model: str, changed: Sequence[tuple[Window, Sequence[Figure] | None]]
) -> None:
    """Store windows, with their figures instead of those that there were.

    Args:
        warehouse: where.
        model: whose.
        changed: windows, each with all its figures; None leaves them as they are.
    """
    with warehouse.write() as connection:
        for window, told in changed:
            key: dict[str, Any] = {
                "model": model,
                "grain": window.grain,
                "window_start": stored_time(window.start),
            }
            connection.execute(_UPSERT_WINDOW, key | _stored(window))
            if told is None:
                continue
            connection.execute(_DELETE_FIGURES, key)
            if told:
                connection.execute(
                    _INSERT_FIGURE,
                    [key | asdict(each) | {"estimated": int(each.estimated)} for each in told],
                )


def _stored(window: Window) -> dict[str, Any]:
    return {
        "window_end": stored_time(window.end),
        "row_count": window.row_count,
        "label_count": window.label_count,
        "late_count": window.late_count,
        "digest": window.digest,
        "labels_until": stored_time(window.labels_until),
        "labels_digest": window.labels_digest,
        "final": int(window.final),
        "restated_at": stored_time(window.restated_at),
    }


def _upsert(table: str, key: Sequence[str], columns: Sequence[str]) -> str:
    """Two monitors that run at once store the same, one after the other."""
    names = [*key, *columns]
    values = ", ".join(f":{name}" for name in names)
    updates = ", ".join(f"{name} = excluded.{name}" for name in columns)
    return f"""
        INSERT INTO {table} ({", ".join(names)}) VALUES ({values})
        ON CONFLICT ({", ".join(key)}) DO UPDATE SET {updates}"""  # noqa: S608


_UPSERT_WINDOW = text(
    _upsert(
        "performance_windows",
        _KEY,
        [
            *("window_end", "row_count", "label_count", "late_count", "digest", "labels_until"),
            *("labels_digest", "final", "restated_at"),
        ],
    )
)
_DELETE_FIGURES = text("""
    DELETE FROM model_performance_rows
    WHERE model = :model AND grain = :grain AND window_start = :window_start""")
_FIGURE_KEY = ("slice", "contender", "metric", "estimated")
_INSERT_FIGURE = text(
    _upsert(
        "model_performance_rows",
        [*_KEY, *_FIGURE_KEY],
        [name for name in Figure.__dataclass_fields__ if name not in _FIGURE_KEY],
    )
)
