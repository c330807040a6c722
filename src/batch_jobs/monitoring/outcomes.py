"""Which published rows count, and what became of them: as readers saw them in time.

A row counts if it was the one that readers saw when it was due, was scored by a version that had
not been trained after its interval, and was published before its outcome was known: what comes
later predicts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import bounds, loaded_time, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.training.dataset import read_whole

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

MOST_ROWS = 500_000  # of a week: of more, those count whose keys' hashes are lowest
HASHES = 1_000_000
TIMES = ("interval_start", "interval_end", "published_at", "superseded_at")


@dataclass(frozen=True)
class Seen:
    """The rows of a window that count.

    Attributes:
        rows: `entity_id`, `score`, `predicted`, `model_version`, `interval_start`, `interval_end`,
            `published_at`, `label` and `known_at` (both null where the outcome is not known), in an
            order that does not depend on when each came.
        late: how many rows do not count: they were published after their outcome was known.
    """

    rows: pd.DataFrame
    late: int


def read_week(warehouse: Warehouse, model: BatchModel, week: Interval) -> pd.DataFrame:
    """All that readers saw of a week's intervals, once for each time it was published.

    Each row has the label of its entity beside it, whenever that became known.
    """
    import numpy as np

    from batch_jobs.evaluation.ground_truth import with_ground_truth

    rows = _published(warehouse, model, week)
    labels = _labels(warehouse, model, rows) if len(rows) else None
    if labels is None or labels.empty:
        never = rows["published_at"].where(rows["score"].isna())
        return rows.assign(label=None, known_at=never)
    numbered = labels.assign(label=np.arange(len(labels)))
    place = with_ground_truth(rows, numbered)["truth"].astype("Int64")
    found = labels[["label", "known_at"]].astype({"label": "object"}).reindex(place)
    return rows.assign(label=found["label"].array, known_at=found["known_at"].array)


def seen(rows: pd.DataFrame, model: BatchModel, window: Interval, now: datetime) -> Seen:
    """Those of a week's rows that count in a window, as far as they are known at a moment."""
    performance = model.monitor.performance
    horizon = min(now, window.end + performance.labels_within)
    ends = rows["interval_end"]
    rows = rows[(ends > window.start) & (ends <= window.end) & (rows["published_at"] <= horizon)]
    if performance.deadline is not None:
        due = rows["interval_end"] + performance.deadline
        ended = rows["superseded_at"]
        rows = rows[(rows["published_at"] <= due) & (ended.isna() | (ended > due))]
    rows = rows.sort_values(
        ["interval_end", "interval_start", "entity_id", "published_at", "run_id"]
    )
    rows = rows.drop_duplicates(["entity_id", "interval_start", "interval_end"])
    late = (rows["known_at"] <= rows["published_at"]).to_numpy()
    rows = rows[~late].reset_index(drop=True)
    unknown = ~(rows["known_at"] <= horizon)
    hidden = {name: rows[name].mask(unknown) for name in ("label", "known_at")}
    return Seen(rows.assign(**hidden), int(late.sum()))


def _published(warehouse: Warehouse, model: BatchModel, week: Interval) -> pd.DataFrame:
    total = _count(warehouse, model.name, week)
    rows = _read(warehouse, model.name, week, share=min(1.0, MOST_ROWS / max(total, 1)))
    # Of a population scored many times a day, the last time is the day's.
    if model.mode == "replace" and len(rows):
        day = (rows["interval_end"] - timedelta(microseconds=1)).dt.floor("D")
        rows = rows[rows["interval_end"] == rows.groupby(day)["interval_end"].transform("max")]
    return rows.reset_index(drop=True)


@repeatable
def _count(warehouse: Warehouse, name: str, week: Interval) -> int:
    with warehouse.read() as connection:
        return int(
            connection.scalar(
                text("""
                    SELECT COALESCE(sum(rows_scored), 0) FROM prediction_runs
                    WHERE model = :model AND state IN ('published', 'superseded')
                      AND hindsight = 0 AND interval_end > :start AND interval_end <= :end"""),
                {"model": name, **bounds(week)},
            )
            or 0
        )


@repeatable
def _read(warehouse: Warehouse, name: str, week: Interval, share: float) -> pd.DataFrame:
    import pandas as pd

    from batch_jobs.database.columns import times

    query = f"""
        SELECT entity_id, score, label AS predicted, model_version, run_id, interval_start,
          interval_end, published_at, superseded_at
        FROM {warehouse.database.own("prediction_history")}
        WHERE model = :model AND hindsight = 0 AND interval_end > :start AND interval_end <= :end
          AND (superseded_at IS NULL OR superseded_at > published_at)"""  # noqa: S608
    chunks = warehouse.stream(query, {"model": name, **bounds(week)}, 100_000)
    kept = [chunk if share == 1 else chunk[drawn(chunk["entity_id"], share)] for chunk in chunks]
    rows = pd.concat(kept, ignore_index=True)
    return rows.assign(**{name: times(rows[name]) for name in TIMES})


def drawn(entities: pd.Series[Any], share: float) -> NDArray[Any]:
    """Which entities are among a share of all, whichever others there are."""
    import pandas as pd

    hashed = pd.util.hash_array(entities.to_numpy("object"), categorize=True)
    return hashed % HASHES < share * HASHES


def _labels(warehouse: Warehouse, model: BatchModel, rows: pd.DataFrame) -> pd.DataFrame:
    """The labels of the rows' time; in replace mode, those of each snapshot."""
    import pandas as pd

    from batch_jobs.scoring import contract

    read = [
        contract.check_labels(model, read_whole(warehouse, model.labels_query, interval))
        for interval in intervals_of(model, rows)
    ]
    labels = pd.concat(read, ignore_index=True)
    keys = ["entity_id", *(["as_of"] if "as_of" in labels else [])]
    return labels.drop_duplicates(keys, ignore_index=True)


def intervals_of(model: BatchModel, rows: pd.DataFrame) -> list[Interval]:
    """The time that rows come from: at once, or in replace mode each snapshot's."""
    spans = rows[["interval_start", "interval_end"]].drop_duplicates()
    starts, ends = ([each.to_pydatetime() for each in spans[name]] for name in spans)
    if model.mode == "merge":
        return [Interval(min(starts), max(ends))]
    return [Interval(start, end) for start, end in zip(starts, ends, strict=True)]


@repeatable
def readable_since(warehouse: Warehouse, name: str) -> datetime | None:
    """The moment since which no prediction is gone by retention; None before the first one."""
    condition = "model = :model AND hindsight = 0 AND rows_scored > 0 AND state"
    with warehouse.read() as connection:
        moments = [
            connection.scalar(
                text(f"SELECT {bound} FROM prediction_runs WHERE {condition} {states}"),  # noqa: S608
                {"model": name},
            )
            for bound, states in (
                ("max(interval_end)", "= 'retired'"),
                ("min(interval_start)", "IN ('published', 'superseded')"),
            )
        ]
    return max((loaded_time(moment) for moment in moments if moment), default=None)
