"""Who is there while predictions are published: two readers, and a rival who wants to publish.

And, for comparison, processes that only compute, as many as there are processors: what a reader
waits beside those, it waits for a processor, and for nobody who publishes.

Each is a process with a connection of its own. A reader looks up a random key fifty times a second;
the rival takes, a hundred times a second, the lock that the publisher needs too. At the end they
tell what they saw, with times of `time.monotonic`, which all processes share.
"""

import multiprocessing
import os
import random
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

READERS = 2
READ_EVERY, LOCK_EVERY = 0.02, 0.01
KEYS = 20_000
PATIENCE = 120  # seconds, for a word from a process that looks on
VIEW = "current_predictions"


@dataclass(frozen=True)
class Seen:
    """What was seen within a span of time.

    Attributes:
        latencies: of look-ups in milliseconds, sorted, those that failed in the end included.
        errors: look-ups that failed.
        lock_ms: longest time that the rival waited.
    """

    latencies: list
    errors: int
    lock_ms: float

    def percentile(self, share):
        """The latency that this share of the look-ups did not exceed; None if there is none."""
        if not self.latencies:
            return None
        place = min(int(share * len(self.latencies)), len(self.latencies) - 1)
        return round(self.latencies[place], 2)


class Watchers:
    """Readers and rival, at work from entry to exit.

    Args:
        context: of multiprocessing.
        job: what is scored, and where.
        table: where readers look: `current_predictions`, or a table of somebody else.
    """

    def __init__(self, context, job, table):
        self._pipes, self._processes, self._samples = [], [], []
        for act in [read] * READERS + [compete]:
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            process = context.Process(target=_watch, args=(act, theirs, job, table), daemon=True)
            self._processes.append(process)

    def __enter__(self):
        try:
            for process in self._processes:
                process.start()
            self._all_said()  # they are ready
        except BaseException:
            _end(self._processes)
            raise
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                for pipe in self._pipes:
                    with suppress(ConnectionError):  # it died, which hearing it tells
                        pipe.send("end")
                self._samples = self._all_said()
        finally:
            _end(self._processes)

    def _all_said(self):
        return [self._heard(*each) for each in zip(self._pipes, self._processes, strict=True)]

    @staticmethod
    def _heard(pipe, process):
        """What a process said; one that failed, died or stands still ends the bench."""
        if not pipe.poll(PATIENCE):
            raise RuntimeError(f"whoever looked on said nothing for {PATIENCE} seconds")
        try:
            word, said = pipe.recv()  # what it said last may be there although it has ended
        except (EOFError, ConnectionError):
            process.join()
            message = f"whoever looked on died with exit code {process.exitcode}"
            raise RuntimeError(message) from None
        if word == "failed":
            raise RuntimeError(f"whoever looked on while it was published: {said}")
        return said

    def seen(self, began, ended):
        """What was seen between two moments; after exit only."""
        *readers, rival = (
            [sample for sample in samples if began <= sample[0] <= ended]
            for samples in self._samples
        )
        lookups = [lookup for samples in readers for lookup in samples]
        return Seen(
            latencies=sorted(1000 * took for _, took, _ in lookups),
            errors=sum(failed for _, _, failed in lookups),
            lock_ms=round(1000 * max((waited for _, waited in rival), default=0), 1),
        )


def end_with_parent():
    """Let this process end as soon as the one that began it does, however that ended."""
    parent = multiprocessing.parent_process()

    def watch():
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _watch(act, pipe, job, table):
    end_with_parent()
    try:
        act(pipe, job, table)
    except BaseException as error:
        pipe.send(("failed", repr(error)))
        raise


@contextmanager
def computing(context, number):
    """So many processes compute meanwhile, and touch no database."""
    processes = [context.Process(target=_compute, daemon=True) for _ in range(number)]
    try:
        for process in processes:
            process.start()
        yield
    finally:
        _end(processes)


def _compute():
    end_with_parent()
    os.setsid()  # Linux shares processors out by session, and whoever publishes has several
    while True:
        sum(range(10_000))


def _end(processes):
    """Kill them: asking takes a lock that one which died may have kept."""
    for process in processes:
        if process.pid:
            process.kill()
            process.join()


def read(pipe, job, table):
    """Look up random keys until told to end, then send `(moment, seconds, failed)` of each."""
    connection, error = _connect(job)
    keys = f"SELECT entity_id FROM (\n{job.literal_query}\n) AS f LIMIT {KEYS}"
    keys = [key for (key,) in connection.execute(keys)]
    mark = "?" if job.is_sqlite else "%s"
    query = f"SELECT score, label FROM {table} WHERE entity_id = {mark}"
    if table == VIEW:
        query += f" AND model = '{job.model}'"
    samples = []
    connection.execute(query, keys[:1]).fetchall()
    pipe.send(("ready", None))
    while not pipe.poll(READ_EVERY):
        key = random.choice(keys)
        began, failed = time.monotonic(), False
        try:
            connection.execute(query, (key,)).fetchall()
        except error:  # the table was not there, perhaps after it had been locked for long
            failed = True
        samples.append((began, time.monotonic() - began, failed))
    connection.close()
    pipe.recv()
    pipe.send(("seen", samples))


def _connect(job):
    if job.is_sqlite:
        found = sqlite3.connect(f"{Path(job.address).as_uri()}?mode=ro", uri=True)
        return found, sqlite3.Error
    import psycopg

    connection = psycopg.connect(job.address, autocommit=True)
    connection.execute("SET search_path TO serving, public")
    return connection, psycopg.Error


def compete(pipe, job, table):
    """Take the publisher's lock until told to end, then send `(moment, seconds)` of each wait.

    The wait is counted from the moment at which the lock was found taken: how long the rival is
    kept from a processor is not the publisher's doing.
    """
    is_free = _sqlite_lock(job) if job.is_sqlite else _postgresql_lock(job, table)
    samples = []
    is_free()
    pipe.send(("ready", None))
    while not pipe.poll(LOCK_EVERY):
        began = time.monotonic()
        if is_free():
            continue
        while not is_free():  # a database's own waiting sleeps up to a tenth of a second
            time.sleep(0.001)
        samples.append((began, time.monotonic() - began))
    pipe.recv()
    pipe.send(("seen", samples))


def _sqlite_lock(job):
    connection = sqlite3.connect(job.address, isolation_level=None, timeout=0)

    def is_free():
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        connection.execute("ROLLBACK")
        return True

    return is_free


def _postgresql_lock(job, table):
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    from batch_jobs.database.warehouse import Warehouse

    database = Warehouse(job.url).database
    connection = database.writer.connect()

    def is_free():
        with connection.begin() as transaction:
            connection.execute(text("SET LOCAL lock_timeout = '1ms'"))
            try:
                if table == VIEW:
                    database.lock_model(connection, job.model)
                else:
                    connection.execute(text(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE"))
            except OperationalError:
                return False
            finally:
                transaction.rollback()
        return True

    return is_free
