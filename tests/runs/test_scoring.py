"""Reading, predicting and staging overlap; whichever fails, all three end and nothing is left."""

import sqlite3
import threading
from datetime import timedelta
from time import monotonic, sleep

import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from batch_jobs import BatchModel, Category, Number
from batch_jobs.database.connections import close_kept
from batch_jobs.database.leases import new_token
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError, FencedError
from batch_jobs.runs import publication, scoring, staging
from batch_jobs.runs.scoring import score_part
from batch_jobs.scoring.counts import Counts
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.scoring.predict import Predictor
from tests.support.attempts import ask, claim, seen, tick

# Of 200 rows in chunks of ten, the 96th is the one that goes wrong.
WRONG = 95
QUERY = """
    WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < 199)
    SELECT {key} AS entity_id, CAST(:start AS {time}) AS as_of, {value} AS x, 'a' AS kind
    FROM numbers WHERE :start < :end"""
KEY = "'e' || CAST(n AS VARCHAR)"


class Estimator(RegressorMixin, BaseEstimator):
    """Answers with the feature itself; raises at the wrong row if it is told to."""

    def __init__(self, error=None):
        self.error = error

    def predict(self, inputs):
        """The scores of some rows."""
        values = inputs["x"].to_numpy()
        if self.error and WRONG in values:
            raise self.error
        return values


def _model(warehouse, key=KEY, value="n", **features):
    time = {"sqlite": "TEXT", "postgresql": "TIMESTAMPTZ"}[warehouse.database.name]
    query = QUERY.format(key=key, value=value, time=time)
    return BatchModel(
        name="orders",
        description="x",
        features_query=query,
        labels_query=query,
        features=features or {"x": Number(), "kind": Category()},
        estimator=Estimator,
        history=timedelta(days=1),
        holdout=timedelta(hours=1),
        chunk_rows=10,
    )


@pytest.fixture
def score(warehouse):
    """Score the only part of a run: `score(model, estimator)`; afterwards nothing may be left."""
    run = claim(warehouse, tick(0))
    _, part = staging.open_part(warehouse, run.run_id, 0, run.token)
    threads = set(threading.enumerate())

    def score(model, estimator=None, progress=None):
        estimator = estimator or Estimator()
        return score_part(
            warehouse,
            model,
            lambda: Predictor(Fitted.of(estimator, model.features)),
            run,
            part,
            run.token,
            progress,
        )

    score.run, score.part = run, part
    yield score
    assert set(threading.enumerate()) <= threads
    _assert_nobody_is_connected(warehouse)
    with warehouse.write() as connection:  # nor does anybody hold the part
        connection.execute(text("UPDATE run_parts SET token = token"))


def _assert_nobody_is_connected(warehouse):
    if warehouse.database.name == "sqlite":
        with sqlite3.connect(warehouse.database._path, timeout=0) as connection:
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.close()
        assert busy == 0
        return
    others = """
        SELECT query FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    close_kept()  # but not one that somebody holds
    deadline = monotonic() + 60
    while ask(warehouse, others):  # a server's process ends after its client
        assert monotonic() < deadline
        sleep(0.01)


def _staged(warehouse, run):
    return ask(warehouse, f"SELECT count(*) FROM {run.rows_table} WHERE run_id = {run.run_id}")


def test_every_row_of_every_chunk_is_scored_and_staged(warehouse, score):
    """With counts and the range of the scores; what is told of progress is what was read."""
    told = []
    answer = score(_model(warehouse), progress=told.append)
    assert answer == (Counts(200, 200), (0.0, 199.0), None)
    assert told == [10] * 20
    staging.close_part(warehouse, score.part, score.run.token, *answer)
    publication.publish(warehouse, score.run.run_id)
    assert seen(warehouse) == {f"e{n}": float(n) for n in range(200)}


def test_a_chunk_is_staged_in_pieces_between_which_others_write(warehouse, score, monkeypatch):
    """So that a writer waits for a piece of a chunk and not for all of it; no row is lost."""
    turns = []
    monkeypatch.setattr(type(warehouse.database), "rows_at_once", 4)
    monkeypatch.setattr(
        type(warehouse.database), "give_way", lambda _, *, briefly: turns.append(briefly)
    )
    assert score(_model(warehouse)) == (Counts(200, 200), (0.0, 199.0), None)
    assert _staged(warehouse, score.run) == [(200,)]
    assert turns == [True] * 2 * 20


def test_many_rows_are_sorted_before_they_are_stored(warehouse, score, monkeypatch):
    """Where as many are expected as were published last; no row is lost, nor stored twice."""
    stored = []
    stage = staging.stage

    def note(warehouse, part, token, chunk, scored, rejected):
        stored.append(scored["entity_id"].to_pylist())
        stage(warehouse, part, token, chunk, scored, rejected)

    monkeypatch.setattr(staging, "stage", note)
    monkeypatch.setattr(scoring, "expects_many", lambda *_: True)
    monkeypatch.setattr(type(warehouse.database), "rows_to_sort", 95)
    assert score(_model(warehouse)) == (Counts(200, 200), (0.0, 199.0), None)
    assert _staged(warehouse, score.run) == [(200,)]
    assert [len(keys) for keys in stored] == [100, 100]
    assert all(keys == sorted(keys) for keys in stored)


def test_an_error_of_the_reader_ends_the_part(warehouse, score):
    """A value that overflows in the middle of the answer."""
    least = f"abs(CASE WHEN n = {WRONG} THEN -9223372036854775807 - 1 ELSE CAST(n AS BIGINT) END)"
    words = {"sqlite": "integer overflow", "postgresql": "bigint out of range"}
    with pytest.raises(ContractError) as caught:
        score(_model(warehouse, value=least))
    assert str(caught.value) == f"the source: {words[warehouse.database.name]}"
    assert _staged(warehouse, score.run) < [(WRONG,)]


def test_rows_that_break_the_contract_end_the_part(warehouse, score):
    """A key that is null."""
    with pytest.raises(ContractError, match="entity_id is null or blank in 1 of 10 rows"):
        score(_model(warehouse, key=f"CASE WHEN n <> {WRONG} THEN {KEY} END"))


@pytest.mark.parametrize("error", [MemoryError("no"), KeyboardInterrupt("no")])
def test_an_error_of_the_model_ends_the_part(warehouse, score, error):
    """Whatever it is, it is raised as it is."""
    with pytest.raises(type(error), match="no"):
        score(_model(warehouse), Estimator(error))
    assert _staged(warehouse, score.run) < [(WRONG,)]


def test_an_error_of_the_writer_ends_the_part(warehouse, score):
    """A key that is staged already, some chunks ago."""
    with pytest.raises(IntegrityError):
        score(_model(warehouse, key=f"'e' || CAST(n % {WRONG} AS VARCHAR)"))
    assert _staged(warehouse, score.run) == [(WRONG // 10 * 10,)]


def test_an_attempt_that_is_overtaken_ends_at_its_next_chunk(warehouse, score):
    """It reads no further and stages no further."""
    told = []

    def overtake(rows):
        told.append(rows)
        if len(told) == 3:
            claim(warehouse, tick(0), new_token())

    with pytest.raises(FencedError):
        score(_model(warehouse), progress=overtake)
    assert len(told) < 6
    assert _staged(warehouse, score.run) < [(50,)]


def test_an_error_while_the_writer_still_works_waits_for_it(warehouse, score, monkeypatch):
    """No thread stages on behind the back of whoever handles the error."""
    begun, go_on = threading.Event(), threading.Event()
    insert = warehouse.database.insert

    def slow(connection, table, rows):
        begun.set()
        assert go_on.wait(60)
        insert(connection, table, rows)

    class Failing(Estimator):
        def predict(self, inputs):
            if begun.is_set():
                threading.Timer(0.05, go_on.set).start()
                raise MemoryError("meanwhile")
            answer = super().predict(inputs)
            return np.asarray(answer)

    monkeypatch.setattr(warehouse.database, "insert", slow)
    model = _model(warehouse)
    deadline = monotonic() + 60

    def until_begun(_):
        while not begun.is_set() and monotonic() < deadline:
            sleep(0.001)

    with pytest.raises(MemoryError, match="meanwhile"):
        score(model, Failing(), until_begun)
    assert _staged(warehouse, score.run) == [(10,)]


def test_a_reader_that_cannot_begin_ends_the_part(warehouse, score):
    """As when the source's table is gone since the run was planned."""
    model = _model(warehouse)
    query = model.features_query.replace("FROM numbers WHERE :start", "FROM nowhere WHERE :start")
    with pytest.raises(Exception, match="nowhere") as caught:
        score(model.model_copy(update={"features_query": query}))
    assert not warehouse.database.is_passing(caught.value)
    assert _staged(warehouse, score.run) == [(0,)]


def test_a_version_is_loaded_while_many_rows_are_being_read(postgres_url, monkeypatch):
    """Where a run has a table of its own; the first row comes only after loading has begun."""
    warehouse, began, read = Warehouse(postgres_url), threading.Event(), scoring._read
    warehouse.ensure_schema()
    run = claim(warehouse, tick(0), mode="replace")
    _, part = staging.open_part(warehouse, run.run_id, 0, run.token)

    def load():
        began.set()
        return Predictor(Fitted.of(Estimator(), model.features))

    def late(*arguments, **options):
        assert began.wait(60)
        yield from read(*arguments, **options)

    monkeypatch.setattr(scoring, "_read", late)
    model = _model(warehouse)
    counts, *_ = score_part(warehouse, model, load, run, part, run.token)
    assert run.rows_table == f"predictions_r{run.run_id}"
    assert counts == Counts(200, 200)
