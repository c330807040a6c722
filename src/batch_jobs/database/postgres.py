"""The warehouse on PostgreSQL: schema `serving`, bulk data by COPY.

Every statement waits for a lock and every idle transaction for its client only so long, so that a
stopped client cannot hold the others up
(https://www.postgresql.org/docs/current/runtime-config-client.html). `options` in the URL win.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from batch_jobs.database.connections import kept_engine, lent, text
from batch_jobs.database.partitions import Partitions
from batch_jobs.database.sessions import (
    CONNECTING,
    OPTIONS,
    arguments,
    for_transaction,
    is_pooled,
    open_engine,
    settings_in,
)
from batch_jobs.errors import ConfigurationError, ContractError
from batch_jobs.interruption import Ask, aside

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "serving"
SCHEMA_PATTERN = re.compile("[a-z][a-z0-9_]{0,62}")
UNHEARD_TIMEOUT = "idle_in_transaction_session_timeout"
SEARCH = text("SELECT set_config('search_path', :path, true)")
# A client that was stopped half-way through a COPY is not idle to PostgreSQL.
COPY_TIMEOUT = "60s"
# text, char(n) and varchar: https://www.postgresql.org/docs/current/catalog-pg-type.html
TEXT_TYPES = (25, 1042, 1043)
NAIVE_TYPES = (1082, 1114)  # date, timestamp
OLDEST = 14  # the first to detach a table beside readers
EPOCH = "1970-01-01T00:00:00+00:00"
SORTING = r"^[0-9]{{4}}-[0-9][0-9]-[0-9][0-9]T[0-9][0-9]:[0-9][0-9]:[0-9.]+"
# Tables by which a warehouse is known.
# Serialisation, deadlock, lock not available, shutting down, starting up, too many connections,
# ended as idle, cancelled by a timeout.
PASSING = ("40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300", "25P03", "57014")


# A transaction that may only read; and a replica, where none may write.
READ_ONLY = ("25006", "0A000")


class PostgreSQL:
    """What is PostgreSQL's own about the warehouse; `SQLite` has the same methods.

    Args:
        url: names the database; `?schema=other` keeps everything in that schema instead of
            `serving`. Queries find the tables of the source as every client of the database does,
            by the search path of the role, and none of ours.

    Attributes:
        rows: where the rows of runs are stored.
    """

    name = "postgresql"
    for_update = "FOR UPDATE"
    free_for_update = "FOR UPDATE SKIP LOCKED"
    numbers: str | None = None
    rows_at_once = 1_000_000  # a writer keeps no other one waiting
    rows_to_sort = 0  # they go to a table that gets its index when it is full

    def __init__(self, url: URL) -> None:
        try:
            import adbc_driver_postgresql  # noqa: F401
            import psycopg  # noqa: F401
        except ImportError as error:
            raise ConfigurationError(
                f"a warehouse on PostgreSQL needs the package {error.name}; "
                f"run `pip install 'batch-jobs[postgres]'`"
            ) from error
        if url.drivername != "postgresql+psycopg":
            raise ConfigurationError(
                "spell the driver of a PostgreSQL warehouse: postgresql+psycopg://user:password"
                "@host:5432/database"
            )
        if not url.database:
            raise ConfigurationError("the warehouse URL must name a database after the host")
        self._given = url
        self.schema = str(url.query.get("schema", SCHEMA))
        if not SCHEMA_PATTERN.fullmatch(self.schema):
            raise ConfigurationError(f"the schema {self.schema!r} must match {SCHEMA_PATTERN}")
        url = url.difference_update_query(["schema"])
        path = ",".join(dict.fromkeys([self.schema, SCHEMA, "public"]))
        given = f"{OPTIONS} {url.query.get('options', '')}".strip()
        options = f"-c search_path={path} {given}"
        self._url = url.set(query={**CONNECTING, **url.query, "options": options})
        self._source = url.set(query={**CONNECTING, **url.query, "options": given})
        self._shown = url.set(query={}).render_as_string(hide_password=True)
        self.rows = Partitions(self)

    @property
    def url(self) -> URL:
        """Where it is, with the options of every session; it may hold a password."""
        return self._url

    @cached_property
    def writer(self) -> Engine:
        """Connections whose transactions write."""
        return kept_engine(self._url, lambda: open_engine(self._url, self._shown))

    @property
    def is_pooled(self) -> bool:
        """Whether a pooler stands before it, which gives each transaction another session."""
        return is_pooled(self.writer)

    @cached_property
    def reader(self) -> Engine:
        """Connections that cannot write, each transaction of one snapshot."""
        return self.writer.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    @cached_property
    def source(self) -> Engine:
        """Connections like a reader's, in which queries find the tables of the source."""
        return self.source_writer.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    @cached_property
    def source_writer(self) -> Engine:
        """Connections whose transactions write the tables of the source."""
        return kept_engine(self._source, lambda: open_engine(self._source, self._shown))

    def own(self, table: str) -> str:
        """How a query of the source names one of our tables."""
        return f"{self.schema}.{table}"

    def names(self, connection: Connection) -> set[str]:
        """The tables and views that the schema has."""
        known = """
            SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = :schema AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"""
        return set(connection.scalars(text(known), {"schema": self.schema}))

    shortage = ""  # the server says so itself

    @property
    def elsewhere(self) -> str:
        """What to write, where others have tables of our names."""
        return "keep the predictions in another schema: …?schema=batch_serving at the URL's end"

    def make_like(
        self,
        connection: Connection,
        table: str,
        query: str,
        columns: Sequence[str],  # noqa: ARG002
    ) -> None:
        """Make a table for the rows of a query of the source."""
        with self.source.connect() as source:
            path = source.scalar(text("SHOW search_path"))
        own = connection.scalar(text("SHOW search_path"))
        connection.execute(SEARCH, {"path": path})
        connection.exec_driver_sql(
            f"CREATE TABLE {self.own(table)} AS SELECT * FROM (\n{query}\n) AS q WHERE 1 = 0"  # noqa: S608
        )
        connection.execute(SEARCH, {"path": own})

    def has_table(self, connection: Connection, table: str) -> bool:
        """Whether the warehouse itself has a table of that name."""
        known = text("SELECT to_regclass(:table)")
        return connection.scalar(known, {"table": f"{self.schema}.{table}"}) is not None

    def beside(self, folder: Path, name: str) -> URL:  # noqa: ARG002
        """The URL of a warehouse of its own that reads the source tables of this one."""
        return self._given.update_query_dict({"schema": name})

    def remove(self) -> None:
        """Remove the warehouse, which must be one beside another."""
        if self.schema == SCHEMA:
            raise ConfigurationError(f"{self._shown} is a warehouse in its own right; it stays")
        with self.writer.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")

    def moment(self, column: str) -> str:
        """SQL of a source's time that can be compared with the ledger's."""
        return f"CAST({column} AS timestamptz)"

    def odd_time(self, connection: Connection, query: str) -> str | None:
        """What is true of an `as_of` that does not sort among texts where it belongs as a time.

        None if it is no text, so that PostgreSQL itself compares times.
        """
        asked = f"SELECT as_of FROM (\n{query}\n) AS f LIMIT 0"  # noqa: S608
        cursor = connection.execute(text(asked), {"start": EPOCH, "end": EPOCH}).cursor
        kind = cursor.description[0][1]
        if kind in NAIVE_TYPES:
            return "true"
        if kind not in TEXT_TYPES:
            return None
        return rf"CAST({{0}} AS text) !~ '{SORTING}(Z|[+]00:00)$'"

    def naive_time(self, column: str) -> str:
        """SQL of what is true of a time without an offset, or a date, that does not sort as one."""
        naive = "'date'::regtype, 'timestamp'::regtype"
        return f"pg_typeof({column}) IN ({naive})"

    def prepare(self, connection: Connection) -> None:
        """Make ready for the first script, one process at a time.

        Raises:
            ConfigurationError: the server is too old for the scripts.
        """
        if int(connection.scalar(text("SHOW server_version_num")) or 0) < OLDEST * 10_000:
            told = connection.scalar(text("SHOW server_version"))
            raise ConfigurationError(
                f"{self._shown} is PostgreSQL {told}; a warehouse needs {OLDEST} or newer"
            )
        if connection.scalar(text(f"SELECT to_regclass('{self.schema}.locks')")) is not None:
            self.lock_model(connection, "")
        else:  # there is nothing yet that could be locked but by name
            connection.execute(
                text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 0))"),
                {"key": f"{self.schema}."},
            )
        if connection.scalar(text(f"SELECT to_regnamespace('{self.schema}')")) is None:
            connection.execute(text(f"CREATE SCHEMA {self.schema}"))

    def run_script(self, connection: Connection, script: str) -> None:
        """Execute every statement of a script inside the caller's transaction."""
        with _cursor(connection, "schema") as cursor:
            cursor.execute(script)

    def make_roles(self, connection: Connection) -> list[str]:
        """Make the roles, and give them their rights.

        Returns:
            Statements for the owner of the database, which take away what everybody, and so a
            reader, may still create.
        """
        script = files("batch_jobs.database").joinpath("migrations", self.name, "roles.sql")
        self.run_script(connection, script.read_text("utf-8"))
        return list(
            connection.scalars(
                text("""
                    SELECT format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database())
                    WHERE has_database_privilege('public', current_database(), 'TEMPORARY')
                    UNION ALL SELECT 'REVOKE CREATE ON SCHEMA public FROM PUBLIC'
                    WHERE has_schema_privilege('public', 'public', 'CREATE')
                    UNION ALL SELECT format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC',
                                            string_agg(oid::regprocedure::text, ', '))
                    FROM pg_proc
                    WHERE pronamespace = 'pg_catalog'::regnamespace
                      AND proname ~ '^lo(_|write$|read$)'
                      AND has_function_privilege('public', oid, 'EXECUTE')
                    HAVING count(*) > 0""")
            )
        )

    def lock_model(self, connection: Connection, model: str) -> None:
        """Let one transaction at a time publish a model; the lock ends with the transaction.

        It is a row, which readers have no right to lock.
        """
        lock = text("SELECT 1 FROM locks WHERE name = :name FOR UPDATE")
        if connection.scalar(lock, {"name": model}) is None:
            connection.execute(
                text("INSERT INTO locks (name) VALUES (:name) ON CONFLICT DO NOTHING"),
                {"name": model},
            )
            connection.scalar(lock, {"name": model})

    def stream(
        self,
        query: str,
        values: Mapping[str, Any],
        chunk_rows: int,
        *,
        many: bool = False,  # noqa: ARG002
    ) -> Iterator[tuple[list[str], Sequence[Any]]]:
        """Column names and columns (Arrow) of a query, chunk by chunk, all of one snapshot.

        Raises:
            ContractError: a value of the source, such as a divisor of zero, ends the query.
        """
        with (
            self._reading() as connection,
            connection.cursor() as cursor,
            aside(cursor.adbc_cancel) as ask,
            _told_of_the_source(),
        ):
            ask(cursor.execute, _with_values(query, values) + "\n")  # it may end in a comment
            reader = cursor.fetch_record_batch()
            names = reader.schema.names
            for table in _rechunked(reader.schema, _batches(reader, ask), chunk_rows):
                yield names, list(map(_plain, reader.schema, table.columns))

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        """A connection of ADBC's driver, which cannot write.

        One statement sees one snapshot. With a transaction around it, the server would wait for its
        end as soon as all is sent, and take a client that still predicts for a stopped one. Behind
        a pooler there is no statement without one: then the server does not mind the silence.
        """
        import adbc_driver_postgresql.dbapi as adbc
        from psycopg.conninfo import make_conninfo

        given = arguments(self._source)
        options = f"{given.pop('options')} -c default_transaction_read_only=on"
        if not self.is_pooled:
            info = make_conninfo(**given, options=options)
            with lent(info, lambda: adbc.connect(info, autocommit=True), _answers) as connection:
                yield connection
            return
        told = for_transaction(settings_in(options) | {UNHEARD_TIMEOUT: "0"})
        with adbc.connect(make_conninfo(**given), autocommit=True) as connection:
            connection.adbc_connection.set_autocommit(False)  # BEGIN
            with connection.cursor() as cursor:
                cursor.execute(told)
                cursor.fetch_arrow_table()
            yield connection
            connection.adbc_connection.set_autocommit(True)  # COMMIT

    def insert(self, connection: Connection, table: str, rows: pa.Table) -> None:
        """Append rows to a table inside the caller's transaction.

        Raises:
            sqlalchemy.exc.IntegrityError: a key is there already.
        """
        from batch_jobs.database.copy import binary_rows

        binary = binary_rows(rows)
        pieces, form = (_csv(rows), "csv") if binary is None else (binary, "binary")
        statement = f"COPY {table} ({', '.join(rows.column_names)}) FROM STDIN (FORMAT {form})"
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{COPY_TIMEOUT}'")
        with _cursor(connection, statement) as cursor, cursor.copy(statement) as copy:
            for piece in pieces:
                copy.write(piece)
        connection.exec_driver_sql("SET LOCAL statement_timeout = DEFAULT")

    def is_passing(self, error: BaseException) -> bool:
        """Whether the same transaction may succeed if it is repeated."""
        state = _sqlstate(error)
        if state is None:  # the connection was lost, or there never was one
            return _is_operational(error)
        return state in PASSING or state.startswith("08")

    def is_misconfigured(self, error: BaseException) -> bool:
        """Whether the error will come again until somebody changes the database or its rights."""
        state = _sqlstate(error)
        return state is not None and state.startswith(("28", "3D", "42", *READ_ONLY))

    def is_doubled_key(self, error: BaseException) -> bool:
        """Whether the error says that a key is in a table of predictions already."""
        table = getattr(getattr(getattr(error, "orig", error), "diag", None), "table_name", None)
        return _sqlstate(error) == "23505" and self.rows.holds(table or "")

    def give_way(self, *, briefly: bool = False) -> None:
        """Let writers that wait have their turn: in PostgreSQL they queue."""

    def after_removal(self) -> None:
        """Give space back: autovacuum does."""


def _with_values(query: str, values: Mapping[str, Any]) -> str:
    """The query with its values in it: with parameters of its own, the driver cannot COPY."""
    from psycopg import sql
    from sqlalchemy.dialects.postgresql.psycopg import dialect

    compiled = str(text(query).compile(dialect=dialect()))  # type: ignore[no-untyped-call]
    return compiled % {name: sql.Literal(value).as_string() for name, value in values.items()}


def _batches(reader: pa.RecordBatchReader, ask: Ask) -> Iterator[pa.RecordBatch]:
    batches = iter(reader)
    while (batch := ask(next, batches, None)) is not None:
        yield batch


def _rechunked(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], rows: int
) -> Iterator[pa.Table]:
    """Tables of so many rows, the last one of fewer; one without rows if there is none."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    count = 0
    first = True
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows)
            held, count = table.slice(rows).to_batches(), count - rows
            first = False
    if count or first:
        yield pa.Table.from_batches(held, schema=schema)


# Words that begin what is no fault of the values.
NO_FAULT_OF_VALUES = ("canceling ", "could not ", "out of ", "terminating ")


@contextmanager
def _told_of_the_source() -> Iterator[None]:
    """Raise what a value of the source has brought about as such; it would come again.

    Once rows flow, Arrow's reader raises OSError, with the server's words and without its code.
    """
    import adbc_driver_manager

    try:
        yield
    except (adbc_driver_manager.Error, OSError) as error:
        words = str(error).partition("ERROR:")[2].strip().partition("\n")[0]
        is_mid_way = "[PGRES_FATAL_ERROR]: ERROR:" in str(error)
        if (_sqlstate(error) or "").startswith("22") or (
            is_mid_way and not words.startswith(NO_FAULT_OF_VALUES)
        ):
            raise ContractError("the source", [words or str(error)]) from error
        raise


def _answers(connection: Any) -> bool:
    """Whether a connection of ADBC, which was kept, can be used again."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            cursor.fetch_arrow_table()
    except Exception:  # noqa: BLE001 - whatever it is, another one is opened
        return False
    return True


def _csv(rows: pa.Table) -> Iterator[memoryview]:
    import pyarrow as pa
    from pyarrow import csv

    sink = pa.BufferOutputStream()
    csv.write_csv(rows, sink, csv.WriteOptions(include_header=False))
    yield memoryview(sink.getvalue())


# The first and the last date and microsecond of Python's calendar, counted from 1970; and what the
# driver makes of `infinity`.
DATES = (-719_162, 2_932_896)
MOMENTS = (DATES[0] * 86_400_000_000, (DATES[1] + 1) * 86_400_000_000 - 1)
ENDLESS_DATE = -(2**31) + 10_957 - 1
ENDLESS_MOMENT = -(2**63) + 10_957 * 86_400_000_000 - 1
LOST_BY_FLOATS = 2**53  # from here on they have no whole number for each


def _plain(field: pa.Field, column: pa.ChunkedArray) -> pa.ChunkedArray | list[Any]:
    """A column without the driver's own types: `numeric` comes as text, and becomes numbers.

    Raises:
        ContractError: it is money, which comes as a whole number of cents.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    told, kind = (field.metadata or {}).get(b"POSTGRESQL:type"), column.type
    if told == b"money":
        raise ContractError(
            "the source", [f"{field.name} is of type money; CAST({field.name} AS numeric)"]
        )
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _within_calendar(column)
    if told == b"bpchar":  # char(n), whose blanks at the end mean nothing to PostgreSQL either
        return pc.utf8_rtrim(column, " ")
    if isinstance(kind, pa.OpaqueType):
        stored = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
        return _numbers(stored) if kind.type_name == "numeric" else stored
    return column


def _within_calendar(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times that Python can hold: `infinity` is the end of its calendar, what is older the start.

    The driver adds the years from 1970 to 2000 to a number that PostgreSQL counts from 2000, and
    `infinity` is the highest one, so that it comes round to one of the lowest.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    is_date = pa.types.is_date(column.type)
    first, last = DATES if is_date else MOMENTS
    counted = column.cast(pa.int32() if is_date else pa.int64())
    if not pc.any(pc.or_(pc.less(counted, first), pc.greater(counted, last))).as_py():
        return column
    endless = pa.scalar(ENDLESS_DATE if is_date else ENDLESS_MOMENT, counted.type)
    counted = pc.if_else(pc.equal(counted, endless), pa.scalar(last, counted.type), counted)
    counted = pc.max_element_wise(counted, pa.scalar(first, counted.type), skip_nulls=False)
    counted = pc.min_element_wise(counted, pa.scalar(last, counted.type), skip_nulls=False)
    return counted.cast(column.type)


def _numbers(told: pa.ChunkedArray) -> pa.ChunkedArray | list[Decimal | None]:
    """What `numeric` says: whole numbers, or floats unless one would lose digits of a whole one.

    The text of a value is then the same whatever else is in its chunk.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if told.null_count == len(told):
        return told.cast(pa.float64())
    try:
        return told.cast(pa.int64())
    except pa.ArrowInvalid:
        floats = told.cast(pa.float64())
    if not pc.any(pc.greater_equal(pc.abs(floats), LOST_BY_FLOATS)).as_py():
        return floats
    return [None if value is None else Decimal(value) for value in told.to_pylist()]


@contextmanager
def _cursor(connection: Connection, statement: str) -> Iterator[Any]:
    """A cursor of psycopg itself, whose errors are raised as SQLAlchemy does."""
    import psycopg

    driver: Any = connection.connection.dbapi_connection
    try:
        with driver.cursor() as cursor:
            yield cursor
    except psycopg.Error as error:
        raise DBAPIError.instance(statement, None, error, psycopg.Error) from error


def _sqlstate(error: BaseException) -> str | None:
    return getattr(getattr(error, "orig", error), "sqlstate", None)


def _is_operational(error: BaseException) -> bool:
    import adbc_driver_manager
    import psycopg

    cause = getattr(error, "orig", error)
    lost = (psycopg.OperationalError, psycopg.InterfaceError, adbc_driver_manager.Error, OSError)
    return isinstance(cause, lost)
