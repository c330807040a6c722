"""The warehouse on SQLite: one file, one machine, nothing to install.

It runs in WAL mode, so readers are never blocked; a write transaction begins with
`BEGIN IMMEDIATE`, so two writers never both believe what they read (pysqlite's own transactions
begin too late for that: https://docs.sqlalchemy.org/en/21/dialects/sqlite.html).
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite as sqlite_dialect
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.pool import QueuePool

from batch_jobs.database import sqlite_reader
from batch_jobs.database.connections import kept_engine, text
from batch_jobs.database.shared_rows import SharedRows
from batch_jobs.errors import ConfigurationError, ContractError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 30_000
KEPT = 1  # connections of a process that write, and as many that read
LONGEST_NAP = 0.1  # of SQLite's busy handler, in seconds
SHORT_NAP = 0.025  # what it sleeps at a time when it has waited for a tenth of a second
# Tables by which a warehouse is known: together, nobody else has them.
DAMAGED = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Keys that come in random order touch the whole index: 64 MB of it halve the time of a million.
CACHE_KB = 64_000
LEAST_FREE = 2**20


# Queries that another process does not read as sqlite3 does.
_unsuited: set[tuple[Path, str]] = set()
POSITIONAL = sqlite_dialect(paramstyle="qmark")


class ReadAgainError(sqlite3.OperationalError):
    """What was read in part cannot be read to its end like that; it is as if the file were busy."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY


class SQLite:
    """What is SQLite's own about the warehouse; `PostgreSQL` has the same methods.

    Args:
        url: names the file; with `?source=/path/of/another.db` queries read the tables of that one,
            whatever it calls them, and nothing of ours is in it.

    Attributes:
        rows: where the rows of runs are stored.
    """

    name = "sqlite"
    for_update = free_for_update = ""  # BEGIN IMMEDIATE has locked everything already
    # What is true of a value that is no text, which PostgreSQL lets no column of text hold.
    numbers: str | None = "typeof({}) IN ('integer', 'real')"
    # Texts that sort as times do: like those of :start, or with a Z.
    _sorting = "GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9][0-9]*'"
    rows_at_once = 12_500  # of keys in random order: a third of a second in a table of millions
    # Of many rows, so many are sorted before they are stored, for then each transaction writes to
    # neighbouring pages of the index and not to all; in memory they take 60 bytes each and the key.
    rows_to_sort = 250_000

    def __init__(self, url: URL) -> None:
        if not url.database or url.database == ":memory:":
            raise ConfigurationError("the warehouse URL must name a file: sqlite:////path.db")
        self._url = url
        self._path = Path(url.database)
        self._source = Path(str(url.query["source"])) if "source" in url.query else None
        self._is_passing = "passing" in url.query  # it can be made again, as a replay's
        self.rows = SharedRows()

    @cached_property
    def writer(self) -> Engine:
        """Connections whose transactions write, one at a time."""
        if not self._path.parent.is_dir():
            raise ConfigurationError(f"the warehouse's folder {self._path.parent} does not exist")
        return self._engine(self._path.absolute().as_uri(), begin="BEGIN IMMEDIATE", wal=True)

    @cached_property
    def reader(self) -> Engine:
        """Connections that cannot write, each transaction of one snapshot."""
        if not self._path.is_file():
            shown = self._url.render_as_string(hide_password=True)
            raise ConfigurationError(f"there is no warehouse at {shown}; run `batch-jobs init`")
        return self._engine(self._only_read(self._path), begin="BEGIN", wal=False)

    @cached_property
    def source(self) -> Engine:
        """Connections in which queries find the tables of the source; they cannot write."""
        if self._source is None:
            return self.reader
        if not self._source.is_file():
            raise ConfigurationError(f"there is no source at {self._source}")
        return self._engine(self._only_read(self._source), begin="BEGIN", wal=False, beside=True)

    @cached_property
    def source_writer(self) -> Engine:
        """Connections whose transactions write the tables of the source."""
        if self._source is None:
            return self.writer
        return self._engine(self._source.absolute().as_uri(), begin="BEGIN IMMEDIATE", wal=True)

    def own(self, table: str) -> str:
        """How a query of the source names one of our tables."""
        return f"{'main' if self._source is None else 'own'}.{table}"

    def _only_read(self, path: Path) -> str:
        return f"{path.absolute().as_uri()}?mode=ro"

    def _engine(self, database: str, *, begin: str, wal: bool, beside: bool = False) -> Engine:
        def prepare(connection: sqlite3.Connection) -> None:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            connection.create_function("utc", 1, _utc, deterministic=True)
            if beside:
                connection.execute("ATTACH ? AS own", [self._only_read(self._path)])
            if wal:
                _use_wal(connection)
                durable = "NORMAL" if self._is_passing else "FULL"
                connection.execute(f"PRAGMA synchronous = {durable}")
                connection.execute("PRAGMA foreign_keys = ON")
                connection.execute(f"PRAGMA cache_size = -{CACHE_KB}")

        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(
                database,
                isolation_level=None,
                uri=True,
                check_same_thread=False,  # the pool gives it to one at a time
            )
            try:
                prepare(connection)
            except BaseException:
                connection.close()
                raise
            return connection

        def make() -> Engine:
            engine = create_engine(
                "sqlite://", creator=connect, poolclass=QueuePool, pool_size=KEPT, max_overflow=-1
            )

            _listen(engine, self._source if beside and self._source else self._path, begin)
            return engine

        return kept_engine((database, beside and self._path), make)

    def names(self, connection: Connection) -> set[str]:
        """The tables and views that the warehouse's file has."""
        known = "SELECT name FROM main.sqlite_master WHERE type IN ('table', 'view')"
        return set(connection.scalars(text(known)))

    @property
    def shortage(self) -> str:
        """What else to say of an error, where the disk is full."""
        with suppress(OSError):
            if shutil.disk_usage(self._path.parent).free < LEAST_FREE:
                return f"; the disk of {self._path.parent} is full"
        return ""

    @property
    def elsewhere(self) -> str:
        """What to write, where others have tables of our names."""
        return (
            f"keep the predictions in a file of their own, which reads this one: "
            f"sqlite:////path/of/predictions.db?source={self._path.absolute()}"
        )

    def make_like(
        self,
        connection: Connection,
        table: str,
        query: str,  # noqa: ARG002
        columns: Sequence[str],
    ) -> None:
        """Make a table for the rows of a query of the source."""
        names = ", ".join(f'"{name}"' for name in columns)
        connection.exec_driver_sql(f"CREATE TABLE {table} ({names})")

    def has_table(self, connection: Connection, table: str) -> bool:
        """Whether the warehouse itself has a table of that name."""
        known = "SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = :table"
        return connection.scalar(text(known), {"table": table}) is not None

    def beside(self, folder: Path, name: str) -> URL:
        """The URL of a warehouse of its own that reads the source tables of this one."""
        source = str((self._source or self._path).absolute())
        return URL.create(
            "sqlite",
            database=str(folder.absolute() / f"{name}.db"),
            query={"source": source, "passing": "1"},
        )

    def remove(self) -> None:
        """Remove the warehouse, which must be one beside another."""
        if not self._is_passing:
            raise ConfigurationError(f"{self._path} is a warehouse in its own right; it stays")
        self.writer.dispose()
        for suffix in ("", "-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def moment(self, column: str) -> str:
        """SQL of a source's time that can be compared with the ledger's; NULL if it is none."""
        return f"utc({column})"

    def odd_time(self, connection: Connection, query: str) -> str | None:  # noqa: ARG002
        """What is true of an `as_of` that does not sort among texts where it belongs as a time."""
        return (
            f"typeof({{0}}) <> 'text' OR {{0}} NOT {self._sorting} OR "
            f"({{0}} NOT LIKE '%+00:00' AND {{0}} NOT GLOB '*Z')"
        )

    def naive_time(self, column: str) -> str:
        """SQL of what is true of a time without an offset, or a date, that does not sort as one."""
        return f"date({column}) IS NOT NULL AND {column} NOT {self._sorting}"

    def prepare(self, connection: Connection) -> None:
        """Make ready for the first script: SQLite needs nothing."""

    def run_script(self, connection: Connection, script: str) -> None:
        """Execute every statement of a script inside the caller's transaction."""
        buffer = ""
        for line in script.splitlines(keepends=True):
            buffer += line
            if sqlite3.complete_statement(buffer):
                connection.exec_driver_sql(buffer)
                buffer = ""

    def make_roles(self, connection: Connection) -> list[str]:  # noqa: ARG002
        """Refuse.

        Raises:
            ConfigurationError: SQLite has no roles.
        """
        raise ConfigurationError(
            "only PostgreSQL has roles; on SQLite the rights on the file and its folder decide who "
            "may read and write"
        )

    def lock_model(self, connection: Connection, model: str) -> None:
        """Let one transaction at a time publish a model: BEGIN IMMEDIATE has seen to that."""

    def stream(
        self, query: str, values: Mapping[str, Any], chunk_rows: int, *, many: bool = False
    ) -> Iterator[tuple[list[str], Sequence[Any]]]:
        """Column names and columns of a query, chunk by chunk, all of one snapshot.

        A column is an Arrow array, or the list of its values where SQLite holds mixed types.

        Args:
            query: of the source.
            values: of its parameters.
            chunk_rows: rows of a chunk.
            many: whether so many rows are expected that it is worth to read them by a process of
                its own.

        Raises:
            ContractError: the query does not compile, or a value of the source ends it.
            ReadAgainError: of many rows, after some were read: begin again.
        """
        if many and self.reads_apart(query):
            some = False
            try:
                for batch in self._read_apart(query, values, chunk_rows):
                    yield batch.schema.names, batch.columns
                    some = True
            except sqlite_reader.UnsuitedError as error:
                log.info("the source is read the plain way, which is slower: %s", error)
                _unsuited.add((self._path, query))
                if some:
                    raise ReadAgainError(str(error)) from error
            else:
                if some:
                    return
        with self.source.begin() as connection, _told_of_the_source():
            result = connection.execution_options(stream_results=True).execute(text(query), values)
            names, cursor = list(result.keys()), result.cursor
            first = True
            while (rows := cursor.fetchmany(chunk_rows)) or first:
                columns = zip(*rows, strict=True) if rows else [()] * len(names)
                yield names, [_arrow(column) for column in columns]
                first = False

    def reads_apart(self, query: str) -> bool:
        """Whether another process reads the query as sqlite3 does, as far as is known."""
        return (self._path, query) not in _unsuited

    def _read_apart(
        self, query: str, values: Mapping[str, Any], chunk_rows: int
    ) -> Iterator[pa.RecordBatch]:
        compiled = text(query).compile(dialect=POSITIONAL)
        given = [values[name] for name in compiled.positiontup or ()]
        database = self._only_read(self._source or self._path)
        with closing(
            sqlite_reader.batches(database, compiled.string, given, chunk_rows)
        ) as batches:
            yield from batches

    def insert(self, connection: Connection, table: str, rows: pa.Table) -> None:
        """Append rows to a table inside the caller's transaction.

        Raises:
            sqlalchemy.exc.IntegrityError: a key is there already.
        """
        if "entity_id" in rows.column_names:
            rows = rows.sort_by("entity_id")  # neighbours in the index, too
        marks = ", ".join("?" * rows.num_columns)
        columns = (column.to_numpy(zero_copy_only=False).tolist() for column in rows.columns)
        connection.exec_driver_sql(
            f"INSERT INTO {table} ({', '.join(rows.column_names)}) VALUES ({marks})",  # noqa: S608
            list(zip(*columns, strict=True)),
        )

    def is_passing(self, error: BaseException) -> bool:
        """Whether the same transaction may succeed if it is repeated."""
        cause = getattr(error, "orig", error)
        busy = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
        code = getattr(cause, "sqlite_errorcode", None)
        return code is not None and (code & 0xFF) in busy

    def is_misconfigured(self, error: BaseException) -> bool:
        """Whether the error will come again until somebody changes the database or its rights."""
        cause = getattr(error, "orig", error)
        code = getattr(cause, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_ERROR:  # which may be anything
            return str(cause).startswith(("no such table", "no such column"))
        lasting = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, *DAMAGED)
        return code is not None and (code & 0xFF) in lasting

    def is_doubled_key(self, error: BaseException) -> bool:
        """Whether the error says that a key is in a table of predictions already."""
        cause = getattr(error, "orig", error)
        doubled = (sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY, sqlite3.SQLITE_CONSTRAINT_UNIQUE)
        return getattr(cause, "sqlite_errorcode", None) in doubled and str(cause).startswith(
            f"UNIQUE constraint failed: {self.rows.shared}."
        )

    def give_way(self, *, briefly: bool = False) -> None:
        """Let writers that wait have their turn: SQLite has no queue, they ask now and then."""
        time.sleep(SHORT_NAP if briefly else LONGEST_NAP)

    def after_removal(self) -> None:
        """Give the space of the write-ahead log back, unless a reader still needs it."""
        with self.writer.connect() as connection:
            # Writers would wait as long as this does.
            connection.connection.execute("PRAGMA busy_timeout = 0")
            try:
                connection.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")


def _listen(engine: Engine, path: Path, begin: str) -> None:
    """Begin transactions as asked, and use no connection of a file that is gone or was damaged."""

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        driver: Any = connection.connection.dbapi_connection
        try:
            driver.execute(begin)  # by SQLAlchemy it would take as long as a query
        except sqlite3.Error as error:
            raise DBAPIError.instance(begin, None, error, sqlite3.Error) from error

    @event.listens_for(engine, "checkout")
    def _still_there(_: Any, record: Any, __: Any) -> None:
        """A file that was removed lives on in its connections."""
        identity = None
        with suppress(FileNotFoundError):
            file = os.stat(path)  # noqa: PTH116 - at each transaction, and three times as fast
            identity = (file.st_dev, file.st_ino)
        if record.info.setdefault("file", identity) != identity:
            raise DisconnectionError

    @event.listens_for(engine, "handle_error")
    def _may_be_mended(context: Any) -> None:
        """What a connection remembers of a damaged file outlives the damage."""
        code = getattr(context.original_exception, "sqlite_errorcode", 0) & 0xFF
        if code in DAMAGED and context.connection is not None:
            context.connection.connection.invalidate(soft=True)  # once it is given back


def _use_wal(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work side by side; SQLite itself does not wait to change to it."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(LONGEST_NAP / 10)
        else:
            return


def _utc(value: Any) -> str | None:
    """A text as the ledger writes times; SQLite's own functions round them.

    Without an offset it is taken to be UTC, so that its row is looked at, and refused.
    """
    try:
        read = datetime.fromisoformat(value)
        return (read if read.tzinfo else read.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (TypeError, ValueError, OverflowError):
        return None


@contextmanager
def _told_of_the_source() -> Iterator[None]:
    """Raise what the query or a value of the source has brought about as such."""
    try:
        yield
    except (sqlite3.OperationalError, OperationalError) as error:
        cause = getattr(error, "orig", error)
        if getattr(cause, "sqlite_errorcode", sqlite3.SQLITE_ERROR) != sqlite3.SQLITE_ERROR:
            raise
        cure = "; store text as UTF-8" if "decode to UTF-8" in str(cause) else ""
        raise ContractError("the source", [f"{cause}{cure}"]) from error


def _arrow(column: Sequence[Any]) -> Any:
    import pyarrow as pa

    # Arrow would make one type of several, and another one in another chunk.
    if len({*map(type, column)} - {type(None)}) > 1:
        return list(column)
    try:
        return pa.array(column)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return list(column)
