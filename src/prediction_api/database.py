"""Ask the warehouse, with kept connections that cannot write and statements that are prepared.

A statement is written once, with `:name` for its values. The warehouse that does not answer in time
is an `UnavailableError`, which is told as 503; nothing that a client sends is one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from threading import local
from typing import Any, Protocol

import asyncpg
from sqlalchemy.engine import URL, make_url

from batch_jobs.database.postgres import PostgreSQL
from batch_jobs.database.transactions import stored_time
from batch_jobs.errors import ConfigurationError
from batch_jobs.redaction import first_line
from prediction_api.pool import Pool
from prediction_api.problems import UnavailableError

log = logging.getLogger(__name__)

STATEMENT_SECONDS = 2.0
CONNECT_SECONDS = 3.0
CONNECTIONS = 10
THREADS = 4
CACHE_KB = 16_000  # of each connection
STEPS = 20_000  # of SQLite's machine between two looks at the clock: about a millisecond
FAILURES = (
    *(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError),
    ConfigurationError,
)
# What asyncpg takes from a URL; libpq's other parameters mean nothing to it.
KNOWN_PARAMETERS = {
    *("host", "port", "user", "password", "passfile", "application_name", "target_session_attrs"),
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword"),
}

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Statement:
    """A SELECT.

    Attributes:
        sql: with `:name` for each value.
        point: whether it is a probe of an index or two: a matter of microseconds.
    """

    sql: str
    point: bool = False

    @cached_property
    def names(self) -> list[str]:
        """The names of its values, each once."""
        return list(dict.fromkeys(re.findall(r"(?<!:):(\w+)", self.sql)))

    @cached_property
    def numbered(self) -> str:
        """With `$1` for the first value, and so on."""
        places = {name: f"${number}" for number, name in enumerate(self.names, 1)}
        return re.sub(r"(?<!:):(\w+)", lambda found: places[found[1]], self.sql)


class Database(Protocol):
    """The warehouse as the API reads it."""

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """The rows of a statement, from one snapshot.

        Raises:
            UnavailableError: the warehouse does not answer in time, or refuses.
        """

    async def close(self) -> None:
        """Close the connections."""


def open_database(url: str, seconds: float = STATEMENT_SECONDS) -> Database:
    """The database at a SQLAlchemy URL; nothing is connected before it is asked.

    Args:
        url: of the warehouse.
        seconds: how long a statement may take.
    """
    made = make_url(url)
    if made.get_backend_name() == "sqlite":
        return SQLiteDatabase(Path(made.database or ""), seconds)
    return PostgreSQLDatabase(PostgreSQL(made).url, seconds)


class SQLiteDatabase:
    """Probes are made where the loop runs, and the rest in threads.

    A thread would make a probe take ten times as long, and in WAL mode no writer keeps it waiting.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._seconds = path, seconds
        self._loops = Connection(path, 0, seconds)
        self._kept = local()
        self._of_threads: list[Connection] = []
        self._threads = ThreadPoolExecutor(THREADS, "sqlite")

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """The rows of a statement; see `Database`."""
        values = {name: _stored(value) for name, value in values.items()}
        if statement.point:
            try:
                return self._loops.fetch(statement.sql, values)
            except sqlite3.Error:
                self._loops.close()  # and see in a thread, with patience
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._fetch, statement.sql, values)
        except sqlite3.Error as error:
            raise unavailable(error) from error

    def _fetch(self, sql: str, values: Mapping[str, Any]) -> Sequence[Row]:
        if not hasattr(self._kept, "connection"):
            self._kept.connection = Connection(self._path, STATEMENT_SECONDS, self._seconds)
            self._of_threads.append(self._kept.connection)
        connection: Connection = self._kept.connection
        try:
            return connection.fetch(sql, values)
        except sqlite3.Error:
            connection.close()
            raise

    async def close(self) -> None:
        """Close the connections; what is still asked is stopped."""
        for connection in self._of_threads:
            connection.stop()
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        for connection in [self._loops, *self._of_threads]:
            connection.close()


class Connection:
    """One connection to a file of SQLite, made anew if there is another file in its place."""

    def __init__(self, path: Path, busy_seconds: float, seconds: float) -> None:
        self._path, self._busy, self._seconds = path, busy_seconds, seconds
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._deadline, self._stopped = 0.0, False

    def fetch(self, sql: str, values: Mapping[str, Any]) -> Sequence[Row]:
        """The rows of a statement.

        Raises:
            sqlite3.Error: the file is not there or no warehouse, or the statement took too long.
        """
        self._deadline = time.monotonic() + self._seconds
        return self._opened().execute(sql, values).fetchall()

    def _opened(self) -> sqlite3.Connection:
        try:
            found = self._path.stat()
        except OSError as error:
            raise sqlite3.OperationalError(f"there is no warehouse: {error.strerror}") from error
        if self._connection is None or self._file != (found.st_dev, found.st_ino):
            self.close()
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=ro",
                uri=True,
                timeout=self._busy,
                isolation_level=None,
                check_same_thread=False,  # closed by whoever ends the server
            )
            self._connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")
            self._connection.row_factory = sqlite3.Row
            self._connection.set_progress_handler(self._too_late, STEPS)
            self._file = (found.st_dev, found.st_ino)
        return self._connection

    def _too_late(self) -> bool:
        return self._stopped or time.monotonic() > self._deadline

    def stop(self) -> None:
        """Let the statement that runs fail, and all later ones; from any thread."""
        self._stopped = True

    def close(self) -> None:
        """Close it; the next statement opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class PostgreSQLDatabase:
    """A pool of connections, which the server itself keeps from writing and from taking long."""

    def __init__(self, url: URL, seconds: float) -> None:
        options = (
            f"{url.query['options']} -c default_transaction_read_only=on "
            f"-c statement_timeout={int(seconds * 1000)} -c jit=off "
            f"-c plan_cache_mode=force_generic_plan"  # or a look-up would be planned each time
        )
        self._pool = Pool(_dsn(url), options, CONNECTIONS, CONNECT_SECONDS)
        self._seconds = CONNECT_SECONDS + seconds

    async def fetch(self, statement: Statement, **values: Any) -> Sequence[Row]:
        """The rows of a statement; see `Database`."""
        arguments = [values[name] for name in statement.names]
        try:
            async with asyncio.timeout(self._seconds):
                return await self._pool.fetch(statement.numbered, arguments)
        except FAILURES as error:
            raise unavailable(error) from error

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()


def _dsn(url: URL) -> str:
    query = {name: value for name, value in url.query.items() if name in KNOWN_PARAMETERS}
    plain = url.set(drivername="postgresql", query={"application_name": "prediction-api", **query})
    return plain.render_as_string(hide_password=False)


def _stored(value: Any) -> Any:
    return stored_time(value) if isinstance(value, datetime) else value


def unavailable(error: BaseException) -> UnavailableError:
    """What a client is told when the warehouse fails; the log has the reason."""
    log.warning("the warehouse: %s", first_line(error))
    return UnavailableError("the warehouse does not answer; try again")
