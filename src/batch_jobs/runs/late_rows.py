"""Rows that came late: the source has them, and the published run of their interval has not."""

from __future__ import annotations

from datetime import datetime

from batch_jobs.database.connections import text
from batch_jobs.database.missed_rows import DAY
from batch_jobs.database.transactions import bounds, loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.runs import ledger
from batch_jobs.runs.ledger import Run


def late_runs(warehouse: Warehouse, model: BatchModel, span: Interval) -> list[Run]:
    """Published runs of a span that lack rows which have come since, oldest first.

    In merge mode only: in replace mode the next run reads the whole population anyway.
    """
    if model.mode == "replace":
        return []
    moments = _late_moments(warehouse, model.name, model.features_query, span)
    if not moments:
        return []
    return [
        run
        for run in ledger.published_between(warehouse, model.name, span)
        if any(run.interval.start <= moment < run.interval.end for moment in moments)
    ]


@repeatable
def _late_moments(
    warehouse: Warehouse, model: str, features_query: str, span: Interval
) -> list[datetime]:
    """The distinct `as_of` of rows in the source that their interval was published without.

    A row of the entity from an older interval does not count, nor does its rejection there; one
    from a newer interval does, since readers would not see the late row beside it.
    """
    as_of, own = warehouse.database.moment("f.as_of"), warehouse.database.own
    known = f"r.model = :model AND r.run_id = k.run_id AND r.interval_end > {as_of}"
    with warehouse.source() as connection:
        as_text = warehouse.database.odd_time(connection, features_query) is not None
        # One that does not sort where it belongs has come late, too: scoring tells of it.
        wide = Interval(span.start - DAY, span.end + DAY) if as_text else span
        stored = connection.scalars(
            text(f"""
                SELECT DISTINCT {as_of} FROM (\n{features_query}\n) AS f
                WHERE f.entity_id IS NOT NULL AND {as_of} >= :from AND {as_of} < :until
                  AND NOT EXISTS (SELECT 1 FROM {own("current_rows")} AS k
                                  JOIN {own("prediction_runs")} AS r
                                  ON {known}
                                  WHERE k.model = :model
                                  AND k.entity_id = CAST(f.entity_id AS text))
                  AND NOT EXISTS (SELECT 1 FROM {own("rejected_rows")} AS k
                                  JOIN {own("prediction_runs")} AS r
                                  ON {known} AND r.state = 'published'
                                  WHERE k.entity_id = CAST(f.entity_id AS text))"""),  # noqa: S608
            {
                **bounds(wide),
                "from": stored_time(span.start),
                "until": stored_time(span.end),
                "model": model,
            },
        ).all()
        return [loaded_time(moment) for moment in stored if moment is not None]
