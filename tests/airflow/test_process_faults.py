"""Processes that die, hang and come back under a real Airflow: the interval is published once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from batch_jobs.settings import Settings
from tests.conftest import ROOT
from tests.support.airflow_cases import (
    ON_SQLITE,
    PATIENCE,
    PATIENT,
    VIEWS,
    Cases,
    LastingAirflow,
    free_port,
    gone,
    kill,
    make_root,
    miss_the_heartbeat,
    pass_an_hour,
    publish_the_interval_before,
    sqlite_url,
    until,
)
from tests.support.postgres_server import PostgresServer
from tests.support.slack_endpoint import listening

# Where the first try that comes by stops, by model. Each model is a case, and has a DAG of its own,
# so that the cases wait for Airflow's patience side by side. PostgreSQL is the warehouse of most.
STOPS = {
    "orphan": "score.chunk_staged",
    "outliving": "score.chunk_staged",
    "late_claimer": "plan.before_claim",
    "terminated": "score.chunk_staged",
    "overtime": "score.chunk_staged",
    "overdue": "score.chunk_staged",
    "cleared": "score.chunk_staged",
    "replaced": "score.chunk_staged",
    "recreated": "score.chunk_staged",
    "committed": "publish.committed",
    "finished": None,
    "unattended": "score.chunk_staged",
    "abandoned": "score.chunk_staged",
    "outliving_on_sqlite": "score.chunk_staged",
    "replaced_on_sqlite": "score.chunk_staged",
    "committed_on_sqlite": "publish.committed",
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Cases]:
    """Every case's run has been started, on top of a published interval."""
    folder = tmp_path_factory.mktemp("faults")
    postgres.create_database("process_faults")
    # A task that waits at a pipe must not lose its session to that.
    patience = quote("-c idle_in_transaction_session_timeout=10min")
    postgres_url = f"{postgres.url('process_faults')}?options={patience}"
    root = folder / "root"
    make_root(root, list(STOPS))
    settings = Settings(postgres_url, str(folder / "models"), ("faulty",))
    with listening() as slack:
        environ = PATIENT | {
            "PYTHONPATH": f"{root}{os.pathsep}{ROOT / 'src'}",
            "BATCH_JOBS_WAREHOUSE": postgres_url,
            "BATCH_JOBS_MODEL_STORE": settings.model_store,
            "BATCH_JOBS_MODELS": "faulty",
            "AIRFLOW_CONN_SLACK_WEBHOOK": slack.connection(),
            "AIRFLOW__CORE__PARALLELISM": str(len(STOPS) + 2),
            "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
            "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "3",
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "3",
        }
        with LastingAirflow(root, folder / "airflow", free_port(), environ) as airflow:
            with pytest.MonkeyPatch.context() as patch:
                patch.syspath_prepend(root)
                for on_sqlite, at in ((False, postgres_url), (True, sqlite_url(root))):
                    names = [name for name in STOPS if name.endswith(ON_SQLITE) == on_sqlite]
                    publish_the_interval_before(replace(settings, warehouse=at), names)
            airflow.wait_healthy(PATIENCE)
            made = Cases(root, airflow, postgres_url, slack)
            until(lambda: len(made.api("GET", "/dags")["dags"]) >= 2 * len(STOPS), "the DAG files")
            for name, place in STOPS.items():
                if place is not None:
                    made.stop_at(name, place, outlives=name.startswith(("outliving", "late")))
                made.begin(name)
            yield made
    postgres.drop_database("process_faults")


@pytest.fixture(scope="module")
def orphans(cases: Cases) -> dict[str, int]:
    """The processes of the tasks whose supervisors have been killed, as Airflow soon finds out."""
    names = [name for name in STOPS if name.startswith(("outliving", "late", "orphan"))]
    found = {name: cases.stopped(name) for name in names}
    for process in found.values():
        kill(psutil.Process(process).ppid())
    until(lambda: gone(found["orphan"]), "the task to die")
    assert cases.states("orphan")["score"] == "running"
    assert cases.seen("orphan") == LAST_GOOD
    for name in names:
        miss_the_heartbeat(cases.airflow, name)
    return found


@pytest.fixture(scope="module")
def cleared(cases: Cases) -> dict[str, int]:
    """The processes of the tasks that scored when something was cleared."""
    clearings = {"cleared": "score", "replaced": "plan", "replaced_on_sqlite": "plan"}
    found = {name: cases.stopped(name) for name in clearings}
    for name, task in clearings.items():
        cases.clear(name, task)
    return found


def rows(*minutes: int) -> dict[str, Any]:
    """What readers get of the items of some minutes: twice the amount."""
    return {f"item-{minute}": pytest.approx(2 * minute, abs=1e-6) for minute in minutes}


# What a run comes to whose interval is published already.
NOTHING_TO_DO = dict.fromkeys(("plan", "score", "publish", "monitor", "prune"), "skipped") | {
    "answer": "success"
}
LAST_GOOD = rows(*range(-10, 0))
PUBLISHED = rows(*range(-10, 10))


def assert_published_once(
    cases: Cases, name: str, *, attempts: list[str], tries: dict[str, int]
) -> None:
    """Airflow says that all went well, and readers see the interval once, after the last one.

    Args:
        cases: where.
        name: the case.
        attempts: what the ledger says of the attempts at the interval, oldest first.
        tries: how often a task was tried, for those that were tried more than once.
    """
    assert cases.ended(name) == "success"
    assert set(cases.states(name).values()) == {"success"}
    assert {task: number for task, number in cases.tries(name).items() if number > 1} == tries
    assert cases.attempts(name) == attempts
    assert cases.seen(name) == PUBLISHED
    newest = """
        SELECT rows_read, rows_scored, r.state FROM prediction_runs AS r
        JOIN serving_status AS s ON s.run_id = r.run_id AND s.model = :name"""
    assert cases.ask(name, newest) == [(10, 10, "published")]
    shown = "SELECT count(*), count(superseded_at) FROM prediction_history WHERE model = :name"
    assert cases.ask(name, shown) == [(20, 0)]


@pytest.mark.failure_mode(14)
def test_a_task_dies_with_its_supervisor(cases, orphans):
    """Linux kills it at once; Airflow misses its heartbeat minutes later, and tries again."""
    assert gone(orphans["orphan"])

    assert_published_once(cases, "orphan", attempts=["published"], tries={"score": 2})


@pytest.mark.parametrize("name", ["outliving", "outliving_on_sqlite"])
@pytest.mark.failure_mode(14)
def test_a_task_that_outlives_its_supervisor_is_fenced_off(cases, orphans, name):
    """It wakes up after its retry has published: it stages no further row and changes nothing."""
    assert_published_once(cases, name, attempts=["published"], tries={"score": 2})
    assert not gone(orphans[name])
    before = cases.everything(name)

    cases.let_go(orphans[name])

    until(lambda: gone(orphans[name]), "the orphan to end")
    assert "a newer try is scoring this part" in (cases.stops / f"{name}.log").read_text()
    own = [place for pid, _, place in cases.trail(name) if pid == orphans[name]]
    assert "score.all_staged" not in own
    assert cases.everything(name) == before


@pytest.mark.failure_mode(11)
def test_a_claim_that_comes_too_late_is_refused(cases, orphans):
    """An orphan wakes up before it has claimed, after its retry has claimed and published."""
    process = orphans["late_claimer"]
    assert_published_once(cases, "late_claimer", attempts=["published"], tries={"plan": 2})
    assert not gone(process)
    before = cases.everything("late_claimer")

    cases.let_go(process)

    until(lambda: gone(process), "the orphan to end")
    own = [place for pid, _, place in cases.trail("late_claimer") if pid == process]
    assert own == ["plan.before_claim"]
    assert cases.everything("late_claimer") == before


@pytest.mark.parametrize("name", ["committed", "committed_on_sqlite"])
@pytest.mark.failure_mode(8)
def test_a_task_killed_after_its_commit_has_published(cases, name):
    """Airflow has heard of no success and tries again; the retry finds all done."""
    process = cases.stopped(name)
    assert cases.seen(name) == PUBLISHED
    before = cases.everything(name)

    kill(process)

    assert_published_once(cases, name, attempts=["published"], tries={"publish": 2})
    assert cases.everything(name) == before


@pytest.mark.failure_mode(10)
def test_a_terminated_task_publishes_once(cases):
    """SIGTERM, from a person or a machine that shuts down, leaves nothing half done."""
    process = cases.stopped("terminated")

    os.kill(process, signal.SIGTERM)

    assert cases.seen("terminated") == LAST_GOOD
    cases.let_go(process)
    assert cases.ended("terminated") == "success"
    tried = cases.tries("terminated")["score"]
    tries = {"score": tried} if tried > 1 else {}
    assert_published_once(cases, "terminated", attempts=["published"], tries=tries)


@pytest.mark.failure_mode(10)
def test_a_cleared_running_task_gives_way_to_its_next_try(cases, cleared):
    """Its process ends, what it staged is removed, and the run goes on."""
    assert_published_once(cases, "cleared", attempts=["published"], tries={"score": 2})
    until(lambda: gone(cleared["cleared"]), "the first try to end")
    assert cases.seen("cleared") == PUBLISHED


@pytest.mark.parametrize("name", ["replaced", "replaced_on_sqlite"])
@pytest.mark.failure_mode(18)
def test_a_cleared_plan_gives_a_new_attempt_while_the_old_one_scores(cases, cleared, name):
    """The new attempt claims the interval and fails the old one, which ends."""
    tries = {"plan": 2, "score": 2}
    assert_published_once(cases, name, attempts=["failed", "published"], tries=tries)
    until(lambda: gone(cleared[name]), "the first attempt to end")
    assert cases.seen(name) == PUBLISHED


@pytest.mark.failure_mode(17)
def test_a_deleted_run_that_is_made_again_publishes(cases):
    """Under the same name: a new attempt, and after that one has published no other."""
    process = cases.stopped("recreated")
    run_id = cases.runs["recreated"]
    cases.api("PATCH", cases.run("recreated"), {"state": "failed"})
    until(lambda: gone(process), "the task to end")
    assert cases.seen("recreated") == LAST_GOOD
    until(lambda: cases.told()["recreated"] == 1, "the alert")

    cases.api("DELETE", cases.run("recreated"))
    cases.begin("recreated", run_id)

    assert_published_once(cases, "recreated", attempts=["failed", "published"], tries={})
    before = cases.everything("recreated")
    cases.api("DELETE", cases.run("recreated"))
    cases.begin("recreated", run_id)
    assert cases.ended("recreated") == "success"
    assert cases.states("recreated") == NOTHING_TO_DO
    assert cases.everything("recreated") == before


@pytest.mark.failure_mode(10)
def test_a_task_that_takes_too_long_is_tried_again(cases):
    """Its execution_timeout strikes in the middle of staging; the retry starts afresh."""
    process = cases.stopped("overtime")

    assert_published_once(cases, "overtime", attempts=["published"], tries={"score": 2})
    assert gone(process)


@pytest.mark.failure_mode(20)
def test_a_run_that_takes_too_long_fails_and_the_next_one_publishes(cases):
    """Its dagrun_timeout strikes in the middle of staging; readers keep the last good rows."""
    process = cases.stopped("overdue")

    assert pass_an_hour(cases.airflow, "dag_run", "start_date", "dag_id = 'predict_overdue'") == 1

    assert cases.ended("overdue") == "failed"
    until(lambda: gone(process), "the task to end")
    assert cases.attempts("overdue") == ["staging"]
    assert cases.seen("overdue") == LAST_GOOD
    until(lambda: cases.told()["overdue"] == 1, "the alert")
    cases.begin("overdue")
    assert_published_once(cases, "overdue", attempts=["failed", "published"], tries={})


@pytest.mark.failure_mode(18)
def test_a_finished_run_that_is_cleared_changes_nothing(cases):
    """What is published stays published by the same run; nothing is scored again."""
    assert_published_once(cases, "finished", attempts=["published"], tries={})
    before = cases.everything("finished")

    cases.clear("finished", "plan")

    until(lambda: cases.tries("finished")["plan"] == 2, "plan to run again")
    assert cases.ended("finished") == "success"
    assert cases.states("finished") == NOTHING_TO_DO
    assert cases.everything("finished") == before


@pytest.mark.failure_mode(18)
def test_a_forced_run_supersedes_the_published_one_in_one_moment(cases):
    """Until the commit readers see all rows of the old run, and from then on all of the new one."""
    assert cases.ended("finished") == "success"
    cases.stop_at("finished", "publish.before_commit")
    before = {view: cases.everything("finished")[view] for view in VIEWS}

    cases.begin("finished", force=True)

    process = cases.stopped("finished")
    assert {view: cases.everything("finished")[view] for view in VIEWS} == before
    cases.let_go(process)
    assert cases.ended("finished") == "success"
    assert set(cases.states("finished").values()) == {"success"}
    assert cases.attempts("finished") == ["superseded", "published"]
    assert cases.seen("finished") == PUBLISHED


@pytest.mark.failure_mode(14)
def test_a_killed_scheduler_takes_up_its_runs_again(cases):
    """A task that ended meanwhile is not repeated, and one that goes on gives way to a new try."""
    ending, hanging = cases.stopped("unattended"), cases.stopped("abandoned")
    cases.airflow.kill_scheduler()
    assert pass_an_hour(cases.airflow, "job", "latest_heartbeat", "job_type = 'SchedulerJob'") == 1
    cases.let_go(ending)
    until(lambda: cases.states("unattended")["score"] == "success", "the task to end")
    assert cases.seen("unattended") == LAST_GOOD
    assert not gone(hanging)

    cases.airflow.start_scheduler()

    assert_published_once(cases, "unattended", attempts=["published"], tries={})
    assert_published_once(cases, "abandoned", attempts=["published"], tries={"score": 2})
    until(lambda: gone(hanging), "the first try to end")


@pytest.mark.failure_mode("harness")
def test_slack_heard_of_failed_runs_only(cases):
    """Not of retries. Alerts come in order, so when the last one of all is there, all are."""
    assert cases.ended("finished") == "success"
    cases.stop_at("finished", "plan.before_claim")
    cases.begin("finished", force=True)
    process = cases.stopped("finished")
    cases.api("PATCH", cases.run("finished"), {"state": "failed"})
    until(lambda: gone(process), "the task to end")
    until(lambda: cases.told()["finished"] == 1, "the last alert")

    # A failure and the recovery. If their own tests have not been run, there is neither.
    expected = {"overdue": 2, "recreated": 2, "finished": 1}
    told = cases.told()
    assert told == {name: expected[name] for name in expected if name in told}
