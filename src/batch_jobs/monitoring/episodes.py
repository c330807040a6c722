"""Episodes of damage: when one began, whether it goes on, and whether training was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse

_CLOSE = text(
    "UPDATE damage_episodes SET closed_at = :now WHERE model = :model AND closed_at IS NULL"
)
_BEGIN = text("""
    INSERT INTO damage_episodes (model, opened_at, window_start, evidence)
    VALUES (:model, :now, :newest, :evidence)
    ON CONFLICT DO NOTHING""")
_GO_ON = text("""
    UPDATE damage_episodes SET window_start = :newest, evidence = :evidence
    WHERE model = :model AND closed_at IS NULL""")


@dataclass(frozen=True)
class Episode:
    """Damage that goes on.

    Attributes:
        opened_at: when it was first seen.
        retraining_asked_at: when training was asked for because of it, if it was.
    """

    opened_at: datetime
    retraining_asked_at: datetime | None


@repeatable
def keep(
    warehouse: Warehouse,
    model: str,
    newest: datetime | None,
    evidence: str,
    now: datetime,
    *,
    judged: bool,
) -> Episode | None:
    """Open, go on with or close the episode of a model; the one that is open then.

    Args:
        warehouse: where it is remembered.
        model: whose.
        newest: start of the newest window that shows damage; None if none does.
        evidence: what shows it, as JSON.
        now: when.
        judged: whether any window could be judged; if not, all stays as it is.
    """
    with warehouse.write() as connection:
        found = _open(connection, model)
        if not judged:
            return found
        values = {
            "model": model,
            "now": stored_time(now),
            "newest": stored_time(newest) if newest else None,
            "evidence": evidence,
        }
        if newest is None:
            connection.execute(_CLOSE, values)
            return None
        if found is None:
            # Two looks at once open one episode, which the second goes on with.
            connection.execute(_BEGIN, values)
        connection.execute(_GO_ON, values)
        return _open(connection, model)


@repeatable
def acknowledge(warehouse: Warehouse, model: str, now: datetime) -> None:
    """Remember that training was asked for because of the damage that goes on: once is enough."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE damage_episodes SET retraining_asked_at = :now
                WHERE model = :model AND closed_at IS NULL AND retraining_asked_at IS NULL"""),
            {"model": model, "now": stored_time(now)},
        )


def _open(connection: Connection, model: str) -> Episode | None:
    row = connection.execute(
        text("""
            SELECT opened_at, retraining_asked_at FROM damage_episodes
            WHERE model = :model AND closed_at IS NULL"""),
        {"model": model},
    ).first()
    if row is None:
        return None
    asked = row.retraining_asked_at
    return Episode(loaded_time(row.opened_at), loaded_time(asked) if asked else None)
