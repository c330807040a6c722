"""A large population's table is detached from PostgreSQL's readers, who never wait for it."""

import threading
from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.runs import publication, removal, staging
from batch_jobs.runs.retention import Pruned
from tests.support.attempts import app_connections, ask, claim, publish, score, seen, tick
from tests.support.faults import until
from tests.support.history import now, prune, states

HALF_DETACHED = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhdetachpending"
TABLES = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'predictions\\_r%'"


@pytest.fixture
def populations(postgres_url, monkeypatch):
    """A warehouse on PostgreSQL with two populations of a model, each with a table of its own."""
    monkeypatch.setattr("batch_jobs.runs.claims.LARGE", 1)
    made = Warehouse(postgres_url)
    made.ensure_schema()
    for number in range(2):
        publish(made, tick(number), {"a": 0.1, "b": 0.1}, mode="replace")
    return made


@pytest.fixture
def connect(populations):
    """Make a connection as an app has one, which gives up rather than wait for anybody."""
    with app_connections(populations, lock_timeout="100ms") as open_one:
        yield open_one


def _hold(connection):
    """Look at every run's table, and stay inside the transaction."""
    return connection.execute(text("SELECT count(*) FROM predictions")).scalar()


def _age(warehouse):
    return prune(warehouse, before=datetime.now(UTC))


def test_the_table_is_dropped(populations):
    """And the newest one stays."""
    assert _age(populations) == Pruned("orders", retired=1, rows=2)
    assert ask(populations, TABLES) == [("predictions_r2",)]
    assert seen(populations) == {"a": 0.1, "b": 0.1}


@pytest.mark.failure_mode(31)
def test_a_reader_that_holds_the_table_holds_nobody_up(populations, connect):
    """The prune gives up; others read and publish on; when the reader is gone, it is completed."""
    holder = connect()
    assert _hold(holder) == 4
    assert _age(populations) == Pruned("orders", left=1)
    assert states(populations) == ["retired", "published"]
    assert ask(populations, HALF_DETACHED) == [("predictions_r1",)]
    other = connect()
    for view in ("current_predictions", "prediction_history", "predictions"):
        query = text(f"SELECT count(*) FROM {view}")
        assert other.execute(query).scalar() == 2
    other.commit()
    publish(populations, tick(2), {"c": 0.3}, mode="replace")
    assert seen(populations) == {"c": 0.3}
    assert _age(populations).left == 2
    holder.commit()
    assert _age(populations) == Pruned("orders", retired=2, rows=4)
    assert ask(populations, TABLES) == [("predictions_r3",)]
    assert seen(populations) == {"c": 0.3}


def test_what_another_model_left_half_detached_is_finished_first(populations, connect):
    """PostgreSQL lets one table at a time be in that state."""
    for answer in (0.5, 0.6):
        publish(populations, tick(0), {"x": answer}, mode="replace", model="customers")
    holder = connect()
    _hold(holder)
    assert _age(populations).left == 1
    holder.commit()
    pruned = prune(populations, before=datetime.now(UTC), model="customers")
    assert pruned == Pruned("customers", retired=1, rows=1)
    assert ask(populations, HALF_DETACHED) == []
    assert _age(populations).retired == 1
    assert sorted(ask(populations, TABLES)) == [("predictions_r2",), ("predictions_r4",)]


def test_a_session_that_ends_while_it_detaches_leaves_the_rest_to_the_next(
    populations, connect, monkeypatch
):
    """Half-way between PostgreSQL's two transactions, as in a crash."""
    monkeypatch.setattr("batch_jobs.database.partitions.DETACH_TIMEOUT", "60s")
    holder = connect()
    watcher = connect().execution_options(isolation_level="AUTOCOMMIT")
    _hold(holder)
    before = now(populations)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(_age(populations)))
    thread.start()
    ended = text("""
        SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%DETACH%'
          AND pid <> pg_backend_pid()""")
    try:
        until(lambda: watcher.execute(ended).scalar(), "a table to be detached")
    finally:
        thread.join()
        holder.commit()
    assert answers == [Pruned("orders", left=1)]
    assert ask(populations, HALF_DETACHED) == [("predictions_r1",)]
    assert now(populations) == before
    assert _age(populations) == Pruned("orders", retired=1, rows=2)
    assert ask(populations, TABLES) == [("predictions_r2",)]


def test_a_population_that_failed_is_dropped_though_a_reader_is_there(populations, connect):
    """Its table was never attached, so nobody could look at it."""
    run = claim(populations, tick(2), mode="replace")
    score(populations, run, {"a": 0.3})
    holder = connect()
    _hold(holder)
    staging.fail(populations, run.run_id, "a test")
    removal.sweep(populations, "orders", datetime(2024, 1, 1, tzinfo=UTC))
    assert len(ask(populations, TABLES)) == 2
    assert publication.publish(populations, 2).state == "published"
