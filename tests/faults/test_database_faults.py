"""Whatever the database or the way to it does: readers keep the last good rows, a retry publishes.

Cases 22 to 24, 29 to 31 and 36 of the failure modes; some are of PostgreSQL alone.
"""

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import pytest
from sqlalchemy.engine import make_url

from batch_jobs.database.leases import new_token
from batch_jobs.errors import WarehouseUnavailableError
from batch_jobs.runs import jobs
from tests.fault_models._rows import tick
from tests.support.deployment import shown
from tests.support.faults import until
from tests.support.mishaps import (
    held,
    is_as_before,
    is_published_once,
    once,
    session,
    waiting,
    with_query,
)
from tests.support.planned import plan

CRASHES = [
    *(("plan.claimed", "ticks"), ("score.chunk_staged", "ticks"), ("publish.audited", "ticks")),
    *(("publish.locked", "ticks"), ("publish.before_commit", "ticks")),
    *(("publish.audited", "population"), ("publish.before_commit", "population")),
]
on_postgres = pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)


@on_postgres
@pytest.mark.parametrize(("place", "model"), CRASHES)
@pytest.mark.failure_mode(23)
def test_a_crash_of_the_server_at_any_step_is_outlived(deployment, place, model):
    """The same call goes on where the last transaction that was committed left it."""

    def break_it():
        assert is_as_before(deployment, model)
        deployment.crash()
        deployment.close()
        assert is_as_before(deployment, model)

    with once(place, break_it):
        run = deployment.predict(model, 1)
    assert run.state == "published"
    assert is_published_once(deployment, model)


@on_postgres
@pytest.mark.failure_mode(22)
def test_a_crash_in_the_middle_of_a_copy_stages_no_half(deployment, in_background):
    """The rows that were sent already are gone with their transaction, and are sent again."""
    with session(deployment) as admin:
        admin.execute("SELECT pg_advisory_lock(1)")
        admin.execute("""
            CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$""")
        admin.execute("""
            CREATE TRIGGER hold BEFORE INSERT ON shared_predictions FOR EACH ROW
            WHEN (NEW.entity_id = 'shared-1') EXECUTE FUNCTION hold()""")
        job = in_background(deployment.predict, "ticks", 1)
        until(lambda: waiting(deployment, "COPY shared_predictions%"), "a COPY to be under way")
        assert is_as_before(deployment)
        deployment.crash()
    deployment.close()
    assert job.result().state == "published"
    assert is_published_once(deployment)


@on_postgres
@pytest.mark.failure_mode(22)
def test_a_crash_while_the_source_is_read_reads_the_part_again(deployment, in_background):
    """From its first row on, so that all of a part come from one snapshot."""
    with session(deployment) as admin:
        admin.execute("SELECT pg_advisory_lock(1)")
        admin.execute("""
            CREATE FUNCTION held(x double precision) RETURNS double precision LANGUAGE plpgsql AS
            $$ BEGIN
              IF x = 103 AND current_query() LIKE 'COPY%' THEN
                PERFORM pg_advisory_xact_lock_shared(1);
              END IF;
              RETURN x;
            END $$""")
        admin.execute("ALTER TABLE fault_rows RENAME TO stored_rows")
        admin.execute("""
            CREATE VIEW public.fault_rows AS
            SELECT model, entity_id, at, known_at, held(x) AS x FROM stored_rows""")
        job = in_background(deployment.predict, "ticks", 1)
        until(lambda: waiting(deployment, "COPY (%"), "the source to be read")
        assert is_as_before(deployment)
        deployment.crash()
    deployment.close()
    assert job.result().state == "published"
    assert is_published_once(deployment)


@contextmanager
def locked(deployment):
    """Somebody holds what a writer needs: on PostgreSQL the claims, on SQLite the only lock."""
    if deployment.server:
        with held(deployment, "SELECT FROM fences FOR UPDATE") as holder:
            yield holder
        return
    database = make_url(deployment.url).database
    with closing(sqlite3.connect(database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield holder


@pytest.fixture
def hasty(deployment, monkeypatch):
    """Settings with which a job waits for a lock for a moment, and tries only once."""
    monkeypatch.setattr("batch_jobs.database.transactions.PATIENCE_SECONDS", 0)
    monkeypatch.setattr("batch_jobs.database.sqlite.BUSY_TIMEOUT_MS", 100)
    return with_query(deployment.settings, options="-c lock_timeout=100ms")


def is_one_clear_line(error, deployment):
    """Whether an error tells one line without the password, and lets Airflow try again."""
    secret = deployment.server.password if deployment.server else "sqlite:///?"
    return error.exit_code == 1 and "\n" not in str(error) and secret not in str(error)


@pytest.mark.failure_mode(29)
def test_a_claim_that_somebody_holds_fails_the_job_after_a_while(deployment, hasty):
    """Readers are not held up, and the same call succeeds afterwards."""
    with locked(deployment):
        with pytest.raises(WarehouseUnavailableError, match="did not let claim through") as caught:
            jobs.predict(hasty, "ticks", tick(0), force=True)
        assert is_one_clear_line(caught.value, deployment)
        assert is_as_before(deployment)
    assert jobs.predict(hasty, "ticks", tick(0), force=True).state == "published"
    assert deployment.states("ticks", 0) == ["superseded", "published"]
    assert is_as_before(deployment)


@pytest.mark.failure_mode(29)
def test_a_publication_that_somebody_holds_up_fails_and_can_be_repeated(deployment, hasty):
    """What is staged stays staged, so that only publishing is tried again."""
    run = plan(hasty, "ticks", tick(1), new_token(), parts=1)
    jobs.score(hasty, "ticks", run.run_id, 0, run.token)
    with locked(deployment):
        with pytest.raises(WarehouseUnavailableError) as caught:
            jobs.publish(hasty, run.run_id)
        assert is_one_clear_line(caught.value, deployment)
        assert is_as_before(deployment)
        assert deployment.states("ticks", 1) == ["staging"]
    assert jobs.publish(hasty, run.run_id).state == "published"
    assert is_published_once(deployment)


@pytest.mark.failure_mode(29)
def test_a_lock_that_is_released_in_time_is_waited_for(
    deployment, in_background, monkeypatch, caplog
):
    """Whole transactions are repeated, and nobody hears of it but the log."""
    monkeypatch.setattr("batch_jobs.database.sqlite.BUSY_TIMEOUT_MS", 100)
    settings = with_query(deployment.settings, options="-c lock_timeout=100ms")
    plan(settings, "ticks", tick(1), new_token())
    with locked(deployment):
        job = in_background(jobs.predict, settings, "ticks", tick(1))
        until(lambda: "trying again" in caplog.text, "the job to wait")
    assert job.result().state == "published"
    assert is_published_once(deployment, states=("failed", "published"))


@on_postgres
@pytest.mark.parametrize("model", ["ticks", "population"])
@pytest.mark.failure_mode(30)
def test_a_table_that_an_administrator_locks_fails_the_job_after_a_while(deployment, hasty, model):
    """As `VACUUM FULL` does; publishing gives up, and the same call succeeds afterwards."""
    run = plan(hasty, model, tick(1), new_token(), parts=1)
    jobs.score(hasty, model, run.run_id, 0, run.token)
    with held(deployment, "LOCK TABLE shared_predictions, served_predictions"):
        with pytest.raises(WarehouseUnavailableError, match="lock timeout") as caught:
            jobs.publish(hasty, run.run_id)
        assert is_one_clear_line(caught.value, deployment)
    assert is_as_before(deployment, model)
    assert jobs.publish(hasty, run.run_id).state == "published"
    assert is_published_once(deployment, model)


@on_postgres
@pytest.mark.failure_mode(30)
def test_a_source_that_an_administrator_locks_fails_the_job_after_a_while(deployment, hasty):
    """The source is read by another driver, whose errors are told alike."""
    run = plan(hasty, "ticks", tick(1), new_token(), parts=1)
    with held(deployment, "LOCK TABLE fault_rows"):
        with pytest.raises(WarehouseUnavailableError, match="lock timeout") as caught:
            jobs.score(hasty, "ticks", run.run_id, 0, run.token)
        assert is_one_clear_line(caught.value, deployment)
        assert is_as_before(deployment)
    jobs.score(hasty, "ticks", run.run_id, 0, run.token)
    jobs.publish(hasty, run.run_id)
    assert is_published_once(deployment)


@on_postgres
@pytest.mark.parametrize("model", ["ticks", "population"])
@pytest.mark.parametrize("mode", ["SHARE", "ACCESS EXCLUSIVE"])
@pytest.mark.failure_mode(30)
def test_a_publication_that_waits_for_a_table_holds_no_reader_up(
    deployment, in_background, model, mode
):
    """A reader waits for the administrator alone, and for nobody beside a milder lock."""
    tables = "shared_predictions, served_predictions, current_rows"
    place = {"ticks": "publish.locked", "population": "publish.audited"}[model]
    with ExitStack() as admin:
        lock = held(deployment, f"LOCK TABLE {tables} IN {mode} MODE")
        with once(place, lambda: holders.append(admin.enter_context(lock))):
            holders = []
            job = in_background(deployment.predict, model, 1)
            (ours, _) = until(lambda: waiting(deployment, "%"), "the publication to wait")[0]
        holder = holders[0].info.backend_pid
        if mode == "SHARE":
            assert is_as_before(deployment, model)
        else:
            reader = in_background(deployment.seen, model)
            query = "%FROM current_predictions%"
            ((pid, blocking),) = until(lambda: waiting(deployment, query), "a reader to wait")
            assert (blocking, pid == ours) == ([holder], False)
    assert job.result().state == "published"
    if mode != "SHARE":
        assert reader.result() in (shown(model, [0]), shown(model, [0, 1]))
    assert is_published_once(deployment, model)


@on_postgres
@pytest.mark.failure_mode(31)
def test_a_long_reader_delays_neither_a_publication_nor_other_readers(deployment, monkeypatch):
    """And it goes on reading what it has begun to read, to the row."""
    monkeypatch.setattr("batch_jobs.database.partitions.READERS_SECONDS", 0.1)
    reading = "SELECT entity_id, score, run_id FROM current_predictions ORDER BY model, entity_id"
    with held(deployment, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY") as reader:
        rows = reader.execute(reading).fetchall()
        for model in ("ticks", "population"):
            assert deployment.predict(model, 1).state == "published"
            assert deployment.seen(model) == shown(model, [0, 1])
        assert reader.execute(reading).fetchall() == rows
    assert deployment.unsound() == []


@on_postgres
@pytest.mark.failure_mode(36)
def test_a_deadlock_is_resolved_by_trying_again(deployment, in_background, caplog):
    """PostgreSQL ends our transaction; the other one and then ours go through."""
    settings = with_query(deployment.settings, options="-c deadlock_timeout=50ms")
    with session(deployment, autocommit=False) as other:
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("SELECT FROM serving_heads FOR UPDATE")

        def cross():
            crossing.append(in_background(other.execute, "SELECT FROM fences FOR UPDATE"))
            until(lambda: waiting(deployment, "SELECT FROM fences%"), "the other to wait for us")

        crossing = []
        with once("publish.locked", cross):
            job = in_background(jobs.predict, settings, "ticks", tick(1))
            until(lambda: crossing, "our transaction to hold its claim")
            crossing[0].result()
        assert is_as_before(deployment)
        other.commit()
    assert job.result().state == "published"
    assert "deadlock detected; trying again" in caplog.text
    assert is_published_once(deployment)


@on_postgres
@pytest.mark.failure_mode(36)
def test_what_cannot_be_serialized_is_tried_again(deployment, caplog):
    """A database whose transactions are stricter by default is served as well."""
    strict = "-c default_transaction_isolation=repeatable\\ read"
    settings = with_query(deployment.settings, options=strict)

    def change():
        with session(deployment) as other:
            other.execute("UPDATE serving_heads SET fresh_until = fresh_until")

    with once("publish.locked", change):
        assert jobs.predict(settings, "ticks", tick(1)).state == "published"
    assert "could not serialize access due to concurrent update; trying again" in caplog.text
    assert is_published_once(deployment)


@pytest.mark.failure_mode(36)
def test_one_attempt_that_claims_many_times_at_once_has_one_run(deployment):
    """As a task does whose message was delivered twice."""
    token, ready = new_token(), threading.Barrier(4)

    def claim():
        ready.wait(60)
        return plan(deployment.settings, "ticks", tick(1), token).run_id

    with ThreadPoolExecutor(4) as pool:
        claims = [pool.submit(claim) for _ in range(4)]
    assert len({claimed.result() for claimed in claims}) == 1
    assert deployment.states("ticks", 1) == ["staging"]
    assert deployment.predict("ticks", 1, token=token).state == "published"
    assert is_published_once(deployment)


@on_postgres
@pytest.mark.failure_mode(24)
def test_a_server_that_comes_back_in_time_is_waited_for(deployment, in_background, caplog):
    """A restart of the server costs a job some seconds and nobody an alert."""
    deployment.server.stop()
    job = in_background(deployment.predict, "ticks", 1)
    until(lambda: "trying again" in caplog.text, "the job to wait")
    deployment.server.start()
    deployment.close()
    assert job.result().state == "published"
    assert is_published_once(deployment)


@on_postgres
@pytest.mark.failure_mode(24)
def test_a_server_that_stays_away_fails_the_job_with_one_clear_line(deployment, hasty):
    """It says which warehouse, without its password; the next try finds everything as it was."""
    deployment.server.stop()
    with pytest.raises(WarehouseUnavailableError, match="did not answer") as caught:
        jobs.predict(hasty, "ticks", tick(1))
    deployment.server.start()
    deployment.close()
    assert is_one_clear_line(caught.value, deployment)
    assert is_as_before(deployment)
    assert deployment.states("ticks", 1) == []
    assert jobs.predict(hasty, "ticks", tick(1)).state == "published"
    assert is_published_once(deployment)
