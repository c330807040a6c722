"""The benchmark runs and tells what it measured; how fast anything is, no test asks."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.benchmarks import readers
from tests.support.faults import until

ROOT = Path(__file__).parent.parent.parent
DATABASES = ["sqlite", "postgresql"]
SYSTEMS = ["floor", "ours", "pandas", "orm", "mlflow"]
SMALL = ["--rows", "2000", "--orm-rows", "20", "--repeats", "1", "--idle", "0.1", "--json"]


def run(*words):
    """The ended process of the benchmark, with its output as text."""
    command = [sys.executable, "-m", "tests.benchmarks.scoring", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_scoring_measures_every_system():
    """The last line has a record of each system; one that is not installed says so."""
    answer = run(*SMALL)
    assert answer.returncode == 0, answer.stderr
    *lines, last = answer.stdout.splitlines()
    records = json.loads(last)
    measured = [(record["database"], record["system"]) for record in records]
    assert measured == [(name, system) for name in DATABASES for system in SYSTEMS]
    for record in records:
        assert record["rows"] == 2000
        if record["seconds"] is None:
            assert record["system"] == "mlflow"
            assert any(line.startswith("mlflow: not installed (") for line in lines)
            continue
        assert record["measured_rows"] == (20 if record["system"] == "orm" else 2000)
        assert record["seconds"] > 0
        assert record["rows_per_second"] > 0
        assert record["ratio_to_floor"] > 0
        if record["system"] != "floor":
            assert record["peak_rss_mb"] > 0
            assert record["wal_bytes"] > 0
            assert record["writer_lock_ms"] >= 0
            assert 0 < record["reader_p50_ms"] <= record["reader_p99_ms"]
            assert 0 < record["reader_idle_p50_ms"] <= record["reader_idle_p99_ms"]


@pytest.mark.parametrize("words", [["--database", "oracle"], ["--rows", "many"]])
def test_what_cannot_be_measured_is_wrong_usage(words):
    """An unknown database or number of rows is refused before anything is started."""
    answer = run(*words)
    assert answer.returncode == 2
    assert words[1] in answer.stderr


def test_a_bench_that_is_killed_takes_its_children_along():
    """Whoever looks on, and whoever only computes, ends with it."""
    words = ["--rows", "2000", "--database", "sqlite", "--systems", "pandas", "--idle", "600"]
    command = [sys.executable, "-m", "tests.benchmarks.scoring", *words]
    mark = {"BENCH_THAT_IS_KILLED": str(os.getpid())}

    def alive():
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if mark.items() <= process.environ().items():
                    yield process

    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | mark, stderr=subprocess.DEVNULL
    ) as bench:
        many = 5  # the bench, its helpers and three who look on
        until(lambda: bench.poll() is not None or len(list(alive())) > many, "who looks on")
        assert bench.poll() is None
        bench.send_signal(signal.SIGKILL)
    until(lambda: not list(alive()), "all that it began to end")


def _silent(pipe, *_):
    """Say that it is ready, then look on for ever."""
    pipe.send(("ready", None))
    signal.pause()


def test_one_who_looks_on_and_dies_ends_all_the_others_with_a_reason(monkeypatch):
    """Nobody waits for a word of the dead, and nobody is left who looks on."""
    monkeypatch.setattr(readers, "read", _silent)
    monkeypatch.setattr(readers, "compete", _silent)
    watchers = readers.Watchers(multiprocessing.get_context("spawn"), None, "predictions")
    with pytest.raises(RuntimeError, match="died with exit code -9"), watchers:
        watchers._processes[0].kill()
    assert not any(process.is_alive() for process in watchers._processes)
