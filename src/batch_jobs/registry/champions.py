"""Promotions as rows of the warehouse: who is the champion, and who was when."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError
from batch_jobs.registry.versions import ModelVersion, from_row, load_version_row


@repeatable
def champion(warehouse: Warehouse, model: str) -> ModelVersion | None:
    """The version that serves now."""
    with warehouse.read() as connection:
        name = _champion_name(connection, model)
        return None if name is None else load_version_row(connection, model, name)


@repeatable
def champion_at(warehouse: Warehouse, model: str, moment: datetime) -> ModelVersion | None:
    """The version that served at a moment."""
    with warehouse.read() as connection:
        name = connection.scalar(
            text("""
                SELECT version FROM promotions WHERE model = :model AND promoted_at <= :moment
                ORDER BY promotion_id DESC LIMIT 1"""),
            {"model": model, "moment": stored_time(moment)},
        )
        return None if name is None else load_version_row(connection, model, name)


@repeatable
def rolled_back_from(warehouse: Warehouse, model: str) -> str | None:
    """The name of the version that was left, if the champion came by a rollback."""
    with warehouse.read() as connection:
        newest = _newest_promotion(connection, model)
        if newest is None or newest.action != "rollback":
            return None
        left: str | None = newest.previous_version
        return left


@repeatable
def rolled_back(warehouse: Warehouse, model: str, version: str) -> str | None:
    """Why a version was rolled back, unless it was promoted again since; None if it was not."""
    with warehouse.read() as connection:
        newest = connection.execute(
            text("""
                SELECT version, reason FROM promotions
                WHERE model = :model AND (version = :version
                  OR (previous_version = :version AND action = 'rollback'))
                ORDER BY promotion_id DESC LIMIT 1"""),
            {"model": model, "version": version},
        ).first()
        return None if newest is None or newest.version == version else str(newest.reason)


@repeatable
def have_served(warehouse: Warehouse, model: str) -> list[str]:
    """The versions that were ever champion, the last one first."""
    with warehouse.read() as connection:
        return list(
            connection.scalars(
                text("""
                    SELECT version FROM promotions WHERE model = :model
                    GROUP BY version ORDER BY max(promotion_id) DESC"""),
                {"model": model},
            )
        )


@repeatable
def promote(
    warehouse: Warehouse,
    version: ModelVersion,
    *,
    expected: str | None,
    action: str,
    actor: str,
    reason: str,
) -> None:
    """Make the version the champion, if the champion is still the expected one.

    Raises:
        ArtifactError: another version was promoted in between, or the artifact was removed.
    """
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, version.model)
        current = _champion_name(connection, version.model)
        if current == version.version:
            return  # by this very call, whose answer was lost
        if current != expected:
            came, advice = (
                ("was evaluated against", "train again")
                if action == "promote"
                else ("was to take over from", "repeat it if it is still wanted")
            )
            raise ArtifactError(
                f"{version.model}: {version.version} {came} {expected or 'no champion'}, but "
                f"{current} serves now; {advice}"
            )
        _require_kept(connection, version)
        connection.execute(
            text("""
                INSERT INTO promotions
                  (model, version, previous_version, action, actor, reason, metrics, promoted_at)
                VALUES (:model, :version, :previous, :action, :actor, :reason, :metrics, :now)"""),
            {
                "model": version.model,
                "version": version.version,
                "previous": current,
                "action": action,
                "actor": actor,
                "reason": reason,
                "metrics": json.dumps(dict(version.metrics)),
                "now": stored_time(clock.now()),
            },
        )


def _require_kept(connection: Connection, version: ModelVersion) -> None:
    """Find out whether retention has removed a version's artifact since it was loaded."""
    row = connection.execute(
        text("SELECT * FROM model_versions WHERE model = :model AND version = :version"),
        {"model": version.model, "version": version.version},
    ).first()
    if row is not None:
        from_row(row).require_kept()


def _champion_name(connection: Connection, model: str) -> str | None:
    newest = _newest_promotion(connection, model)
    return None if newest is None else newest.version


def _newest_promotion(connection: Connection, model: str) -> Row[Any] | None:
    return connection.execute(
        text("""
            SELECT version, previous_version, action FROM promotions WHERE model = :model
            ORDER BY promotion_id DESC LIMIT 1"""),
        {"model": model},
    ).first()
