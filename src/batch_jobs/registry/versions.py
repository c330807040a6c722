"""The registry: every trained version and every promotion as rows of the warehouse.

The champion is the newest row of the append-only `promotions`; no row is ever changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row
from sqlalchemy.exc import ProgrammingError

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import first_words, loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel


@dataclass(frozen=True)
class ModelVersion:
    """One trained, immutable artifact and what is known about it.

    Attributes:
        manifest: signed as training made it, with its golden rows; what was read from the warehouse
            has none, see `whole_manifest`.
    """

    model: str
    version: str
    as_of: str
    sha256: str
    manifest: Mapping[str, Any]
    metrics: Mapping[str, float]
    gate: Mapping[str, Any]
    removed_at: datetime | None = None

    def require_kept(self) -> None:
        """Find out whether it can be loaded at all.

        Raises:
            ArtifactError: retention has removed its artifact.
        """
        if self.removed_at is not None:
            raise ArtifactError(
                f"the artifact of {self.model} {self.version} was removed by retention on "
                f"{self.removed_at:%Y-%m-%d} (see `keep_versions` of the model file); take another "
                f"version, or train again"
            )

    def has_hindsight_of(self, interval: Interval) -> bool:
        """Whether it was trained after an interval, and so may have learnt from its rows.

        Whoever asks for the interval, and whichever version served at its time.
        """
        return loaded_time(self.as_of) >= interval.end


GOLDEN = "golden"  # rows of the source: what readers see of a manifest is without
# What a version is asked and by what it answers; the rest of a model file says how it is served.
CONTRACT = ("mode", "features_query", "labels_query", "features", "positive")


def contract_of(model: BatchModel) -> dict[str, Any]:
    """What a version of the model is trained for, as plain JSON values."""
    return model.model_dump(mode="json", include=set(CONTRACT))


def file_sha256(model: BatchModel) -> str | None:
    """The hash of a model's file as it is now; None if it has none, or it cannot be read."""
    try:
        return hashlib.sha256(Path(model.file).read_bytes()).hexdigest()
    except OSError:
        return None


def file_differs(model: BatchModel, version: ModelVersion) -> str | None:
    """How a model's file differs from that of a version, and since when; None if it does not."""
    now, then = contract_of(model), version.manifest.get("contract", {})
    names = [name for name in CONTRACT if name in then and now[name] != then[name]]
    one, other = dict(then.get("features", {})), now["features"]
    if one and list(one.items()) != list(other.items()):
        apart = [name for name in one | other if one.get(name) != other.get(name)]
        names = [name for name in names if name != "features"]
        names.append(f"features ({', '.join(apart) or 'their order'})")
    sha256 = version.manifest.get("file_sha256")
    if not names and (sha256 is None or file_sha256(model) in (sha256, None)):
        return None
    told = f" in {', '.join(names)}" if names else ", though in no query and no feature,"
    return (
        f"the model file differs from that of {version.version}{told}{_since(model)}; "
        f"{version.version} goes on with its own until another version is promoted"
    )


def _since(model: BatchModel) -> str:
    with suppress(OSError):
        if model.file:
            changed = datetime.fromtimestamp(Path(model.file).stat().st_mtime, UTC)
            return f" since {changed:%Y-%m-%d %H:%M}Z"
    return ""


@repeatable
def register(warehouse: Warehouse, version: ModelVersion) -> ModelVersion:
    """Record a version whose files are in the store.

    Training the very same bytes again keeps the version and takes the new evaluation.
    """
    manifest = {name: value for name, value in version.manifest.items() if name != GOLDEN}
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO model_versions (model, version, as_of, created_at, sha256, size_bytes,
                  manifest, metrics, gate)
                VALUES (:model, :version, :as_of, :now, :sha256, :size, :manifest, :metrics, :gate)
                ON CONFLICT (model, version) DO UPDATE SET created_at = excluded.created_at,
                  metrics = excluded.metrics, gate = excluded.gate,
                  artifact_removed_at = NULL, artifact_gone = 0
                WHERE model_versions.sha256 = excluded.sha256"""),
            {
                "model": version.model,
                "version": version.version,
                "as_of": version.as_of,
                "now": stored_time(clock.now()),
                "sha256": version.sha256,
                "size": version.manifest["size_bytes"],
                "manifest": json.dumps(manifest),
                "metrics": json.dumps(version.metrics),
                "gate": json.dumps(version.gate),
            },
        )
        if GOLDEN in version.manifest:
            connection.execute(
                text("""
                    INSERT INTO golden_rows (model, version, golden)
                    VALUES (:model, :version, :golden) ON CONFLICT DO NOTHING"""),
                {
                    "model": version.model,
                    "version": version.version,
                    "golden": json.dumps(version.manifest[GOLDEN]),
                },
            )
        return load_version_row(connection, version.model, version.version)


@repeatable
def find_version(warehouse: Warehouse, model: str, version: str) -> ModelVersion:
    """The version of that name.

    Raises:
        ArtifactError: the model has no such version.
    """
    with warehouse.read() as connection:
        return load_version_row(connection, model, version)


@repeatable
def newest_version(
    warehouse: Warehouse, model: str, as_of: datetime | None = None
) -> ModelVersion | None:
    """The version that has seen the newest data, promoted or not; of equals, the last trained.

    Args:
        warehouse: where the versions are.
        model: whose.
        as_of: only a version that was trained as of this moment.
    """
    condition = "" if as_of is None else "AND as_of = :as_of"
    values = {"model": model} | ({} if as_of is None else {"as_of": stored_time(as_of)})
    with warehouse.read() as connection:
        row = connection.execute(
            text(f"""
                SELECT * FROM model_versions WHERE model = :model {condition}
                ORDER BY as_of DESC, created_at DESC, version DESC LIMIT 1"""),  # noqa: S608
            values,
        ).first()
        return None if row is None else from_row(row)


@repeatable
def counts(warehouse: Warehouse) -> dict[str, int]:
    """How many versions each model has that can be loaded, of all that have any."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT model, count(*) AS versions FROM model_versions
                WHERE artifact_removed_at IS NULL
                GROUP BY model ORDER BY model""")
        )
        return {row.model: row.versions for row in rows}


@repeatable
def manifests(warehouse: Warehouse) -> list[tuple[ModelVersion, bool]]:
    """All versions that can be loaded, newest first, and whether each is a champion."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT v.*, EXISTS (
                  SELECT 1 FROM promotions AS p WHERE p.model = v.model AND p.version = v.version
                  AND p.promotion_id = (SELECT max(promotion_id) FROM promotions AS newest
                                        WHERE newest.model = v.model)) AS serves
                FROM model_versions AS v
                WHERE artifact_removed_at IS NULL ORDER BY as_of DESC, model""")
        )
        return [(from_row(row), bool(row.serves)) for row in rows]


def load_version_row(connection: Connection, model: str, version: str) -> ModelVersion:
    """The version of that name, inside the transaction of the caller."""
    row = connection.execute(
        text("SELECT * FROM model_versions WHERE model = :model AND version = :version"),
        {"model": model, "version": version},
    ).first()
    if row is None:
        raise ArtifactError(f"{model} has no version {version!r}")
    return from_row(row)


@repeatable
def whole_manifest(warehouse: Warehouse, version: ModelVersion) -> dict[str, Any]:
    """The manifest as it was signed: with the golden rows, if the version has any.

    Raises:
        ArtifactError: whoever is connected may not read them.
    """
    manifest = dict(version.manifest)
    with warehouse.read() as connection:
        # An API may be upgraded before its warehouse, whose manifests then are whole still.
        if GOLDEN in manifest or not warehouse.database.has_table(connection, "golden_rows"):
            return manifest
        try:
            golden = connection.scalar(
                text("SELECT golden FROM golden_rows WHERE model = :model AND version = :version"),
                {"model": version.model, "version": version.version},
            )
        except ProgrammingError as error:
            raise ArtifactError(
                f"the golden rows of {version.model} {version.version} cannot be read: "
                f"{first_words(error)}; a login that predicts is a batch_jobs_writer or a "
                f"batch_jobs_requester (`batch-jobs init --roles`)"
            ) from error
    if golden is None:
        return manifest
    return {**manifest, GOLDEN: json.loads(golden) if isinstance(golden, str) else golden}


def from_row(row: Row[Any]) -> ModelVersion:
    """The version in a row of `model_versions`."""
    # An API may be upgraded before its warehouse, which then has removed nothing yet.
    removed = getattr(row, "artifact_removed_at", None)
    return ModelVersion(
        model=row.model,
        version=row.version,
        as_of=stored_time(loaded_time(row.as_of)),
        sha256=row.sha256,
        manifest=_from_json(row, "manifest"),
        metrics=_from_json(row, "metrics"),
        gate=_from_json(row, "gate"),
        removed_at=loaded_time(removed) if removed else None,
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
            f"the {column} of {row.model} {row.version} is not a JSON object; roll back to another "
            f"version, or train again"
        )
    return found
