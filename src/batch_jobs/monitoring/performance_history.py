"""The past windows of a model as plain values, to be drawn or sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.evaluation.published import LOSSES
from batch_jobs.monitoring import performance_rows
from batch_jobs.monitoring.performance_rows import PUBLISHED, Figure, Grain

# The first of them that a window has tells most.
METRICS = ("log_loss", "rmse", "accuracy")
LOSS_NAMES = tuple(LOSSES.values())


def points(
    warehouse: Warehouse, model: str, grain: Grain, since: datetime, until: datetime
) -> list[dict[str, Any]]:
    """The windows of a grain within some time, as of `reports.performance`; none is damaged."""
    figures = performance_rows.figures(warehouse, model, grain, since)
    found = []
    for (of, start), window in performance_rows.windows(warehouse, model).items():
        if of != grain or start not in figures or window.end > until:
            continue
        told = [each for each in figures[start] if not each.slice]
        found.append(
            {
                "start": stored_time(start),
                "end": stored_time(window.end),
                "rows": window.row_count,
                "label_coverage": round(window.label_count / max(window.row_count, 1), 4),
                "damaged": False,
                **_metric(told),
            }
        )
    return found


def _metric(told: Sequence[Figure]) -> dict[str, Any]:
    by = {(each.contender, each.metric, each.estimated): each for each in told}
    names = {metric for who, metric, _ in by if who == PUBLISHED}
    metric = next(name for name in METRICS if name in names)
    value = by.get((PUBLISHED, metric, False))
    guess, constant = by.get((PUBLISHED, metric, True)), by.get(("constant", metric, False))
    return {
        "metric": metric,
        "value": value.value if value else None,
        "low": value.low if value else None,
        "high": value.high if value else None,
        "estimated": guess.value if guess else None,
        "constant": constant.value if constant else None,
        "since": _excess(by, "since"),
        "before": _excess(by, "before"),
    }


def _excess(by: Mapping[tuple[str, str, bool], Figure], who: str) -> list[float] | None:
    for loss in LOSS_NAMES:
        found = by.get((who, loss, False))
        if found is not None and found.worse_by is not None:
            return [found.worse_by, found.worse_by_low or 0.0, found.worse_by_high or 0.0]
    return None
