"""What is PostgreSQL's own: values inside queries, types, refusals, and errors that pass."""

import multiprocessing
import os
import sys
import traceback
from datetime import UTC, date, datetime, time
from decimal import Decimal
from threading import Thread
from time import monotonic, sleep
from uuid import uuid4

import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from tenacity import wait_none

from batch_jobs.database import connections, transactions
from batch_jobs.database import postgres as module
from batch_jobs.database.connections import close_kept
from batch_jobs.database.transactions import repeatable
from batch_jobs.database.warehouse import SCHEMA_VERSION, Warehouse
from batch_jobs.errors import ConfigurationError, ContractError, WarehouseUnavailableError
from batch_jobs.runs import staging
from batch_jobs.samples import iris, load
from tests.support.attempts import ask, claim, score, tick
from tests.support.postgres_server import free_port

NAME = "what_is_postgresqls_own"
PID = "SELECT pg_backend_pid()"


@pytest.fixture(scope="module")
def url(postgres):
    """Where one warehouse for all tests of this file is, which they leave as they find it."""
    postgres.create_database(NAME)
    Warehouse(postgres.url(NAME)).ensure_schema()
    yield make_url(postgres.url(NAME))
    postgres.drop_database(NAME)


@pytest.fixture
def warehouse(url):
    """The warehouse."""
    return _at(url)


def _at(url, options=None, **query):
    query = query if options is None else {**query, "options": options}
    return Warehouse(url.set(query=query).render_as_string(hide_password=False))


# --- A session is idle in a transaction for as long as nobody may rely on


IDLE = """SELECT query FROM pg_stat_activity
    WHERE datname = current_database() AND state LIKE 'idle in transaction%'"""


def test_no_transaction_waits_while_samples_are_made_ready(url, postgres, monkeypatch):
    """Which takes longer than the server allows."""
    seen, ready = [], iris.ready_iris

    def look(now):
        seen.extend(postgres.execute(IDLE, NAME))
        return ready(now)

    monkeypatch.setattr(iris, "ready_iris", look)
    now = datetime(2024, 3, 1, tzinfo=UTC)
    assert load.load(_at(url), now, flights=False) == {"iris": 9_450}
    assert load.load(_at(url), now, flights=False) == {"iris": 9_450}
    assert seen == []


def test_no_transaction_waits_while_a_chunk_is_made_ready(url, postgres, monkeypatch):
    """Nor while the rejected rows of a chunk are written as JSON."""
    seen, payload = [], staging._payload
    warehouse = _at(url)

    def look(row):
        seen.extend(postgres.execute(IDLE, NAME))
        return payload(row)

    monkeypatch.setattr(staging, "_payload", look)
    run = claim(warehouse, tick(0))
    score(warehouse, run, {"a": 0.5}, rejected=[("b", "it is odd", {"x": 1})])
    stored = "SELECT model, entity_id FROM rejected_rows"
    assert ask(warehouse, stored) == [("orders", "b")]
    assert seen == []


# --- Values inside a query


VALUES = [
    *("plain", "", "it's", '"quoted"', "'; DROP TABLE schema_version; --", "\\", "\\'", "\\n"),
    *("100%", "%s %(v)s %%", ":v", "::text", "$1", "/* */ --", "line\nbreak\r\n", "caf\u00e9🛩️"),
    *("\u202eabc", "x" * 5000, "E'\\x41'", "U&'\\0041'"),
]


def test_a_value_is_never_read_as_sql(warehouse):
    """Whatever is in it comes back as it was."""
    columns = ", ".join(f"CAST(:v{place} AS TEXT) AS v{place}" for place in range(len(VALUES)))
    values = {f"v{place}": value for place, value in enumerate(VALUES)}
    (chunk,) = warehouse.stream(f"SELECT {columns}", values, 10)
    assert chunk.iloc[0].tolist() == VALUES
    assert ask(warehouse, "SELECT version FROM schema_version") == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ("CAST(:v AS TEXT) || '%'", "it's%"),
        ("CAST(:v AS TEXT) LIKE '%t_s'", True),
        ("(7 % 4)::text || :v", "3it's"),
        ("'\\:v' || CAST(:v AS TEXT)", ":vit's"),
        ("'12:30'::time::text || :v", "12:30:00it's"),
        ("'{\"a\": 1}'::jsonb ? :v", False),
        ("'back\\slash' || CAST(:v AS TEXT)", "back\\slashit's"),
        ("$$dollar$$ || CAST(:v AS TEXT)", "dollarit's"),
        ('1 AS "a %(v)s b", CAST(:v AS TEXT)', "it's"),
    ],
)
def test_a_query_means_the_same_with_its_values_in_it(warehouse, sql, read):
    """Percent signs, casts, escaped colons and operators of PostgreSQL's stay what they are."""
    (chunk,) = warehouse.stream(f"SELECT {sql} AS x", {"v": "it's", "unused": 1}, 10)
    assert chunk["x"].tolist() == [read]
    assert [tuple(row)[-1] for row in ask(warehouse, f"SELECT {sql} AS x", v="it's")] == [read]


# --- Columns as they are streamed


@pytest.mark.parametrize("null", [False, True])
def test_columns_come_as_what_they_are(warehouse, null):
    """Numbers as numbers, `numeric` too; what pandas has no type for as plain objects."""
    columns = {
        "1.5::float8": ("float64", 1.5, "float64"),
        "1.5::real": ("float32", 1.5, "float32"),
        "1.25::numeric(10, 2)": ("float64", 1.25, "float64"),
        "12345678901234567890.5::numeric": (
            "object",
            Decimal("12345678901234567890.5"),
            "object",
        ),
        "7::bigint": ("int64", 7, "object"),
        "7::integer": ("int32", 7, "object"),
        "7::smallint": ("int16", 7, "object"),
        "true": ("bool", True, "object"),
        "'a'::text": ("str", "a", "str"),
        "'a'::varchar(5)": ("str", "a", "str"),
        "'ab'::name": ("str", "ab", "str"),
        """'{"a": 1}'::json""": ("str", '{"a": 1}', "str"),
        """'{"a": 1}'::jsonb""": ("str", '{"a": 1}', "str"),
        "timestamptz '2024-02-29 12:00+09'": (
            "datetime64[us, UTC]",
            pd.Timestamp("2024-02-29 03:00", tz="UTC"),
            "datetime64[us, UTC]",
        ),
        "timestamp '2024-02-29 12:00'": (
            "datetime64[us]",
            pd.Timestamp("2024-02-29 12:00"),
            "datetime64[us]",
        ),
        "date '2024-02-29'": ("object", date(2024, 2, 29), "object"),
        "time '12:30'": ("object", time(12, 30), "object"),
        "'\\x00ff'::bytea": ("object", b"\x00\xff", "object"),
    }
    names = [f"c{place}" for place in range(len(columns))]
    sql = ", ".join(f"{sql} AS {name}" for sql, name in zip(columns, names, strict=True))
    query = f"SELECT {sql}"
    if null:
        query += f" UNION ALL SELECT {', '.join(['NULL'] * len(names))}"
    (chunk,) = warehouse.stream(query, {}, 10)
    for name, (dtype, value, with_null) in zip(names, columns.values(), strict=True):
        assert chunk[name].dtype == (with_null if null else dtype), columns
        assert chunk[name][0] == value
        assert chunk[name][1:].isna().tolist() == ([True] if null else [])


def test_odd_columns_are_read_at_least(warehouse):
    """A feature that is none of these has to be cast by the query, and the reading goes on."""
    query = """
        SELECT '5b30857f-0bfa-48b5-ac0b-5c64e28078d1'::uuid AS id, ARRAY[1, 2] AS list,
          interval '1 day 2 hours' AS span, point(1, 2) AS place, 'NaN'::numeric AS nothing,
          '-Infinity'::float8 AS least"""
    (chunk,) = warehouse.stream(query, {}, 10)
    assert str(chunk["id"][0]) == "5b30857f-0bfa-48b5-ac0b-5c64e28078d1"
    assert chunk["list"][0].tolist() == [1, 2]
    assert chunk["span"][0] == pd.DateOffset(days=1, months=0, nanoseconds=7200 * 10**9)
    assert chunk["nothing"].isna().all()
    assert chunk["least"][0] == float("-inf")


def test_columns_without_a_value_have_the_type_of_the_column(warehouse):
    """Also where there is no row at all: an empty interval is checked like any other."""
    types = {
        "float8": "float64",
        "numeric": "float64",
        "text": "str",
        "timestamptz": "datetime64[us, UTC]",
    }
    columns = ", ".join(f"NULL::{name} AS {name}" for name in types)
    (null,) = warehouse.stream(f"SELECT {columns}", {}, 10)
    (none,) = warehouse.stream(f"SELECT {columns} WHERE false", {}, 10)
    assert null.isna().all(axis=None)
    assert (len(none), none.dtypes.astype(str).to_dict()) == (0, types)
    assert null.dtypes.astype(str).to_dict() == types


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9, 100])
@pytest.mark.parametrize("sizes", [[], [0], [1], [3, 0, 5, 1], [9], [2, 2, 2], [0, 0, 4]])
def test_chunks_have_the_size_that_was_asked_for(rows, sizes):
    """However the driver cuts its batches; each value once and in order."""
    schema = pa.schema({"n": pa.int64()})
    numbers = iter(range(100))
    batches = [
        pa.record_batch({"n": pa.array([next(numbers) for _ in range(size)], pa.int64())}, schema)
        for size in sizes
    ]
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    chunks = list(module._rechunked(schema, reader, rows))
    assert [n for chunk in chunks for n in chunk["n"].to_pylist()] == list(range(sum(sizes)))
    assert [len(chunk) for chunk in chunks[:-1]] == [rows] * (len(chunks) - 1)
    assert all(chunk.schema == schema for chunk in chunks)
    assert len(chunks) == max(1, -(-sum(sizes) // rows))


def test_a_client_that_takes_its_time_between_chunks_is_not_sent_away(url):
    """The server has sent everything long ago, and must not take it for one that has stopped."""
    hasty = _at(url, "-c idle_in_transaction_session_timeout=50ms -c idle_session_timeout=0")
    chunks = hasty.stream("SELECT * FROM generate_series(1, 30) AS n", {}, 10)
    first = next(chunks)
    deadline = monotonic() + 60
    query = """
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'active'
          AND query LIKE 'COPY%' AND now() - state_change > interval '200 ms'"""
    while ask(hasty, query) != [(1,)]:
        assert monotonic() < deadline
        sleep(0.01)
    assert [n for chunk in (first, *chunks) for n in chunk["n"]] == list(range(1, 31))


@pytest.mark.parametrize("wrong", [0, 1, 50_000])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1 / (n - {wrong})", "division by zero"),
        ("CAST(CASE n WHEN {wrong} THEN 'x' ELSE '1' END AS INTEGER)", 'integer: "x"'),
    ],
)
def test_a_value_that_ends_the_query_is_told_as_the_sources(warehouse, value, words, wrong):
    """From the first row on or in the midst of the answer: not as a server that does not answer."""
    query = f"SELECT {value.format(wrong=wrong)} AS x FROM generate_series(0, 60000) AS n"
    with pytest.raises(ContractError, match=f"^the source: .*{words}$"):
        _read(warehouse, [], query)
    with pytest.raises(ContractError, match=r"^the source: division by zero$"):
        _read(warehouse, [], "SELECT 1 / 0")


def test_a_query_that_somebody_cancels_is_read_again(warehouse, postgres, no_pause):
    """Nothing is wrong with its values."""
    tries = []

    @repeatable
    def read(warehouse):
        chunks = warehouse.stream("SELECT repeat('x', 1000) FROM generate_series(1, 60000)", {}, 60)
        rows = len(next(chunks))
        if not tries:
            _end_the_reader(postgres, "pg_cancel_backend")
        tries.append(rows)
        return rows + sum(map(len, chunks))

    assert (read(warehouse), len(tries)) == (60_000, 2)


def _end_the_reader(postgres, how):
    ended = postgres.execute(
        f"""
        SELECT {how}(pid) FROM pg_stat_activity
        WHERE datname = '{NAME}' AND query LIKE 'COPY%' AND state = 'active'"""
    )
    assert ended == [(True,)]


def test_a_stream_that_is_left_early_leaves_no_connection(warehouse):
    """Also in the middle of a large answer; those of the pool stay."""
    sessions = "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
    close_kept()
    kept = set(ask(warehouse, sessions))
    chunks = warehouse.stream("SELECT repeat('x', 1000) FROM generate_series(1, 60000)", {}, 10)
    assert len(next(chunks)) == 10
    assert not set(ask(warehouse, sessions)) <= kept
    chunks.close()
    deadline = monotonic() + 60
    while not set(ask(warehouse, sessions)) <= kept:
        assert monotonic() < deadline
        sleep(0.01)


# --- The connection


def test_our_sessions_are_set_up_for_a_warehouse(warehouse):
    """Each statement waits only so long for a lock, and each idle transaction for its client."""
    names = ("search_path", "timezone", "lock_timeout", "idle_in_transaction_session_timeout")
    expected = ("serving,public", "UTC", "5s", "15s")
    of_the_source = ('"$user", public', *expected[1:])  # as every client of the database has it
    query = "SELECT " + ", ".join(f"current_setting('{name}') AS {name}" for name in names)
    (chunk,) = warehouse.stream(query, {}, 1)
    assert (ask(warehouse, query), tuple(chunk.iloc[0])) == ([expected], of_the_source)


def test_a_connection_is_kept_and_made_anew_once_the_server_has_ended_it(postgres, warehouse):
    """Nothing fails for a server that was restarted since it was used."""
    [(kept,)] = ask(warehouse, PID)
    assert ask(warehouse, PID) == [(kept,)]
    postgres.execute(f"SELECT pg_terminate_backend({kept}, 10000)")
    assert ask(warehouse, PID) != [(kept,)]


READING = "SELECT pg_backend_pid() AS pid"


def _reader(warehouse):
    [frame] = warehouse.stream(READING, {}, 10)
    return frame["pid"].item()


def test_the_connection_of_a_stream_is_kept_while_it_answers(postgres, warehouse):
    """To open one costs as much as to score a thousand rows; a server that restarts ends it."""
    close_kept()
    kept = _reader(warehouse)
    assert _reader(warehouse) == kept
    postgres.execute(f"SELECT pg_terminate_backend({kept}, 10000)")
    assert _reader(warehouse) != kept


def test_the_connection_of_a_stream_is_not_kept_for_long(warehouse, monkeypatch):
    """What it knows of the types of the database may be old."""
    kept = _reader(warehouse)
    monkeypatch.setattr(connections, "LONGEST_KEPT", 0)
    assert _reader(warehouse) != kept


def test_streams_at_the_same_time_have_a_connection_each(warehouse):
    """Of which one is kept."""
    one, other = (warehouse.stream(READING, {}, 10) for _ in range(2))
    assert next(one)["pid"].item() != next(other)["pid"].item()
    assert list(one) == list(other) == []


def test_a_forked_process_leaves_its_parents_connections_alone(warehouse):
    """It makes one of its own, and its end closes none of them."""
    [(kept,)], reader = ask(warehouse, PID), _reader(warehouse)
    ours, theirs = multiprocessing.Pipe()
    child = os.fork()
    if child == 0:
        try:
            theirs.send((ask(warehouse, PID), _reader(warehouse)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert ours.poll(0)
    theirs_was, their_reader = ours.recv()
    assert theirs_was != [(kept,)]
    assert their_reader != reader
    assert (ask(warehouse, PID), _reader(warehouse)) == ([(kept,)], reader)


def test_options_of_the_url_win(url):
    """Over each of ours, one by one; the others stay."""
    other = _at(url, "-c lock_timeout=123ms", application_name="nightly", connect_timeout="3")
    names = ("lock_timeout", "application_name", "search_path")
    found = [ask(other, f"SHOW {name}")[0][0] for name in names]
    assert found == ["123ms", "nightly", "serving,public"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": "hunter2"}, "password authentication failed for user"),
        ({"password": None}, "no password supplied"),
        ({"username": "nobody", "password": "hunter2"}, "password authentication failed for user"),
        ({"database": "nowhere"}, 'database "nowhere" does not exist'),
        ({"query": {"sslmode": "often"}}, 'invalid sslmode value: "often"'),
        ({"query": {"colour": "red"}}, 'invalid connection option "colour"'),
        ({"query": {"options": "-c colour=red"}}, 'unrecognized configuration parameter "colour"'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("use", ["require_schema", "ensure_schema"])
def test_a_connection_that_is_refused_is_told_at_once(url, monkeypatch, change, words, use):
    """In one line, with exit 2, without a second try and without the password."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    monkeypatch.setattr(transactions, "PATIENCE_SECONDS", 0)
    wrong = url._replace(**change)
    with pytest.raises(ConfigurationError, match=words) as caught:
        getattr(Warehouse(wrong.render_as_string(hide_password=False)), use)()
    told = "".join(traceback.format_exception(caught.value))
    assert str(url.password) not in told
    assert "hunter2" not in told
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (2, 0)


def test_a_server_that_is_too_old_is_refused_before_anything_is_made(url, monkeypatch):
    """With its version and the oldest one that will do."""
    monkeypatch.setattr("batch_jobs.database.postgres.OLDEST", 99)
    with pytest.raises(
        ConfigurationError, match=r"is PostgreSQL 1\d\S*.*; a warehouse needs 99 or"
    ):
        _at(url).ensure_schema()


def test_a_server_that_is_not_there_is_one_clear_error_after_a_while(url, monkeypatch):
    """It may come back, so Airflow tries again; the password is not told."""
    monkeypatch.setattr(transactions, "PATIENCE_SECONDS", 0.3)
    gone = url.set(port=free_port()).render_as_string(hide_password=False)
    with pytest.raises(WarehouseUnavailableError, match=r"did not answer, .*refused") as caught:
        Warehouse(gone).require_schema()
    told = "".join(traceback.format_exception(caught.value))
    assert str(url.password) not in told
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (1, 0)


@pytest.mark.parametrize("package", ["psycopg", "adbc_driver_postgresql"])
def test_a_package_that_is_missing_is_told_with_its_cure(url, monkeypatch, package):
    """Whoever serves from SQLite does not need it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        ConfigurationError, match=rf"needs the package {package}; .*batch-jobs\[postgres\]"
    ):
        _at(url)


# --- Errors that pass and errors that stay


@repeatable
def _act(warehouse, tries, statement, before=None):
    with warehouse.write() as connection:
        tries.append(connection.scalar(text("SELECT pg_backend_pid()")))
        connection.execute(text("UPDATE schema_version SET version = version"))
        if len(tries) == 1:
            if before:
                before(tries[0])
            connection.execute(text(statement))


def _raise(code):
    return f"DO $$BEGIN RAISE EXCEPTION 'as a test' USING ERRCODE = '{code}'; END$$"


@pytest.fixture
def no_pause(monkeypatch):
    """Let nobody wait between two tries."""
    monkeypatch.setattr(transactions, "wait_random_exponential", lambda **_: wait_none())


@pytest.mark.parametrize(
    "code",
    [
        *("40001", "40P01", "55P03", "57P01", "57P02", "57P03", "53300", "25P03", "57014"),
        *("08000", "08003", "08006", "08P01"),
    ],
)
def test_an_error_that_passes_is_tried_again(warehouse, no_pause, code):
    """The whole transaction."""
    tries = []
    _act(warehouse, tries, _raise(code))
    assert len(tries) == 2


@pytest.mark.parametrize("code", ["28000", "3D000", "42501", "42P01", "42703", "25006"])
def test_an_error_of_the_setting_up_is_told_at_once(warehouse, code):
    """Until somebody changes rights or tables it would come again; exit 2."""
    tries = []
    with pytest.raises(ConfigurationError, match=r"refuses: as a test$"):
        _act(warehouse, tries, _raise(code))
    assert len(tries) == 1


@pytest.mark.parametrize("code", ["22012", "23505", "53100", "P0001", "XX000"])
def test_any_other_error_is_raised_as_it_is(warehouse, code):
    """It is not known what would mend it."""
    tries = []
    with pytest.raises(SQLAlchemyError, match="as a test"):
        _act(warehouse, tries, _raise(code))
    assert len(tries) == 1


def test_an_error_that_does_not_pass_is_told_once_patience_is_lost(warehouse, monkeypatch):
    """With what the database said last."""
    monkeypatch.setattr(transactions, "PATIENCE_SECONDS", 0.3)

    @repeatable
    def count(warehouse):
        with warehouse.write() as connection:
            connection.execute(text(_raise("40001")))

    with pytest.raises(
        WarehouseUnavailableError, match=r"did not let count through, \d+ times .*: as a test$"
    ):
        count(warehouse)


@pytest.mark.parametrize("statement", ["SELECT 1", "SELECT pg_sleep(60)"])
def test_a_connection_that_is_ended_in_the_middle_is_made_anew(
    warehouse, postgres, no_pause, statement
):
    """As by a failover; between two statements and during one."""
    tries = []

    def end(pid):
        during = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = {pid}"
        if "sleep" not in statement:
            postgres.execute(during)
            return
        Thread(target=_once_asleep, args=(postgres, during), daemon=True).start()

    _act(warehouse, tries, statement, end)
    assert len(set(tries)) == 2


def _once_asleep(postgres, during):
    deadline = monotonic() + 60
    while not postgres.execute(f"{during} AND query LIKE '%pg_sleep%'") and monotonic() < deadline:
        sleep(0.01)


@repeatable
def _read(warehouse, tries, query):
    tries.append(query)
    return sum(len(chunk) for chunk in warehouse.stream(query, {}, 1000))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT * FROM pg_authid", "permission denied for table pg_authid"),
    ],
)
def test_the_other_driver_is_understood_too(url, postgres, query, words):
    """Rows are read through ADBC, whose errors are others: undefined, forbidden."""
    role, password, tries = f"reader_{uuid4().hex}", uuid4().hex, []
    postgres.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
    try:
        with pytest.raises(ConfigurationError, match=f"refuses: .*{words}") as caught:
            _read(_at(url.set(username=role, password=password)), tries, query)
    finally:
        postgres.execute(f"DROP ROLE {role}")
    assert len(tries) == 1
    assert password not in "".join(traceback.format_exception(caught.value))


def test_a_reader_that_is_ended_in_the_middle_reads_anew(warehouse, postgres, no_pause):
    """From the first row on, in another snapshot."""
    tries = []

    @repeatable
    def read(warehouse):
        query = "SELECT repeat('x', 1000) FROM generate_series(1, 60000)"
        chunks = warehouse.stream(query, {}, 5000)
        rows = len(next(chunks))
        if not tries:
            _end_the_reader(postgres, "pg_terminate_backend")
        tries.append(rows)
        return rows + sum(map(len, chunks))

    assert read(warehouse) == 60_000
    assert len(tries) == 2


def test_a_replica_that_nobody_can_write_to_is_told_at_once(postgres_url):
    """As PostgreSQL refuses there; trying again would not help."""
    refused = psycopg.errors.FeatureNotSupported(
        "cannot set transaction read-write mode during recovery"
    )
    database = Warehouse(postgres_url).database
    assert database.is_misconfigured(refused)
    assert not database.is_passing(refused)
