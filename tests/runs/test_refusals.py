"""What was refused waits for a person or for other rows, told once; all else goes on."""

import pytest

from batch_jobs.database.leases import new_token
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import CircuitBreakerError, ContractError
from batch_jobs.registry import promotion
from batch_jobs.runs import attempts, coverage, jobs, overview
from tests.fault_models._rows import expected, tick
from tests.support.deployment import shown
from tests.support.mishaps import change
from tests.support.planned import plan_due

on_sqlite = pytest.mark.parametrize("deployment", ["sqlite"], indirect=True)
SPOIL = "UPDATE fault_rows SET x = NULL WHERE model = 'ticks' AND at = :at"
DOUBLE = """
    INSERT INTO fault_rows SELECT * FROM fault_rows
    WHERE model = 'ticks' AND at = :at AND entity_id = 'shared-1'"""
AWAY = "DELETE FROM fault_rows WHERE model = 'ticks' AND at = :at"
# In another order, which says nothing new.
TURN = """
    CREATE TABLE turned AS SELECT * FROM fault_rows
    WHERE model = 'ticks' AND at = :at ORDER BY entity_id DESC"""
CAUSES = {SPOIL: CircuitBreakerError, DOUBLE: ContractError}


def spoil(deployment, number, *statements):
    """Change the rows of a tick."""
    change(deployment.settings, *statements, at=stored_time(tick(number).start))


def scheduled(deployment, number):
    """What a scheduled run does: `(ticks that it claimed, errors that it told)`."""
    token, told = new_token(), []
    runs = plan_due(deployment.settings, "ticks", tick(number), token)
    for run in runs:
        try:
            jobs.score_and_publish(deployment.settings, run, token)
        except tuple(CAUSES.values()) as error:
            told.append(type(error))
    return [run.interval for run in runs], told


@pytest.fixture(params=CAUSES, ids=lambda cause: CAUSES[cause].__name__)
def refused(request, deployment):
    """The deployment with a tick 1 that was refused by a scheduled run, and how it was spoilt."""
    spoil(deployment, 1, request.param)
    assert scheduled(deployment, 1) == ([tick(1)], [CAUSES[request.param]])
    return deployment


@pytest.mark.failure_mode("refusals-note")
def test_what_was_refused_does_not_fail_the_runs_after_it(refused):
    """They publish what is theirs; readers are told that one is missing."""
    for number in (2, 3):
        assert scheduled(refused, number) == ([tick(number)], [])
    assert refused.seen("ticks") == shown("ticks", [0, 2, 3])
    assert overview.gaps(refused.settings, "ticks")[0] == tick(1)
    (status,) = overview.status(refused.settings, "ticks")
    assert status["fresh_until"] == tick(0).end.isoformat()
    assert attempts.unhealed(refused.settings, "ticks") == []  # long out of the look-back
    missing = coverage.unhealed(Warehouse(refused.url), "ticks", tick(0).start, tick(0).start)
    assert missing == [tick(1)]


@pytest.mark.failure_mode("refusals-note")
def test_rows_in_another_order_are_the_same_rows(refused):
    """Databases give them as they like."""
    back = "INSERT INTO fault_rows SELECT * FROM turned"
    spoil(refused, 1, TURN, AWAY, back)
    assert scheduled(refused, 2) == ([tick(2)], [])


@on_sqlite
@pytest.mark.failure_mode("refusals-note")
def test_other_rows_are_scored_by_the_next_run(refused):
    """Nobody has to ask for that."""
    spoil(refused, 1, AWAY, "UPDATE fault_rows SET at = :at WHERE entity_id = 'group-02-1'")
    assert scheduled(refused, 2)[0] == [tick(1), tick(2)]


@on_sqlite
@pytest.mark.failure_mode("refusals-note")
def test_other_rows_that_are_refused_too_are_told_once_more(refused):
    """And wait again."""
    spoil(
        refused,
        1,
        "UPDATE fault_rows SET x = x + 1 WHERE entity_id = 'shared-2' AND at = :at",
        "INSERT INTO fault_rows SELECT model, 'new', at, known_at, NULL FROM fault_rows "
        "WHERE model = 'ticks' AND at = :at AND entity_id = 'shared-3'",
    )
    ticks, told = scheduled(refused, 2)
    assert (ticks, len(told)) == ([tick(1), tick(2)], 1)
    assert scheduled(refused, 3) == ([tick(3)], [])


@on_sqlite
@pytest.mark.failure_mode("refusals-note")
def test_another_champion_is_asked_again(refused):
    """It may answer what the one before it could not."""
    _, second = sorted(refused.versions_of("ticks"), key=refused.versions.get)
    promotion.promote(refused.settings, "ticks", second, actor="tests", reason="better")
    assert scheduled(refused, 2)[0] == [tick(1), tick(2)]


@on_sqlite
@pytest.mark.failure_mode("refusals-note")
def test_a_person_may_have_it_published_as_it_is(deployment):
    """With a reason, by hand or by a backfill; then nothing is missing any more."""
    spoil(deployment, 1, SPOIL)
    scheduled(deployment, 1)
    scheduled(deployment, 2)
    deployment.predict("ticks", 1, accept="so it is")
    (status,) = overview.status(deployment.settings, "ticks")
    assert status["fresh_until"] == tick(2).end.isoformat()
    assert scheduled(deployment, 3) == ([tick(3)], [])


@pytest.mark.failure_mode("refusals-note")
def test_a_late_row_that_spoils_its_interval_is_told_once(deployment):
    """What was published stays, and no run after it is failed by it."""
    deployment.predict("ticks", 1)
    spoil(
        deployment,
        1,
        DOUBLE.replace("shared-1", "group-01-1"),
        "INSERT INTO fault_rows SELECT model, 'late', at, known_at, 7 FROM fault_rows "
        "WHERE model = 'ticks' AND at = :at AND entity_id = 'shared-3'",
    )
    assert scheduled(deployment, 2) == ([tick(1), tick(2)], [ContractError])
    assert scheduled(deployment, 3) == ([tick(3)], [])
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2, 3])


@on_sqlite
@pytest.mark.failure_mode("refusals-note")
def test_an_error_of_no_rows_is_tried_again_by_each_run(deployment, monkeypatch):
    """Such as a version that does not load: that is nothing to do with the interval."""

    def broken(*_):
        raise RuntimeError("a test")

    with monkeypatch.context() as patch:
        patch.setattr("batch_jobs.runs.scoring.predict_chunk", broken)
        with pytest.raises(RuntimeError):
            deployment.predict("ticks", 1)
    assert scheduled(deployment, 2) == ([tick(1), tick(2)], [])
    assert deployment.seen("ticks") == expected("ticks", 2) | deployment.seen("ticks")
