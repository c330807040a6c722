"""Whoever works says so again and again; an attempt that is not heard of for `LEASE` is dead.

The ledger's `claimed_at` is when an attempt claimed its interval or was last heard of. While a
process works on runs, one thread of its own renews that, however long an estimator, a source or an
index takes; there is none where work takes no longer than a breath, as in a replay.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from threading import Condition, Thread

from uuid6 import uuid7

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.redaction import first_line

log = logging.getLogger(__name__)

# How long an attempt may say nothing before another one takes over.
LEASE = timedelta(minutes=5)
BEAT = timedelta(minutes=1)
# What nobody took over may still be waiting for a free slot; its rows are removed after this long.
FORGOTTEN_AFTER = timedelta(hours=1)


@repeatable
def renew(warehouse: Warehouse, run_ids: Iterable[int]) -> None:
    """Say that somebody works on these runs; one that was fenced off or has failed stays so."""
    for run_id in run_ids:
        _renew(warehouse, run_id)


def _renew(warehouse: Warehouse, run_id: int) -> None:
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE prediction_runs SET claimed_at = :now
                WHERE run_id = :run_id AND state = 'staging'"""),
            {"run_id": run_id, "now": stored_time(clock.now())},
        )


class _Heart:
    """The thread that renews, while there is something to renew.

    What is at work is a list, to which its owner may add; each is renewed from the second beat on.
    """

    def __init__(self) -> None:
        self._numbers = count()
        self._work: dict[int, tuple[Warehouse, list[int]]] = {}
        self._changed = Condition()
        self._beats = False

    @contextmanager
    def keep(self, warehouse: Warehouse, run_ids: list[int]) -> Iterator[None]:
        number = next(self._numbers)
        with self._changed:
            self._work[number] = (warehouse, run_ids)
            if not self._beats:
                self._beats = True
                Thread(target=self._beat, name="lease", daemon=True).start()
        try:
            yield
        finally:
            with self._changed:
                del self._work[number]

    def _beat(self) -> None:
        known: set[int] = set()
        while True:
            with self._changed:
                self._changed.wait(BEAT.total_seconds())
                if not self._work:
                    self._beats = False
                    return
                work = dict(self._work)
            for number in known & work.keys():
                warehouse, run_ids = work[number]
                for run_id in tuple(run_ids):
                    try:
                        _renew(warehouse, run_id)
                    except Exception as error:  # noqa: BLE001 - the next one may pass
                        log.info("run %d keeps its lease not now: %s", run_id, first_line(error))
            known = set(work)


_heart = _Heart()


@contextmanager
def at_work(warehouse: Warehouse, run_ids: Iterable[int] = ()) -> Iterator[list[int]]:
    """Renew the leases of these runs until the block is left; more may be added to the answer."""
    runs = list(run_ids)
    with _heart.keep(warehouse, runs):
        yield runs


def _forget() -> None:
    """In a forked process, where the thread of its parent does not go on."""
    global _heart  # noqa: PLW0603
    _heart = _Heart()


os.register_at_fork(after_in_child=_forget)


def new_token() -> str:
    """An attempt token for the command line: a UUIDv7, so that a later attempt has a higher one."""
    return str(uuid7())
