"""Warehouse and model store as one folder, and a new deployment from such a folder.

The database is copied first and the artifacts after it, since a version is registered when its
files are there: so no version is in the copy without its artifact. The folder gets its name when it
is whole, with the hash of each file in it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from batch_jobs import clock
from batch_jobs.backups import dumps
from batch_jobs.database.connections import text
from batch_jobs.database.warehouse import SCHEMA_VERSION, Warehouse
from batch_jobs.errors import ConfigurationError, WarehouseVersionError
from batch_jobs.registry import belonging
from batch_jobs.registry.store import ARTIFACT, MANIFEST, PAGE, ModelStore
from batch_jobs.registry.versions import ModelVersion, from_row, whole_manifest
from batch_jobs.settings import Settings

ABOUT = "backup.json"
STORE = "models"


@dataclass(frozen=True)
class Backup:
    """What a backup is of.

    Attributes:
        folder: where it is.
        made_at: when it was begun; what was published later is not in it.
        schema_version: of the warehouse.
        database: its file.
        has_roles: whether the warehouse had the roles of PostgreSQL.
        versions: how many model versions have their artifact in it.
        bytes: of all files.
    """

    folder: str
    made_at: str
    schema_version: int
    database: str
    has_roles: bool
    versions: int
    bytes: int


def make(settings: Settings, folder: Path) -> Backup:
    """Copy warehouse and artifacts while the jobs go on, into a folder that is not there yet.

    Raises:
        ArtifactError: an artifact is missing or was changed.
        BatchJobsError: the database was not copied.
        ConfigurationError: the folder is there, or there is no warehouse or no pg_dump.
        UnavailableError: the warehouse or the store does not answer.
    """
    if folder.exists():
        raise ConfigurationError(f"{folder} is there already; name a folder that is not")
    warehouse = Warehouse.existing(settings.warehouse)
    made_at = clock.now()
    new = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True, mode=0o700)
    database = dumps.dump(settings.warehouse, new)
    versions = _copied(settings, warehouse, new / STORE)
    hashes = {str(path.relative_to(new)): _sha256(path) for path in _files(new)}
    made = Backup(
        folder=str(folder),
        made_at=made_at.isoformat(timespec="seconds"),
        schema_version=SCHEMA_VERSION,
        database=database.name,
        has_roles=_has_roles(warehouse),
        versions=versions,
        bytes=sum(path.stat().st_size for path in _files(new)),
    )
    (new / ABOUT).write_text(json.dumps(asdict(made) | {"sha256": hashes}, indent=2))
    new.rename(folder)
    return made


def restore(settings: Settings, folder: Path) -> Backup:
    """Make the warehouse and the model store anew, where neither is a warehouse yet.

    All of the backup is looked at before anything is written; the database comes last, so that what
    was interrupted can be begun again.

    Raises:
        BatchJobsError: the database was not made.
        ConfigurationError: the backup is not whole or was changed, there is a warehouse already,
            the store cannot be written, or there is no pg_restore.
        WarehouseVersionError: a newer release made the backup.
    """
    found, hashes = _about(folder)
    changed = [name for name, known in hashes.items() if not _is(folder / name, known)]
    if changed:
        raise ConfigurationError(
            f"the backup {folder} is not what it was: {', '.join(changed[:3])}; nothing was changed"
        )
    dumps.require_absent(settings.warehouse)
    store, kept = ModelStore(settings.model_store), folder / STORE
    store.require_writable()
    for path in sorted(kept.glob(f"*/*/{MANIFEST}")):
        model, version = path.parts[-3:-1]
        page = path.with_name(PAGE)
        store.write(
            model,
            version,
            path.with_name(ARTIFACT).read_bytes(),
            json.loads(path.read_bytes()),
            {PAGE: page.read_bytes()} if page.exists() else None,
        )
    dumps.load(folder / found.database, settings.warehouse)
    warehouse = Warehouse(settings.warehouse)
    warehouse.ensure_schema()
    belonging.claim(warehouse, store, moved=True)
    if found.has_roles:
        warehouse.ensure_roles()
    return found


def _copied(settings: Settings, warehouse: Warehouse, folder: Path) -> int:
    """Copy the artifacts of all versions that have one, each verified; how many there are."""
    store, copy = ModelStore(settings.model_store, settings.model_cache), ModelStore(str(folder))
    count = 0
    for version in _versions(warehouse):
        page = store.read_page(version.model, version.version)
        copy.write(
            version.model,
            version.version,
            store.read(version),
            whole_manifest(warehouse, version),
            None if page is None else {PAGE: page},
        )
        count += 1
    return count


def _versions(warehouse: Warehouse) -> Iterator[ModelVersion]:
    with warehouse.read() as connection:
        rows = connection.execute(
            text("SELECT * FROM model_versions WHERE artifact_removed_at IS NULL ORDER BY as_of")
        ).all()
    return map(from_row, rows)


def _has_roles(warehouse: Warehouse) -> bool:
    if warehouse.database.name != "postgresql":
        return False
    with warehouse.read() as connection:
        known = text("SELECT 1 FROM pg_roles WHERE rolname = 'batch_jobs_reader'")
        return connection.scalar(known) is not None


def _about(folder: Path) -> tuple[Backup, dict[str, str]]:
    try:
        told = json.loads((folder / ABOUT).read_text())
        hashes = {str(name): str(known) for name, known in told.pop("sha256").items()}
        found = Backup(**told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigurationError(f"{folder} is no whole backup: it has no {ABOUT}") from None
    if found.schema_version > SCHEMA_VERSION:
        raise WarehouseVersionError(
            f"the backup {folder} has schema version {found.schema_version}, made by a newer "
            f"batch-jobs; this release knows version {SCHEMA_VERSION}: upgrade batch-jobs"
        )
    return found, hashes


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _is(path: Path, known: str) -> bool:
    return path.is_file() and _sha256(path) == known


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
