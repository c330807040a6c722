"""What is SQLite's own: one file, in WAL mode, never mistaken."""

import sqlite3
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from batch_jobs.database import sqlite, transactions
from batch_jobs.database.connections import close_kept
from batch_jobs.database.transactions import repeatable
from batch_jobs.database.warehouse import SCHEMA_VERSION, Warehouse
from batch_jobs.errors import (
    ConfigurationError,
    ContractError,
    WarehouseUnavailableError,
    WarehouseVersionError,
)
from tests.support.attempts import ask


@pytest.fixture
def warehouse(tmp_path):
    """A warehouse with nothing in it."""
    made = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    made.ensure_schema()
    return made


@pytest.mark.parametrize("use", ["ensure_schema", "require_schema"])
@pytest.mark.parametrize("content", [b"<html>404 not found</html>" * 100, b"PAR1" * 2000])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path, use, content):
    """A wrong path may point at somebody's data."""
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="file is not a database"):
        getattr(Warehouse(f"sqlite:///{path}"), use)()
    assert path.read_bytes() == content


def test_a_warehouse_of_a_newer_release_is_not_touched(warehouse, tmp_path):
    """To the byte."""
    with warehouse.write() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    before = (tmp_path / "warehouse.db").read_bytes()
    with pytest.raises(WarehouseVersionError, match="upgrade batch-jobs"):
        warehouse.ensure_schema()
    assert (tmp_path / "warehouse.db").read_bytes() == before


def test_a_missing_folder_is_not_made(tmp_path):
    """A path that was misspelt would else become a new warehouse."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/no/such/w.db")
    with pytest.raises(ConfigurationError, match=r"folder .*/no/such does not exist"):
        warehouse.ensure_schema()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_warehouse(tmp_path):
    """The database's own words say so."""
    with pytest.raises(ConfigurationError, match="unable to open database file"):
        Warehouse(f"sqlite:///{tmp_path}").ensure_schema()


def test_a_full_disk_is_named_beside_the_words_of_the_database(tmp_path, monkeypatch):
    """Which speaks of an error of the disk alone."""
    monkeypatch.setattr("batch_jobs.database.sqlite.LEAST_FREE", 2**80)
    (tmp_path / "w.db").mkdir()
    with pytest.raises(ConfigurationError, match=f"database file; the disk of {tmp_path} is full"):
        Warehouse(f"sqlite:///{tmp_path}/w.db").ensure_schema()


def test_reading_before_init_says_what_to_run(tmp_path):
    """And makes no file."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/w.db")
    with pytest.raises(ConfigurationError, match="run `batch-jobs init`"):
        warehouse.require_schema()
    assert list(tmp_path.iterdir()) == []


def test_the_database_is_in_wal_mode_with_full_sync(warehouse):
    """Readers are not blocked by a writer, and a commit survives a power cut."""
    with warehouse.write() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert found == ["wal", 2, 1, 30_000]


def test_tables_are_strict(warehouse):
    """A text never lands in a number's column."""
    with pytest.raises(IntegrityError, match="cannot store TEXT"), warehouse.write() as connection:
        connection.execute(
            text("INSERT INTO predictions (run_id, entity_id, part, score) VALUES (1, 'a', 0, 'x')")
        )


@pytest.mark.parametrize(
    ("values", "dtype", "read"),
    [
        ("(1), (2)", "int64", [1, 2]),
        ("(1.5), (NULL)", "float64", [1.5, None]),
        ("(1), (NULL)", "object", [1, None]),
        ("(NULL), (NULL)", "object", [None, None]),
        ("('a'), (NULL)", "str", ["a", None]),
        ("(1), ('a')", "object", [1, "a"]),
        ("(1), (1.5)", "object", [1, 1.5]),
        ("(x'00ff'), (NULL)", "object", [b"\x00\xff", None]),
        ("(9223372036854775807), (-9223372036854775808)", "int64", [2**63 - 1, -(2**63)]),
    ],
)
def test_a_column_has_the_type_of_its_values(warehouse, values, dtype, read):
    """SQLite types values, not columns; what Arrow cannot hold stays as it is."""
    (chunk,) = warehouse.stream(f"WITH v (x) AS (VALUES {values}) SELECT x FROM v", {}, 10)
    assert chunk["x"].dtype == dtype
    assert chunk["x"].astype(object).where(chunk["x"].notna(), None).tolist() == read


def test_text_that_is_no_utf_8_is_told(warehouse):
    """With the cure, not as an error of the driver."""
    with pytest.raises(ContractError, match="store text as UTF-8"):
        list(warehouse.stream("SELECT CAST(x'ff' AS TEXT) AS x", {}, 10))


@repeatable
def _write(warehouse, tries):
    with warehouse.write() as connection:
        tries.append(connection)
        connection.execute(text("UPDATE schema_version SET version = version"))


@pytest.fixture
def held(warehouse, tmp_path, monkeypatch):
    """Another connection that holds the warehouse's only lock, for which nobody waits long."""
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_MS", 20)
    close_kept()  # for those that there are wait as long as they were told when they were made
    holder = sqlite3.connect(tmp_path / "warehouse.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    yield holder
    holder.close()


def test_a_lock_that_is_released_is_waited_for(warehouse, held, monkeypatch):
    """Whole transactions are repeated."""
    tries = []

    def release(state):
        held.execute("ROLLBACK")

    monkeypatch.setattr(transactions, "_tell", release)
    _write(warehouse, tries)
    assert len(tries) == 1


def test_a_lock_that_stays_is_one_clear_error(warehouse, held, monkeypatch):
    """After patience is lost; readers never wait."""
    monkeypatch.setattr(transactions, "PATIENCE_SECONDS", 0.3)
    with pytest.raises(
        WarehouseUnavailableError, match=r"did not let _write through, \d+ times .* is locked$"
    ) as caught:
        _write(warehouse, [])
    assert "\n" not in str(caught.value)
    assert ask(warehouse, "SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]


def test_a_file_that_may_not_be_written_is_told_at_once(warehouse, monkeypatch):
    """Trying again would not help."""
    monkeypatch.setattr(transactions, "_tell", pytest.fail)
    monkeypatch.setattr(warehouse.database, "writer", warehouse.database.reader)
    with pytest.raises(ConfigurationError, match=r"refuses: attempt to write a readonly database$"):
        _write(warehouse, [])


def test_a_file_that_was_replaced_is_opened_anew(warehouse):
    """The old one would live on in the connections that are kept."""
    assert ask(warehouse, "SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]
    path = warehouse.database._path
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
    assert warehouse.ensure_schema()
    with warehouse.write() as connection:
        connection.execute(text("UPDATE schema_version SET version = 7"))
    assert ask(Warehouse(str(warehouse)), "SELECT version FROM schema_version") == [(7,)]


def test_connections_are_kept_but_not_across_a_fork(warehouse):
    """The child makes its own: two processes on one connection would ruin the file."""
    url = str(warehouse)
    ask(warehouse, "SELECT 1")
    with ProcessPoolExecutor(1, get_context("fork")) as child:
        inherited, made = child.submit(_kept, url).result()
    assert (inherited, made) == (0, 1)
    assert warehouse.database.reader.pool.checkedin() == 1
    assert ask(warehouse, "SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]


def _kept(url):
    pool = Warehouse(url).database.reader.pool
    before = pool.checkedin()
    ask(Warehouse(url), "SELECT 1")
    return before, Warehouse(url).database.reader.pool.checkedin()
