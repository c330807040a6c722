"""`batch-jobs watch`: once for cron, or until it is stopped; what it finds is a line, or JSON."""

import json
import logging
import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest

from batch_jobs.cli import watch as command
from batch_jobs.cli.main import main
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.monitoring import watch
from tests.support.airflow_rest import PASSWORD, USER, answering

SOON = timedelta(milliseconds=100)


@pytest.fixture
def environ(tmp_path):
    """A deployment with an Airflow whose scheduler is dead."""
    Warehouse(f"sqlite:///{tmp_path}/warehouse.db").ensure_schema()
    with answering() as rest:
        rest.health["scheduler"]["status"] = "unhealthy"
        for dag in rest.dags.values():
            dag["is_paused"] = True
        yield {
            **os.environ,
            "BATCH_JOBS_WAREHOUSE": f"sqlite:///{tmp_path}/warehouse.db",
            "BATCH_JOBS_MODEL_STORE": str(tmp_path),
            "BATCH_JOBS_AIRFLOW_URL": rest.url,
            "BATCH_JOBS_AIRFLOW_USER": USER,
            "BATCH_JOBS_AIRFLOW_PASSWORD": PASSWORD,
            "BATCH_JOBS_SPOOL": str(tmp_path),
        }


@pytest.fixture
def run(environ, monkeypatch, capsys):
    """Run `batch-jobs watch` in this process; its exit code, and what it said."""
    monkeypatch.setattr(watch, "SURE_AFTER", SOON)
    monkeypatch.setattr(command, "SURE_AFTER", SOON)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["batch-jobs", "watch", *arguments])
        with pytest.raises(SystemExit) as exited:
            main()
        return exited.value.code or 0, capsys.readouterr()

    yield run
    logging.getLogger("batch_jobs").handlers = []


def test_a_look_by_cron_looks_twice_if_it_must_be_sure(run):
    """What it finds is no error of its own, and holds no secret."""
    code, told = run("--once", "--json")
    found = json.loads(told.out.splitlines()[-1])
    assert [problem["cause"] for problem in found["problems"]] == ["airflow-scheduler"]
    assert (code, found["unsure"], found["failed"]) == (0, [], [])
    assert run("--once")[1].out.startswith("airflow-scheduler: Airflow's scheduler is not heard of")
    assert PASSWORD not in told.out + told.err


def test_it_goes_on_until_it_is_stopped(environ, tmp_path):
    """SIGTERM ends it well; each look touches the file that a health check looks at."""
    process = subprocess.Popen(
        [sys.executable, "-m", "batch_jobs", "watch", "--alive", tmp_path / "alive"],
        env=environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = process.stdout.readline()
    found = process.stdout.readline()
    alive = (tmp_path / "alive").exists()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert said.startswith("watching every 60s: the warehouse, Airflow http://127.0.0.1")
    assert ("airflow-scheduler" in found, alive) == (True, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--every", "1s"], "--every is '1s'; write 5s to 1h, such as 60s or 5m"),
        (["--airflow", "airflow:8080"], "BATCH_JOBS_AIRFLOW_URL must be an address such as http"),
        (["--ping", "hc-ping.com/s3cr3t"], "BATCH_JOBS_PING_URL must be an address such as http"),
    ],
)
def test_what_cannot_be_meant_is_told_without_a_secret(run, arguments, said):
    """In one line, and with exit code 2."""
    code, told = run(*arguments)
    assert code == 2
    assert said in told.err
    assert "s3cr3t" not in told.err
