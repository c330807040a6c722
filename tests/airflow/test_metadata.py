"""Airflow's own SQLite file: a savepoint takes its turn before it reads."""

import sqlite3

import pytest
from sqlalchemy import create_engine, text

from batch_jobs_airflow.metadata import CONNECT_ARGS


@pytest.fixture
def engine(tmp_path):
    """An engine as Airflow makes it, on a table of runs."""
    engine = create_engine(
        f"sqlite:///{tmp_path}/airflow.db",
        connect_args={**CONNECT_ARGS, "check_same_thread": False},
    )
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        connection.exec_driver_sql("CREATE TABLE runs (name TEXT)")
    yield engine
    engine.dispose()


def names(engine):
    """The runs that others see."""
    with engine.connect() as connection:
        return connection.scalars(text("SELECT name FROM runs ORDER BY name")).all()


@pytest.mark.failure_mode("airflow-backfill")
def test_what_reads_and_then_writes_in_a_savepoint_is_not_refused(engine, tmp_path):
    """As a backfill does beside a scheduler, which waits meanwhile."""
    with engine.connect() as backfill:
        for name in ("first", "second"):
            with backfill.begin_nested():
                backfill.scalar(text("SELECT count(*) FROM runs"))
                scheduler = sqlite3.connect(tmp_path / "airflow.db", timeout=0)
                with pytest.raises(sqlite3.OperationalError, match="locked"):
                    scheduler.execute("INSERT INTO runs VALUES ('in between')")
                scheduler.close()
                backfill.execute(text("INSERT INTO runs VALUES (:name)"), {"name": name})
        assert names(engine) == []
        backfill.commit()
    assert names(engine) == ["first", "second"]


@pytest.mark.parametrize(("process", "patience"), [("scheduler", 60_000), ("api-server", 5_000)])
def test_a_busy_machine_is_waited_for(engine, monkeypatch, process, patience):
    """By all but the API server, which could wait for itself."""
    engine.dispose()
    monkeypatch.setattr("sys.argv", ["airflow", process])
    with engine.connect() as connection:
        assert connection.scalar(text("PRAGMA busy_timeout")) == patience


def test_a_savepoint_is_rolled_back_alone(engine):
    """And the whole of a transaction with it or without it."""
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO runs VALUES ('kept')"))
        nested = connection.begin_nested()
        connection.execute(text("INSERT INTO runs VALUES ('not kept')"))
        nested.rollback()
        connection.commit()
        with connection.begin_nested():
            connection.execute(text("INSERT INTO runs VALUES ('not kept')"))
        connection.rollback()
    assert names(engine) == ["kept"]
