"""Cut the keys of an interval into ranges of equal row count, one a part."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import bounds, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel


def key_ranges(
    warehouse: Warehouse, model: BatchModel, interval: Interval, parts: int
) -> Sequence[tuple[str | None, str | None]]:
    """Cut the keys of an interval into ranges of equal row count; the ends are open."""
    if parts == 1:
        return [(None, None)]
    cuts = _cuts(warehouse, model.features_query, interval, parts)
    edges = [None, *cuts, *[None] * (parts - len(cuts))]
    ranges = list(pairwise(edges))
    # Fewer rows than parts: the ranges behind the last cut are empty, and not open-ended.
    return [pair if place <= len(cuts) else ("", "") for place, pair in enumerate(ranges)]


@repeatable
def _cuts(
    warehouse: Warehouse, features_query: str, interval: Interval, parts: int
) -> Sequence[str | None]:
    """The lowest key of each part of an interval but the first."""
    with warehouse.source() as connection:
        return connection.scalars(
            text(f"""
                SELECT min(entity_id) FROM (
                  SELECT CAST(entity_id AS text) AS entity_id,
                    ntile(:parts) OVER (ORDER BY CAST(entity_id AS text)) AS part
                  FROM (\n{features_query}\n) AS f) AS ranked
                WHERE part > 1 GROUP BY part ORDER BY part"""),  # noqa: S608
            {**bounds(interval), "parts": parts},
        ).all()
