"""What the demo tells a person; that it works is shown end to end."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from batch_jobs.settings import Settings
from demo import main
from demo.local import LocalAirflow


@pytest.mark.parametrize(
    ("score", "expected"),
    [(0.0, "░░░░░░░   0%"), (0.5, "████░░░  50%"), (1.0, "███████ 100%")],
)
def test_a_probability_is_a_bar_of_one_width(score, expected):
    """Columns line up whatever the probability."""
    assert main._bar(score).plain == expected


def test_a_likely_delay_is_red():
    """The colour says what to look at first."""
    colours = [main._bar(score).spans[-1].style for score in (0.1, 0.3, 0.7)]
    assert colours == ["green", "yellow", "red"]


def test_the_log_of_a_failed_task_is_told_without_its_json(tmp_path):
    """Messages and exceptions are kept, marks of folding and broken lines are not."""
    log = tmp_path / "attempt=1.log"
    error = {"exc_type": "AirflowFailException", "exc_value": "no such table"}
    lines = [{"event": "::group::x"}, {"event": "Task failed", "error_detail": [error]}]
    log.write_text("\n".join([*map(json.dumps, lines), '{"event": "cut o']))
    assert main._log_lines(log) == ["Task failed", "AirflowFailException: no such table"]


@pytest.mark.parametrize("words", [["--port", "x"], ["--onse"], ["now"]])
def test_wrong_arguments_are_wrong_usage(words, capsys):
    """Exit 2 before anything starts, and the message names the command as it was called."""
    with pytest.raises(SystemExit) as end:
        main.main(words)
    assert end.value.code == 2
    assert "./run demo: error:" in capsys.readouterr().err


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys):
    """A log of CI holds no spinner and no colour."""
    screen = main.Screen()
    with screen.step("Loading") as tell:
        tell("half")
    assert capsys.readouterr().out == "... Loading\n    half\nok  Loading  0 s\n"


@pytest.mark.failure_mode("full-disk")
def test_a_demo_that_can_write_nothing_says_why_in_one_line(tmp_path, monkeypatch, capsys):
    """A full disk says nothing else: what dies of it could not write why."""
    monkeypatch.setattr(main, "_stop_on_signals", lambda: None)
    monkeypatch.setattr(
        main, "LocalAirflow", partial(LocalAirflow, home=tmp_path / "x" / "airflow")
    )
    monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", f"sqlite:///{tmp_path}/w.db")
    monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", str(tmp_path))
    (tmp_path / "x").touch()
    assert main.main(["--once"]) == 1
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"./run demo: Not a directory: {tmp_path / 'x'} (")


class Airflow:
    """Answers for an Airflow whose DAGs run at once: the next states of its runs."""

    def __init__(self, *runs):
        self.runs, self.asked = list(runs), []

    def api(self, method, path, body=None):
        """What the REST API says."""
        self.asked.append((method, path))
        if method == "POST":
            self.runs.append(run_of("triggered", "success", timedelta(seconds=1)))
            return self.runs[-1]
        if path.endswith("taskInstances"):
            return {"task_instances": []}
        if "order_by" in path:
            return {"dag_runs": self.runs[-1:]}
        return next((run for run in self.runs if path.endswith(run["dag_run_id"])), None)

    def require_alive(self):
        """It lives."""


def run_of(name, state, age):
    """A run that began so long after the demo did."""
    began = datetime.now(UTC) + age
    return {
        "dag_id": main.TRAIN,
        "dag_run_id": name,
        "state": state,
        "start_date": began.isoformat(),
        "run_after": began.isoformat(),
    }


@pytest.fixture
def made(tmp_path):
    """Make a demo on an empty warehouse, beside an Airflow that has certain runs."""

    def make(*runs):
        airflow = Airflow(*runs)
        settings = Settings(f"sqlite:///{tmp_path}/w.db", str(tmp_path))
        found = main.Demo(airflow, settings, main.Screen())
        found._warehouse.ensure_schema()
        airflow.home = airflow.logs = tmp_path
        return found, airflow

    return make


@pytest.mark.failure_mode("demo-restart")
def test_a_training_that_failed_before_does_not_end_the_demo(made):
    """Another one is started; one that fails now is the demo's own."""
    left, airflow = made(run_of("before", "failed", -timedelta(hours=1)))
    with pytest.raises(main.DemoError, match="ended without a champion"):
        left.train()
    assert [run["dag_run_id"] for run in airflow.runs] == ["before", "triggered"]
    own, airflow = made(run_of("now", "failed", timedelta(minutes=1)))
    with pytest.raises(main.DemoError, match=r"train_flight_delay failed \(now\)"):
        own.train()


@pytest.mark.failure_mode("demo-restart")
def test_predictions_that_failed_before_do_not_end_the_demo(made):
    """Airflow does not run an interval again by itself."""
    due = main.newest_due("*/10 * * * *", datetime.now(UTC) - timedelta(minutes=30))
    left, airflow = made(run_of("before", "failed", -timedelta(seconds=1)))
    assert left._published(due, lambda _: None) is None
    assert [run["dag_run_id"] for run in airflow.runs] == ["before", "triggered"]
    own, _ = made(run_of("now", "failed", timedelta(minutes=1)))
    with pytest.raises(main.DemoError, match=r"failed \(now\)"):
        own._published(due, lambda _: None)
