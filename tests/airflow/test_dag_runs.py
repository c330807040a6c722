"""Both DAGs run task by task, in this process, against a real warehouse."""

import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.utils.db import initdb
from sqlalchemy import text
from uuid6 import uuid7

from batch_jobs import Interval
from batch_jobs.database import leases
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import IncompleteError
from batch_jobs.registry import promotion
from batch_jobs.registry.deployment import Deployment
from batch_jobs.runs import jobs, ledger, staging
from batch_jobs.scoring.predict import predict_chunk
from batch_jobs.settings import Settings
from batch_jobs.training import train
from batch_jobs_airflow import forms, prediction_tasks
from tests.conftest import ROOT
from tests.example_models._tables import STEP, make_tables
from tests.support import mishaps
from tests.support.asking import state, submit
from tests.support.planned import plan

# Airflow's in-process API server warns of what its own dependencies do.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module", autouse=True)
def airflow_database():
    """Airflow's own database, once."""
    initdb()


@pytest.fixture
def now():
    """The end of the newest interval that was due when the test began."""
    time = datetime.now(UTC)
    return time.replace(minute=time.minute // 10 * 10, second=0, microsecond=0)


@pytest.fixture
def settings(tmp_path, monkeypatch, now):
    """A warehouse with orders until an hour from now."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    warehouse.ensure_schema()
    with warehouse.write() as connection:
        make_tables(connection, now - timedelta(days=31), now + timedelta(hours=1))
    environ = {
        "BATCH_JOBS_WAREHOUSE": str(warehouse),
        "BATCH_JOBS_MODEL_STORE": str(tmp_path / "models"),
        "BATCH_JOBS_MODELS": "tests.example_models",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Settings.from_environ(environ)


@pytest.fixture
def promoted(settings, now):
    """The settings of a deployment whose orders model has a champion."""
    train.train(settings, "orders", now - timedelta(hours=6))
    promotion.promote(settings, "orders", actor="test")
    return settings


def run(dag_id, conf=None, **when):
    """Run a DAG as Airflow would; the run's state and that of each task.

    With a logical date on the grid, the data interval is the one that ends there.
    """
    finished = (
        DagBag(ROOT / "dags").dags[dag_id].test(**(when or {"logical_date": None}), run_conf=conf)
    )
    states = {ti.task_id: str(ti.state) for ti in finished.get_task_instances()}
    return str(finished.state), states


def span(interval):
    """The trigger form filled in with an interval."""
    return {"interval_start": interval.start.isoformat(), "interval_end": interval.end.isoformat()}


def rows(settings, query, **values):
    """What a reader gets."""
    with Warehouse(settings.warehouse).read() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def turn_old_labels(settings, now):
    """Let the next version learn the opposite of what it is evaluated on."""
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(
            text("""
            UPDATE orders SET returned = 1 - returned
            WHERE entity_id < (SELECT max(entity_id) FROM orders WHERE placed_at < :cut)"""),
            {"cut": (now - timedelta(days=6)).isoformat()},
        )


SKIPPED = dict.fromkeys(("plan", "score", "publish", "monitor", "prune"), "skipped") | {
    "answer": "success"
}
DONE = dict.fromkeys(SKIPPED, "success")


def test_training_promotes_the_first_version_and_announces_it(settings):
    """The command runs in a process of its own; the gate has no champion to compare with."""
    assert run("train_orders") == ("success", {"train": "success", "promote": "success"})
    assert rows(settings, "SELECT action, reason FROM promotions") == [
        ("promote", "there is no champion to compare with")
    ]


def test_a_training_is_given_nothing_that_it_does_not_know(settings, capfd):
    """It would be ignored; who asked for it finds that in the log."""
    assert run("train_orders", {"as_of": "2026-01-01"})[0] == "failed"
    assert "unknown parameter 'as_of'; there are: none" in capfd.readouterr().out
    assert rows(settings, "SELECT * FROM incident_rows") == []


def test_a_run_promotes_the_version_that_it_has_trained(promoted, now):
    """Not a newer one, of somebody else. By hand that is one as of the moment that the form names.

    The form fills in now; the interval that was due then ended last Monday.
    """
    newer = train.train(promoted, "orders", now - timedelta(hours=2)).version
    wanted = now - timedelta(hours=4)
    assert run("train_orders", logical_date=wanted)[0] == "success"
    versions = dict(rows(promoted, "SELECT version, as_of FROM model_versions"))
    assert wanted.isoformat() in versions.values()
    served = [version for (version,) in rows(promoted, "SELECT version FROM promotions")]
    assert newer not in served


def test_a_challenger_that_is_worse_is_not_promoted(promoted, now):
    """The task is skipped, so that no asset event says that there is a new champion."""
    turn_old_labels(promoted, now)
    assert run("train_orders")[1] == {"train": "success", "promote": "skipped"}
    assert len(rows(promoted, "SELECT * FROM promotions")) == 1


@pytest.mark.failure_mode(61)
def test_nobody_is_asked_about_a_version_that_the_gate_refuses(promoted, now, monkeypatch):
    """The promotion is skipped with the gate's reason; no question goes to Slack."""
    from tests.example_models.orders import model

    gate = model.gate.model_copy(update={"approval": timedelta(hours=1)})
    asking = model.model_copy(update={"gate": gate})
    monkeypatch.setattr("tests.example_models.orders.model", asking)
    turn_old_labels(promoted, now)
    assert run("train_orders") == (
        "success",
        {"train": "success", "approve": "success", "promote": "skipped"},
    )
    assert rows(promoted, "SELECT title FROM incident_rows") == []
    assert len(rows(promoted, "SELECT * FROM promotions")) == 1


@pytest.mark.failure_mode("forms")
def test_a_rollback_leaves_nothing_of_the_later_version(promoted, now, capfd):
    """And records who asked for it, and why; a version that there is not is told."""
    [(first,)] = rows(promoted, "SELECT version FROM promotions")
    later = train.train(promoted, "orders", now - timedelta(hours=3)).version
    promotion.promote(promoted, "orders", later, actor="test", reason="newer")
    assert run("predict_orders")[0] == "success"

    answer = run("rollback_orders", {"version": first, "reason": "it is worse"})

    assert answer == ("success", {"rollback": "success"})
    seen = "SELECT DISTINCT model_version FROM current_predictions"
    assert rows(promoted, seen) == [(first,)]
    [(action, actor, reason)] = rows(
        promoted, "SELECT action, actor, reason FROM promotions ORDER BY promotion_id DESC LIMIT 1"
    )
    assert (action, "airflow manual__" in actor, reason) == (
        *("rollback", True),
        "it is worse",
    )
    for conf, words in (
        ({"version": "v0", "reason": "typo"}, "orders has no version 'v0'"),
        ({"version": first}, "give the version that shall serve again, and the reason"),
        ({"version": first, "reasons": "typo"}, "unknown parameter 'reasons'"),
    ):
        assert run("rollback_orders", conf)[0] == "failed"
        assert words in capfd.readouterr().out
    assert rows(promoted, "SELECT * FROM incident_rows") == []


def test_before_the_first_training_there_is_nothing_to_score_with(settings, capfd):
    """No champion yet is no failure: the run is skipped and says why."""
    assert run("predict_orders") == ("success", SKIPPED)
    assert "orders has no champion yet" in capfd.readouterr().out
    assert rows(settings, "SELECT * FROM prediction_runs") == []


@pytest.mark.failure_mode(40)
def test_a_manual_run_without_a_date_publishes_the_newest_due_interval(promoted, now):
    """`airflow dags trigger` gives neither logical date nor data interval."""
    assert run("predict_orders") == ("success", DONE)
    [(start, end, count)] = rows(
        promoted, "SELECT interval_start, interval_end, row_count FROM serving_status"
    )
    assert Interval.parse(start, end) in (Interval(now - STEP, now), Interval(now, now + STEP))
    assert count == 1


def test_a_scheduled_run_publishes_its_own_interval(promoted, now):
    """The interval is the one passed in, not one read off the clock."""
    assert run("predict_orders", logical_date=now - 4 * STEP) == ("success", DONE)
    assert rows(promoted, "SELECT interval_start FROM serving_status") == [
        ((now - 5 * STEP).isoformat(),)
    ]


def test_a_published_interval_is_left_alone(promoted, now):
    """Repeating a run is a no-op: same rows, same run."""
    conf = span(Interval(now - STEP, now))
    run("predict_orders", conf)
    before = rows(promoted, "SELECT * FROM current_predictions")
    assert run("predict_orders", conf) == ("success", SKIPPED)
    assert rows(promoted, "SELECT * FROM current_predictions") == before


def test_the_form_can_force_an_interval_to_be_scored_again(promoted, now):
    """The new run supersedes the old one, and readers see the same rows."""
    conf = span(Interval(now - 2 * STEP, now))
    run("predict_orders", conf)
    before = rows(promoted, "SELECT entity_id, score, label FROM current_predictions")
    assert run("predict_orders", conf | {"force": True}) == ("success", DONE)
    assert rows(promoted, "SELECT entity_id, score, label FROM current_predictions") == before
    assert rows(promoted, "SELECT state FROM prediction_runs ORDER BY run_id") == [
        *([("superseded",)] * 2),
        *([("published",)] * 2),
    ]


@pytest.mark.parametrize("by", ["form", "data interval"])
def test_a_span_that_is_asked_for_is_all_that_is_due_in_it(promoted, now, by):
    """As a backfill would: by the form, or by Airflow's *Data interval: specify manually*."""
    wanted, long = Interval(now - 6 * STEP, now), now + timedelta(days=1)
    asked = span(wanted) if by == "form" else {}
    own = {} if by == "form" else {"data_interval_start": wanted.start}
    own |= {} if by == "form" else {"data_interval_end": wanted.end}
    params = {name: param.value for name, param in forms.SPAN_PARAMS.items()} | asked
    dag_run = SimpleNamespace(run_type="manual", logical_date=long, run_after=long, conf=asked)
    [item] = prediction_tasks.plan("orders", SimpleNamespace(id=uuid7()), dag_run, params, **own)
    claimed = "SELECT run_id, interval_start FROM prediction_runs ORDER BY run_id"
    starts = [
        (run_id, (now - n * STEP).isoformat())
        for run_id, n in zip(item["run_ids"], range(6, 0, -1), strict=True)
    ]
    assert rows(promoted, claimed) == starts


def test_after_an_outage_the_missed_intervals_are_published_oldest_first(promoted, now):
    """Gaps within the look-back of two hours are healed by the next run, one by one."""
    jobs.predict(promoted, "orders", Interval(now - 9 * STEP, now - 8 * STEP))
    assert run("predict_orders", logical_date=now) == ("success", DONE)
    starts = rows(promoted, "SELECT interval_start FROM prediction_runs ORDER BY published_at")
    assert starts == [((now - n * STEP).isoformat(),) for n in range(9, 0, -1)]
    assert rows(promoted, "SELECT fresh_until FROM serving_status") == [(now.isoformat(),)]


def test_a_gap_that_cannot_be_filled_holds_back_only_itself(promoted, now):
    """The newest interval is published all the same; the run fails, loudly."""
    jobs.predict(promoted, "orders", Interval(now - 4 * STEP, now - 3 * STEP))
    with Warehouse(promoted.warehouse).write() as connection:
        connection.execute(
            text("""
            INSERT INTO orders SELECT * FROM orders WHERE placed_at = :start"""),
            {"start": (now - 2 * STEP).isoformat()},
        )
    state, tasks = run("predict_orders", logical_date=now)
    failed = {
        "score": "failed",
        "publish": "failed",
        "monitor": "upstream_failed",
        "prune": "upstream_failed",
    }
    assert (state, tasks) == ("failed", DONE | failed)
    assert rows(promoted, "SELECT interval_start, state FROM prediction_runs ORDER BY run_id") == [
        ((now - 4 * STEP).isoformat(), "published"),
        ((now - 3 * STEP).isoformat(), "published"),
        ((now - 2 * STEP).isoformat(), "failed"),
        ((now - STEP).isoformat(), "published"),
    ]


@pytest.mark.failure_mode("takeovers")
def test_an_interval_that_others_take_over_skips_nothing(promoted, now):
    """By hand, while the run scores: its own intervals are published, and it is a success."""
    jobs.predict(promoted, "orders", Interval(now - 4 * STEP, now - 3 * STEP))

    def by_hand():
        jobs.predict(promoted, "orders", Interval(now - 2 * STEP, now - STEP), accept="seen")

    with mishaps.once("score.opened", by_hand):
        assert run("predict_orders", logical_date=now) == ("success", DONE)
    assert rows(promoted, "SELECT fresh_until FROM serving_status") == [(now.isoformat(),)]


@pytest.mark.failure_mode("takeovers")
def test_an_interval_that_others_take_over_and_lose_is_no_success(promoted, now, capfd):
    """Its own intervals are published all the same, and the run says whose the other one was."""
    jobs.predict(promoted, "orders", Interval(now - 4 * STEP, now - 3 * STEP))

    def by_hand():
        token = leases.new_token()
        theirs = plan(promoted, "orders", Interval(now - 2 * STEP, now - STEP), token)
        staging.fail(Warehouse(promoted.warehouse), theirs.run_id, "given up")

    with mishaps.once("score.opened", by_hand):
        state, tasks = run("predict_orders", logical_date=now)
    failed = {"publish": "failed", "monitor": "upstream_failed", "prune": "upstream_failed"}
    assert (state, tasks) == ("failed", DONE | failed)
    assert "which has failed: given up" in capfd.readouterr().out
    assert (
        rows(promoted, "SELECT interval_start FROM prediction_runs WHERE state = 'failed'")
        == [((now - 2 * STEP).isoformat(),)] * 2
    )
    assert len(rows(promoted, "SELECT * FROM current_predictions")) == 3


def test_after_a_publication_what_is_too_old_is_removed(promoted, now):
    """By the model's own `keep`; what readers see stays."""
    old = Interval(now - 4 * STEP, now - 3 * STEP)
    for _ in range(2):
        jobs.predict(promoted, "orders", old, force=True)
    with Warehouse(promoted.warehouse).write() as connection:
        connection.execute(
            text("""
            UPDATE prediction_runs SET published_at = '2020-01-01', superseded_at = '2020-01-01'
            WHERE state = 'superseded'""")
        )
    before = rows(promoted, "SELECT entity_id FROM current_predictions")
    assert run("predict_orders", logical_date=now) == ("success", DONE)
    assert rows(promoted, "SELECT DISTINCT state FROM prediction_runs ORDER BY state") == [
        ("published",),
        ("retired",),
    ]
    assert set(before) < set(rows(promoted, "SELECT entity_id FROM current_predictions"))


def test_a_prune_that_fails_is_told_and_touches_nothing(promoted, now, monkeypatch, capfd):
    """The interval is published all the same; the run fails, or nobody would ever know."""

    def fail(*_):
        raise IncompleteError("a test")

    monkeypatch.setattr("batch_jobs.runs.retention.prune", fail)
    assert run("predict_orders", logical_date=now) == ("failed", DONE | {"prune": "failed"})
    assert len(rows(promoted, "SELECT * FROM current_predictions")) == 1
    assert "a test" in capfd.readouterr().out


def test_requests_are_answered_beside_the_interval(promoted, now):
    """By the same run, whatever becomes of its interval."""
    asked = submit(promoted, "orders", [("a", {"amount": 1.5, "country": None})])
    with Warehouse(promoted.warehouse).write() as connection:
        connection.execute(text("ALTER TABLE orders RENAME TO away"))
    failed = dict.fromkeys(("score", "publish", "monitor", "prune"), "upstream_failed") | {
        "plan": "failed"
    }
    assert run("predict_orders", logical_date=now) == ("failed", DONE | failed)
    assert state(promoted, asked) == ("done", 1, 1, 0)


@pytest.mark.parametrize(("is_sound", "state_of_run"), [(True, "success"), (False, "failed")])
def test_a_request_that_cannot_be_answered_holds_nothing_up(
    promoted, now, monkeypatch, capfd, is_sound, state_of_run
):
    """The interval and the other request are done; the run fails only if the model is at fault."""

    def predict(model, predictor, interval, chunk):
        if (chunk["amount"] == 666).any():
            raise RuntimeError("a test")
        return predict_chunk(model, predictor, interval, chunk)

    monkeypatch.setattr("batch_jobs.scoring.predict.predict_chunk", predict)
    monkeypatch.setattr(Deployment, "is_sound", lambda *_: is_sound)
    poison, other = (
        submit(promoted, "orders", [("a", {"amount": amount, "country": None})])
        for amount in (666, 1)
    )
    answered = {"answer": state_of_run}
    assert run("predict_orders", logical_date=now) == (state_of_run, DONE | answered)
    assert (state(promoted, poison)[0], state(promoted, other)[0]) == ("failed", "done")
    assert len(rows(promoted, "SELECT * FROM current_predictions")) == 1
    assert is_sound or f"request {poison} of orders" in capfd.readouterr().out


def test_an_empty_interval_is_a_recorded_successful_run(promoted, now):
    """No rows is an outcome, not a failure; readers keep what they had."""
    jobs.predict(promoted, "orders", Interval(now - 2 * STEP, now - STEP))
    with Warehouse(promoted.warehouse).write() as connection:
        connection.execute(
            text("DELETE FROM orders WHERE placed_at >= :start"),
            {"start": (now - STEP).isoformat()},
        )
    assert run("predict_orders", span(Interval(now - STEP, now))) == ("success", DONE)
    assert rows(promoted, "SELECT row_count FROM serving_status") == [(0,)]
    assert len(rows(promoted, "SELECT * FROM current_predictions")) == 1


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        (
            {"interval_start": "2040-01-01T00:00:00Z", "interval_end": "2040-01-01T00:10:00Z"},
            "ends in the future",
        ),
        ({"interval_start": "2026-01-01T00:00:00Z"}, "give both interval_start and interval_end"),
        (
            {"interval_start": "2026-01-02T00:00:00Z", "interval_end": "2026-01-01T00:10:00Z"},
            "must end after it starts",
        ),
        ({"intervall_start": "2026-01-02T00:00:00Z"}, "unknown parameter 'intervall_start'"),
        ({"accept": "I looked"}, "accept needs interval_start and interval_end"),
    ],
)
@pytest.mark.failure_mode(40, "forms")
def test_an_impossible_interval_fails_with_one_clear_error(promoted, capfd, conf, said):
    """Nothing is claimed, and nothing is retried: it would fail again.

    Who asked for it finds it in the log; nobody else is told.
    """
    state, tasks = run("predict_orders", conf)
    assert (state, tasks["plan"]) == ("failed", "failed")
    assert said in capfd.readouterr().out
    assert rows(promoted, "SELECT * FROM fences") == []
    assert rows(promoted, "SELECT * FROM incident_rows") == []


def test_parts_of_an_interval_are_scored_by_mapped_tasks(promoted, now, monkeypatch):
    """The parts together are the interval, whatever their number."""
    from tests.example_models.orders import model

    hourly = model.model_copy(update={"parts": 3, "schedule": "0 * * * *"})
    monkeypatch.setattr("tests.example_models.orders.model", hourly)
    hour = now.replace(minute=0)
    interval = Interval(hour - 6 * STEP, hour)
    assert run("predict_orders", span(interval)) == ("success", DONE)
    assert rows(promoted, "SELECT part, rows_scored FROM run_parts") == [(0, 2), (1, 2), (2, 2)]
    published = ledger.published_run(Warehouse(promoted.warehouse), "orders", interval)
    assert rows(promoted, "SELECT run_id, count(*) FROM current_predictions GROUP BY 1") == [
        (published.run_id, 6)
    ]


def test_airflows_connection_wins_over_the_environment(promoted, now, monkeypatch, tmp_path):
    """However the connection was set, Python and Bash tasks use it alike."""
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", promoted.warehouse)
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", f"sqlite:///{tmp_path}/elsewhere.db")
    assert run("train_orders")[0] == "success"
    assert run("predict_orders")[0] == "success"
    assert len(rows(promoted, "SELECT * FROM model_versions")) == 2
    assert not (tmp_path / "elsewhere.db").exists()
