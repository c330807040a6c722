"""What came of a replay: figures by week, and the predictions as readers saw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from batch_jobs.backtest.replay import Replay, due_intervals, trainings
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.registry import versions as registry
from batch_jobs.training import dataset

if TYPE_CHECKING:
    import pandas as pd


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
        "intervals": sum(1 for _ in due_intervals(replay.model, replay.span)),
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
    """Every published prediction with its outcome; see `ground_truth.with_ground_truth`."""
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
    asked = [span] if model.mode == "merge" else list(due_intervals(model, span))
    read = [dataset.read_whole(warehouse, model.labels_query, each) for each in asked]
    labels = contract.check_labels(model, pd.concat(read, ignore_index=True))
    return ground_truth.with_ground_truth(published, labels[labels["known_at"] <= span.end])


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
