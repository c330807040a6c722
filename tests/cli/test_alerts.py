"""Incidents, mutes and the trial message from the command line."""

import json
from datetime import timedelta

import pytest
from typer.testing import CliRunner

from batch_jobs import clock
from batch_jobs.alerts import incidents
from batch_jobs.alerts.incidents import Problem
from batch_jobs.cli.main import app
from batch_jobs.database.warehouse import Warehouse
from tests.support.slack_endpoint import slack_endpoint

__all__ = ["slack_endpoint"]


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A warehouse in which one incident is open."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    warehouse.ensure_schema()
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", str(warehouse))
    monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", str(tmp_path))
    problem = Problem("predict-killed", "iris", "score was killed", next_step="mend it")
    incidents.report(warehouse, problem, "run", clock.now())
    return warehouse


def run(*words, code=0):
    """What a command prints."""
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def test_incidents_are_shown_with_what_to_do(site):
    """Those that last; with --all also those that are over."""
    shown = run("incidents")
    assert "score was killed" in shown
    assert "predict-killed: mend it" in shown
    [found] = json.loads(run("incidents", "iris", "--json"))
    told = (found["cause"], found["occurrences"], found["severity"])
    assert told == ("predict-killed", 1, "page")
    incidents.resolve(site, "iris", ["*"], clock.now())
    assert "nothing is wrong" in run("incidents")
    assert "score was killed" in run("incidents", "--all")


def test_cause_is_muted_with_a_reason_and_told_again(site):
    """The end is shown, and with it who says why."""
    words = ("iris", "predict-*", "--reason", "known", "--link", "#7", "--for")
    assert "is muted until" in run("mute", *words, "2d")
    [found] = json.loads(run("incidents", "--json"))
    assert (found["mute"]["reason"], found["mute"]["link"]) == ("known", "#7")
    assert "is told again" in run("unmute", "iris", "predict-*")
    assert "was not muted" in run("unmute", "iris", "predict-*")
    wrong = CliRunner().invoke(app, ["mute", *words, "for ever"])
    assert "write how long, such as 30m, 4h, 2d or 1w" in str(wrong.exception)


def test_way_to_the_channels_can_be_tried(site, slack_endpoint, monkeypatch):
    """What waits goes first; what was not taken is told, and the exit code with it."""
    monkeypatch.setenv("BATCH_JOBS_ALERTS", slack_endpoint.url)
    answer = json.loads(run("alert", "--test", "--json"))
    assert (answer["sent"], answer["undelivered"]) == (2, [])
    assert "score was killed" in slack_endpoint.texts[0]
    assert "alerts arrive here" in slack_endpoint.texts[1]
    slack_endpoint.mode = "404"
    assert "no_service" in run("alert", "--test", code=1)
    assert "no_service" in run("status")
    slack_endpoint.mode = "ok"
    assert json.loads(run("alert", "--test", "--json"))["sent"] == 2
    assert timedelta() < clock.now() - incidents.open_incidents(site)[0].opened_at


def test_without_a_channel_a_trial_says_what_to_set(site):
    """Nothing to try."""
    wrong = CliRunner().invoke(app, ["alert", "--test"])
    assert "set BATCH_JOBS_ALERTS" in str(wrong.exception)
