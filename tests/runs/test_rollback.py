"""After a rollback readers see nothing of the version that was left, and all else as it was."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError
from batch_jobs.interval import Interval
from batch_jobs.registry import champions, promotion
from batch_jobs.registry import versions as registry
from batch_jobs.runs import backfills, jobs
from batch_jobs.training import train
from tests.support.attempts import ask

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)


def _hour(number):
    return Interval(TRAINED + timedelta(hours=number), TRAINED + timedelta(hours=number + 1))


@pytest.fixture
def versions(shop):
    """The champion so far, and a later version that took over from it for both models."""
    later = {}
    for name in ("orders", "customers"):
        version = train.train(shop, name, TRAINED + timedelta(hours=6))
        before = champions.champion(Warehouse(shop.warehouse), name).version
        later[name] = (before, version.version)
    return later


def _take_over(shop, name):
    version = registry.newest_version(Warehouse(shop.warehouse), name).version
    promotion.promote(shop, name, version, actor="tests", reason="newer")


def _seen(shop, name):
    """Version by entity, as readers have it."""
    query = "SELECT entity_id, model_version FROM current_predictions WHERE model = :name"
    return dict(ask(Warehouse(shop.warehouse), query, name=name))


def _rollback(shop, name, to):
    return backfills.rollback(shop, name, to, actor="ann", reason="it is worse")


def test_what_readers_see_of_the_later_version_is_scored_again(shop, versions):
    """What the earlier one had scored stays as it was, and so does the newest interval."""
    first, later = versions["orders"]
    kept = jobs.predict(shop, "orders", _hour(0))
    _take_over(shop, "orders")
    jobs.predict(shop, "orders", _hour(1))
    jobs.predict(shop, "orders", _hour(2))
    before = _seen(shop, "orders")
    assert set(before.values()) == {first, later}

    answer, runs = _rollback(shop, "orders", first)

    assert (answer.outcome, [run.interval for run in runs]) == ("promoted", [_hour(1), _hour(2)])
    assert _seen(shop, "orders") == dict.fromkeys(before, first)
    [(newest, run_id)] = ask(
        Warehouse(shop.warehouse), "SELECT model_version, run_id FROM serving_status"
    )
    assert (newest, run_id) == (first, runs[-1].run_id)
    assert kept.run_id not in {run.run_id for run in runs}


def test_a_population_is_scored_again_as_a_whole(shop, versions):
    """Only the newest run of it is seen."""
    first, _ = versions["customers"]
    _take_over(shop, "customers")
    jobs.predict(shop, "customers", _hour(0))
    jobs.predict(shop, "customers", _hour(1))

    _, runs = _rollback(shop, "customers", first)

    assert [run.interval for run in runs] == [_hour(1)]
    assert set(_seen(shop, "customers").values()) == {first}


def test_a_rollback_that_was_interrupted_goes_on_when_it_is_repeated(shop, versions):
    """The pointer has moved; what was scored again is not scored a third time."""
    first, _ = versions["orders"]
    _take_over(shop, "orders")
    for hour in range(3):
        jobs.predict(shop, "orders", _hour(hour))

    def stop(run):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backfills.rollback(shop, "orders", first, actor="ann", reason="worse", progress=stop)
    answer, runs = _rollback(shop, "orders", first)

    assert (answer.outcome, [run.interval for run in runs]) == ("unchanged", [_hour(1), _hour(2)])
    assert set(_seen(shop, "orders").values()) == {first}
    assert _rollback(shop, "orders", first)[1] == []


def test_a_rollback_with_nothing_to_score_again_moves_the_pointer_only(shop, versions):
    """Nothing was published by the later version."""
    first, _ = versions["orders"]
    jobs.predict(shop, "orders", _hour(0))
    _take_over(shop, "orders")
    assert _rollback(shop, "orders", first)[1] == []
    assert champions.champion(Warehouse(shop.warehouse), "orders").version == first


def test_a_rollback_to_the_version_that_serves_by_promotion_changes_nothing(shop, versions):
    """What the version before it had scored is not its successor's to score again."""
    first, later = versions["orders"]
    jobs.predict(shop, "orders", _hour(0))
    _take_over(shop, "orders")
    before = _seen(shop, "orders")
    answer, runs = _rollback(shop, "orders", later)
    assert (answer.outcome, runs) == ("unchanged", [])
    assert _seen(shop, "orders") == before
    assert set(before.values()) == {first}


def test_a_rollback_to_a_version_whose_file_is_gone_changes_nothing(shop, versions):
    """It is proved before the pointer moves."""
    first, later = versions["orders"]
    _take_over(shop, "orders")
    jobs.predict(shop, "orders", _hour(0))
    elsewhere = replace(shop, model_store=f"{shop.model_store}/elsewhere")
    with pytest.raises(ArtifactError, match="cannot be read"):
        _rollback(elsewhere, "orders", first)
    assert set(_seen(shop, "orders").values()) == {later}
    assert champions.champion(Warehouse(shop.warehouse), "orders").version == later
