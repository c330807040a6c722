"""The warehouse is opened safely, never written by a reader, and never tells its password."""

import math
import struct
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError
from tenacity import wait_none

from batch_jobs.database import transactions
from batch_jobs.database.transactions import PATIENCE_SECONDS, loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import SCHEMA_VERSION, Warehouse
from batch_jobs.errors import (
    ConfigurationError,
    ContractError,
    WarehouseUnavailableError,
    WarehouseVersionError,
)
from tests.support.attempts import ask, publish, seen, tick

SPAN = {"start": "2024-01-01", "end": "2024-01-02"}
BOUND = "FROM t WHERE CAST(:start AS TEXT) < :end"

# What there is: tables, views and indexes with their columns or their SQL.
INVENTORY = {
    "sqlite": "SELECT name, sql FROM sqlite_master ORDER BY 1, 2",
    "postgresql": """
        SELECT table_name || '.' || column_name, data_type FROM information_schema.columns
        WHERE table_schema NOT IN ('pg_catalog', 'information_schema') UNION ALL
        SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'serving' ORDER BY 1, 2""",
}


@pytest.fixture
def numbers(warehouse):
    """The warehouse, with a table `t` of the numbers 0 to 99."""
    with warehouse.write_source() as connection:
        connection.execute(text("CREATE TABLE t (n INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (:n)"), [{"n": n} for n in range(100)])
    return warehouse


def _inventory(warehouse):
    return ask(warehouse, INVENTORY[warehouse.database.name])


def test_the_schema_is_made_once(warehouse):
    """A second `init` finds it and changes nothing."""
    before = _inventory(warehouse)
    assert len(before) > 20
    assert warehouse.ensure_schema() is False
    assert _inventory(warehouse) == before


def test_what_readers_rely_on_is_there_and_empty(warehouse):
    """Views and tables of the contract, with their columns."""
    prediction = (
        "model, entity_id, score, label, model_version, run_id, interval_start, interval_end"
    )
    for name, columns in {
        "current_predictions": f"{prediction}, published_at",
        "prediction_history": f"{prediction}, published_at, superseded_at, hindsight",
        "serving_status": "model, run_id, model_version, interval_start, interval_end, "
        "published_at, row_count, fresh_until",
        "prediction_runs": "run_id, model, interval_start, interval_end, state, model_version, "
        "rows_read, rows_scored, rows_rejected, rows_skipped, published_at, error",
        "predictions": "run_id, entity_id, part, score, label",
        "rejected_rows": "run_id, model, entity_id, reason, payload",
    }.items():
        assert ask(warehouse, f"SELECT {columns} FROM {name}") == []


def test_several_processes_may_make_the_schema_at_once(warehouse_url):
    """One makes it, the others find it made, none fails."""
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: Warehouse(warehouse_url).ensure_schema(), range(4)))
    assert sorted(made) == [False, False, False, True]


def test_a_schema_that_was_interrupted_is_not_there_at_all(warehouse_url, monkeypatch):
    """DDL is part of the transaction: half a schema can never be found."""
    warehouse = Warehouse(warehouse_url)
    with monkeypatch.context() as patch:
        patch.setattr("batch_jobs.database.warehouse.SCHEMA_VERSION", "not a number")
        with pytest.raises(ConfigurationError, match="cannot make or open the warehouse"):
            warehouse.ensure_schema()
    assert _inventory(warehouse) == []
    assert warehouse.ensure_schema() is True


# --- A release whose schema is newer than that of the warehouse

NEXT = SCHEMA_VERSION + 1
STEP = "CREATE TABLE news (n INTEGER NOT NULL);\nALTER TABLE run_parts ADD COLUMN news INTEGER;\n"
VIEWS = ("current_predictions", "serving_status", "prediction_history", "prediction_runs")


@pytest.fixture
def published(warehouse):
    """A warehouse with runs of both modes, as this release has left it."""
    publish(warehouse, tick(0), {"a": 0.1, "b": 0.3})
    publish(warehouse, tick(1), {"a": 0.4})
    publish(warehouse, tick(0), {"x": 0.5, "y": 0.6}, mode="replace", model="customers")
    publish(warehouse, tick(1), {"x": 0.7}, mode="replace", model="customers")
    return warehouse


@pytest.fixture
def next_release(monkeypatch):
    """Let this be the next release: `next_release(step)`, with a step from one to the other."""
    scripts = Warehouse._scripts

    def become(step=STEP):
        monkeypatch.setattr("batch_jobs.database.warehouse.SCHEMA_VERSION", NEXT)
        monkeypatch.setattr(Warehouse, "_scripts", lambda self: scripts(self) | {NEXT: step})

    return become


def _read(warehouse):
    return {view: ask(warehouse, f"SELECT * FROM {view} ORDER BY 1, 2, 3") for view in VIEWS}


def test_a_warehouse_of_an_older_release_is_refused_until_it_is_brought_up(published, next_release):
    """No task changes the schema under others that run; the error says what does."""
    next_release()
    with pytest.raises(
        ConfigurationError,
        match=rf"version {SCHEMA_VERSION} of an older .*run `batch-jobs init`, .* keeps its rows",
    ):
        published.require_schema()
    assert published.ensure_schema() is True
    published.require_schema()
    assert ask(published, "SELECT version FROM schema_version") == [(NEXT,)]
    assert published.ensure_schema() is False


def test_a_warehouse_that_was_brought_up_keeps_its_rows_and_is_published_to(
    published, next_release
):
    """Row by row, readers and history see what they saw; and what comes then, in both modes."""
    before = _read(published)
    next_release()
    published.ensure_schema()
    assert _read(published) == before
    assert ask(published, "SELECT * FROM news") == []
    publish(published, tick(2), {"a": 0.8, "d": 0.8})
    publish(published, tick(2), {"x": 0.9}, mode="replace", model="customers")
    assert seen(published) == {"a": 0.8, "b": 0.3, "d": 0.8, "x": 0.9}


def test_a_warehouse_is_brought_up_whole_or_not_at_all(published, next_release):
    """A step that fails leaves the version before, to be read and tried again."""
    inventory, rows = _inventory(published), _read(published)
    next_release(STEP + "CREATE TABLE news (n INTEGER NOT NULL);\n")
    with pytest.raises(ConfigurationError, match="cannot make or open"):
        published.ensure_schema()
    assert (_inventory(published), _read(published)) == (inventory, rows)
    assert ask(published, "SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]


def test_a_warehouse_from_before_the_first_release_is_refused_and_left_as_it_is(published):
    """There was no release of it; nothing is lost, and the message says what to do."""
    with published.write() as connection:
        connection.execute(text("UPDATE schema_version SET version = 2"))
    inventory, rows = _inventory(published), _read(published)
    with pytest.raises(ConfigurationError, match="version 2, from before the first release"):
        published.ensure_schema()
    assert (_inventory(published), _read(published)) == (inventory, rows)


@pytest.mark.parametrize("use", ["ensure_schema", "require_schema"])
def test_a_warehouse_of_a_newer_release_is_refused_and_left_as_it_is(warehouse, use):
    """The message names both versions and what to do; exit 2."""
    with warehouse.write() as connection:
        connection.execute(text("UPDATE schema_version SET version = 99"))
    before = _inventory(warehouse)
    with pytest.raises(
        WarehouseVersionError, match=rf"version 99.*knows version {SCHEMA_VERSION}: upgrade"
    ) as caught:
        getattr(warehouse, use)()
    assert caught.value.exit_code == 2
    assert (_inventory(warehouse), ask(warehouse, "SELECT * FROM schema_version")) == (
        before,
        [(99,)],
    )


def test_a_database_without_our_tables_is_not_a_warehouse_yet(warehouse_url):
    """It may hold the source tables already; `init` adds ours."""
    warehouse = Warehouse(warehouse_url)
    with warehouse.write() as connection:
        schema = "" if warehouse.database.name == "sqlite" else "public."
        connection.execute(text(f"CREATE TABLE {schema}orders (x INTEGER)"))
    with pytest.raises(ConfigurationError, match="is not a warehouse yet; run `batch-jobs init`"):
        warehouse.require_schema()
    assert warehouse.ensure_schema() is True
    warehouse.require_schema()
    assert ask(warehouse, "SELECT * FROM orders") == []


@pytest.mark.parametrize(
    ("url", "cure"),
    [
        ("hunter2", "sqlite:////srv/batch/w.db"),
        ("", "sqlite:////srv/batch/w.db"),
        ("mysql+pymysql://writer:hunter2@db/serving", "sqlite:////absolute/path.db or postgresql"),
        ("sqlite://writer:hunter2@/", "must name a file: sqlite:////path.db"),
        ("sqlite:///:memory:", "must name a file: sqlite:////path.db"),
        ("postgresql://writer:hunter2@db/serving", r"driver .* postgresql\+psycopg://user"),
        ("postgresql+psycopg2://w:hunter2@db/serving", r"driver .* postgresql\+psycopg://user"),
        ("postgresql+asyncpg://w:hunter2@db/serving", r"driver .* postgresql\+psycopg://user"),
        ("postgresql+psycopg://writer:hunter2@db:port/serving", "or postgresql"),
        ("postgresql+psycopg://writer:p@ss:hunter2@db/serving", "or postgresql"),
        ("postgresql+psycopg://writer:hunter2@db", "must name a database after the host"),
    ],
)
def test_a_url_that_will_not_do_is_refused_without_its_password(url, cure):
    """Neither the message nor the traceback of what caused it holds the secret; what will do is."""
    with pytest.raises(ConfigurationError, match=cure) as caught:
        Warehouse(url)
    told = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in told.replace(repr(url), "")


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://writer:hunter2@//srv/w.db",
        "postgresql+psycopg://writer:hunter2@db/serving",
        "postgresql+psycopg://writer@db/serving?password=hunter2",
    ],
)
def test_a_warehouse_shows_itself_without_its_password(url):
    """Whatever is logged of it or of its parts."""
    warehouse = Warehouse(url)
    database = warehouse.database
    shown = f"{warehouse} {warehouse!r} {database} {database!r}"
    if database.name == "postgresql":
        shown += f"{database.writer!r} {database.writer.url!r} {database.reader!r}"
    assert "hunter2" not in shown
    assert str(warehouse).startswith(url.split(":", maxsplit=1)[0])


@pytest.mark.parametrize("large", [False, True])
def test_only_rows_with_a_key_and_a_finite_score_are_stored(warehouse, large):
    """A text never lands in a number's column, nor an infinite score anywhere."""
    with warehouse.write() as connection:
        table = warehouse.database.rows.new_table(connection, 1, large=large)
    insert = text(
        f"INSERT INTO {table} (run_id, entity_id, part, score) VALUES (1, :key, 0, :score)"
    )
    for key, score in (
        ("a", "high"),
        ("a", math.inf),
        ("a", -math.inf),
        ("a", math.nan),
        ("a", None),
        (None, 0.5),
        ("", 0.5),
        ("x" * 201, 0.5),
    ):
        with pytest.raises((IntegrityError, DataError)), warehouse.write() as connection:
            connection.execute(insert, {"key": key, "score": score})
    assert ask(warehouse, f"SELECT count(*) FROM {table}") == [(0,)]


def test_a_writer_that_fails_leaves_nothing(numbers):
    """All of a transaction or none of it, tables included."""
    before = _inventory(numbers)
    with pytest.raises(ZeroDivisionError), numbers.write() as connection:  # noqa: PT012
        connection.execute(text("CREATE TABLE other (x INTEGER)"))
        connection.execute(text("DELETE FROM t"))
        raise ZeroDivisionError
    assert ask(numbers, "SELECT count(*) FROM t") == [(100,)]
    assert _inventory(numbers) == before


def test_a_reader_cannot_write(numbers):
    """The connection itself is read-only, whatever a query tries."""
    refusal = {"sqlite": "readonly", "postgresql": "read-only transaction"}[numbers.database.name]
    for sql in ("DELETE FROM t", "INSERT INTO t VALUES (1)", "DROP TABLE t"):
        with pytest.raises(DatabaseError, match=refusal), numbers.read() as connection:
            connection.execute(text(sql))
    assert ask(numbers, "SELECT count(*) FROM t") == [(100,)]


WRONG = {
    f"SELECT colour {BOUND}": {
        "sqlite": "no such column: colour",
        "postgresql": 'column "colour" does not exist',
    },
    f"SELECT n {BOUND.replace(' t ', ' orderz ')}": {
        "sqlite": "no such table: orderz",
        "postgresql": 'relation "orderz" does not exist',
    },
    f"SELEKT n {BOUND}": {
        "sqlite": 'near "SELEKT": syntax error',
        "postgresql": 'syntax error at or near "SELEKT"',
    },
    f"SELECT n {BOUND}; DROP TABLE t": {
        "sqlite": "You can only execute one statement at a time.",
        "postgresql": "cannot insert multiple commands into a prepared statement",
    },
    "DELETE FROM t WHERE CAST(:start AS TEXT) < :end": {
        "sqlite": 'near "DELETE": syntax error',
        "postgresql": 'syntax error at or near "FROM"',
    },
}


def test_a_query_that_does_not_compile_is_told_in_the_words_of_the_database(numbers):
    """Before anything is claimed; a query that writes is none."""
    for query, words in WRONG.items():
        with pytest.raises(ContractError) as caught:
            numbers.require_query("features_query of orders", query, SPAN)
        assert str(caught.value) == f"features_query of orders: {words[numbers.database.name]}"
    assert ask(numbers, "SELECT count(*) FROM t") == [(100,)]


def test_a_query_may_end_in_a_comment_and_begin_with_a_with(numbers):
    """What compiles by itself compiles, and is read."""
    for query in (f"SELECT n {BOUND} -- all", f"WITH u AS (SELECT n {BOUND}) SELECT * FROM u"):
        numbers.require_query("features_query of orders", query, SPAN)
        (chunk,) = numbers.stream(query, SPAN, 1000)
        assert len(chunk) == 100


def test_a_query_is_streamed_in_chunks(numbers):
    """Every row once, in order, no more than asked for at a time."""
    for size in (1, 7, 100, 1000):
        chunks = list(numbers.stream(f"SELECT n {BOUND} ORDER BY n", SPAN, size))
        assert [n for chunk in chunks for n in chunk["n"]] == list(range(100))
        assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)


def test_a_query_without_rows_tells_its_columns(numbers):
    """So that a missing one is found in an empty interval, too."""
    query = "SELECT n, 1 AS one FROM t WHERE CAST(:start AS TEXT) > :end"
    (only,) = numbers.stream(query, SPAN, 10)
    assert (list(only), len(only)) == (["n", "one"], 0)


@pytest.mark.failure_mode(56)
def test_all_chunks_are_of_one_snapshot(numbers):
    """What a writer commits between two chunks is not seen by either."""
    chunks = numbers.stream(f"SELECT n {BOUND} ORDER BY n", SPAN, 10)
    first = next(chunks)
    with numbers.write() as connection:
        connection.execute(text("INSERT INTO t SELECT n + 1000 FROM t"))
        connection.execute(text("UPDATE t SET n = -1 WHERE n = 99"))
    rest = [n for chunk in chunks for n in chunk["n"]]
    assert [*first["n"], *rest] == list(range(100))


def test_a_stream_cannot_write(numbers):
    """Not even with a query that nobody looked at before."""
    query = {
        "sqlite": "DELETE FROM t RETURNING n",
        "postgresql": "WITH gone AS (DELETE FROM t RETURNING n) SELECT * FROM gone",
    }[numbers.database.name]
    with pytest.raises(Exception, match=r"readonly|read-only transaction"):
        list(numbers.stream(query, {}, 10))
    assert ask(numbers, "SELECT count(*) FROM t") == [(100,)]


def test_values_stay_as_the_database_gave_them(warehouse):
    """An integer beside a NULL stays an integer, whatever else is in its chunk."""
    sql = "SELECT 1152921504606846977 AS big WHERE CAST(:start AS TEXT) < :end UNION ALL"
    (chunk,) = warehouse.stream(f"{sql} SELECT NULL", SPAN, 10)
    assert chunk["big"].tolist() == [2**60 + 1, None]


TEXTS = {
    "plain": "plain",
    "quotes": 'it\'s "quoted" \'\' ""',
    "separators": "a,b;c\td|e",
    "lines": "one\ntwo\rthree\r\nfour\n",
    "backslashes": "\\ \\\\ \\n \\N \\.",
    "end of data": "\\.",
    "null": "NULL",
    "copy's null": "\\N",
    "percent": "100% %s %(x)s {0} :start $1 ?",
    "injection": "'; DROP TABLE predictions; --",
    "emoji": "🛩️👩‍👩‍👧‍👦",
    "right to left": "\u202e\u05e2\u05d1\u05e8\u05d9\u05ea\u200f",
    "accents": "caf\u00e9 cafe\u0301",
    "spaces": "  \u00a0\u2003 ",
    "control": "\x01\x1b[31m\x7f",
    "200 characters": "ß" * 200,
}
FLOATS = [
    *(0.0, -0.0, 0.1, 1 / 3, 1e308, -1e308, 5e-324, -5e-324, 2.2250738585072014e-308),
    *(1.7976931348623157e308, math.pi, 1.0, 123456789.123456789),
]


@pytest.mark.parametrize("large", [False, True])
def test_texts_arrive_to_the_byte(warehouse, large):
    """As key, as label and as reason of a rejection; an empty text is not NULL."""
    texts = list(TEXTS.values())
    labels = [*reversed(texts[1:]), None]
    reasons = [*texts, ""]
    with warehouse.write() as connection:
        table = warehouse.database.rows.new_table(connection, 1, large=large)
        rows = _rows(texts, [0.5] * len(texts), labels)
        warehouse.database.insert(connection, table, rows)
        rejects = {
            "run_id": pa.array([1] * len(reasons), pa.int64()),
            "model": ["orders"] * len(reasons),
            "entity_id": [str(number) for number in range(len(reasons))],
            "reason": reasons,
            "payload": ["{}"] * len(reasons),
            "part": pa.array([0] * len(reasons), pa.int32()),
        }
        warehouse.database.insert(connection, "rejected_rows", pa.table(rejects))
    assert dict(ask(warehouse, f"SELECT entity_id, label FROM {table}")) == dict(
        zip(texts, labels, strict=True)
    )
    stored = ask(warehouse, "SELECT reason FROM rejected_rows ORDER BY CAST(entity_id AS INTEGER)")
    assert [reason for (reason,) in stored] == reasons
    (read,) = warehouse.stream(f"SELECT entity_id FROM {warehouse.database.own(table)}", {}, 100)
    assert set(read["entity_id"]) == set(texts)


def test_an_empty_label_is_no_missing_label(warehouse):
    """CSV knows no difference unless one quotes."""
    with warehouse.write() as connection:
        table = warehouse.database.rows.new_table(connection, 1, large=False)
        warehouse.database.insert(connection, table, _rows(["a", "b"], [0.1, 0.2], ["", None]))
    assert ask(warehouse, f"SELECT label FROM {table} ORDER BY entity_id") == [("",), (None,)]


@pytest.mark.parametrize("large", [False, True])
def test_scores_arrive_to_the_bit(warehouse, large):
    """Also the smallest and the largest there are; the sign of zero is lost on SQLite."""
    keys = [f"{number:02}" for number in range(len(FLOATS))]
    with warehouse.write() as connection:
        table = warehouse.database.rows.new_table(connection, 1, large=large)
        rows = _rows(keys, FLOATS, [None] * len(keys))
        warehouse.database.insert(connection, table, rows)
    bits = [struct.pack("<d", value) for value in FLOATS]
    if warehouse.database.name == "sqlite":
        bits[1] = bits[0]
    query = f"SELECT score FROM {table} ORDER BY entity_id"
    assert [struct.pack("<d", score) for (score,) in ask(warehouse, query)] == bits
    (chunk,) = warehouse.stream(query.replace(table, warehouse.database.own(table)), {}, 100)
    assert [struct.pack("<d", score) for score in chunk["score"]] == bits


def test_a_key_that_is_there_already_takes_back_all_rows_beside_it(warehouse):
    """The transaction has all of them or none."""
    with warehouse.write() as connection:
        table = warehouse.database.rows.new_table(connection, 1, large=False)
        warehouse.database.insert(connection, table, _rows(["a"], [0.5], [None]))
    with pytest.raises(IntegrityError), warehouse.write() as connection:
        warehouse.database.insert(connection, table, _rows(["b", "a"], [0.1, 0.2], [None] * 2))
    assert ask(warehouse, f"SELECT entity_id, score FROM {table}") == [("a", 0.5)]


def _rows(keys, values, labels):
    return pa.table(
        {
            "run_id": pa.array([1] * len(keys), pa.int64()),
            "entity_id": pa.array(keys, pa.string()),
            "part": pa.array([0] * len(keys), pa.int32()),
            "score": pa.array(values, pa.float64()),
            "label": pa.array(labels, pa.string()),
        }
    )


class BusyError(Exception):
    """What a database that is asked again may have got over."""


@pytest.fixture
def working(warehouse, monkeypatch):
    """Let something work for so many seconds at a time, and then find the database busy."""
    moment = 0.0
    monkeypatch.setattr(transactions, "monotonic", lambda: moment)
    monkeypatch.setattr(transactions, "wait_random_exponential", lambda **_: wait_none())
    monkeypatch.setattr(
        warehouse.database, "is_passing", lambda error: isinstance(error, BusyError)
    )

    @repeatable
    def work(_, lengths):
        nonlocal moment
        while lengths:
            moment += lengths.pop(0)
            raise BusyError("it is busy")
        return "done"

    return lambda *lengths: work(warehouse, list(lengths))


def test_patience_begins_with_the_first_failure(working):
    """However long the work before it had taken; and then it lasts as long as ever."""
    assert working(10 * PATIENCE_SECONDS) == "done"
    assert working(10 * PATIENCE_SECONDS, *[1] * (PATIENCE_SECONDS - 1)) == "done"


def test_lost_patience_tells_the_tries_and_their_true_time(working):
    """From the first failure to the last."""
    with pytest.raises(WarehouseUnavailableError, match="work through, 3 times within 50 s: it is"):
        working(60, 20, 30, 40)
    with pytest.raises(
        WarehouseUnavailableError, match=r"through, 2 times within 60 s: it is busy$"
    ):
        working(60, 60)


def test_stored_times_sort_as_time():
    """With and without a fraction, of whatever zone they came."""
    moment = datetime(2024, 2, 29, 12, tzinfo=UTC)
    moments = [moment + timedelta(microseconds=n) for n in (-1, 0, 1, 500_000, 1_000_000)]
    assert sorted(map(stored_time, moments)) == list(map(stored_time, moments))
    assert stored_time(moment.astimezone(timezone(timedelta(hours=9)))) == stored_time(moment)
    assert list(map(loaded_time, map(stored_time, moments))) == moments


@pytest.fixture
def aside(warehouse):
    """A warehouse of its own beside another, whose tables it may read."""
    if warehouse.database.name == "sqlite":
        path = warehouse.database._path
        return Warehouse(f"sqlite:///{path.parent}/aside.db?source={path}")
    url = warehouse.database._url.render_as_string(hide_password=False)
    return Warehouse(f"{url.partition('?')[0]}?schema=aside")


def test_a_warehouse_beside_another_reads_its_sources_and_keeps_its_own_ledger(warehouse, aside):
    """As a replay does: of what both have a table for, each has its own."""
    with warehouse.write_source() as connection:
        connection.execute(text("CREATE TABLE goods (entity_id TEXT)"))
        connection.execute(text("INSERT INTO goods VALUES ('a'), ('b')"))
    publish(warehouse, tick(0), rows={"a": 0.5})
    aside.ensure_schema()

    with aside.source() as connection:
        assert connection.scalar(text("SELECT count(*) FROM goods")) == 2
    assert ask(aside, "SELECT count(*) FROM prediction_runs") == [(0,)]
    publish(aside, tick(1), rows={"b": 0.7})
    assert seen(aside) == {"b": 0.7}
    assert seen(warehouse) == {"a": 0.5}


def test_a_large_population_is_published_beside_another(warehouse, aside):
    """Its rows get a table of their own, in their own place."""
    aside.ensure_schema()
    publish(aside, tick(0), rows={"a": 0.5}, mode="replace")
    publish(aside, tick(1), rows={"b": 0.7}, mode="replace")
    assert seen(aside) == {"b": 0.7}
    assert seen(warehouse) == {}


def test_what_is_beside_another_cannot_write_it(warehouse, aside):
    """On SQLite the source is read only; on PostgreSQL the names lead to its own tables."""
    aside.ensure_schema()
    with aside.write() as connection:
        connection.execute(text("UPDATE schema_version SET version = 9"))
    assert ask(warehouse, "SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]
    assert ask(aside, "SELECT version FROM schema_version") == [(9,)]


# --- Tables of others that have our names

TAKEN = ("promotions", "predictions", "incidents", "requests", "schema_version", "fences")


@pytest.fixture
def shared(warehouse_url, tmp_path):
    """A warehouse whose source has tables of our names, and the rows of each in it."""
    warehouse = Warehouse(warehouse_url)
    if warehouse.database.name == "sqlite":
        warehouse = Warehouse(f"sqlite:///{tmp_path}/own.db?source={tmp_path}/warehouse.db")
        (tmp_path / "warehouse.db").touch()
    with warehouse.write_source() as connection:
        for table in TAKEN:
            connection.execute(text(f"CREATE TABLE {table} (version VARCHAR(9), n INTEGER)"))
            connection.execute(text(f"INSERT INTO {table} VALUES ('1.2', 50)"))
    warehouse.ensure_schema()
    return warehouse


@pytest.mark.parametrize("table", TAKEN)
def test_a_query_finds_the_sources_table_whatever_ours_are_called(shared, table):
    """In each way that a query is asked; ours are there, too, and empty."""
    query = f"SELECT n FROM {table} WHERE CAST(:start AS TEXT) < CAST(:end AS TEXT)"
    shared.require_query("features_query", query, SPAN)
    (chunk,) = shared.stream(query, SPAN, 10)
    with shared.source() as connection:
        found = connection.scalar(text(query), SPAN)
    assert (chunk["n"].tolist(), found) == ([50], 50)
    if table != "schema_version":
        assert ask(shared, f"SELECT count(*) FROM {table}") == [(0,)]


@pytest.mark.parametrize("table", TAKEN)
@pytest.mark.parametrize("value", ["'1.2'", "3", "5", "42"])
def test_tables_of_another_program_are_refused_by_name_and_stay_as_they_are(tmp_path, table, value):
    """A common name does not make it ours, whatever version it tells."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/shop.db")
    with warehouse.write() as connection:
        connection.execute(text(f"CREATE TABLE {table} (version)"))
        connection.execute(text(f"INSERT INTO {table} VALUES ({value})"))
    before = _inventory(warehouse)
    with pytest.raises(ConfigurationError, match="is not a warehouse yet"):
        warehouse.require_schema()
    with pytest.raises(ConfigurationError, match=rf"needs: {table}; .*\?source=.*shop.db"):
        warehouse.ensure_schema()
    assert _inventory(warehouse) == before
    assert [str(version) for (version,) in ask(warehouse, f"SELECT * FROM {table}")] == [
        value.strip("'")
    ]


def test_a_schema_of_another_program_is_refused_by_name(postgres_url):
    """On PostgreSQL another schema is all that it takes."""
    warehouse = Warehouse(postgres_url)
    with warehouse.write_source() as connection:
        connection.execute(text("CREATE SCHEMA serving"))
        connection.execute(text("CREATE TABLE serving.mutes (x text)"))
    with pytest.raises(ConfigurationError, match=r"needs: mutes; .*\?schema=batch_serving"):
        warehouse.ensure_schema()
    assert Warehouse(f"{postgres_url}?schema=batch_serving").ensure_schema() is True
