"""scikit-learn's iris flowers, measured one after the other around now."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from batch_jobs.interval import require_aware
from batch_jobs.samples.tables import insert, iso_text, source_tables

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection


FLOWER_EVERY = timedelta(minutes=30)

FLOWERS_TO_COME = 30
FLOWERS_NEEDED = 100

IDENTIFIED_AFTER = timedelta(hours=2)


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
    return known_iris(connection, now) or fill_iris(connection, ready_iris(now))


def known_iris(connection: Connection, now: datetime) -> int | None:
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


def fill_iris(connection: Connection, ready: pd.DataFrame) -> int:
    """Write what is ready; how many flowers there are."""
    tables = source_tables()
    iris = tables.tables["iris"]
    tables.drop_all(connection, [iris])
    tables.create_all(connection, [iris])
    return sum(insert(connection, iris, ready))


def days_out_of_season(now: datetime, weeks: int) -> int:
    """How far a day of the moved year lies from its own day of the year."""
    day = now.timetuple().tm_yday
    apart = abs(day - (now - timedelta(weeks=weeks)).timetuple().tm_yday)
    return min(apart, 365 - apart)


def ready_iris(now: datetime) -> pd.DataFrame:
    """The flowers, measured around a moment."""
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
    frame["measured_at"] = iso_text(measured)
    frame["identified_at"] = iso_text(measured + IDENTIFIED_AFTER)
    return frame
