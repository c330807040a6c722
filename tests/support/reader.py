"""A reader beside the writers that looks all the while, and counts what it must never see.

It is an app as any other: its own connection, which may only read. On PostgreSQL its statements are
transactions of their own for one round, and one transaction for the next, in which each of them
still sees what is published by then.
What it expects, it knows from the scores alone: each tells its interval, entity and version.
"""

import os
import sqlite3
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from tests.fault_models._rows import (
    GROUP,
    REJECTED,
    SHARED,
    SIZES,
    expected,
    number_of,
    places,
)
from tests.support.faults import PATIENCE, server

WHOLE = {"member": SIZES["population"], "shared": SHARED}  # rows whose names begin alike
MISSING = ("no such table", "does not exist")
SAMPLES = 3
PAGE = 3
CURRENT = "SELECT entity_id, score, model_version, {run}, interval_start FROM {table}"
LEDGER = """
    SELECT r.run_id, r.model, r.interval_start, r.interval_end, r.token, r.rows_read,
           r.rows_scored, r.rows_rejected, r.rows_skipped,
           (SELECT count(*) FROM predictions AS p WHERE p.run_id = r.run_id) AS stored,
           (SELECT count(*) FROM rejected_rows AS b WHERE b.run_id = r.run_id) AS bad
    FROM prediction_runs AS r WHERE r.state = 'published'
    ORDER BY r.published_at DESC, r.run_id DESC LIMIT {limit}"""
# The newest published interval is not the one that serves.
NOT_HEAD = """
    SELECT h.model, h.interval_end, max(r.interval_end) FROM serving_heads AS h
    JOIN prediction_runs AS r ON r.model = h.model AND r.state = 'published'
    GROUP BY h.model, h.interval_end HAVING h.interval_end <> max(r.interval_end)"""
TWICE = """
    SELECT model, interval_start, count(*) AS times FROM prediction_runs
    WHERE state = 'published' GROUP BY model, interval_start, interval_end HAVING count(*) > 1"""


class Row(NamedTuple):
    """A row of what readers see."""

    entity: str
    score: float
    version: str
    run: int | None
    start: Any


@dataclass
class Seen:
    """What a reader saw: how many answers, what was wrong with them, and a few such answers."""

    reads: int = 0
    reconnects: int = 0
    violations: Counter = field(default_factory=Counter)
    samples: dict = field(default_factory=lambda: defaultdict(list))

    def add(self, kind, sample):
        """Count a violation."""
        self.violations[kind] += 1
        if len(self.samples[kind]) < SAMPLES:
            self.samples[kind].append(sample)

    def __str__(self):
        return f"{self.violations.total()} violations in {self.reads} reads: {dict(self.samples)}"


def open_reader(url):
    """A connection that may only read; every statement is a transaction of its own at first."""
    where = make_url(url)
    if where.get_backend_name() == "sqlite":
        uri = f"file:{where.database}?mode=ro"
        engine = create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5),
            poolclass=NullPool,
        )
    else:
        options = "-c search_path=serving,public -c default_transaction_read_only=on"
        engine = create_engine(
            url, poolclass=NullPool, connect_args={"options": options, "connect_timeout": 5}
        )
    return engine.connect().execution_options(isolation_level="AUTOCOMMIT")


def sets_of(rows):
    """The rows by the beginning of their names: those that belong to one tick together."""
    sets = defaultdict(list)
    for row in rows:
        sets[row.entity.rpartition("-")[0]].append(row)
    return sets


def ticks_of(rows):
    """The newest tick of each such set."""
    return {name: max(number_of(row.start) for row in of) for name, of in sets_of(rows).items()}


def wrong_in(model, rows, versions):
    """What is wrong in the answer to one statement: kinds and samples."""
    found = []
    twice = [key for key, times in Counter(row.entity for row in rows).items() if times > 1]
    if twice:
        found.append(("duplicate", twice))
    untrue = [row for row in rows if not _true(model, row, versions)]
    if untrue:
        found.append(("wrong score", untrue[:SAMPLES]))
    for name, members in sets_of(rows).items():
        if len({row.entity for row in members}) != WHOLE.get(name, GROUP):
            found.append(("partial", (name, len(members))))
        if len({row[2:] for row in members}) > 1:
            found.append(("mixed", (name, sorted({row[2:] for row in members}, key=str))))
    ticks = ticks_of(rows)
    if model == "ticks" and ticks.get("shared") != max(ticks.values()):
        found.append(("not the newest", ticks))
    return found


def _true(model, row, versions):
    number = number_of(row.start)
    place = places(model, number).get(row.entity)
    shift = versions.get(row.version)
    return None not in (place, shift) and round(row.score, 3) == 100 * number + place + shift


class Watch:
    """The checks of a reader and what it remembers between them.

    Args:
        versions: `{version: shift}` of the models.
        tables: `{model: table or view}` to look at; None if it is the library's own.
    """

    def __init__(self, versions, tables=None):
        self.seen = Seen()
        self._versions = versions
        self._tables = tables or dict.fromkeys(SIZES, "current_predictions")
        self._library = tables is None
        self._newest = {}  # (model, group of rows): the newest tick seen there
        self._heads, self._tokens = {}, {}
        self._pin, self._paged = None, {}

    def look(self, connection):
        """One round of statements."""
        for model, table in self._tables.items():
            condition = f" WHERE model = '{model}'" if self._library else ""
            run = "run_id" if self._library else "NULL"
            self._rows(
                model, self._ask(connection, CURRENT.format(run=run, table=table) + condition)
            )
        if self._library:
            self._status(self._ask(connection, "SELECT * FROM serving_status"))
            self._ledger(self._ask(connection, LEDGER.format(limit=20)))
            for kind, query in (("published twice", TWICE), ("not the head", NOT_HEAD)):
                for row in self._ask(connection, query):
                    self.seen.add(kind, tuple(row))
            self._page(connection)

    def _ask(self, connection, sql, **values):
        found = connection.execute(text(sql), values).all()
        self.seen.reads += 1
        return found

    def _rows(self, model, found):
        rows = [Row(*row) for row in found]
        if not rows:
            if any(of == model for of, _ in self._newest):
                self.seen.add("empty", model)
            return
        ticks = ticks_of(rows)
        for kind, sample in wrong_in(model, rows, self._versions):
            self.seen.add(kind, (model, sample))
        for (of, name), before in self._newest.items():
            if of == model and ticks.get(name, -1) < before:
                self.seen.add("backwards", (model, name, before, ticks.get(name)))
        self._newest |= {(model, name): number for name, number in ticks.items()}

    def _status(self, rows):
        for row in rows:
            now = (row.interval_end, row.fresh_until)
            before = self._heads.setdefault(row.model, now)
            if now[0] < before[0] or now[1] < before[1]:
                self.seen.add("head moved back", (row.model, before, now))
            if row.row_count != SIZES[row.model]:
                self.seen.add("wrong count", tuple(row))
            self._heads[row.model] = now
        for model in set(self._heads) - {row.model for row in rows}:
            self.seen.add("empty", f"serving_status of {model}")

    def _ledger(self, rows):
        for row in rows:
            scored, bad = SIZES[row.model], REJECTED[row.model]
            counts = (row.rows_read, row.rows_scored, row.rows_rejected, row.rows_skipped)
            if counts != (scored + bad, scored, bad, 0) or (row.stored, row.bad) != (scored, bad):
                self.seen.add("wrong count", tuple(row))
            key = (row.model, row.interval_start, row.interval_end)
            if row.token < self._tokens.get(key, row.token):
                self.seen.add("older token", (self._tokens[key], tuple(row)))
            self._tokens[key] = row.token

    def _page(self, connection):
        """The next page of the run that was the current one when the first page was read."""
        if self._pin is None:
            heads = self._ask(
                connection, "SELECT run_id, model, interval_start FROM serving_status"
            )
            if not heads:
                return
            self._pin, self._paged = heads[self.seen.reads % len(heads)], {}
        rows = self._ask(
            connection,
            "SELECT entity_id, score FROM predictions WHERE run_id = :run AND entity_id > :last "
            f"ORDER BY entity_id LIMIT {PAGE}",
            run=self._pin.run_id,
            last=max(self._paged, default=""),
        )
        self._paged |= {row.entity_id: round(row.score, 3) for row in rows}
        if len(rows) == PAGE:
            return
        number = number_of(self._pin.interval_start)
        shifts = set(self._versions.values())
        if all(self._paged != expected(self._pin.model, number, shift) for shift in shifts):
            state = self._ask(
                connection,
                "SELECT state FROM prediction_runs WHERE run_id = :run",
                run=self._pin.run_id,
            )
            if [tuple(row) for row in state] != [("retired",)]:
                self.seen.add("pinned run changed", (tuple(self._pin), self._paged))
        self._pin = None


def _watch(pipe, url, versions, tables, rest):
    """Look until the parent has heard enough; answer each of its words with what was seen."""
    os.nice(5)  # it hardly rests, and is to leave the processors to the writers
    watch = Watch(versions, tables)
    connection, isolations = None, cycle(["AUTOCOMMIT", "READ COMMITTED"])
    while True:
        try:
            if connection is None:
                connection = open_reader(url)
            if "sqlite" not in url:
                connection.execution_options(isolation_level=next(isolations))
            watch.look(connection)
            connection.rollback()
        except SQLAlchemyError as error:
            lost = isinstance(error, DBAPIError) and (
                connection is None or error.connection_invalidated
            )
            if lost and "sqlite" not in url:
                watch.seen.reconnects += 1
            else:
                kind = "missing" if any(word in str(error) for word in MISSING) else "error"
                watch.seen.add(kind, str(error)[:300])
            if connection is not None:
                connection.close()
                connection = None
        if pipe.poll(rest):
            word = pipe.recv()
            pipe.send(watch.seen)
            if word == "stop":
                return


class Reader:
    """A reader in a process of its own.

    Args:
        url: of the database.
        versions: `{version: shift}` of the models.
        tables: `{model: table or view}` to look at, if not at the library's own.
        rest: seconds between two looks, for one that looks on for minutes.
    """

    def __init__(self, url, versions, tables=None, rest=0):
        self._pipe, theirs = server.Pipe()
        arguments = (theirs, url, versions, tables, rest)
        self._process = server.Process(target=_watch, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def so_far(self):
        """What it has seen by now; it looks on."""
        return self._said("go on")

    def looked(self, rounds=1):
        """Return when it has looked anew that many times."""
        for _ in range(rounds):
            self.so_far()
        return self.so_far()

    def stop(self):
        """What it has seen; it looks no more."""
        seen = self._said("stop")
        self._process.join(PATIENCE)
        self.close()
        return seen

    def close(self):
        """End it, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._pipe.close()
            self._process = None

    def _said(self, word):
        self._pipe.send(word)
        assert self._pipe.poll(PATIENCE), "the reader is stuck"
        return self._pipe.recv()
