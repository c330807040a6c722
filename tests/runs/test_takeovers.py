"""A task has several intervals, each with a fate of its own; a run that is green has them all."""

import logging
from datetime import timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
)

from batch_jobs import clock
from batch_jobs.database.leases import LEASE, new_token
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import StoreUnavailableError, WarehouseUnavailableError
from batch_jobs.interval import Interval
from batch_jobs.runs import attempts, backfills, jobs, planning, staging
from batch_jobs.scoring.predict import predict_chunk
from batch_jobs_airflow import prediction_tasks, training_tasks
from tests.fault_models._rows import tick
from tests.support.deployment import shown
from tests.support.faults import Order, until
from tests.support.mishaps import change
from tests.support.planned import plan, plan_due


class DagRun:
    """The tasks of one run of predict_ticks, as Airflow calls them, in this process."""

    def __init__(self, number, *, run_type="scheduled", **params):
        self.newest, self.run_type = tick(number), run_type
        self.params = {"interval_start": None, "interval_end": None, "force": False} | params
        self.params.setdefault("accept", None)
        self.items = []

    @property
    def run_ids(self):
        """Of what was claimed, the oldest interval first."""
        return self.items[0]["run_ids"]

    def plan(self):
        """Claim; one part is enough."""
        self.items = prediction_tasks.plan(
            "ticks",
            SimpleNamespace(id=new_token()),
            SimpleNamespace(run_type=self.run_type, run_after=self.newest.end),
            self.params,
            self.newest.start,
            self.newest.end,
        )
        return self

    def score(self):
        """Stage every part, be it that another one fails; its error comes in the end."""
        done, errors = [], []
        for item in self.items:
            try:
                done.append(prediction_tasks.score(**item, ti=SimpleNamespace(id=new_token())))
            except BaseException as error:  # noqa: BLE001 - raised in the end
                errors.append(error)
        if errors:
            raise errors[0]
        return done

    def publish(self):
        """Publish all."""
        ti = SimpleNamespace(task=SimpleNamespace(outlets=[]))
        return prediction_tasks.publish(self.items, ti, outlet_events={})


@pytest.fixture
def dag_run(deployment, monkeypatch):
    """Begin a run of the DAG: `dag_run(newest tick)`."""
    monkeypatch.setattr(prediction_tasks, "airflow_settings", lambda: deployment.settings)
    monkeypatch.setattr(prediction_tasks, "flush_alerts", lambda: None)
    monkeypatch.setattr(prediction_tasks, "die_with_supervisor", lambda: None)
    return lambda number, **options: DagRun(number, **options).plan()


def ended(deployment, number):
    """How the last attempt at a tick ended, and why."""
    return deployment.ask(
        "SELECT state, error FROM prediction_runs WHERE model = 'ticks' AND interval_start = :at "
        "ORDER BY run_id DESC LIMIT 1",
        at=stored_time(tick(number).start),
    )[0]


@pytest.mark.failure_mode("takeovers")
def test_what_others_took_over_keeps_nothing_else_back(deployment, dag_run):
    """By hand, while the run was scoring: its other intervals are published by the same run."""
    run = dag_run(4)
    for number in (1, 2):
        deployment.predict("ticks", number, accept="I have looked", force=True)

    assert sum(part["read"] for part in run.score()) == 2 * 12
    assert run.publish() == {"published": 2, "newest_run_id": run.run_ids[-1]}

    assert deployment.seen("ticks") == shown("ticks", range(5))


@pytest.mark.failure_mode("takeovers")
def test_a_run_whose_every_interval_others_published_is_a_success(deployment, dag_run):
    """It has nothing to publish itself, and says so."""
    run = dag_run(1)
    theirs = deployment.predict("ticks", 1, force=True)
    run.score()
    assert run.publish() == {"published": 0, "newest_run_id": theirs.run_id}


@pytest.mark.parametrize("at", ["scored", "staged"])
@pytest.mark.failure_mode("takeovers")
def test_a_run_waits_for_those_who_took_an_interval_over(
    deployment, dag_run, attempt, in_background, caplog, at
):
    """And is a success when they have published it, wherever it was when it was overtaken."""
    caplog.set_level(logging.INFO)
    run = dag_run(2)
    if at == "staged":
        run.score()
    place = "publish.audited"
    newer = attempt(jobs.predict, "ticks", tick(1), order=Order(place, "wait")).wait_at(place)
    if at == "scored":
        run.score()
    published = in_background(run.publish)
    until(lambda: "waiting for run" in caplog.text, "the run to wait")
    assert deployment.seen("ticks") == shown("ticks", [0, 2])
    assert newer.go().result().code == 0
    assert published.result()["published"] == 1
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2])


@pytest.mark.failure_mode("takeovers")
def test_a_run_fails_if_those_who_took_an_interval_over_failed(deployment, dag_run):
    """With their reason, once all else is published."""
    run = dag_run(2)
    theirs = plan(deployment.settings, "ticks", tick(1), new_token())
    run.score()
    staging.fail(Warehouse(deployment.url), theirs.run_id, "a test")
    with pytest.raises(AirflowFailException, match=r"fenced off .* which has failed: a test"):
        run.publish()
    assert deployment.seen("ticks") == shown("ticks", [0, 2])


@pytest.mark.failure_mode("takeovers")
def test_a_run_fails_if_those_who_took_an_interval_over_are_dead(deployment, dag_run):
    """Nobody has published it; the next run will, and nobody waits for a lease that ran out."""
    run = dag_run(2)
    plan(deployment.settings, "ticks", tick(1), new_token())
    change(
        deployment.settings,
        "UPDATE prediction_runs SET claimed_at = :long_ago WHERE state = 'staging'",
        long_ago=stored_time(clock.now() - 2 * LEASE),
    )
    run.score()
    with pytest.raises(AirflowFailException, match="was not heard of since"):
        run.publish()
    assert deployment.seen("ticks") == shown("ticks", [0, 2])
    assert dag_run(3).score()


@pytest.mark.failure_mode("takeovers")
def test_nobody_waits_for_ever(deployment, dag_run):
    """Whoever took an interval over may work for hours; the next run must not be held up."""
    run = dag_run(1)
    plan(deployment.settings, "ticks", tick(1), new_token())
    with pytest.raises(jobs.FencedError, match="goes on without having published yet"):
        attempts.await_newer(deployment.settings, run.run_ids[0], timedelta())


@pytest.mark.failure_mode("takeovers")
def test_a_newest_interval_that_others_have_claimed_keeps_no_missed_one_back(deployment, dag_run):
    """Those are claimed, scored and published; without any there is nothing to do."""
    token = new_token()
    theirs = plan(deployment.settings, "ticks", tick(3), new_token())
    runs = plan_due(deployment.settings, "ticks", tick(3), token)
    assert [run.interval for run in runs] == [tick(1), tick(2)]
    runs = plan_due(deployment.settings, "ticks", tick(3), token)
    assert theirs.run_id not in [run.run_id for run in runs]


@pytest.mark.failure_mode("estimator-errors")
def test_a_plan_with_nothing_left_for_it_is_skipped(deployment, dag_run, monkeypatch):
    """A newer attempt has claimed it all: nothing was begun that could fail."""
    monkeypatch.setattr(planning.Planner, "plan_due", lambda *_: [])
    with pytest.raises(AirflowSkipException, match="no newer attempt has claimed"):
        dag_run(1)


@pytest.fixture
def poisoned(monkeypatch):
    """Let the estimator raise at a tick: `poisoned(tick, error)`; nothing raises at None."""
    state = {}

    def predict(model, predictor, interval, chunk):
        if interval == state.get("interval"):
            raise state["error"]
        return predict_chunk(model, predictor, interval, chunk)

    monkeypatch.setattr("batch_jobs.runs.scoring.predict_chunk", predict)

    def poison(number, error=None):
        state.update(interval=None if number is None else tick(number), error=error)

    return poison


@pytest.mark.parametrize("error", [ValueError("odd row, password=hunter2"), MemoryError()])
@pytest.mark.failure_mode("estimator-errors")
def test_whatever_an_estimator_raises_fails_its_own_interval_at_once(
    deployment, dag_run, poisoned, error
):
    """With the reason in the ledger and no secret in it; the others are staged and published."""
    poisoned(1, error)
    run = dag_run(3)
    with pytest.raises(type(error)):  # which Airflow tries again
        run.score()
    state, reason = ended(deployment, 1)
    assert (state, reason.split(":")[0]) == ("failed", type(error).__name__)
    assert "hunter2" not in reason
    with pytest.raises((type(error), AirflowFailException)):
        run.publish()
    assert deployment.seen("ticks") == shown("ticks", [0, 2, 3])


@pytest.mark.failure_mode("estimator-errors")
def test_what_passes_is_made_good_by_the_retry_of_the_task(deployment, dag_run, poisoned):
    """Its run goes on where it had failed, and the DAG run is a success."""
    poisoned(1, RuntimeError("a hiccup"))
    run = dag_run(2)
    with pytest.raises(RuntimeError, match="a hiccup"):
        run.score()
    assert ended(deployment, 1)[0] == "failed"
    poisoned(None)
    run.score()
    assert ended(deployment, 1) == ("staging", None)
    assert run.publish()["published"] == 2
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2])
    assert deployment.unsound() == []


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
@pytest.mark.failure_mode("estimator-errors")
def test_a_task_that_is_interrupted_says_so_in_the_ledger(deployment, dag_run, poisoned, signal):
    """And goes no further; its interval is free for others at once."""
    poisoned(1, signal())
    run = dag_run(2)
    with pytest.raises(signal):
        run.score()
    assert ended(deployment, 1) == ("failed", signal.__name__)
    assert ended(deployment, 2) == ("staging", None)
    poisoned(None)
    assert [r.interval for r in plan_due(deployment.settings, "ticks", tick(3), new_token())] == [
        tick(1),
        tick(3),
    ]


@pytest.mark.failure_mode("estimator-errors")
def test_a_warehouse_that_is_away_leaves_every_run_open_for_the_retry(
    deployment, dag_run, poisoned
):
    """It would not answer for the other intervals either."""
    poisoned(1, WarehouseUnavailableError("a test"))
    run = dag_run(2)
    with pytest.raises(WarehouseUnavailableError):
        run.score()
    assert [ended(deployment, number)[0] for number in (1, 2)] == ["staging", "staging"]
    poisoned(None)
    run.score()
    assert run.publish()["published"] == 2


@pytest.mark.failure_mode("estimator-errors")
def test_a_version_that_cannot_be_fetched_now_keeps_no_other_interval_back(
    deployment, dag_run, poisoned
):
    """A late row is scored by the version of its interval, whose file may be out of reach."""
    poisoned(1, StoreUnavailableError("a test"))
    run = dag_run(2)
    with pytest.raises(StoreUnavailableError):
        run.score()
    with pytest.raises(AirflowFailException, match="was not scored"):
        run.publish()
    assert deployment.seen("ticks") == shown("ticks", [0, 2])


@pytest.mark.failure_mode("estimator-errors")
def test_a_backfill_goes_on_after_an_interval_that_fails(deployment, poisoned):
    """And tells it in the end; what else was asked for is published."""
    poisoned(2, ValueError("odd row"))
    span = Interval(tick(1).start, tick(4).end)
    with pytest.raises(ValueError, match="odd row"):
        backfills.backfill(deployment.settings, "ticks", span)
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 3, 4])
    assert ended(deployment, 2) == ("failed", "ValueError: odd row")


@pytest.mark.failure_mode("estimator-errors")
def test_a_rollback_that_others_overtake_is_no_success(deployment, monkeypatch):
    """Whoever overtakes it may have published what was to be rolled back."""

    def fence(*_, **__):
        raise jobs.FencedError("a test")

    monkeypatch.setattr(backfills, "rollback", fence)
    monkeypatch.setattr(training_tasks, "airflow_settings", lambda: deployment.settings)
    monkeypatch.setattr(training_tasks, "die_with_supervisor", lambda: None)
    asked = {"version": "v1", "reason": "worse"}
    with pytest.raises(AirflowException) as caught:
        training_tasks.rollback("ticks", asked, None, None, SimpleNamespace(run_id="r"))
    assert not isinstance(caught.value, AirflowSkipException)
