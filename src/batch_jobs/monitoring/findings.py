"""What was found unlike training, kept for the view `model_drift`: a row a finding and window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import RowMapping

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse

COLUMNS = (
    *("model", "model_version", "window_start", "window_end", "kind", "feature", "item", "days"),
    *("reference_days", "reference", "value", "lowest", "highest", "severity", "rows_affected"),
    *("words", "found_at"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that is unlike training.

    Attributes:
        model_version: whose predictions were judged.
        window_start: of the days judged.
        window_end: their end.
        kind: `level`, `spread`, `shape`, `nulls`, `category`, `unseen`, `range`, `stuck`,
            `relation`, `volume`, `slice`, `rejected`, `scores` or `labels`.
        feature: which one; `score`, `label` or `rows` if it is about none.
        item: the value of the category or the part of the feature; empty if it is the whole.
        days: how many days with rows were judged.
        reference_days: how many days of training they were compared with.
        reference: what is usual.
        value: what was found.
        lowest: the least that is usual enough.
        highest: the most that is.
        severity: how far off it is; at the limit it is 1.
        rows_affected: share of the rows judged, as far as can be told.
        words: what happened, in one line.
    """

    model_version: str
    window_start: datetime
    window_end: datetime
    kind: str
    feature: str
    item: str
    days: int
    reference_days: int
    reference: float | None
    value: float | None
    lowest: float | None
    highest: float | None
    severity: float
    rows_affected: float | None
    words: str

    @property
    def window(self) -> timedelta:
        """How long the days are that were judged."""
        return self.window_end - self.window_start


@repeatable
def store(
    warehouse: Warehouse,
    model: str,
    windows: Sequence[tuple[datetime, datetime]],
    findings: Sequence[Finding],
    now: datetime,
) -> None:
    """Keep what was found in some windows, instead of what an earlier look has found there.

    Args:
        warehouse: where.
        model: of which model.
        windows: the start and end of each that was judged, whether or not anything was found in it.
        findings: all that was found in them.
        now: when.
    """
    with warehouse.write() as connection:
        for start, end in windows:
            connection.execute(
                text("""
                    DELETE FROM drift_findings
                    WHERE model = :model AND window_end = :end AND window_start = :start"""),
                {"model": model, "start": stored_time(start), "end": stored_time(end)},
            )
        if findings:
            names = ", ".join(COLUMNS)
            values = ", ".join(f":{name}" for name in COLUMNS)
            connection.execute(
                text(f"INSERT INTO drift_findings ({names}) VALUES ({values})"),  # noqa: S608
                [_stored(model, each, now) for each in findings],
            )


def _stored(model: str, finding: Finding, now: datetime) -> dict[str, Any]:
    return asdict(finding) | {
        "model": model,
        "window_start": stored_time(finding.window_start),
        "window_end": stored_time(finding.window_end),
        "found_at": stored_time(now),
    }


@repeatable
def found_since(warehouse: Warehouse, model: str, since: datetime) -> list[Finding]:
    """What was found in windows that end after a moment: oldest first, then the worst first."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT * FROM drift_findings WHERE model = :model AND window_end > :since
                ORDER BY window_end, window_start, severity DESC, kind, feature, item"""),
            {"model": model, "since": stored_time(since)},
        )
        return [_loaded(row) for row in rows.mappings()]


def _loaded(row: RowMapping) -> Finding:
    known = {name: row[name] for name in Finding.__dataclass_fields__}
    moments = {name: loaded_time(row[name]) for name in ("window_start", "window_end")}
    return Finding(**(known | moments))
