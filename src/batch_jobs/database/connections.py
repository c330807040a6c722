"""What is kept between transactions: connections, which take milliseconds to make, and statements.

Each process has its own; they are closed when it ends, and a forked process leaves its parent's
alone.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Hashable
from functools import lru_cache
from threading import Lock
from typing import Any

import sqlalchemy
from sqlalchemy import Engine

ENGINES = 6  # of a process: two of SQLite serve one warehouse

# A statement is parsed once, not each time it is executed.
text = lru_cache(256)(sqlalchemy.text)

_engines: dict[Hashable, Engine] = {}
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


@atexit.register
def close_kept() -> None:
    """Close all connections that are kept and idle: when the process ends, or a file is copied."""
    for engine in _engines.values():
        engine.dispose()


def _forget() -> None:
    """In a forked process: the connections are its parent's, and the lock may be held there."""
    global _lock  # noqa: PLW0603
    _lock = Lock()
    for engine in _engines.values():
        _inherited.append(engine.pool)  # or the connections would be closed as garbage
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget)
