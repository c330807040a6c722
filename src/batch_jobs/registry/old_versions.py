"""Versions that nobody goes back to: their artifacts leave the model store, by the clock.

What stays are the newest versions, by training and by what they have seen; those that served last;
and whatever has served or scored within the model's `keep`, or does so now. The rows of all
versions and promotions stay in the registry. An artifact leaves in two steps: its row says that it
is removed, and nobody loads it from then on; then its files go. What is interrupted is completed by
the next call.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError, UnavailableError
from batch_jobs.registry.store import ModelStore

log = logging.getLogger(__name__)

_OBSOLETE = """
    model = :model AND artifact_removed_at IS NULL AND version NOT IN (
      SELECT version FROM (
        SELECT version, row_number() OVER (ORDER BY created_at DESC) AS trained,
               row_number() OVER (ORDER BY as_of DESC, created_at DESC) AS seen
        FROM model_versions WHERE model = :model) AS v
      WHERE trained <= :newest OR seen <= :newest
      UNION ALL
      SELECT version FROM (
        SELECT version, row_number() OVER (ORDER BY max(promotion_id) DESC) AS served
        FROM promotions WHERE model = :model GROUP BY version) AS v
      WHERE served <= :newest
      UNION ALL
      SELECT version FROM (
        SELECT version, lead(promoted_at) OVER (ORDER BY promotion_id) AS until
        FROM promotions WHERE model = :model) AS v
      WHERE until IS NULL OR until >= :before
      UNION ALL
      SELECT model_version FROM prediction_runs
      WHERE model = :model AND (state = 'staging' OR published_at >= :before)
      UNION ALL
      SELECT model_version FROM requests WHERE model = :model AND state = 'scoring'
        AND model_version IS NOT NULL)"""


def remove(
    warehouse: Warehouse, store: ModelStore, model: str, keep: timedelta, newest: int
) -> int:
    """Remove the artifacts of versions that nobody goes back to, by the clock; how many went.

    The registry says first that an artifact is removed, and nobody loads it from then on. What the
    store does not let go now is left to the next call.

    Args:
        warehouse: where the versions are registered, and stay so.
        store: where their artifacts are.
        model: whose.
        keep: for how long after it served or scored last a version stays.
        newest: how many of the newest, and of those that served last, stay however old.
    """
    _mark(warehouse, model, clock.now() - keep, newest)
    removed = 0
    for version in _marked(warehouse, model):
        try:
            store.remove(model, version)
        except (BatchJobsError, OSError) as error:
            log.warning("the artifact of %s %s stays for now: %s", model, version, error)
            if isinstance(error, UnavailableError):
                break  # the others would wait as long
        else:
            _note_gone(warehouse, model, version)
            removed += 1
    return removed


@repeatable
def _mark(warehouse: Warehouse, model: str, before: datetime, newest: int) -> int:
    """Mark the artifacts as removed of versions that nobody goes back to; how many were marked."""
    values = {
        "model": model,
        "before": stored_time(before),
        "newest": newest,
        "now": stored_time(clock.now()),
    }
    with warehouse.read() as connection:  # mostly there are none: take no write lock
        some = f"SELECT 1 FROM model_versions WHERE {_OBSOLETE} LIMIT 1"  # noqa: S608
        if connection.scalar(text(some), values) is None:
            return 0
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, model)  # nobody promotes one of them meanwhile
        return connection.execute(
            text(f"UPDATE model_versions SET artifact_removed_at = :now WHERE {_OBSOLETE}"),  # noqa: S608
            values,
        ).rowcount


@repeatable
def _marked(warehouse: Warehouse, model: str) -> list[str]:
    """The versions whose artifacts are marked as removed, and may be in the store still."""
    with warehouse.read() as connection:
        return list(
            connection.scalars(
                text("""
                    SELECT version FROM model_versions WHERE model = :model
                    AND artifact_removed_at IS NOT NULL AND artifact_gone = 0 ORDER BY version"""),
                {"model": model},
            )
        )


@repeatable
def _note_gone(warehouse: Warehouse, model: str, version: str) -> None:
    """Note that the store has nothing left of a version that was marked as removed."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE model_versions SET artifact_gone = 1 WHERE model = :model
                AND version = :version AND artifact_removed_at IS NOT NULL"""),
            {"model": model, "version": version},
        )
