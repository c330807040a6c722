"""Ctrl-C ends a command at once, and what it had begun is nowhere to be seen."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interruption import aside, ended_by_interruption
from tests.conftest import ROOT
from tests.support.attempts import ask
from tests.support.faults import PATIENCE, until

# A query that takes longer than anybody waits, as each database has it.
SLOW = {
    "sqlite": """(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e10)
                  SELECT count(*) FROM n)""",
    "postgresql": "(SELECT count(*) FROM pg_sleep(600))",
}
ASKED = """SELECT 1 FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND wait_event = 'PgSleep'"""
VERBS = {
    "train": ["--as-of", "2024-03-01T00:00:00Z"],
    "check": ["--as-of", "2024-03-01T00:00:00Z"],
    "replay": ["--start", "2024-02-20T03:00:00Z", "--end", "2024-02-22T03:00:00Z"],
}
KEPT = """SELECT (SELECT count(*) FROM model_versions), (SELECT count(*) FROM promotions),
    (SELECT count(*) FROM prediction_runs WHERE state <> 'staging')"""


@pytest.fixture
def slow(shop, tmp_path):
    """Start a command on the shop, in which one row takes ten minutes: `slow(verb)`."""
    database = Warehouse(shop.warehouse).database.name
    (tmp_path / "slow_models").mkdir()
    (tmp_path / "slow_models" / "__init__.py").touch()
    (tmp_path / "slow_models" / "orders.py").write_text(
        "from tests.example_models.orders import model as original\n"
        f"query = original.features_query + ''' AND {SLOW[database]} < 2 '''\n"
        "model = original.model_copy(update={'features_query': query})\n"
    )
    environ = {
        "BATCH_JOBS_WAREHOUSE": shop.warehouse,
        "BATCH_JOBS_MODEL_STORE": shop.model_store,
        "BATCH_JOBS_MODELS": "slow_models,tests.example_models",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}",
    }
    started = []

    def start(verb):
        call = [sys.executable, "-m", "batch_jobs", verb, "orders", *VERBS[verb]]
        if verb == "replay":
            call += ["--folder", str(tmp_path / "replay")]
        process = subprocess.Popen(
            call, env=os.environ | environ, stderr=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("shop", "verb"),
    [("sqlite", "train"), *(("postgresql", verb) for verb in VERBS)],
    indirect=["shop"],
)
@pytest.mark.failure_mode("interruption")
def test_an_interrupted_command_ends_at_once_and_leaves_nothing_half(request, shop, slow, verb):
    """Though the database's driver waits for its answer; and the database is told to stop."""
    warehouse = Warehouse(shop.warehouse)
    before = ask(warehouse, KEPT)
    process = slow(verb)
    if warehouse.database.name == "sqlite":
        assert "reading features" in process.stderr.readline()
    else:
        until(lambda: ask(warehouse, ASKED) or process.poll() is not None, "the query to run")
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=PATIENCE)[1]
    assert (process.returncode, "Traceback" in told) == (130, False)
    assert ask(warehouse, KEPT) == before
    if warehouse.database.name == "postgresql":
        until(lambda: not ask(warehouse, ASKED), "the query to end")


def test_a_handler_of_a_signal_runs_while_something_blocks():
    """What it raises ends the call that is being made, and is raised."""
    cancelled, (read, write) = [], os.pipe()

    def cancel():
        cancelled.append(os.write(write, b"."))

    with pytest.raises(KeyboardInterrupt), aside(cancel) as ask_aside:
        ask_aside(_interrupted, read)
    assert cancelled == [1]


def test_a_command_that_has_ended_watches_for_no_interruption():
    """A program that called it is not ended by a later signal that it handles itself."""
    with ended_by_interruption():
        pass
    assert signal.set_wakeup_fd(-1) == -1
    for watch in [each for each in threading.enumerate() if each.name == "interruption"]:
        watch.join(PATIENCE)
        assert not watch.is_alive()


def _interrupted(read):
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    return os.read(read, 1)
