"""On PostgreSQL a look-up opens the tables of current runs only, however many are kept."""

import threading
from contextlib import ExitStack
from datetime import UTC, datetime

import psycopg
import pytest
from sqlalchemy import text

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.runs import publication, removal, staging
from tests.support.attempts import app_connections, ask, claim, publish, score, seen, tick
from tests.support.mishaps import once

LOOK_UP = "SELECT score FROM current_predictions WHERE model = 'orders' AND entity_id = 'a'"
TABLES = """
    SELECT inhparent::regclass::text, inhrelid::regclass::text FROM pg_inherits
    WHERE inhparent::regclass::text IN ('served_predictions', 'run_predictions') ORDER BY 2"""
PAST, SERVED = "run_predictions", "served_predictions"
# Columns that this release writes and version 4 did not have.
LATER = {
    "model_versions": {"artifact_removed_at": "timestamptz", "artifact_gone": "smallint"},
    "run_parts": {"error": "text"},
    "prediction_runs": {"refused": "text"},
}


@pytest.fixture(autouse=True)
def _large(monkeypatch):
    """Every population gets a table of its own."""
    monkeypatch.setattr("batch_jobs.runs.claims.LARGE", 1)


@pytest.fixture
def impatient(monkeypatch):
    """A publication waits for no transaction of a reader's."""
    monkeypatch.setattr("batch_jobs.database.partitions.READERS_SECONDS", 0.05)


@pytest.fixture
def populations(postgres_url):
    """A warehouse on PostgreSQL."""
    made = Warehouse(postgres_url)
    made.ensure_schema()
    return made


@pytest.fixture
def connect(populations):
    """Make a connection as an app has one: in one transaction, with one snapshot if asked."""
    with app_connections(populations, lock_timeout="1s") as open_one:
        yield open_one


def _publish(populations, number, answer=None, model="orders"):
    answer = number / 10 if answer is None else answer
    rows = {"a": answer, "b": answer}
    return publish(populations, tick(number), rows, mode="replace", model=model)


def _opened(connection):
    """The tables of runs in the plan of a look-up."""
    plan = "\n".join(connection.execute(text(f"EXPLAIN {LOOK_UP}")).scalars())
    return {word for word in plan.split() if word.startswith("predictions_r") and "key" not in word}


@pytest.mark.failure_mode(73)
def test_a_look_up_opens_the_current_table_only(populations, connect):
    """Whatever has been published before, which the history still has."""
    for number in range(5):
        _publish(populations, number)
    assert _opened(connect()) == {"predictions_r5"}
    assert seen(populations) == {"a": 0.4, "b": 0.4}
    history = ask(
        populations,
        "SELECT run_id, count(*) FROM prediction_history GROUP BY run_id ORDER BY run_id",
    )
    assert history == [(run_id, 2) for run_id in range(1, 6)]


@pytest.mark.failure_mode(73)
def test_an_interval_published_again_is_moved_too(populations):
    """The run that it replaces is superseded like any other."""
    _publish(populations, 0)
    _publish(populations, 0, answer=0.7)
    assert ask(populations, TABLES) == [(PAST, "predictions_r1"), (SERVED, "predictions_r2")]
    assert seen(populations) == {"a": 0.7, "b": 0.7}


@pytest.mark.failure_mode(73)
def test_what_is_never_shown_goes_to_the_history_at_once(populations):
    """A backfill of an older interval."""
    _publish(populations, 1)
    _publish(populations, 0)
    assert ask(populations, TABLES) == [(SERVED, "predictions_r1"), (PAST, "predictions_r2")]
    assert seen(populations) == {"a": 0.1, "b": 0.1}


@pytest.mark.failure_mode(73)
def test_each_model_keeps_its_own(populations):
    """And moves what any of them has left."""
    for number in range(2):
        for model in ("orders", "customers"):
            _publish(populations, number, model=model)
    served = [table for parent, table in ask(populations, TABLES) if parent == SERVED]
    assert served == ["predictions_r3", "predictions_r4"]


@pytest.mark.failure_mode(70)
def test_an_old_snapshot_finds_all_that_was_current_then(populations, connect):
    """Though it looks for the first time when two newer runs are there; then its table moves."""
    _publish(populations, 0)
    old = connect("REPEATABLE READ")
    old.execute(text("SELECT run_id FROM serving_status")).all()
    for number in (1, 2):
        _publish(populations, number)
    assert {parent for parent, _ in ask(populations, TABLES)} == {SERVED}
    assert old.execute(text("SELECT entity_id, score FROM current_predictions")).all() == [
        ("a", 0.0),
        ("b", 0.0),
    ]
    assert seen(populations) == {"a": 0.2, "b": 0.2}
    old.rollback()
    _publish(populations, 3)
    assert [parent for parent, _ in ask(populations, TABLES)] == [PAST, PAST, PAST, SERVED]


@pytest.mark.failure_mode(71)
def test_a_transaction_that_stays_open_sees_what_is_published(
    populations, connect, impatient, in_background
):
    """It may not notice a new table, so the rows go to one that it knows; nobody else waits."""
    _publish(populations, 0)
    holder, other = connect(), connect("AUTOCOMMIT")
    assert holder.execute(text(LOOK_UP)).scalar() == 0.0
    other.execute(text("SET lock_timeout = '500ms'"))
    ended = threading.Event()

    def look():
        while not ended.is_set():
            other.execute(text(LOOK_UP)).one()  # raises if it is kept waiting

    looker = in_background(look)
    try:
        _publish(populations, 1)
    finally:
        ended.set()
    looker.result()
    assert holder.execute(text(LOOK_UP)).scalar() == 0.1
    assert ask(populations, "SELECT run_id, entity_id, score FROM shared_predictions") == [
        (2, "a", 0.1),
        (2, "b", 0.1),
    ]
    history = ask(populations, "SELECT run_id, entity_id FROM prediction_history ORDER BY 1, 2")
    assert history == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]
    holder.rollback()
    _publish(populations, 2)
    assert ask(populations, TABLES) == [(PAST, "predictions_r1"), (SERVED, "predictions_r3")]
    assert ask(populations, "SELECT to_regclass('predictions_r2') IS NULL") == [(True,)]
    assert seen(populations) == {"a": 0.2, "b": 0.2}


@pytest.mark.failure_mode(70)
def test_a_transaction_that_ends_in_time_is_waited_for(populations, connect):
    """Then nothing is copied."""
    _publish(populations, 0)
    holder = connect()
    holder.execute(text(LOOK_UP)).all()
    with once("publish.attached", lambda: threading.Timer(0.2, holder.rollback).start()):
        _publish(populations, 1)
    assert ask(populations, "SELECT count(*) FROM shared_predictions") == [(0,)]
    assert seen(populations) == {"a": 0.1, "b": 0.1}


@pytest.mark.parametrize("place", ["publish.attached", "publish.reached"])
@pytest.mark.failure_mode(72)
def test_an_attempt_that_ends_half_way_is_gone_on_with(populations, connect, impatient, place):
    """After its table was attached, and after the rows were copied; nothing comes twice."""
    _publish(populations, 0)
    holder = connect()
    holder.execute(text(LOOK_UP)).all()
    run = claim(populations, tick(1), mode="replace")
    score(populations, run, {"a": 0.1, "b": 0.1})
    with once(place, _fail), pytest.raises(RuntimeError):
        publication.publish(populations, run.run_id)
    assert holder.execute(text(LOOK_UP)).scalar() == 0.0
    publication.publish(populations, run.run_id)
    assert holder.execute(text(LOOK_UP)).scalar() == 0.1
    assert seen(populations) == {"a": 0.1, "b": 0.1}


@pytest.mark.failure_mode(72)
def test_what_an_attempt_left_attached_is_swept(populations):
    """Its rows were never shown."""
    _publish(populations, 0)
    run = claim(populations, tick(1), mode="replace")
    score(populations, run, {"a": 0.1, "b": 0.1})
    with once("publish.attached", _fail), pytest.raises(RuntimeError):
        publication.publish(populations, run.run_id)
    staging.fail(populations, run.run_id, "a test")
    removal.sweep(populations, "orders", datetime(2024, 1, 1, tzinfo=UTC))
    assert ask(populations, TABLES) == [(SERVED, "predictions_r1")]
    assert seen(populations) == {"a": 0.0, "b": 0.0}


def _fail():
    raise RuntimeError


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.failure_mode(70)
def test_each_statement_of_a_transaction_sees_one_run_whole(
    populations, connect, in_background, isolation
):
    """While tables come and move: two current rows, and all rows of what the history has."""
    _publish(populations, 0)
    ended, looks = threading.Event(), []
    look = text("SELECT run_id, count(*) FROM current_predictions GROUP BY run_id")
    look_back = text("""
        SELECT (SELECT count(*) FROM prediction_history),
               (SELECT sum(rows_scored) FROM prediction_runs
                WHERE state IN ('published', 'superseded'))""")

    def watch():
        connection = connect(isolation)
        while not ended.is_set():
            current = [connection.execute(look).all() for _ in range(10)]
            looks.append((current, connection.execute(look_back).one()))
            connection.rollback()

    watcher = in_background(watch)
    try:
        for number in range(1, 40):
            _publish(populations, number)
    finally:
        ended.set()
    watcher.result()
    seen_runs = [found for current, _ in looks for found in current]
    assert [found for found in seen_runs if [rows for _, rows in found] != [2]] == []
    assert [counts for _, counts in looks if counts[0] != counts[1]] == []
    assert len({run_id for [(run_id, _)] in seen_runs}) > 10


@pytest.mark.failure_mode(73)
def test_a_move_that_is_refused_fails_no_publication(populations, caplog):
    """It is published by then; whoever looks after the deployment is told."""
    _publish(populations, 0)
    run = claim(populations, tick(1), mode="replace")
    score(populations, run, {"a": 0.5})
    with populations.write() as connection:
        connection.execute(text("ALTER TABLE run_predictions RENAME TO away"))
    assert publication.publish(populations, run.run_id).state == "published"
    assert seen(populations) == {"a": 0.5}
    assert 'relation "run_predictions" does not exist' in caplog.text


@pytest.mark.failure_mode(73)
def test_too_many_kept_tables_are_told_of(populations, monkeypatch, caplog):
    """Before a look into the history needs more locks than the server has."""
    monkeypatch.setattr("batch_jobs.database.partitions.MANY_KEPT", 1)
    for number in range(2):
        _publish(populations, number)
    assert "tables of past runs" not in caplog.text
    _publish(populations, 2)
    assert "2 tables of past runs are kept" in caplog.text
    assert "shorter `keep`" in caplog.text


@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.failure_mode(73)
def test_one_process_does_the_work_where_others_are_connected(populations, login, is_alone):
    """So that their look-ups find a processor; else the server's own settings hold."""
    run = claim(populations, tick(0), mode="replace")
    with ExitStack() as stack:
        if not is_alone:
            stack.enter_context(psycopg.connect(login().replace("+psycopg", "")))
        with populations.write() as connection:
            before = connection.scalar(text("SHOW max_parallel_maintenance_workers"))
            populations.database.rows.spare_others(connection, run.rows_table)
            for what in ("maintenance_workers", "workers_per_gather"):
                found = connection.scalar(text(f"SHOW max_parallel_{what}"))
                assert found == (before if is_alone else "0")
