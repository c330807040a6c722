"""The other process of a replay: it prepares what comes, while this one lives through what has."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from threading import Event, Thread, Timer

from batch_jobs.interruption import EXIT_CODE
from batch_jobs.settings import let_threads_sleep

log = logging.getLogger(__name__)

LEAVING_SECONDS = 1  # of the other process, when it is interrupted

leaving = Event()


@contextmanager
def other_process() -> Iterator[ProcessPoolExecutor]:
    """One that begins anew, since a fork would share what this one has open."""
    other = ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin_process)
    pid = other.submit(os.getpid)
    try:
        yield other
    except KeyboardInterrupt:
        if pid.done() and not pid.exception():  # it may not have heard of it
            with suppress(ProcessLookupError):
                os.kill(pid.result(), signal.SIGINT)
        raise
    finally:
        other.shutdown(wait=True, cancel_futures=True)


def _begin_process() -> None:
    Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, _leave)
    let_threads_sleep()
    logging.getLogger("batch_jobs").setLevel(logging.ERROR)


def _leave(*_: object) -> None:
    """End soon and without a word, which the parent has; the driver ends the query first."""
    leaving.set()
    Timer(LEAVING_SECONDS, os._exit, [EXIT_CODE]).start()
    sys.stderr = io.StringIO()  # where multiprocessing would print how it came here
    raise KeyboardInterrupt


def require_staying() -> None:
    """Begin nothing more in a process that is leaving."""
    if leaving.is_set():
        raise KeyboardInterrupt


def _end_with_parent() -> None:
    """A killed parent cannot stop its pool, which would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def quietly() -> Iterator[None]:
    """Tell what comes of each week, not of each of its thousand intervals."""
    library = logging.getLogger("batch_jobs")
    before = library.level
    log.setLevel(before)
    library.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.setLevel(before)
