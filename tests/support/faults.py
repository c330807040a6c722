"""Attempts in processes of their own that die, stop, fail or wait at a named place.

They are forked from one server that has imported everything, so that one costs milliseconds and
not the seconds that pandas and scikit-learn need. No connection is open when it forks, and no
estimator that uses OpenMP may run in a child.
"""

import multiprocessing
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import connection

import psutil

from batch_jobs import failpoints
from batch_jobs.errors import BatchJobsError

PATIENCE = 600  # seconds after which a condition that does not come true is a failure
server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["__main__", "tests.support.warm"])


class BrokenError(Exception):
    """What an attempt that was told to fail raises: nothing that the library knows."""


@dataclass(frozen=True)
class Order:
    """What an attempt is to do where: at the n-th time it comes to a place."""

    place: str
    action: str  # kill, stop, fail or wait
    hit: int = 1


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended; `code` is its exit code, or minus the signal that killed it."""

    code: int
    error: str = ""
    message: str = ""
    value: object = None


class _Obey:
    """The armed action: carry out the order of the parent, and ask it for the next if told so."""

    def __init__(self, pipe, order):
        self._pipe, self._order, self._hits = pipe, order, Counter()

    def __call__(self, place):
        self._hits[place] += 1
        order = self._order
        if order is None or (order.place, order.hit) != (place, self._hits[place]):
            return
        self._order = None
        self._pipe.send(place)
        match order.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "fail":
                raise BrokenError(place)
            case "wait":
                self._order = self._pipe.recv()


def _run(pipe, order, act, arguments, keywords):
    failpoints.arm(_Obey(pipe, order))
    try:
        outcome = Outcome(0, value=act(*arguments, **keywords))
    except BatchJobsError as error:
        outcome = Outcome(error.exit_code, type(error).__name__, str(error))
    except Exception as error:  # noqa: BLE001 - whatever it is, the test must hear of it
        outcome = Outcome(1, type(error).__name__, str(error))
    with suppress(BrokenPipeError):  # a test that has seen enough has gone away
        pipe.send(outcome)
    pipe.close()


class Attempt:
    """One attempt in a process of its own.

    Args:
        act: what it does, such as `serving.predict`; a module's function.
        arguments: of `act`.
        order: what befalls it where.
        keywords: of `act`.
    """

    def __init__(self, act, *arguments, order=None, **keywords):
        self._pipe, theirs = server.Pipe()
        self._process = server.Process(
            target=_run, args=(theirs, order, act, arguments, keywords), daemon=True
        )
        self._process.start()
        theirs.close()
        self.pid = self._process.pid
        self.reached = []
        self._said = self._outcome = None

    @property
    def alive(self):
        """Whether the process is there, running or stopped."""
        return self._process.is_alive()

    def wait_at(self, place):
        """Return when it has told that it came to a place."""
        said = self._hear(time.monotonic() + PATIENCE)
        assert said == place, f"came to {said or 'its end'} and not to {place}"
        return self

    def run_to(self, place, action="wait", hit=1):
        """Let an attempt that waits go on to the next place."""
        self._pipe.send(Order(place, action, hit))
        return self.wait_at(place)

    def go(self):
        """Let an attempt that waits go on to its end."""
        self._pipe.send(None)
        return self

    def stopped(self):
        """Return when the kernel has stopped it."""
        process = psutil.Process(self.pid)
        until(lambda: process.status() == psutil.STATUS_STOPPED, "an attempt to be stopped")
        return self

    def signal(self, number):
        """Send it a signal; one that has ended gets none."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
        return self

    def result(self):
        """Wait for its end."""
        if self._outcome is None:
            deadline = time.monotonic() + PATIENCE
            while self._said is None and self._hear(deadline) is not None:
                pass
            self._process.join(max(deadline - time.monotonic(), 0))
            assert self._process.exitcode is not None, f"after {self.reached} it did not end"
            self._outcome = self._said or Outcome(self._process.exitcode)
            self._pipe.close()
            self._process.close()
        return self._outcome

    def ended(self):
        """Whether it has come to its end, so that `result` need not wait."""
        return self._outcome is not None or not self.alive

    def has_reached(self, place):
        """Whether it has told that it came to a place."""
        while self._outcome is None and self._said is None and self._pipe.poll():
            if self._hear(0) is None:
                break
        return place in self.reached

    def close(self):
        """End it, whatever it does."""
        if self._outcome is None:
            self.signal(signal.SIGKILL)
            self._process.join()
            self._pipe.close()
            self._process.close()
            self._outcome = Outcome(-signal.SIGKILL)

    def _hear(self, deadline):
        """What it says next; None if it ended without a word."""
        assert self._pipe.poll(max(deadline - time.monotonic(), 0)), (
            f"after {self.reached} it said nothing for {PATIENCE} s"
        )
        try:
            said = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            return None
        if isinstance(said, Outcome):
            self._said = said
        else:
            self.reached.append(said)
        return said


def until(condition, what):
    """Return the first answer of `condition` that is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(0.002)
    return found


def wait_for_an_end(attempts, seconds):
    """Wait until one of the attempts has ended, but not longer than that."""
    connection.wait([attempt._process.sentinel for attempt in attempts], seconds)
