"""A model that is gone or answers nonsense, tasks that are doubled, and a clock that is wrong.

Cases 38, 45 and 47 of the failure modes, and parts of 15 and 18, on both databases.
"""

import shutil
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sklearn.base import BaseEstimator, RegressorMixin

from batch_jobs.database import leases
from batch_jobs.errors import (
    ArtifactError,
    CircuitBreakerError,
    ContractError,
    FencedError,
    IncompleteError,
)
from batch_jobs.registry import promotion
from batch_jobs.runs import jobs
from batch_jobs.scoring.fitted import Fitted
from tests.fault_models._rows import tick
from tests.support.deployment import shown
from tests.support.mishaps import is_as_before, is_published_once, once
from tests.support.planned import plan

# What no database has a say in is tried with one.
on_sqlite = pytest.mark.parametrize("deployment", ["sqlite"], indirect=True)


@pytest.mark.failure_mode(15)
def test_a_doubled_task_of_a_part_changes_nothing(deployment):
    """Each part is scored twice and published twice: every row is there once."""
    run = plan(deployment.settings, "ticks", tick(1), leases.new_token(), parts=5)
    for part in (3, 0, 4, 1, 2):
        counts = [
            jobs.score(deployment.settings, "ticks", run.run_id, part, token)
            for token in (run.token, leases.new_token())
        ]
        assert counts[0] == counts[1]
    published = [jobs.publish(deployment.settings, run.run_id) for _ in range(2)]
    assert published[0] == published[1]
    assert published[0].counts.read == 12
    assert is_published_once(deployment)


@pytest.mark.failure_mode(2)
def test_a_part_that_failed_half_way_is_scored_again_by_its_retry(deployment):
    """What the first try had staged is not there twice, and the other parts are not touched."""
    run = plan(deployment.settings, "ticks", tick(1), leases.new_token(), parts=2)
    jobs.score(deployment.settings, "ticks", run.run_id, 0, run.token)

    def lose_power():
        raise KeyboardInterrupt

    with once("score.chunk_staged", lose_power), pytest.raises(KeyboardInterrupt):
        jobs.score(deployment.settings, "ticks", run.run_id, 1, run.token)
    jobs.score(deployment.settings, "ticks", run.run_id, 1, leases.new_token())
    assert jobs.publish(deployment.settings, run.run_id).counts.read == 12
    assert is_published_once(deployment)


class Stub(RegressorMixin, BaseEstimator):
    """An estimator that answers as it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def predict(self, rows):
        """The answer to so many rows."""
        return self.answer(len(rows))


def loaded(answer):
    """What loads, whatever the version: an estimator that answers so."""
    return lambda _, model, __: Fitted.of(Stub(answer), model.features)


@on_sqlite
@pytest.mark.failure_mode(47)
def test_a_model_that_answers_for_other_rows_fails_the_run(deployment, monkeypatch):
    """Which score belongs to which row is then anybody's guess."""
    stub = loaded(lambda count: np.ones(count - 1))
    with monkeypatch.context() as patched:
        patched.setattr("batch_jobs.registry.deployment.load_version", stub)
        with pytest.raises(ContractError, match="estimator: answered"):
            deployment.predict("ticks", 1)
    assert is_as_before(deployment)
    deployment.predict("ticks", 1)
    assert is_published_once(deployment, states=["failed", "published"])


@pytest.mark.parametrize(
    ("model", "wild", "error"),
    [("ticks", np.nan, CircuitBreakerError), ("population", np.inf, IncompleteError)],
)
@pytest.mark.failure_mode(47)
def test_a_model_that_answers_no_numbers_fails_the_run(deployment, monkeypatch, model, error, wild):
    """Each row is set aside, and then there are too many of those."""
    with monkeypatch.context() as patched:
        patched.setattr(
            "batch_jobs.registry.deployment.load_version", loaded(lambda n: np.full(n, wild))
        )
        with pytest.raises(error):
            deployment.predict(model, 1)
    assert is_as_before(deployment, model)
    deployment.predict(model, 1)
    assert is_published_once(deployment, model, ["failed", "published"])


@on_sqlite
@pytest.mark.failure_mode(45)
def test_a_model_whose_file_is_gone_fails_the_run(deployment, tmp_path):
    """It says where the file should be; with the file restored, the same call publishes."""
    store = tmp_path / "models"
    shutil.copytree(deployment.settings.model_store, store)
    settings = replace(deployment.settings, model_store=str(store))
    (store / "ticks").rename(tmp_path / "gone")
    with pytest.raises(ArtifactError, match="cannot be read from") as caught:
        jobs.predict(settings, "ticks", tick(1))
    assert caught.value.exit_code == 2
    assert is_as_before(deployment)
    (tmp_path / "gone").rename(store / "ticks")
    jobs.predict(settings, "ticks", tick(1))
    assert is_published_once(deployment, states=["failed", "published"])


@pytest.mark.failure_mode(45)
def test_two_promotions_while_a_run_is_scored_mix_no_versions(deployment):
    """A run is of the version it was planned with, and the next of the one that serves then."""
    first, second = sorted(deployment.versions_of("ticks"), key=deployment.versions.get)

    def promote():
        promotion.promote(deployment.settings, "ticks", second, actor="tests", reason="now")

    def roll_back():
        promotion.rollback(deployment.settings, "ticks", first, actor="tests", reason="no")
        promote()

    with once("score.chunk_staged", promote), once("score.all_staged", roll_back):
        run = deployment.predict("ticks", 1)
    assert run.model_version == first
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert deployment.predict("ticks", 2).model_version == second


@pytest.mark.failure_mode(38)
def test_a_clock_that_was_set_back_makes_attempts_that_are_refused(deployment):
    """Loud and harmless: exit 3. A clock that is ahead does not hurt those whose turn it is."""
    deployment.predict("ticks", 1)
    millisecond = int((datetime.now(UTC) - timedelta(hours=1)).timestamp() * 1000)
    behind = str(uuid.UUID(int=millisecond << 80 | 7 << 76 | 2 << 62))
    with pytest.raises(FencedError) as caught:
        deployment.predict("ticks", 1, force=True, token=behind)
    assert caught.value.exit_code == 3
    ahead = str(uuid.UUID(int=(millisecond + 90_000_000) << 80 | 7 << 76 | 2 << 62))
    assert deployment.predict("ticks", 1, force=True, token=ahead).state == "published"
    assert deployment.predict("ticks", 2).state == "published"
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2])
    assert deployment.unsound() == []
