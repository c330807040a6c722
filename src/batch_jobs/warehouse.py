"""The warehouse: one database with the source tables, the ledger and the predictions.

SQLite runs in WAL mode, so readers are never blocked; a write transaction begins with
`BEGIN IMMEDIATE`, so two writers never both believe what they read (pysqlite's own transactions
begin too late for that: https://docs.sqlalchemy.org/en/21/dialects/sqlite.html).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.pool import NullPool

from batch_jobs.errors import ConfigurationError, ContractError, WarehouseVersionError
from batch_jobs.interval import Interval

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
BUSY_TIMEOUT_MS = 30_000


class Warehouse:
    """A connection to the warehouse; nothing is opened before it is needed.

    Args:
        url: SQLAlchemy URL, such as `sqlite:////srv/batch/warehouse.db`.

    Raises:
        ConfigurationError: the URL is not one of a supported database, or its folder is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
        except (ArgumentError, ValueError):  # ValueError: a port that is no number
            # The URL itself may hold a password, so the message must not.
            raise ConfigurationError(
                "the warehouse URL is not a SQLAlchemy URL, such as sqlite:////srv/batch/w.db"
            ) from None
        if self._url.get_backend_name() != "sqlite":
            raise ConfigurationError(
                f"the warehouse must be SQLite in this release, "
                f"got {self._url.get_backend_name()}; write sqlite:////absolute/path.db"
            )
        if not self._url.database or self._url.database == ":memory:":
            raise ConfigurationError("the warehouse URL must name a file: sqlite:////path.db")
        self._path = Path(self._url.database)

    @classmethod
    def existing(cls, url: str) -> Warehouse:
        """The warehouse at a URL, known to be there and of this release; see `require_schema`."""
        warehouse = cls(url)
        warehouse.require_schema()
        return warehouse

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    @cached_property
    def _writer(self) -> Engine:
        if not self._path.parent.is_dir():
            raise ConfigurationError(f"the warehouse's folder {self._path.parent} does not exist")
        return self._engine(str(self._path), begin="BEGIN IMMEDIATE", wal=True)

    @cached_property
    def _reader(self) -> Engine:
        if not self._path.is_file():
            raise ConfigurationError(f"there is no warehouse at {self}; run `batch-jobs init`")
        return self._engine(f"{self._path.absolute().as_uri()}?mode=ro", begin="BEGIN", wal=False)

    @staticmethod
    def _engine(database: str, *, begin: str, wal: bool) -> Engine:
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                database, isolation_level=None, uri=database.startswith("file:")
            )
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            if wal:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
            return connection

        engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        return engine

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction; commits on leaving, rolls back on an exception."""
        with self._writer.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """One read-only snapshot."""
        with self._reader.begin() as connection:
            yield connection

    def require_query(self, subject: str, query: str, values: Mapping[str, Any]) -> None:
        """Let the database compile a query without running it.

        It must be one that can stand inside another, so it only reads.

        Raises:
            ContractError: an unknown table or column, a syntax error, or not a SELECT; the
                database's own words.
        """
        try:
            with self.read() as connection:
                # By itself first, for the database then points at the right word.
                for form in (query, f"SELECT * FROM (\n{query}\n) AS q"):  # noqa: S608
                    connection.execute(text(f"EXPLAIN {form}"), values)
        except DatabaseError as error:
            raise ContractError(subject, [str(error.orig)]) from error
        except sqlite3.Warning as error:  # Python 3.11's word for a second statement
            raise ContractError(subject, [str(error)]) from error

    def stream(
        self, query: str, values: Mapping[str, Any], chunk_rows: int
    ) -> Iterator[pd.DataFrame]:
        """The rows of a query in chunks, all from one snapshot.

        A query without rows gives one empty frame, so that its columns are known. Values stay as
        the database gave them: a guessed type could differ from chunk to chunk.
        """
        import pandas as pd

        with self.read() as connection:
            result = connection.execution_options(stream_results=True).execute(text(query), values)
            columns = list(result.keys())
            first = True
            while (rows := result.fetchmany(chunk_rows)) or first:
                yield pd.DataFrame(list(map(tuple, rows)), columns=columns, dtype="object")
                first = False

    def ensure_schema(self) -> bool:
        """Make the tables and views where there are none; True if they were made now.

        Raises:
            WarehouseVersionError: a newer release made them.
            ConfigurationError: the file cannot be written or is no SQLite database.
        """
        try:
            with self.write() as connection:
                if _version(connection) is not None:
                    self._check_version(connection)
                    return False
                script = files("batch_jobs").joinpath("schema/sqlite.sql").read_text("utf-8")
                for statement in _statements(script):
                    connection.exec_driver_sql(statement)
                connection.execute(
                    text("INSERT INTO schema_version VALUES (:version)"),
                    {"version": SCHEMA_VERSION},
                )
                return True
        except DatabaseError as error:
            raise ConfigurationError(
                f"cannot make or open the warehouse {self}: {error.orig}"
            ) from error

    def require_schema(self) -> None:
        """Check that the warehouse is there and of this release.

        Raises:
            ConfigurationError: there is none yet, or it cannot be read.
            WarehouseVersionError: a newer release made it.
        """
        try:
            with self.read() as connection:
                if _version(connection) is None:
                    raise ConfigurationError(
                        f"{self} is not a warehouse yet; run `batch-jobs init`"
                    )
                self._check_version(connection)
        except DatabaseError as error:
            raise ConfigurationError(f"cannot read the warehouse {self}: {error.orig}") from error

    def _check_version(self, connection: Connection) -> None:
        version = _version(connection)
        if version is not None and version > SCHEMA_VERSION:
            raise WarehouseVersionError(
                f"the warehouse {self} has schema version {version}, made by a newer batch-jobs; "
                f"this release knows version {SCHEMA_VERSION}: upgrade batch-jobs"
            )


def _version(connection: Connection) -> int | None:
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'"
    if connection.scalar(text(known)) is None:
        return None
    version: int | None = connection.scalar(text("SELECT version FROM schema_version"))
    return version


def _statements(script: str) -> Iterator[str]:
    buffer = ""
    for line in script.splitlines(keepends=True):
        buffer += line
        if sqlite3.complete_statement(buffer):
            yield buffer
            buffer = ""


def stored_time(time: datetime) -> str:
    """The text under which a UTC time is stored; it sorts as time."""
    return time.astimezone(UTC).isoformat()


def loaded_time(text_: str) -> datetime:
    """The time that a stored text means."""
    return datetime.fromisoformat(text_)


def bounds(interval: Interval) -> Mapping[str, Any]:
    """The values of `:start` and `:end` for a query on this interval."""
    return {"start": stored_time(interval.start), "end": stored_time(interval.end)}
