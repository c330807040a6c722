"""The source tables of the samples, and rows as they hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection, MetaData, Table
    from sqlalchemy.types import TypeEngine


BATCH_ROWS = 5_000

Progress = Callable[[int, int], None]


def source_tables() -> MetaData:
    """The source tables: times are `timestamptz` on PostgreSQL and UTC text on SQLite.

    The `minute` columns are minutes since 1970 (UTC), for windows over time in portable SQL.
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


def iso_text(times: pd.Series) -> pd.Series:
    """UTC times as text, exactly as `datetime.isoformat` writes them; it sorts by time."""
    import numpy as np
    import pandas as pd

    naive = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy().astype("datetime64[s]")
    # Most moments occur several times: writing each once takes a third of the time.
    codes, distinct = pd.factorize(naive, use_na_sentinel=False)
    text = pd.Series(np.datetime_as_string(distinct), dtype=object) + "+00:00"
    return text.where(~np.isnat(distinct), None).take(codes).set_axis(times.index)


def minute(times: pd.Series) -> pd.Series:
    """Times as whole minutes since 1970."""
    import pandas as pd

    return ((times - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(minutes=1)).astype("Int64")


def insert(connection: Connection, table: Table, frame: pd.DataFrame) -> Iterator[int]:
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
