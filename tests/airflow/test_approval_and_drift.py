"""Under a real Airflow, a person approves a promotion, and drift starts a training."""

from datetime import datetime

import pytest
from sqlalchemy import text

from batch_jobs.registry import champions, versions
from tests.support.airflow_cases import until

DAG = "train_careful"


@pytest.fixture(scope="module")
def asked(site):
    """The first training of `careful`, by its cron, that waits for a person."""
    unpause(site, DAG)
    [run] = until(lambda: runs(site), "a training")
    awaiting(site, run)
    return run


@pytest.fixture(scope="module")
def approved(site, asked):
    """That training after drift was told of three times, and it was approved."""
    for bad in (3, 4, 5):
        tell_drift(site, {"bad_windows": bad})
    respond(site, asked, "Approve")
    ended(site, asked)
    return asked


@pytest.fixture(scope="module")
def retrained(site, approved):
    """The training that drift had asked for, which waits for a person."""
    run = until(
        lambda: next((r for r in runs(site) if r["run_type"] == "asset_triggered"), None),
        "a training because of drift",
    )
    awaiting(site, run)
    return run


def unpause(site, dag_id):
    """Let the scheduler run a DAG, as soon as it knows it."""
    api = site.airflow.api
    until(lambda: dag_id in {dag["dag_id"] for dag in api("GET", "/dags")["dags"]}, dag_id)
    api("PATCH", f"/dags/{dag_id}?update_mask=is_paused", {"is_paused": False})


def runs(site, dag_id=DAG):
    """The runs of a DAG, the oldest first."""
    return site.airflow.api("GET", f"/dags/{dag_id}/dagRuns?order_by=id")["dag_runs"]


def states(site, run):
    """The states of the tasks of a run."""
    path = f"/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances"
    found = site.airflow.api("GET", path)["task_instances"]
    return {task["task_id"]: task["state"] for task in found}


def awaiting(site, run):
    """Wait until a run waits for a person."""

    def waits():
        found = states(site, run)
        assert "failed" not in found.values(), log(site, run)
        return found.get("approve") == "awaiting_input"

    until(waits, "a person to be asked")
    # An answer that comes before the scheduler has heard of the end of the asking process is taken
    # for a lost task, and asked for again.
    heard = f"'approve', run_id='{run['dag_run_id']}'"
    scheduler = site.airflow.logs / "scheduler.log"
    until(
        lambda: any(
            "Received executor event" in line and heard in line
            for line in scheduler.read_text().splitlines()
        ),
        "the asking process to end",
    )


def ended(site, run):
    """The run when it has ended."""
    path = f"/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}"

    def found():
        now = site.airflow.api("GET", path)
        return now if now["state"] in {"success", "failed"} else None

    return until(found, f"{run['dag_run_id']} to end")


def question(site, run):
    """Where a person's answer goes."""
    return f"/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances/approve/-1/hitlDetails"


def respond(site, run, word):
    """Answer as the form in the UI does, by the button that begins with a word."""
    options = site.airflow.api("GET", question(site, run))["options"]
    [option] = [option for option in options if option.startswith(word)]
    body = {"chosen_options": [option], "params_input": {}}
    site.airflow.api("PATCH", question(site, run), body)


def tell_drift(site, extra):
    """Raise the model's drift as monitoring does, or anybody with Airflow's REST API."""
    found = site.airflow.api("GET", "/assets?name_pattern=careful_drift")["assets"]
    [asset] = [asset for asset in found if asset["name"] == "careful_drift"]
    body = {"asset_id": asset["id"], "extra": extra}
    site.airflow.api("POST", "/assets/events", body)


def next_due(site):
    """When the cron starts the DAG next, and on which interval."""
    dag = site.airflow.api("GET", f"/dags/{DAG}")
    return {name: value for name, value in dag.items() if name.startswith("next_dagrun")}


def promotions(site, model="careful"):
    """Every promotion of a model."""
    with site.warehouse.read() as connection:
        asked = "SELECT version, actor, reason FROM promotions WHERE model = :model"
        return connection.execute(text(asked), {"model": model}).all()


def asked_of(site, model):
    """What Slack has been told about a model."""
    return [said for said in site.slack.texts if model in said]


def log(site, run, task="*"):
    """What the tasks of a run said."""
    found = (site.home / "airflow" / "logs").glob(
        f"dag_id={run['dag_id']}/run_id={run['dag_run_id']}/task_id={task}/*.log"
    )
    return "\n".join(path.read_text() for path in sorted(found))


def test_a_run_of_the_cron_keeps_its_data_interval_beside_drift(site, asked):
    """It trains as of the interval's end, and there is no catching up."""
    assert (asked["run_type"], len(runs(site))) == ("scheduled", 1)
    assert datetime.fromisoformat(asked["data_interval_end"]) == site.due
    version = versions.newest_version(site.warehouse, "careful")
    assert datetime.fromisoformat(version.as_of) == site.due


@pytest.mark.failure_mode(61)
def test_a_person_sees_what_the_gate_says(site, asked):
    """Verdict, reasons and metrics are in the form; Slack has the question once, with the link."""
    version = versions.newest_version(site.warehouse, "careful")
    found = site.airflow.api("GET", question(site, asked))
    assert found["subject"] == f"May careful {version.version} serve?"
    assert found["options"] == [f"Approve {version.version}", "Reject"]
    told = ("May serve", "there is no champion", f"| log loss | {version.metrics['log_loss']:.4f}")
    for part in told:
        assert part in found["body"]
    until(lambda: asked_of(site, "careful"), "the question in Slack")
    [message] = asked_of(site, "careful")
    assert f"may {version.version} serve?" in message
    assert "Answer in Airflow, under *Required Actions*." in message  # no link to 127.0.0.1
    assert promotions(site) == []


def test_the_one_who_approves_is_recorded(site, approved):
    """The version that was asked about is the champion."""
    assert states(site, approved)["promote"] == "success"
    [(version, actor, reason)] = promotions(site)
    assert version == champions.champion(site.warehouse, "careful").version
    assert actor == f"admin (airflow {approved['dag_run_id']})"
    assert reason == "there is no champion to compare with"


@pytest.mark.failure_mode(62)
def test_drift_trains_once_however_often_it_is_told(site, retrained):
    """While another training goes on, events wait; then they are one run, as of the first."""
    assert [run["run_type"] for run in runs(site)] == ["scheduled", "asset_triggered"]
    assert retrained["data_interval_end"] is None
    version = versions.newest_version(site.warehouse, "careful")
    as_of = datetime.fromisoformat(retrained["run_after"])
    assert datetime.fromisoformat(version.as_of) == as_of
    assert "careful_drift at " in log(site, retrained, "evidence")
    assert "bad_windows" in log(site, retrained, "evidence")


@pytest.mark.failure_mode(61)
def test_a_rejected_version_is_not_promoted(site, retrained):
    """The champion stays, the log says who rejected it, and the run is no failure."""
    before = promotions(site)
    respond(site, retrained, "Reject")
    assert ended(site, retrained)["state"] == "success"
    assert states(site, retrained)["promote"] == "skipped"
    assert "the champion stays: admin rejected it" in log(site, retrained, "promote")
    refused = until(
        lambda: [said for said in asked_of(site, "careful") if "is not promoted" in said],
        "the refusal in Slack",
    )
    assert "admin rejected it" in refused[0]
    assert promotions(site) == before


@pytest.mark.failure_mode(62)
def test_what_was_just_trained_is_not_trained_again_for_drift(site, retrained):
    """The run is skipped with its reason, and the cron's next run is the one it was."""
    ended(site, retrained)
    due = next_due(site)
    tell_drift(site, {"bad_windows": 6})
    run = until(lambda: runs(site)[2:], "another run")[0]
    assert ended(site, run)["state"] == "success"
    assert set(states(site, run).values()) == {"skipped"}
    assert "retrain_on_drift asks for 2 h 0 min between" in log(site, run, "evidence")
    assert next_due(site) == due


@pytest.mark.failure_mode(61)
def test_a_question_that_nobody_answers_keeps_the_champion(site):
    """After its time the promotion is skipped, which is no failure."""
    unpause(site, "train_hasty")
    [run] = until(lambda: runs(site, "train_hasty"), "a training")
    assert ended(site, run)["state"] == "success"
    assert states(site, run)["promote"] == "skipped"
    assert "nobody approved it within" in log(site, run, "promote")
    assert promotions(site, "hasty") == []
    assert any("nobody approved it" in said for said in asked_of(site, "hasty"))
