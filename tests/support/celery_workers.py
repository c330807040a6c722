"""Celery's workers, as processes that are forked from one that has imported Airflow.

This file run as a program is that one: its arguments are the names of the workers, and it ends when
all of them have.
"""

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import psutil

from tests.support.faults import until

ROOT = Path(__file__).parents[2]  # tests.conftest would take this process to another Airflow
SLOTS = 4  # tasks that a worker runs at once
RECEIVED = re.compile(r"\[([0-9a-f-]{36})\] received")
ENDED = re.compile(r"\[([0-9a-f-]{36})\] (?:succeeded|raised)")


class Workers:
    """Workers of one machine each, as far as a test can tell."""

    def __init__(self, launcher, logs):
        self._launcher, self._logs = launcher, logs

    def alive(self):
        """The processes of the workers that have not ended, by which their tasks are known."""
        return psutil.Process(self._launcher.pid).children()

    def of(self, pid):
        """The worker that runs a task."""
        mine = {worker.pid for worker in self.alive()}
        [worker] = [one for one in psutil.Process(pid).parents() if one.pid in mine]
        return worker

    def lose(self, worker):
        """Kill a worker and all that it runs at one blow, as when its machine is lost."""
        lost = [worker, *worker.children(recursive=True)]
        for process in lost:
            process.suspend()  # so that none sees another one end
        for process in lost:
            process.kill()
        psutil.wait_procs(lost, timeout=10)

    def received(self):
        """The messages that each worker has been given, by their ids."""
        return {log.name: RECEIVED.findall(log.read_text("utf-8", "replace")) for log in self._logs}

    def under_way(self, worker):
        """The messages that a worker was given and has not done with."""
        name = re.search(r"(\w+)@here", " ".join(worker.cmdline()))[1]
        [log] = [log for log in self._logs if log.name == f"worker-{name}.log"]
        told = log.read_text("utf-8", "replace")
        return set(RECEIVED.findall(told)) - set(ENDED.findall(told))


@contextmanager
def celery_workers(airflow, *names):
    """Workers of an Airflow, until the block is left."""
    with (airflow.logs / "workers.log").open("w") as output:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "tests.support.celery_workers", *names],
            cwd=ROOT,
            env=airflow.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        ready = [airflow.logs / f"worker-{name}.log" for name in names]
        until(lambda: all(is_ready(log) or launcher.poll() for log in ready), "the workers")
        assert launcher.poll() is None, (airflow.logs / "workers.log").read_text()
        yield Workers(launcher, ready)
    finally:
        ended = psutil.Process(launcher.pid).children(recursive=True)
        launcher.kill()
        for process in ended:
            process.kill()
        launcher.wait()
        psutil.wait_procs(ended, timeout=10)


def is_ready(log):
    """Whether the worker with that log takes tasks."""
    return log.exists() and " ready." in log.read_text("utf-8", "replace")


def launch(names):
    """Import what they need once, and let each be a child."""
    from airflow import __main__ as airflow

    import_module("airflow.providers.celery.cli.celery_command")
    import_module("airflow.providers.celery.executors.celery_executor_utils")
    import_module("airflow.sdk.execution_time.supervisor")
    for name in names:
        if os.fork() == 0:
            os.setsid()
            home = Path(os.environ["AIRFLOW_HOME"])
            log = os.open(home.parent / "logs" / f"worker-{name}.log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            options = ["--skip-serve-logs", "--without-gossip", "--without-mingle"]
            options += ["--pid", str(home / f"{name}.pid")]
            options += ["--celery-hostname", f"{name}@here", "--concurrency", str(SLOTS)]
            sys.argv = ["airflow", "celery", "worker", *options]
            airflow.main()
            os._exit(0)
    for _ in names:
        os.wait()


if __name__ == "__main__":
    launch(sys.argv[1:])
