"""The read contract holds on the database of `BATCH_JOBS_WAREHOUSE`; nothing there is changed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Row, text

from batch_jobs.database.warehouse import Warehouse
from prediction_api.contract import VERSION, VIEWS

SAMPLE = 1000
TIMES = ("interval_start", "interval_end", "published_at", "fresh_until")


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    """One snapshot of the database, which cannot be written through it."""
    url = os.environ.get("BATCH_JOBS_WAREHOUSE")
    if not url:
        pytest.fail("set BATCH_JOBS_WAREHOUSE to the SQLAlchemy URL of your database")
    with Warehouse(url).read() as made:
        yield made


def _ask(connection: Connection, sql: str, **values: Any) -> Sequence[Row[Any]]:
    return connection.execute(text(sql), values).all()


def _sample(connection: Connection, view: str) -> Sequence[Row[Any]]:
    return _ask(connection, f"SELECT * FROM {view} LIMIT {SAMPLE}")  # noqa: S608


def test_the_contract_is_of_the_version_that_was_agreed(connection: Connection) -> None:
    """Its first number is the same; a higher second one has only added to it."""
    [(found,)] = _ask(connection, "SELECT version FROM read_contract")
    (major, minor), (ours, least) = (map(int, version.split(".")) for version in (found, VERSION))
    assert major == ours
    assert minor >= least


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_its_columns(connection: Connection, view: str) -> None:
    """There may be more; none is missing."""
    found = connection.execute(text(f"SELECT * FROM {view} WHERE 1 = 0")).keys()  # noqa: S608
    assert set(VIEWS[view]) - set(found) == set()


@pytest.mark.parametrize("view", ["current_predictions", "prediction_history"])
def test_scores_are_finite_and_labels_are_text(connection: Connection, view: str) -> None:
    """No app has to look for NaN, and no key is missing."""
    for row in _sample(connection, view):
        assert isinstance(row.score, float)
        assert math.isfinite(row.score)
        assert row.label is None or isinstance(row.label, str)
        assert row.entity_id
        assert row.model_version


@pytest.mark.parametrize("view", VIEWS)
def test_times_are_of_utc_and_intervals_have_a_length(connection: Connection, view: str) -> None:
    """Whatever the database has for times."""
    for row in _sample(connection, view):
        for name in TIMES:
            if name in row._fields:
                stored = getattr(row, name)
                time = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
                assert time.utcoffset() == datetime.now(UTC).utcoffset(), name
        assert row.interval_start < row.interval_end


def test_an_entity_has_one_current_prediction(connection: Connection) -> None:
    """A model's rows can be joined by key."""
    doubled = _ask(
        connection,
        """SELECT model, entity_id FROM current_predictions
           GROUP BY model, entity_id HAVING count(*) > 1 LIMIT 5""",
    )
    assert doubled == []


def test_a_model_has_one_status(connection: Connection) -> None:
    """And every model has one of which there are predictions."""
    models = [row.model for row in _ask(connection, "SELECT model FROM serving_status")]
    assert len(models) == len(set(models))
    current = _ask(connection, "SELECT DISTINCT model FROM current_predictions")
    assert {row.model for row in current} <= set(models)


def test_a_run_can_be_read_by_its_number(connection: Connection) -> None:
    """It has as many rows as the status says: all of them or none."""
    count = "SELECT count(*) FROM prediction_history WHERE run_id = :run_id"
    for row in _ask(connection, "SELECT run_id, row_count FROM serving_status"):
        [(found,)] = _ask(connection, count, run_id=row.run_id)
        assert found == row.row_count


def test_what_is_current_is_in_the_history(connection: Connection) -> None:
    """With the same score, and not superseded."""
    kept = """SELECT score, label, model_version FROM prediction_history
              WHERE run_id = :run_id AND entity_id = :entity_id AND superseded_at IS NULL"""
    for row in _sample(connection, "current_predictions")[:100]:
        found = _ask(connection, kept, run_id=row.run_id, entity_id=row.entity_id)
        assert [tuple(one) for one in found] == [(row.score, row.label, row.model_version)]
