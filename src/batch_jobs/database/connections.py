"""What is kept between transactions: connections, which take milliseconds to make, and statements.

Each process has its own; they are closed when it ends, and a forked process leaves its parent's
alone.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from threading import Lock
from typing import Any

import sqlalchemy
from sqlalchemy import Engine

ENGINES = 6  # of a process: two of SQLite serve one warehouse

# A statement is parsed once, not each time it is executed.
text = lru_cache(256)(sqlalchemy.text)

# What a driver knows of the database's types may be as old as its connection.
LONGEST_KEPT = 60.0  # seconds

_engines: dict[Hashable, Engine] = {}
_idle: dict[Hashable, tuple[float, Any]] = {}  # since when it is open, and the connection
_lock = Lock()
_inherited: list[Any] = []


def kept_engine(key: Hashable, make: Callable[[], Engine]) -> Engine:
    """The engine of that key, made if there is none; of many, those used last are kept."""
    with _lock:
        found = _engines.pop(key, None) or make()
        _engines[key] = found  # the newest last
        while len(_engines) > ENGINES:
            _engines.pop(next(iter(_engines))).dispose()
    return found


@contextmanager
def lent(key: Hashable, make: Callable[[], Any], is_alive: Callable[[Any], bool]) -> Iterator[Any]:
    """A connection of a driver's own, kept afterwards for whoever asks next, if all went well.

    Args:
        key: to what it connects.
        make: opens one.
        is_alive: whether one that was kept still answers.
    """
    opened, connection = _idle.pop(key, (0.0, None))
    now = time.monotonic()
    if connection is not None and (now - opened > LONGEST_KEPT or not is_alive(connection)):
        _close(connection)
        connection = None
    if connection is None:
        opened, connection = now, make()
    try:
        yield connection
    except BaseException:
        _close(connection)
        raise
    _, other = _idle.pop(key, (0.0, None))
    if other is not None:
        _close(other)
    _idle[key] = (opened, connection)
    while len(_idle) > ENGINES:
        _close(_idle.pop(next(iter(_idle)))[1])


def _close(connection: Any) -> None:
    with suppress(Exception):  # it may be broken, and its server gone
        connection.close()


@atexit.register
def close_kept() -> None:
    """Close all connections that are kept and idle: when the process ends, or a file is copied."""
    for engine in _engines.values():
        engine.dispose()
    while _idle:
        _close(_idle.popitem()[1][1])


def _forget() -> None:
    """In a forked process: the connections are its parent's, and the lock may be held there."""
    global _lock  # noqa: PLW0603
    _lock = Lock()
    for engine in _engines.values():
        _inherited.append(engine.pool)  # or the connections would be closed as garbage
        engine.dispose(close=False)
    _inherited.extend(_idle.values())
    _idle.clear()


os.register_at_fork(after_in_child=_forget)
