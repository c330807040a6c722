"""The database of a warehouse as one file, and back: a consistent copy while others write.

SQLite is copied by its online backup (https://www.sqlite.org/backup.html), PostgreSQL by pg_dump
and pg_restore (https://www.postgresql.org/docs/current/app-pgdump.html), which have to be on the
PATH and no older than the server. Of PostgreSQL that is our schema, not the tables of the source.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url

from batch_jobs.database.postgres import SCHEMA
from batch_jobs.errors import BatchJobsError, ConfigurationError
from batch_jobs.redaction import redact

FILES = {"sqlite": "warehouse.db", "postgresql": "warehouse.dump"}
# Of ours, not of libpq.
OURS = {"schema", "options"}


def dump(url: str, folder: Path) -> Path:
    """Copy the database into a folder, as it is at one moment; the file.

    Raises:
        BatchJobsError: pg_dump has failed, or the copy is damaged.
        ConfigurationError: there is no pg_dump.
    """
    where = make_url(url)
    kind = where.get_backend_name()
    file = folder / FILES[kind]
    if kind == "sqlite":
        _copy(Path(str(where.database)), file)
    else:
        _run("pg_dump", where, "--format=custom", f"--schema={_schema(where)}", f"--file={file}")
    return file


def load(file: Path, url: str) -> None:
    """Make the database of a warehouse that is not there yet, whole or not at all.

    Raises:
        BatchJobsError: pg_restore has failed, or the file is damaged.
        ConfigurationError: there is no pg_restore, or the file is of the other kind of database.
    """
    where = make_url(url)
    kind = where.get_backend_name()
    if file.name != FILES[kind]:
        raise ConfigurationError(
            f"{file.name} is the backup of another kind of database than the warehouse, {kind}"
        )
    if kind == "sqlite":
        target = Path(str(where.database))
        new = target.with_name(f".{target.name}.restored")
        _copy(file, new)
        new.replace(target)
    else:
        _run("pg_restore", where, "--exit-on-error", "--single-transaction", str(file))


def require_absent(url: str) -> None:
    """See that there is no warehouse yet.

    Raises:
        ConfigurationError: there is something, and nothing was changed.
    """
    where = make_url(url)
    if where.get_backend_name() == "sqlite":
        target = Path(str(where.database))
        found = [target.with_name(target.name + end) for end in ("", "-wal", "-shm")]
        there: Any = next((path for path in found if path.exists()), None)
    else:
        from batch_jobs.database.warehouse import Warehouse

        database = Warehouse(url).database
        with database.reader.connect() as connection:
            there = ", ".join(sorted(database.names(connection))[:3])
        there = there and f"the schema {_schema(where)} with {there}, …"
    if there:
        raise ConfigurationError(
            f"there is {there} already; restore into a new place, or move that away first; "
            f"nothing was changed"
        )


def _copy(source: Path, target: Path) -> None:
    """Copy a database of SQLite, all from one snapshot, and see that the copy is sound."""
    target.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)
        (said,) = new.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise BatchJobsError(f"the copy of {source} is damaged, and so is what it was made of")


def _schema(url: URL) -> str:
    return str(url.query.get("schema", SCHEMA))


def _run(program: str, url: URL, *arguments: str) -> None:
    """Run a program of PostgreSQL on the database; who may what is made by `init --roles`."""
    from psycopg.conninfo import make_conninfo

    if shutil.which(program) is None:
        raise ConfigurationError(
            f"a backup of PostgreSQL needs its program {program}, no older than the server, on the "
            f"PATH (Debian: `apt install postgresql-client`)"
        )
    query = {name: value for name, value in url.query.items() if name not in OURS}
    given: dict[str, Any] = {"host": url.host, "port": url.port, "user": url.username}
    where = make_conninfo("", **{**given, "dbname": url.database, **query})
    password = {"PGPASSWORD": str(url.password)} if url.password else {}
    done = subprocess.run(
        [program, "--no-owner", "--no-acl", "--no-password", f"--dbname={where}", *arguments],
        env=os.environ | password,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        secrets = [str(url.password)] if url.password else []
        said = redact(done.stderr.strip().partition("\n")[0], secrets)
        raise BatchJobsError(f"{program} has failed: {said or f'exit code {done.returncode}'}")
