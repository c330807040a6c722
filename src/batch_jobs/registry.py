"""The registry: every trained version and every promotion as rows of the warehouse.

The champion is the newest row of the append-only `promotions`; no row is ever changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row

from batch_jobs import clock
from batch_jobs.connections import text
from batch_jobs.errors import ArtifactError
from batch_jobs.warehouse import Warehouse, loaded_time, repeatable, stored_time


@dataclass(frozen=True)
class ModelVersion:
    """One trained, immutable artifact and what is known about it."""

    model: str
    version: str
    as_of: str
    sha256: str
    manifest: Mapping[str, Any]
    metrics: Mapping[str, float]
    gate: Mapping[str, Any]


@repeatable
def register(warehouse: Warehouse, version: ModelVersion) -> ModelVersion:
    """Record a version whose files are in the store.

    Training the very same bytes again keeps the version and takes the new judgement.
    """
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO model_versions (model, version, as_of, created_at, sha256, size_bytes,
                  manifest, metrics, gate)
                VALUES (:model, :version, :as_of, :now, :sha256, :size, :manifest, :metrics, :gate)
                ON CONFLICT (model, version) DO UPDATE SET created_at = excluded.created_at,
                  metrics = excluded.metrics, gate = excluded.gate
                WHERE model_versions.sha256 = excluded.sha256"""),
            {
                "model": version.model,
                "version": version.version,
                "as_of": version.as_of,
                "now": stored_time(clock.now()),
                "sha256": version.sha256,
                "size": version.manifest["size_bytes"],
                "manifest": json.dumps(version.manifest),
                "metrics": json.dumps(version.metrics),
                "gate": json.dumps(version.gate),
            },
        )
        return _version(connection, version.model, version.version)


@repeatable
def find_version(warehouse: Warehouse, model: str, version: str) -> ModelVersion:
    """The version of that name.

    Raises:
        ArtifactError: the model has no such version.
    """
    with warehouse.read() as connection:
        return _version(connection, model, version)


@repeatable
def newest_version(warehouse: Warehouse, model: str) -> ModelVersion | None:
    """The version trained last, promoted or not."""
    with warehouse.read() as connection:
        row = connection.execute(
            text("""
                SELECT * FROM model_versions WHERE model = :model
                ORDER BY created_at DESC, version DESC LIMIT 1"""),
            {"model": model},
        ).first()
        return None if row is None else _from_row(row)


@repeatable
def champion(warehouse: Warehouse, model: str) -> ModelVersion | None:
    """The version that serves now."""
    with warehouse.read() as connection:
        name = _champion_name(connection, model)
        return None if name is None else _version(connection, model, name)


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
        return None if name is None else _version(connection, model, name)


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
        ArtifactError: another version was promoted in between.
    """
    with warehouse.write() as connection:
        warehouse.database.lock_model(connection, version.model)
        current = _champion_name(connection, version.model)
        if current == version.version:
            return  # by this very call, whose answer was lost
        if current != expected:
            came, advice = (
                ("was judged against", "train again")
                if action == "promote"
                else ("was to take over from", "repeat it if it is still wanted")
            )
            raise ArtifactError(
                f"{version.model}: {version.version} {came} {expected or 'no champion'}, but "
                f"{current} serves now; {advice}"
            )
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


def _version(connection: Connection, model: str, version: str) -> ModelVersion:
    row = connection.execute(
        text("SELECT * FROM model_versions WHERE model = :model AND version = :version"),
        {"model": model, "version": version},
    ).first()
    if row is None:
        raise ArtifactError(f"{model} has no version {version!r}")
    return _from_row(row)


def _from_row(row: Row[Any]) -> ModelVersion:
    return ModelVersion(
        model=row.model,
        version=row.version,
        as_of=stored_time(loaded_time(row.as_of)),
        sha256=row.sha256,
        manifest=_from_json(row, "manifest"),
        metrics=_from_json(row, "metrics"),
        gate=_from_json(row, "gate"),
    )


def _from_json(row: Row[Any], column: str) -> Any:
    """What the JSON of a column says, which SQLite gives as text."""
    stored = getattr(row, column)
    try:
        found = json.loads(stored) if isinstance(stored, str) else stored
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ArtifactError(
            f"the {column} of {row.model} {row.version} is no JSON object any more; roll back to "
            f"another version, or train again"
        )
    return found
