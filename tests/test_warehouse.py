"""The warehouse is opened safely, never written by a reader, and never tells its password."""

import sqlite3
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError

from batch_jobs.errors import ConfigurationError, ContractError, WarehouseVersionError
from batch_jobs.warehouse import Warehouse, loaded_time, stored_time

SPAN = {"start": "2024-01-01", "end": "2024-01-02"}
BOUND = "FROM t WHERE :start < :end"


@pytest.fixture
def numbers(warehouse):
    """The warehouse, with a table `t` of the numbers 0 to 99."""
    with warehouse.write() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER) STRICT"))
        connection.execute(text("INSERT INTO t VALUES (:n)"), [{"n": n} for n in range(100)])
    return warehouse


def _ask(warehouse, sql):
    with warehouse.read() as connection:
        return connection.execute(text(sql)).all()


def test_the_schema_is_made_once(warehouse):
    """A second `init` finds it and changes nothing."""
    before = _ask(warehouse, "SELECT name, sql FROM sqlite_master ORDER BY name")
    assert warehouse.ensure_schema() is False
    assert _ask(warehouse, "SELECT name, sql FROM sqlite_master ORDER BY name") == before


def test_what_readers_rely_on_is_there_and_empty(warehouse):
    """Views and tables of the contract, with their columns."""
    prediction = (
        "model, entity_id, score, label, model_version, run_id, interval_start, interval_end"
    )
    for name, columns in {
        "current_predictions": f"{prediction}, published_at",
        "prediction_history": f"{prediction}, published_at, superseded_at",
        "serving_status": "model, run_id, model_version, interval_start, interval_end, "
        "published_at, row_count, fresh_until",
        "prediction_runs": "run_id, model, interval_start, interval_end, state, model_version, "
        "rows_read, rows_scored, rows_rejected, rows_skipped, published_at, error",
        "rejected_rows": "run_id, model, entity_id, reason, payload",
    }.items():
        assert _ask(warehouse, f"SELECT {columns} FROM {name}") == []


def test_several_processes_may_make_the_schema_at_once(tmp_path):
    """One makes it, the others find it made, none fails."""
    url = f"sqlite:///{tmp_path}/warehouse.db"
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: Warehouse(url).ensure_schema(), range(4)))
    assert sorted(made) == [False, False, False, True]


def test_a_schema_that_was_interrupted_is_not_there_at_all(tmp_path, monkeypatch):
    """DDL is part of the transaction: half a schema can never be found."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    with monkeypatch.context() as patch:
        patch.setattr("batch_jobs.warehouse.SCHEMA_VERSION", "not a number")
        with pytest.raises(ConfigurationError, match="cannot make or open the warehouse"):
            warehouse.ensure_schema()
    assert _ask(warehouse, "SELECT name FROM sqlite_master") == []
    assert warehouse.ensure_schema() is True


@pytest.mark.parametrize("use", ["ensure_schema", "require_schema"])
def test_a_warehouse_of_a_newer_release_is_refused_and_left_as_it_is(warehouse, tmp_path, use):
    """The message names both versions and what to do; exit 2."""
    with warehouse.write() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    before = (tmp_path / "warehouse.db").read_bytes()
    with pytest.raises(
        WarehouseVersionError, match=r"version 99.*knows version 1: upgrade"
    ) as caught:
        getattr(warehouse, use)()
    assert caught.value.exit_code == 2
    assert (tmp_path / "warehouse.db").read_bytes() == before


@pytest.mark.parametrize("use", ["ensure_schema", "require_schema"])
@pytest.mark.parametrize("content", [b"<html>404 not found</html>" * 100, b"PAR1" * 2000])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path, use, content):
    """A wrong path may point at somebody's data."""
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="file is not a database"):
        getattr(Warehouse(f"sqlite:///{path}"), use)()
    assert path.read_bytes() == content


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


def test_reading_before_init_says_what_to_run(tmp_path):
    """And makes no file."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/w.db")
    with pytest.raises(ConfigurationError, match="run `batch-jobs init`"):
        warehouse.require_schema()
    assert list(tmp_path.iterdir()) == []


def test_a_database_without_our_tables_is_not_a_warehouse_yet(tmp_path):
    """It may hold the source tables already; `init` adds ours."""
    sqlite3.connect(tmp_path / "w.db").executescript("CREATE TABLE orders (x); PRAGMA user_version")
    warehouse = Warehouse(f"sqlite:///{tmp_path}/w.db")
    with pytest.raises(ConfigurationError, match="is not a warehouse yet; run `batch-jobs init`"):
        warehouse.require_schema()
    assert warehouse.ensure_schema() is True
    warehouse.require_schema()


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "postgresql://writer:hunter2@db/serving",
        "postgresql://writer:hunter2@db:port/serving",
        "postgresql://writer:p@ss:hunter2@db/serving",
        "mysql+pymysql://writer:hunter2@db/serving",
        "sqlite://writer:hunter2@/",
        "",
    ],
)
def test_a_url_that_will_not_do_is_refused_without_its_password(url):
    """Neither the message nor the traceback of what caused it holds the secret."""
    with pytest.raises(ConfigurationError) as caught:
        Warehouse(url)
    told = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in told.replace(repr(url), "")
    assert "sqlite:////" in str(caught.value)


def test_a_warehouse_shows_itself_without_its_password(tmp_path):
    """Whatever is logged of it."""
    warehouse = Warehouse(f"sqlite://writer:hunter2@/{tmp_path}/w.db")
    assert "hunter2" not in str(warehouse) + repr(warehouse) + f"{warehouse}"


def test_the_database_is_in_wal_mode_with_full_sync(warehouse):
    """Readers are not blocked by a writer, and a commit survives a power cut."""
    with warehouse.write() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert found == ["wal", 2, 1, 30_000]


def test_tables_are_strict_and_scores_finite(warehouse):
    """A text never lands in a number's column, nor an infinite score anywhere."""
    insert = text(
        "INSERT INTO predictions (run_id, entity_id, part, score) VALUES (1, :key, 0, :score)"
    )
    for key, score in (
        ("a", "high"),
        ("a", float("inf")),
        ("a", None),
        ("", 0.5),
        ("x" * 201, 0.5),
    ):
        with pytest.raises(IntegrityError), warehouse.write() as connection:
            connection.execute(insert, {"key": key, "score": score})
    assert _ask(warehouse, "SELECT count(*) FROM predictions") == [(0,)]


def test_a_writer_that_fails_leaves_nothing(numbers):
    """All of a transaction or none of it, tables included."""
    with pytest.raises(ZeroDivisionError), numbers.write() as connection:  # noqa: PT012
        connection.execute(text("CREATE TABLE other (x)"))
        connection.execute(text("DELETE FROM t"))
        raise ZeroDivisionError
    assert _ask(numbers, "SELECT count(*) FROM t") == [(100,)]
    assert _ask(numbers, "SELECT name FROM sqlite_master WHERE name = 'other'") == []


@pytest.mark.parametrize("sql", ["DELETE FROM t", "INSERT INTO t VALUES (1)", "DROP TABLE t"])
def test_a_reader_cannot_write(numbers, sql):
    """The connection itself is read-only, whatever a query tries."""
    with pytest.raises(OperationalError, match="readonly"), numbers.read() as connection:
        connection.execute(text(sql))
    assert _ask(numbers, "SELECT count(*) FROM t") == [(100,)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (f"SELECT colour {BOUND}", "no such column: colour"),
        (f"SELECT n {BOUND.replace(' t ', ' orderz ')}", "no such table: orderz"),
        (f"SELEKT n {BOUND}", 'near "SELEKT": syntax error'),
        (f"SELECT n {BOUND}; DROP TABLE t", "You can only execute one statement at a time."),
        ("DELETE FROM t WHERE :start < :end", 'near "DELETE": syntax error'),
    ],
)
def test_a_query_that_does_not_compile_is_told_in_the_words_of_the_database(numbers, query, words):
    """Before anything is claimed; a query that writes is none."""
    with pytest.raises(ContractError) as caught:
        numbers.require_query("features_query of orders", query, SPAN)
    assert str(caught.value) == f"features_query of orders: {words}"
    assert _ask(numbers, "SELECT count(*) FROM t") == [(100,)]


@pytest.mark.parametrize(
    "query", [f"SELECT n {BOUND} -- all", f"WITH u AS (SELECT n {BOUND}) SELECT * FROM u"]
)
def test_a_query_may_end_in_a_comment_and_begin_with_a_with(numbers, query):
    """What compiles by itself compiles."""
    numbers.require_query("features_query of orders", query, SPAN)


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_a_query_is_streamed_in_chunks(numbers, size):
    """Every row once, in order, no more than asked for at a time."""
    chunks = list(numbers.stream(f"SELECT n {BOUND}", SPAN, size))
    assert [n for chunk in chunks for n in chunk["n"]] == list(range(100))
    assert max(map(len, chunks)) == min(size, 100)


def test_a_query_without_rows_tells_its_columns(numbers):
    """So that a missing one is found in an empty interval, too."""
    (only,) = numbers.stream("SELECT n, 1 AS one FROM t WHERE :start > :end", SPAN, 10)
    assert (list(only), len(only)) == (["n", "one"], 0)


def test_all_chunks_are_of_one_snapshot(numbers):
    """What a writer commits between two chunks is not seen by either."""
    chunks = numbers.stream(f"SELECT n, (SELECT count(*) FROM t) AS size {BOUND}", SPAN, 10)
    first = next(chunks)
    with numbers.write() as connection:
        connection.execute(text("INSERT INTO t SELECT n + 1000 FROM t"))
        connection.execute(text("UPDATE t SET n = -1 WHERE n = 99"))
    rest = [n for chunk in chunks for n in chunk["n"]]
    assert [*first["n"], *rest] == list(range(100))


def test_values_stay_as_the_database_gave_them(warehouse):
    """An integer beside a NULL stays an integer, whatever else is in its chunk."""
    sql = "SELECT 1152921504606846977 AS big WHERE :start < :end UNION ALL SELECT NULL"
    (chunk,) = warehouse.stream(sql, SPAN, 10)
    assert chunk["big"].tolist() == [2**60 + 1, None]


def test_stored_times_sort_as_time():
    """With and without a fraction, of whatever zone they came."""
    moment = datetime(2024, 2, 29, 12, tzinfo=UTC)
    moments = [moment + timedelta(microseconds=n) for n in (-1, 0, 1, 500_000, 1_000_000)]
    assert sorted(map(stored_time, moments)) == list(map(stored_time, moments))
    assert stored_time(moment.astimezone(timezone(timedelta(hours=9)))) == stored_time(moment)
    assert list(map(loaded_time, map(stored_time, moments))) == moments
