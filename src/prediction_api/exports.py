"""Pages of an export: rows are read, written in a form, and compressed.

A page of many rows, or one for which many are read, is made in a process of its own: here it would
hold up every look-up for as long as it takes to write it. That process makes one page at a
time, and gives way to the server.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
import zlib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from batch_jobs.database.transactions import loaded_time
from prediction_api.database import Database, Row, Statement, open_database
from prediction_api.formats import FORMATS
from prediction_api.problems import UnavailableError

MOST_ROWS = 10_000
FEW_ROWS = 1_000  # which are written in five milliseconds
MOST_WAITING = 8
SECONDS = 4.0  # that a statement may take: less than a request may
NICE = 10
SMALLEST = 1_000  # bytes that are worth being compressed
TIMES = ("interval_start", "interval_end", "published_at")


@dataclass(frozen=True)
class Export:
    """A page to be made.

    Attributes:
        statement: what is read.
        values: of its names.
        format: one of `FORMATS`.
        whole: the columns that all rows have in common.
        encoding: how the page is compressed: `zstd`, `gzip` or not at all.
        most: how many rows it may have.
        raw: whether CSV has every cell as it is.
        scans: whether many more rows are read than are told.
    """

    statement: Statement
    values: Mapping[str, Any]
    format: str
    whole: Mapping[str, Any]
    encoding: str
    most: int
    raw: bool = False
    scans: bool = False


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        content: as it is sent.
        rows: how many it has.
        last: key and score of the last one; None if there is none.
        headers: how it is compressed, and what is told of it besides.
    """

    content: bytes
    rows: int
    last: tuple[str, float] | None
    headers: Mapping[str, str]


async def make_page(database: Database, url: str, export: Export) -> Page:
    """Make a page, here or, if it takes long, elsewhere.

    Args:
        database: the warehouse, to read few rows.
        url: of the warehouse.
        export: what it is made of.

    Raises:
        UnavailableError: the warehouse does not answer, or too many exports wait.
    """
    if export.most <= FEW_ROWS and not export.scans:
        rows = await database.fetch(export.statement, **export.values)
        return await asyncio.to_thread(written, rows, export)
    return await _elsewhere().make(url, export)


def written(rows: Any, export: Export) -> Page:
    """Rows as a page."""
    write, _ = FORMATS[export.format]
    plain = [_plain(row) for row in rows]
    made = write(plain, export.whole, export.raw)
    encoding = export.encoding if len(made.content) >= SMALLEST else ""
    last = (plain[-1]["entity_id"], plain[-1]["score"]) if plain else None
    headers = made.headers | ({"Content-Encoding": encoding} if encoding else {})
    return Page(_compressed(made.content, encoding), len(plain), last, headers)


def encoding_of(accepted: str) -> str:
    """The best of the encodings that a header Accept-Encoding lets be used."""
    names = {
        name.strip().lower()
        for name, _, weight in (part.partition(";") for part in accepted.split(","))
        if weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    }
    return next((name for name in ("zstd", "gzip") if name in names), "")


def _compressed(content: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        import pyarrow as pa

        packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
        return packed
    if encoding == "gzip":
        return zlib.compress(content, 1, wbits=31)
    return content


def _plain(row: Row) -> dict[str, Any]:
    """A row whose times are times."""
    found = dict(row)
    for name in TIMES:
        if name in found:
            found[name] = _time(found[name])
    return found


@lru_cache(maxsize=1024)
def _time(stored: Any) -> Any:
    return loaded_time(stored)


class Elsewhere:
    """The process that makes pages of many rows; it starts with the first of them."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._waiting = 0

    async def make(self, url: str, export: Export) -> Page:
        """Make a page.

        Raises:
            UnavailableError: the warehouse does not answer, or too many exports wait.
        """
        if self._waiting >= MOST_WAITING:
            raise UnavailableError(f"{self._waiting} exports wait; try again, or ask for less")
        self._waiting += 1
        try:
            found: Page | str = await asyncio.wrap_future(self._opened().submit(_make, url, export))
        except BrokenProcessPool:
            self._pool = None  # somebody has ended it; the next export starts another one
            raise UnavailableError("what makes exports has ended; try again") from None
        finally:
            self._waiting -= 1
        if isinstance(found, str):
            raise UnavailableError(found)
        return found

    def _opened(self) -> ProcessPoolExecutor:
        if self._pool is None:
            spawned = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, spawned, initializer=_begin)
        return self._pool


@cache
def _elsewhere() -> Elsewhere:
    """One process for all servers of this one."""
    return Elsewhere()


def _begin() -> None:
    """What the process does at first: give way to others, and end with whoever started it."""
    import signal

    os.nice(NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # sent to the server, which ends it in order
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)


def _make(url: str, export: Export) -> Page | str:
    """A page, or what a client is told instead."""
    try:
        rows = _loop().run_until_complete(_database(url).fetch(export.statement, **export.values))
    except UnavailableError as error:
        return str(error.detail)
    return written(rows, export)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


@cache
def _database(url: str) -> Database:
    return open_database(url, SECONDS)
