"""The warehouse: one database with the source tables, the ledger and the predictions.

`Warehouse` is what the library knows of it; the rest is SQLite's or PostgreSQL's own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from batch_jobs.database.connections import text
from batch_jobs.database.postgres import PostgreSQL
from batch_jobs.database.sqlite import SQLite
from batch_jobs.database.transactions import first_words, repeatable
from batch_jobs.errors import (
    ConfigurationError,
    ContractError,
    WarehouseVersionError,
)

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

SCHEMA_VERSION = 7
# Where one of these is, the table schema_version is ours, too.
OURS = ("prediction_runs", "serving_heads", "fences")
Database = SQLite | PostgreSQL
DATABASES: Mapping[str, type[Database]] = {"sqlite": SQLite, "postgresql": PostgreSQL}


class Warehouse:
    """A way to the warehouse; nothing is opened before it is needed.

    Args:
        url: SQLAlchemy URL, such as `sqlite:////srv/batch/warehouse.db` or
            `postgresql+psycopg://writer:password@db:5432/warehouse`.

    Attributes:
        database: what is SQLite's or PostgreSQL's own.

    Raises:
        ConfigurationError: the URL is not one of a supported database, or its driver is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            self._url = make_url(url)
        except (ArgumentError, ValueError):  # ValueError: a port that is no number
            # The URL itself may hold a password, so the message must not.
            raise ConfigurationError(
                "the warehouse URL is not a SQLAlchemy URL, such as sqlite:////srv/batch/w.db "
                "or postgresql+psycopg://user:password@host:5432/database"
            ) from None
        backend = self._url.get_backend_name()
        if backend not in DATABASES:
            raise ConfigurationError(
                f"the warehouse must be SQLite or PostgreSQL, got {backend}; write "
                f"sqlite:////absolute/path.db or postgresql+psycopg://user:password@host/database"
            )
        self.database = DATABASES[backend](self._url)

    @classmethod
    def existing(cls, url: str) -> Warehouse:
        """The warehouse at a URL, known to be there and of this release; see `require_schema`."""
        warehouse = cls(url)
        warehouse.require_schema()
        return warehouse

    def __str__(self) -> str:
        return self._url.set(query={}).render_as_string(hide_password=True)

    def beside(self, folder: Path, name: str) -> str:
        """The URL of a warehouse of its own that reads the source tables of this one.

        On SQLite it is the file of that name in the folder, on PostgreSQL the schema of that name.
        """
        return self.database.beside(folder, name).render_as_string(hide_password=False)

    def write(self) -> AbstractContextManager[Connection]:
        """One write transaction; commits on leaving, rolls back on an exception."""
        return self.database.writer.begin()

    def read(self) -> AbstractContextManager[Connection]:
        """One read-only snapshot."""
        return self.database.reader.begin()

    def source(self) -> AbstractContextManager[Connection]:
        """One read-only snapshot, in which a query finds the tables of the source alone.

        What is ours, `database.own` names.
        """
        return self.database.source.begin()

    def write_source(self) -> AbstractContextManager[Connection]:
        """One write transaction on the tables of the source, as samples are loaded."""
        return self.database.source_writer.begin()

    def require_query(self, subject: str, query: str, values: Mapping[str, Any]) -> None:
        """Let the database compile a query without running it.

        It must be one that can stand inside another, so it only reads.

        Raises:
            ContractError: an unknown table or column, a syntax error, or not a SELECT; the
                database's own words.
        """
        try:
            # By itself first, for the database then points at the right word.
            for form in (query, f"SELECT * FROM (\n{query}\n) AS q"):  # noqa: S608
                with self.source() as connection:
                    connection.execute(text(f"EXPLAIN {form}"), values)
        except DatabaseError as error:
            if self.database.is_passing(error):
                raise
            raise ContractError(subject, [first_words(error)]) from error
        except Warning as error:  # Python 3.11's sqlite3 calls a second statement that
            raise ContractError(subject, [str(error)]) from error

    def stream(
        self, query: str, values: Mapping[str, Any], chunk_rows: int, *, many: bool = False
    ) -> Generator[pd.DataFrame]:
        """The rows of a query in chunks, all from one snapshot.

        Where `many` are expected, the caller must be repeatable: what SQLite cannot go on with, it
        begins again.

        A query without rows gives one empty frame, so that its columns are known. Numbers, text
        and times come as Arrow has them (float64, int64, `str`, datetime64[UTC]); a column of
        mixed values stays as it is.
        """
        import pandas as pd

        for names, columns in self.database.stream(query, values, chunk_rows, many=many):
            frame = _frame(columns)
            frame.columns = pd.Index(names)
            yield frame

    def ensure_schema(self) -> bool:
        """Make the tables and views, or bring them up to this release; True if anything was made.

        Raises:
            WarehouseVersionError: a newer release made them.
            ConfigurationError: the database cannot be opened or written, or is none.
        """
        database = self.database
        try:
            with self.write() as connection:
                database.prepare(connection)
                found = _version_of(database, connection)
                self._refuse_newer(found)
                if found is None:
                    self._refuse_others(connection)
                scripts = self._scripts()
                self._refuse_unreleased(found, min(scripts))
                newer = [script for number, script in scripts.items() if number > (found or 0)]
                if not newer:
                    return False
                for script in newer:
                    database.run_script(connection, script)
                known = "UPDATE schema_version SET version = :version"
                made = "INSERT INTO schema_version VALUES (:version)"
                connection.execute(text(known if found else made), {"version": SCHEMA_VERSION})
                return True
        except DatabaseError as error:
            raise ConfigurationError(
                f"cannot make or open the warehouse {self}: {first_words(error)}{database.shortage}"
            ) from error

    def ensure_roles(self) -> list[str]:
        """Make the roles of PostgreSQL's writers and readers, and give them their rights.

        Returns:
            Statements that only the owner of the database may execute, if that is somebody else.

        Raises:
            ConfigurationError: SQLite has no roles; or whoever is connected may not make them.
        """
        try:
            with self.write() as connection:
                self.database.prepare(connection)
                return self.database.make_roles(connection)
        except DatabaseError as error:
            raise ConfigurationError(
                f"cannot make the roles of the warehouse {self}: {first_words(error)}; connect as "
                f"who made its tables, with the attribute CREATEROLE, or as a superuser"
            ) from error

    def _scripts(self) -> dict[int, str]:
        """The scripts that lead to this release, by the version each leads to, in that order.

        The first makes everything in an empty database; each other one starts where the one before
        it ended.
        """
        folder = files("batch_jobs.database").joinpath("migrations", self.database.name)
        named = {entry.name.removesuffix(".sql"): entry for entry in folder.iterdir()}
        numbered = {int(name): entry for name, entry in named.items() if name.isdecimal()}
        return {number: numbered[number].read_text("utf-8") for number in sorted(numbered)}

    def require_schema(self) -> None:
        """Check that the warehouse is there and of this release.

        Raises:
            ConfigurationError: there is none yet, an older release made it, or it cannot be read.
            WarehouseVersionError: a newer release made it.
            WarehouseUnavailableError: the database does not answer.
        """
        found = _schema_version(self)
        if found is None:
            raise ConfigurationError(f"{self} is not a warehouse yet; run `batch-jobs init`")
        self._refuse_newer(found)
        if found < SCHEMA_VERSION:
            raise ConfigurationError(
                f"the warehouse {self} has schema version {found} of an older batch-jobs; run "
                f"`batch-jobs init`, which brings it to version {SCHEMA_VERSION} and keeps its rows"
            )

    def _refuse_others(self, connection: Connection) -> None:
        """Touch nothing that is not ours, though it has one of our names."""
        made = re.findall(
            r"^CREATE (?:TABLE|VIEW) (\w+)", "\n".join(self._scripts().values()), re.MULTILINE
        )
        if theirs := sorted(self.database.names(connection) & set(made)):
            raise ConfigurationError(
                f"{self} has tables of another program whose names batch-jobs needs: "
                f"{', '.join(theirs)}; nothing was changed; {self.database.elsewhere}"
            )

    def _refuse_unreleased(self, version: int | None, first: int) -> None:
        if version is not None and version < first:
            raise ConfigurationError(
                f"the warehouse {self} has schema version {version}, from before the first release "
                f"of batch-jobs, and cannot be brought up to version {SCHEMA_VERSION}; nothing was "
                f"changed; make a new warehouse and `batch-jobs backfill` into it"
            )

    def _refuse_newer(self, version: int | None) -> None:
        if version is not None and version > SCHEMA_VERSION:
            raise WarehouseVersionError(
                f"the warehouse {self} has schema version {version}, made by a newer batch-jobs; "
                f"this release knows version {SCHEMA_VERSION}: upgrade batch-jobs"
            )


def _frame(columns: Sequence[Any]) -> pd.DataFrame:
    """Columns as a frame whose columns are numbered, since a query may name two alike."""
    import pandas as pd
    import pyarrow as pa

    if all(
        isinstance(column, pa.Array | pa.ChunkedArray)
        and not isinstance(column.type, pa.BaseExtensionType)  # such as JSON
        for column in columns
    ):
        table = pa.table(list(columns), names=[str(place) for place in range(len(columns))])
        # Of few rows, several times as fast as column by column.
        frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True, split_blocks=True)
        return frame
    found = {
        place: column.to_pandas(integer_object_nulls=True)
        if isinstance(column, pa.Array | pa.ChunkedArray)
        else pd.Series(column, dtype="object")
        for place, column in enumerate(columns)
    }
    return pd.DataFrame(found, copy=False)


@repeatable
def _schema_version(warehouse: Warehouse) -> int | None:
    with warehouse.read() as connection:
        return _version_of(warehouse.database, connection)


def _version_of(database: Database, connection: Connection) -> int | None:
    """The version of the schema; None if there is none yet, or it is another program's."""
    ours = any(database.has_table(connection, table) for table in OURS)
    if not ours or not database.has_table(connection, "schema_version"):
        return None
    version: int | None = connection.scalar(text("SELECT version FROM schema_version"))
    return version
