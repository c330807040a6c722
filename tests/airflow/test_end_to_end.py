"""The main job under a real Airflow, on real flights, with an endpoint standing in for Slack."""

import contextlib
import os
import time
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from sqlalchemy import text

from batch_jobs.database.transactions import bounds
from batch_jobs.interval import Interval, due_between
from batch_jobs.registry import champions
from batch_jobs.registry.store import ARTIFACT
from tests.support.airflow_cases import PATIENCE
from tests.support.slack_endpoint import CANARY

TRAIN, PREDICT = "train_flight_delay", "predict_flight_delay"
STEP = timedelta(minutes=10)


@pytest.fixture(scope="module")
def trained(site):
    """The deployment after its first training, by Airflow's own scheduler."""
    unpause(site, TRAIN)
    run = wait_for(site, "a training", lambda: finished(site, TRAIN))
    assert run["state"] == "success", task_logs(site)
    return site


@pytest.fixture(scope="module")
def published(trained):
    """The deployment after an interval that holds flights was published."""
    unpause(trained, PREDICT)
    first = wait_for(trained, "the newest due interval", lambda: finished(trained, PREDICT))
    assert first["state"] == "success", task_logs(trained)
    assert trigger(trained, newest_with_flights(trained))["state"] == "success"
    return trained


def wait_for(deployment, what, condition, seconds=PATIENCE):
    """Wait until a condition holds; its answer."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        deployment.airflow.require_alive()
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.5)
    return answer


def unpause(deployment, dag_id):
    """Let the scheduler run a DAG, as soon as it knows it."""

    def known():
        return dag_id in {dag["dag_id"] for dag in deployment.airflow.api("GET", "/dags")["dags"]}

    wait_for(deployment, f"{dag_id} to be read", known)
    deployment.airflow.api("PATCH", f"/dags/{dag_id}?update_mask=is_paused", {"is_paused": False})


def finished(deployment, dag_id, run_id=None):
    """A run of a DAG that has ended: the one named, or the first."""
    runs = deployment.airflow.api("GET", f"/dags/{dag_id}/dagRuns")["dag_runs"]
    ended = [
        run
        for run in runs
        if run["state"] in {"success", "failed"} and run_id in {None, run["dag_run_id"]}
    ]
    return ended[0] if ended else None


def trigger(deployment, interval, dag_id=PREDICT, **conf):
    """Run the prediction DAG for an interval, as from the trigger form; the ended run."""
    conf |= {"interval_start": interval.start.isoformat(), "interval_end": interval.end.isoformat()}
    run = deployment.airflow.api(
        "POST", f"/dags/{dag_id}/dagRuns", {"logical_date": None, "conf": conf}
    )
    return wait_for(deployment, "the run", lambda: finished(deployment, dag_id, run["dag_run_id"]))


def task_logs(deployment):
    """The ends of all task logs, for a failure's message."""
    logs = sorted((deployment.home / "airflow/logs").rglob("*.log"), key=os.path.getmtime)
    return "\n".join(f"{log}\n{log.read_text()[-3000:]}" for log in logs[-4:])


def query(deployment, sql, **values):
    """What a reader gets."""
    with deployment.warehouse.read() as connection:
        return connection.execute(text(sql), values).all()


def newest_with_flights(deployment):
    """The newest due interval in which a flight came up for scoring."""
    sql = "SELECT max(as_of) FROM flights WHERE as_of < :end"
    now = datetime.now(UTC)
    end = now.replace(minute=now.minute // 10 * 10, second=0, microsecond=0)
    newest = datetime.fromisoformat(query(deployment, sql, end=end.isoformat())[0][0])
    start = newest.replace(minute=newest.minute // 10 * 10)
    return Interval(start, start + STEP)


def test_airflow_trains_and_promotes_on_real_flights(trained):
    """Unpausing the weekly DAG runs its newest due interval at once."""
    champion = champions.champion(trained.warehouse, "flight_delay")
    assert champion.manifest["rows_fit"] > 10_000
    assert champion.metrics["roc_auc"] > 0.6
    events = trained.airflow.api("GET", "/assets/events")["asset_events"]
    [event] = [event for event in events if event["source_dag_id"] == TRAIN]
    assert event["extra"]["version"] == champion.version


def test_airflow_publishes_the_predictions_of_an_interval(published):
    """Every flight of the interval has one prediction by the champion."""
    interval = newest_with_flights(published)
    flights = query(
        published,
        "SELECT entity_id FROM flights WHERE as_of >= :start AND as_of < :end ORDER BY 1",
        **bounds(interval),
    )
    predictions = query(
        published,
        "SELECT entity_id, score, model_version FROM current_predictions "
        "WHERE interval_start = :start AND interval_end = :end ORDER BY 1",
        **bounds(interval),
    )
    champion = champions.champion(published.warehouse, "flight_delay")
    assert [row.entity_id for row in predictions] == [row.entity_id for row in flights]
    assert {row.model_version for row in predictions} == {champion.version}
    assert all(0 < row.score < 1 for row in predictions)
    events = published.airflow.api("GET", "/assets/events?order_by=timestamp")["asset_events"]
    extra = next(e["extra"] for e in events if e["source_task_id"] == "publish")
    assert extra["model_version"] == champion.version
    assert extra["rows_scored"] <= extra["rows_read"]
    assert extra["published"] >= 1


def test_airflows_backfill_publishes_a_past_span(published):
    """A backfill goes through the same tasks, each run for its own interval."""
    start = newest_with_flights(published).start - timedelta(days=2)
    wanted = list(due_between("*/10 * * * *", start, start + 3 * STEP))
    head = query(published, "SELECT interval_end FROM serving_status")
    published.airflow.api(
        "POST",
        "/backfills",
        {
            "dag_id": PREDICT,
            "from_date": wanted[0].start.isoformat(),
            "to_date": wanted[-1].start.isoformat(),
            "max_active_runs": 1,
        },
    )

    def done():
        rows = query(
            published,
            "SELECT interval_start FROM prediction_runs WHERE state = 'published' "
            "AND interval_start >= :start AND interval_start < :end",
            **bounds(Interval(start, start + 3 * STEP)),
        )
        return len(rows) == 3

    wait_for(published, "the backfill", done)
    assert query(published, "SELECT interval_end FROM serving_status") >= head


def test_a_provoked_failure_is_told_once_and_readers_keep_what_they_had(published):
    """A corrupted artifact is refused; Slack hears what failed and what readers see."""
    champion = champions.champion(published.warehouse, "flight_delay")
    artifact = published.home / "models" / "flight_delay" / champion.version / ARTIFACT
    whole = artifact.read_bytes()
    artifact.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    before = query(published, "SELECT * FROM current_predictions ORDER BY entity_id")
    heard = len(published.slack.payloads)
    interval = newest_with_flights(published)

    run = trigger(published, interval, force=True)

    assert run["state"] == "failed"
    assert published.slack.wait_for(heard + 1, PATIENCE), task_logs(published)
    message = published.slack.texts[heard]
    for part in ("flight_delay", PREDICT, "score", "has changed", champion.version, "run manual__"):
        assert part in message, f"{message}\n{task_logs(published)}"
    assert query(published, "SELECT * FROM current_predictions ORDER BY entity_id") == before

    artifact.write_bytes(whole)
    assert trigger(published, interval, force=True)["state"] == "success"
    assert published.slack.wait_for(heard + 2, PATIENCE)
    assert len(published.slack.payloads) == heard + 2


def test_the_webhooks_token_is_nowhere(published):
    """Neither stdout of any process, nor task logs, nor XCom hold it."""
    searched, leaks = 0, []
    for path in published.home.rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # some come and go
            searched, content = searched + 1, path.read_bytes()
            leaks += [path for needle in (CANARY, CANARY[-16:]) if needle.encode() in content]
    assert searched > 30
    assert leaks == []


def test_nothing_listens_beyond_this_machine(published):
    """Every socket of every process is bound to 127.0.0.1."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AIRFLOW_HOME") == str(published.home / "airflow"):
                found |= {c.laddr for c in process.net_connections("inet") if c.status == "LISTEN"}
    assert {address.ip for address in found} == {"127.0.0.1"}
    assert published.airflow.port in {address.port for address in found}


def test_nothing_was_written_outside(published):
    """Airflow keeps to its own folder: nothing in the user's home."""
    assert list((published.home / "user").iterdir()) == []
    assert (published.home / "airflow" / "airflow.db").exists()
