"""Memory is bounded by the chunk and not by the table; without enough of it, nothing is lost.

Cases 19 and 57 of the failure modes.
"""

from dataclasses import replace

import pytest

from batch_jobs.database.leases import new_token
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.registry import promotion
from batch_jobs.runs import jobs
from batch_jobs.training import train
from tests.fault_models._rows import START, number_of, tick
from tests.support.mishaps import peak_memory, with_little_memory
from tests.support.planned import plan

BATCH = 16 * 2**20
SERVED = "SELECT row_count, interval_start FROM serving_status WHERE model = 'many'"
# A model of as many rows as the table `size` says, each with a text of 2000 characters.
MODEL = '''
from datetime import timedelta
from batch_jobs import BatchModel, Category, Gate, Number

def estimator():
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    return make_pipeline(make_column_transformer(("passthrough", ["x"])), LinearRegression())

rows = """
    WITH RECURSIVE n (i) AS
      (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < (SELECT rows FROM size))
    SELECT 'entity-' || i AS entity_id, {columns} FROM n WHERE :start < :end"""
long = "substr('{text}', 1 + i % 7)"
model = BatchModel(
    description="How many?",
    mode="replace",
    features_query=rows.format(columns=f":start AS as_of, CAST(i AS REAL) AS x, {long} AS long"),
    labels_query=rows.format(columns=":start AS as_of, :end AS known_at, CAST(i AS REAL) AS label"),
    features={{"x": Number(), "long": Category()}},
    estimator=estimator,
    history=timedelta(hours=8),
    holdout=timedelta(hours=2),
    gate=Gate(min_rows=10),
    chunk_rows={chunk_rows},
)
'''


@pytest.fixture
def many(deployment, tmp_path, monkeypatch):
    """Settings of a model with so many rows: `many(1000, chunk_rows=100)`."""
    monkeypatch.syspath_prepend(str(tmp_path))
    with Warehouse(deployment.url).write() as connection:
        schema = "public." if deployment.server else ""
        connection.exec_driver_sql(f"CREATE TABLE {schema}size (rows integer)")
        connection.exec_driver_sql("INSERT INTO size VALUES (100)")

    def make(rows, chunk_rows):
        package = f"many_{new_token().replace('-', '')}"
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        source = MODEL.replace("{text}", "x" * 2000).replace("{chunk_rows}", str(chunk_rows))
        (tmp_path / package / "many.py").write_text(source.replace("{{", "{").replace("}}", "}"))
        settings = replace(
            deployment.settings, models=(package,), model_store=str(tmp_path / "models")
        )
        if not deployment.versions_of("many"):
            train.train(settings, "many", START)
            promotion.promote(settings, "many", actor="tests", reason="first")
        with Warehouse(deployment.url).write() as connection:
            connection.exec_driver_sql(f"UPDATE size SET rows = {rows}")
        return settings

    return make


@pytest.fixture
def growth(attempt, many):
    """By how many bytes a process grows that scores so many rows: `growth(rows, chunk_rows)`."""

    def measure(rows, chunk_rows):
        settings = many(rows, chunk_rows)
        run = plan(settings, "many", tick(1), new_token())
        scored = (peak_memory, jobs.score, "many", run.run_id, 0, run.token)
        ended = attempt(*scored, settings=settings).result()
        assert ended.code == 0, ended
        return ended.value

    return measure


@pytest.mark.failure_mode(57)
def test_ten_times_the_rows_need_no_more_memory(growth):
    """But ten times the chunk does, so it is the chunk that bounds it.

    PostgreSQL's driver reads 16 MB at a time, a few of which are held at once.
    """
    bound = 1.2 * growth(5_000, 1_000) + 3 * BATCH
    assert growth(50_000, 1_000) <= bound < growth(50_000, 25_000)


def _served(deployment):
    """How many rows readers see, and of which tick."""
    ((rows, start),) = deployment.ask(SERVED)
    return rows, number_of(start)


@pytest.mark.failure_mode(19)
def test_a_job_that_runs_out_of_memory_loses_nothing(deployment, attempt, many):
    """It ends in whatever way; with a smaller chunk, the same call publishes."""
    jobs.predict(many(2_000, 1_000), "many", tick(0))
    limited = (with_little_memory, 50_000_000, jobs.predict, "many", tick(1))
    ended = attempt(*limited, settings=many(50_000, 50_000)).result()
    assert ended.code != 0, ended
    assert _served(deployment) == (2_000, 0)
    assert deployment.states("many", 1)[0] in {"staging", "failed"}  # killed, or told in time
    jobs.predict(many(3_000, 1_000), "many", tick(1))
    assert _served(deployment) == (3_000, 1)
    assert deployment.states("many", 1) == ["failed", "published"]
