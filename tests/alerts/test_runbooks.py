"""Each cause that can be told has a runbook, and no other has."""

import ast
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

import batch_jobs
from batch_jobs.alerts import causes, incident_words, incidents, runbooks
from batch_jobs.alerts.problems import Problem
from batch_jobs.cli.main import app
from batch_jobs.monitoring.reporting import DAMAGE, DRIFT
from batch_jobs.monitoring.watching.judgement import OWN

NOON = datetime(2026, 11, 27, 12, tzinfo=UTC)
GLUE = Path(batch_jobs.__file__).parent.parent / "batch_jobs_airflow"
PARTS = ("It means", "Readers", "Look.", "Mend.", "Over")


def of_the_glue():
    """Causes that the glue gives by name: of Airflow's own reasons."""
    tree = ast.parse((GLUE / "failures.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "cause":
                    yield from [value.value] if isinstance(value, ast.Constant) else []
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_REASONS":
            yield from (each.elts[0].value for each in node.value.values)


def test_each_cause_has_one_and_no_other():
    """Also a cause that will be made later."""
    told = {kind.name for kind in causes.KINDS} | {causes.OTHER.name, causes.KILLED}
    told |= set(OWN) | {DAMAGE, DRIFT} | set(of_the_glue())
    assert {"run-timeout", "deadlock", "marked-failed", "away", "unknown"} <= set(of_the_glue())
    assert set(runbooks.sections()) == told


@pytest.mark.parametrize("name", runbooks.sections())
def test_one_says_all_that_is_asked_at_night(name):
    """What it means, what readers see, where to look, what to do, when it is over."""
    said = [line for line in runbooks.sections()[name].splitlines() if line]
    assert [line.startswith(f"**{part}") for line, part in zip(said, PARTS, strict=True)] == (
        [True] * len(PARTS)
    )


@pytest.mark.parametrize(
    ("cause", "name"),
    [
        ("predict-killed", "killed"),
        ("train-training-data", "training-data"),
        ("my_own_dag:contract/keyerror-12ab", "contract"),
        ("backfill-rejects", "rejects"),
        ("dag-paused/predict", "dag-paused"),
        ("dag-file/12ab", "dag-file"),
        ("disk-full", "disk-full"),
        ("training-overdue", "training-overdue"),
    ],
)
def test_a_cause_leads_to_its_runbook(cause, name):
    """Whatever failed for it, and whatever tells it apart from others of its kind."""
    assert runbooks.name_of(cause) == name
    assert name in runbooks.sections()
    shown = CliRunner().invoke(app, ["runbook", cause])
    assert (shown.exit_code, shown.stdout.splitlines()[0]) == (0, name)


def test_a_cause_that_nobody_knows_is_refused_with_those_that_are_like_it():
    """In one line."""
    refused = CliRunner().invoke(app, ["runbook", "dag-pause"])
    assert refused.exit_code != 0
    assert "dag-paused" in str(refused.exception or refused.output)


def test_a_message_leads_to_it(warehouse, monkeypatch):
    """By a command, or by a link where the deployment says where they are."""
    problem = Problem("dag-paused/predict", "iris", "predict_iris is paused")
    incidents.report(warehouse, problem, "first", NOON)
    [incident] = incidents.open_incidents(warehouse)
    assert (
        "Runbook: `batch-jobs runbook dag-paused`" in incident_words.told(incident, None, NOON).text
    )
    monkeypatch.setenv("BATCH_JOBS_RUNBOOKS", "https://docs.example.com/runbooks/")
    incidents.report(warehouse, problem, "second", NOON)
    [incident] = incidents.open_incidents(warehouse)
    told = incident_words.told(incident, None, NOON)
    assert "<https://docs.example.com/runbooks/#dag-paused|Runbook>" in told.text
    assert "batch-jobs runbook" not in told.text
