"""Whoever works on an interval keeps it, however long that takes; whoever is dead loses it soon."""

import signal
from datetime import timedelta

import pytest

from batch_jobs import clock
from batch_jobs.database import leases
from batch_jobs.database.leases import new_token
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.runs import attempts, coverage, jobs, ledger, removal, staging
from tests.fault_models._rows import tick
from tests.support.deployment import shown
from tests.support.faults import Order, until
from tests.support.mishaps import change, once
from tests.support.planned import plan, plan_due

HEARD = "SELECT claimed_at FROM prediction_runs WHERE run_id = :run_id"
A_LITTLE_LATER = leases.LEASE + timedelta(seconds=1)


def restless(settings, beat, act, *arguments, **keywords):
    """Act in a process that renews its leases so often."""
    leases.BEAT = beat
    return act(settings, *arguments, **keywords)


def pass_by(deployment, time):
    """Let every attempt that is staging have been heard of so long ago."""
    moment = stored_time(clock.now() - time)
    change(
        deployment.settings,
        "UPDATE prediction_runs SET claimed_at = :moment WHERE state = 'staging'",
        moment=moment,
    )


def heard(deployment, run_id):
    """When the attempt of a run was last heard of."""
    ((moment,),) = deployment.ask(HEARD, run_id=run_id)
    return loaded_time(moment)


def planned(deployment, number):
    """The ticks that a scheduled run claims."""
    runs = plan_due(deployment.settings, "ticks", tick(number), new_token())
    return [run.interval for run in runs]


@pytest.fixture
def scoring(deployment, attempt):
    """An attempt at tick 1 in a process of its own that takes long for its second chunk."""
    run = plan(deployment.settings, "ticks", tick(1), new_token(), parts=1)
    working = (restless, timedelta(milliseconds=5), jobs.score, "ticks", run.run_id, 0)
    place = "score.before_chunk"
    return run, attempt(*working, run.token, order=Order(place, "wait", 2)).wait_at(place)


@pytest.mark.slow
@pytest.mark.failure_mode("leases")
def test_an_attempt_that_takes_hours_keeps_its_interval(deployment, scoring):
    """Nobody else claims it, fails it or removes its rows while its process works."""
    run, process = scoring
    pass_by(deployment, timedelta(hours=3))
    until(lambda: clock.now() - heard(deployment, run.run_id) < leases.LEASE, "a sign of life")

    assert planned(deployment, 2) == [tick(2)]
    assert process.go().result().code == 0
    assert jobs.publish(deployment.settings, run.run_id).state == "published"
    assert deployment.seen("ticks") == shown("ticks", [0, 1])


@pytest.mark.failure_mode("leases")
def test_what_a_killed_attempt_left_is_scored_by_the_next_run_after_minutes(deployment, scoring):
    """Not before, since it may be alive."""
    _, process = scoring
    process.signal(signal.SIGKILL)
    assert process.result().code == -signal.SIGKILL
    pass_by(deployment, leases.LEASE / 2)
    assert planned(deployment, 2) == [tick(2)]

    pass_by(deployment, A_LITTLE_LATER)

    assert planned(deployment, 3) == [tick(1), tick(2), tick(3)]
    assert deployment.states("ticks", 1) == ["failed", "staging"]


@pytest.mark.failure_mode("leases")
def test_what_was_fenced_off_or_has_failed_is_renewed_by_nobody(deployment, scoring):
    """A process that goes on in vain does not say that somebody works on the interval."""
    run, process = scoring
    plan(deployment.settings, "ticks", tick(1), new_token(), force=True)
    left = heard(deployment, run.run_id)
    warehouse = Warehouse(deployment.url)

    leases.renew(warehouse, [run.run_id])

    assert heard(deployment, run.run_id) == left
    assert process.go().result().code == 3
    assert heard(deployment, run.run_id) == left


@pytest.mark.failure_mode("leases")
def test_a_long_wait_before_the_first_row_is_made_up_for(deployment):
    """A task that waited for a slot for most of its lease begins with a whole one."""
    now = clock.now()
    with clock.set_to(now):
        run = plan(deployment.settings, "ticks", tick(1), new_token(), parts=1)
    with clock.set_to(now + timedelta(minutes=4)):
        jobs.score(deployment.settings, "ticks", run.run_id, 0, run.token)
    assert heard(deployment, run.run_id) == now + timedelta(minutes=4)


@pytest.mark.failure_mode("leases")
def test_intervals_that_wait_for_their_turn_in_a_task_are_kept(deployment, monkeypatch):
    """A task scores one after the other, and the last one may have to wait for long."""
    monkeypatch.setattr(leases, "BEAT", timedelta(milliseconds=5))
    monkeypatch.setattr(leases, "_heart", leases._Heart())
    runs = plan_due(deployment.settings, "ticks", tick(2), new_token())
    ids = [run.run_id for run in runs]
    pass_by(deployment, timedelta(hours=3))
    with attempts.attempt(deployment.settings, ids):
        pass_by(deployment, timedelta(hours=3))
        busy = {tick(1), tick(2)}
        since = clock.now() - leases.LEASE
        warehouse = Warehouse(deployment.url)
        until(lambda: coverage.being_staged(warehouse, "ticks", since) == busy, "signs of life")


@pytest.mark.failure_mode("leases")
def test_a_lease_that_cannot_be_renewed_now_is_renewed_later(deployment, monkeypatch):
    """The warehouse may be away for a moment; whoever works does not hear of it."""
    monkeypatch.setattr(leases, "BEAT", timedelta(milliseconds=5))
    monkeypatch.setattr(leases, "_heart", leases._Heart())
    run = plan(deployment.settings, "ticks", tick(1), new_token())
    pass_by(deployment, timedelta(hours=3))
    renew, tries = leases._renew, []

    def fail_once(warehouse, run_id):
        tries.append(run_id)
        if len(tries) == 1:
            raise OSError("away")
        renew(warehouse, run_id)

    monkeypatch.setattr(leases, "_renew", fail_once)
    with leases.at_work(Warehouse(deployment.url), [run.run_id]):
        until(lambda: clock.now() - heard(deployment, run.run_id) < leases.LEASE, "a sign of life")


@pytest.mark.failure_mode("leases")
def test_a_plan_that_fails_half_way_keeps_nothing(deployment):
    """Its retry, which is another attempt, claims at once what it had claimed."""

    def break_down():
        raise RuntimeError("a test")

    with once("plan.before_claim", break_down, 3), pytest.raises(RuntimeError, match="a test"):
        planned(deployment, 3)
    assert (
        deployment.ask("SELECT error FROM prediction_runs WHERE state = 'failed'")
        == [("not planned: RuntimeError: a test",)] * 2
    )
    assert planned(deployment, 3) == [tick(1), tick(2), tick(3)]


@pytest.mark.failure_mode("leases")
def test_the_rows_of_a_part_that_is_tried_again_are_not_swept(deployment):
    """Its run had failed when somebody began to tidy up, and was taken up again before the end."""
    run = plan(deployment.settings, "ticks", tick(1), new_token(), parts=1)
    warehouse = Warehouse(deployment.url)
    _, part = staging.open_part(warehouse, run.run_id, 0, run.token)
    staging.fail_part(warehouse, run.run_id, 0, run.token, "a test")
    staging.open_part(warehouse, run.run_id, 0, new_token())
    removal.remove_rows(warehouse, run.run_id, run.rows_table)
    assert ledger.find_run(warehouse, run.run_id).rows_table == run.rows_table
    assert part.run_id == run.run_id


@pytest.mark.failure_mode("leases")
def test_a_run_whose_rows_are_removed_is_not_taken_up_again(deployment):
    """Only a new attempt can score the interval then."""
    run = plan(deployment.settings, "ticks", tick(1), new_token(), parts=1)
    warehouse = Warehouse(deployment.url)
    staging.open_part(warehouse, run.run_id, 0, run.token)
    staging.fail_part(warehouse, run.run_id, 0, run.token, "a test")
    removal.remove_rows(warehouse, run.run_id, run.rows_table)
    with pytest.raises(jobs.IncompleteError, match="has failed: a test; only a new attempt"):
        staging.open_part(warehouse, run.run_id, 0, new_token())
