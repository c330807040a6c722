"""Find the rows of an interval that its query does not return, since it compares times as text.

`as_of >= :start` is about letters where a source holds times as text: a space sorts before the `T`
of `:start`, an offset like any other letters, and in SQLite a number before every text. Such a row
is returned for no interval or for another one, and nothing else would ever tell of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Result, Row
from sqlalchemy.exc import DBAPIError

from batch_jobs.database.columns import CURE
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import bounds, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel

DAY = timedelta(days=1)  # more than any offset from UTC
EVERY_NUMBER = 1e18
JULIAN_1970 = 2440587.5  # the Julian day on which it began
KNOWN_SECONDS = 60


@dataclass(frozen=True)
class _Known:
    """Of a warehouse and a query: times up to `end` sort as text, by a look at so long a span.

    What comes before `asked` is looked at again, for it may have got rows since; and so is all of
    it once `time.monotonic()` is `until`.
    """

    asked: datetime
    end: datetime
    length: timedelta
    until: float


_known: dict[tuple[str, str], _Known] = {}


def missed(
    warehouse: Warehouse, model: BatchModel, interval: Interval, *, read: int
) -> ContractError | None:
    """The error to raise if rows of an interval are there and its query does not return them.

    Args:
        warehouse: with the source.
        model: whose features query is meant.
        interval: that was scored.
        read: how many rows the query has returned.
    """
    if not _may_be_missed(warehouse, model, interval):
        return None
    return _missed(warehouse, model, interval, is_empty=not read)


@repeatable
def _may_be_missed(warehouse: Warehouse, model: BatchModel, interval: Interval) -> bool:
    """Whether any time around an interval does not sort where it belongs.

    A backfill asks for one interval after the other, so ever more of them are looked at at once.
    """
    key = str(warehouse), model.features_query
    known = _known.get(key)
    length = DAY
    if known and known.asked <= interval.start and time.monotonic() < known.until:
        if interval.end <= known.end:
            _known[key] = replace(known, asked=interval.end)
            return False
        length = 2 * known.length
    block = Interval(interval.start, max(interval.end, interval.start + length))
    with warehouse.source() as connection:
        source = _Source(warehouse, connection, model)
        if source.compares_times or not source.has_odd(block):
            until = time.monotonic() + KNOWN_SECONDS
            _known[key] = _Known(interval.end, block.end, block.end - block.start, until)
            return False
    return True


@repeatable
def _missed(
    warehouse: Warehouse, model: BatchModel, interval: Interval, *, is_empty: bool
) -> ContractError | None:
    with warehouse.source() as connection:
        source = _Source(warehouse, connection, model)
        found = source.elsewhere(interval, is_empty=is_empty)
        naive = source.without_offset(interval) if found is None and is_empty else None
    if naive is not None:
        problem = f"as_of has no time zone (e.g. {str(naive)!r}); {CURE}"
        return ContractError(f"features_query of {model.name}", [problem])
    if found is None:
        return None
    if isinstance(found, int | float):
        return _is_number(model, found)
    return not_found(model, found, interval)


class _Source:
    """The features query of a model, in one snapshot."""

    def __init__(self, warehouse: Warehouse, connection: Connection, model: BatchModel) -> None:
        self._database, self._connection, self._model = warehouse.database, connection, model
        odd = self._database.odd_time(connection, model.features_query)
        # Whether the database itself compares times, so that no form of writing them matters.
        self.compares_times = odd is None
        self._odd = f"f.as_of IS NOT NULL AND ({(odd or '1 = 0').format('f.as_of')})"

    def has_odd(self, span: Interval) -> bool:
        """Whether there is a time in a span, or around it, that does not sort where it belongs."""
        found = self._rows(_around(span), self._odd, "LIMIT 1").first()
        return found is not None or next(self._of_other_forms(span), None) is not None

    def elsewhere(self, interval: Interval, *, is_empty: bool) -> Any:
        """The time of a row of an interval that the query does not return for it."""
        moment = self._database.moment("f.as_of")
        within = f"{moment} >= :from AND {moment} < :until"
        span = {"from": stored_time(interval.start), "until": stored_time(interval.end)}
        where = within if is_empty else f"({self._odd}) AND {within}"
        returned = set() if is_empty else {row.entity_id for row in self._rows(bounds(interval))}
        rows = chain(
            self._rows({**_around(interval), **span}, where, "LIMIT 1" if is_empty else ""),
            self._of_other_forms(interval),
        )
        return next((row.as_of for row in rows if row.entity_id not in returned), None)

    def without_offset(self, interval: Interval) -> Any:
        """A time around an interval that may be any in it: a date, or one of no time zone."""
        found = self._rows(_around(interval), self._database.naive_time("f.as_of"), "LIMIT 1")
        return next((row.as_of for row in found), None)

    def _of_other_forms(self, span: Interval) -> Iterator[Row[Any]]:
        """Rows whose time is a number, or letters that are like those of no `:start`."""
        if self.compares_times:
            return
        for values in _other_forms(span, numbers=self._database.numbers is not None):
            with suppress(DBAPIError), self._connection.begin_nested():
                yield from self._rows(values, self._odd).all()

    def _rows(self, values: Mapping[str, Any], where: str = "1 = 1", more: str = "") -> Result[Any]:
        return self._connection.execute(
            text(f"""
                SELECT CAST(f.entity_id AS text) AS entity_id, f.as_of
                FROM (\n{self._model.features_query}\n) AS f WHERE {where} {more}"""),  # noqa: S608
            values,
        )


def _other_forms(span: Interval, *, numbers: bool) -> Iterator[Mapping[str, Any]]:
    """A span as sources may hold times that sort like none that is written with hyphens.

    That is as seconds or milliseconds since 1970, as Julian days, and without hyphens.
    """
    start, end = span.start.timestamp(), span.end.timestamp()
    julian = [JULIAN_1970 + moment / 86_400 for moment in (start, end)]
    forms: list[tuple[Any, Any]] = [
        (f"{start:.0f}", f"{end:.0f}"),
        (f"{1000 * start:.0f}", f"{1000 * end:.0f}"),
        (str(julian[0]), str(julian[1])),
        (f"{span.start:%Y%m%dT%H%M%S}", f"{span.end:%Y%m%dT%H%M%S}"),
    ]
    if numbers:
        forms += [(start, end), (1000 * start, 1000 * end), (julian[0], julian[1])]
    yield from ({"start": one, "end": other} for one, other in forms)


def _around(span: Interval) -> Mapping[str, Any]:
    return bounds(Interval(span.start - DAY, span.end + DAY))


@repeatable
def counted(warehouse: Warehouse, model: BatchModel) -> ContractError | None:
    """The error to raise if the source holds a time as a number, which no text is ever like."""
    numbers = warehouse.database.numbers
    if numbers is None:
        return None
    with warehouse.source() as connection:
        found = connection.execute(
            text(f"""
                SELECT f.as_of FROM (\n{model.features_query}\n) AS f
                WHERE {numbers.format("f.as_of")} LIMIT 1"""),  # noqa: S608
            {"start": -EVERY_NUMBER, "end": EVERY_NUMBER},
        ).first()
    return None if found is None else _is_number(model, found[0])


def _is_number(model: BatchModel, as_of: float) -> ContractError:
    problem = (
        f"as_of is a number (e.g. {as_of!r}), which is never between :start and :end, because "
        f"they are text; write datetime(…, 'unixepoch') for seconds since 1970, or datetime(…) for "
        f"a Julian day, on both sides of the comparison, and select it with its offset"
    )
    return ContractError(f"features_query of {model.name}", [problem])


def not_found(model: BatchModel, as_of: object, interval: Interval) -> ContractError:
    """The error about a row that the query of its own interval does not return."""
    problem = (
        f"a row with the as_of {str(as_of)!r} is not returned for {interval}, its own: the "
        f"query compares it as text with :start, which is like {stored_time(interval.start)!r}; "
        f"compare times as times, on SQLite datetime(…) >= datetime(:start) AND datetime(…) < "
        f"datetime(:end), on PostgreSQL CAST(… AS timestamptz) >= :start"
    )
    return ContractError(f"features_query of {model.name}", [problem])
