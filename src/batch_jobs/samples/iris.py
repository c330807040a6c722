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

# A round of all 150 flowers takes three days, so that no training sees one twice. A schedule
# begins with what was due last, up to a week ago, and learns from three days before that.
ROUNDS_BEFORE = 5
ROUNDS_TO_COME = 58
NEEDED_BEFORE = timedelta(days=11)

IDENTIFIED_AFTER = timedelta(hours=2)


def load_iris(connection: Connection, now: datetime) -> int:
    """Fill the table `iris`, unless `now` lies among its flowers already.

    The 150 flowers, in a fixed random order, are measured one every 30 minutes, over and over: for
    two weeks up to `now`, and for half a year to come. Each is a plant of its own. Their species is
    identified two hours later.

    Args:
        connection: inside a write transaction, which the caller commits.
        now: moment up to which flowers shall have been measured.

    Returns:
        How many measurements there are.
    """
    now = require_aware(now)
    return known_iris(connection, now) or fill_iris(connection, ready_iris(now))


def known_iris(connection: Connection, now: datetime) -> int | None:
    """How many measurements there are, if they are those that are wanted."""
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
    return int(past + future) if past >= NEEDED_BEFORE / FLOWER_EVERY and future else None


def fill_iris(connection: Connection, ready: pd.DataFrame) -> int:
    """Write what is ready; how many measurements there are."""
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
    once = frame.sample(frac=1, random_state=0)
    rounds = range(1, ROUNDS_BEFORE + ROUNDS_TO_COME + 1)
    keys = [f"iris-{flower + 1:03}-{number:02}" for number in rounds for flower in once.index]
    frame = pd.concat([once] * len(rounds), ignore_index=True)
    to_come = ROUNDS_TO_COME * len(once)
    newest = pd.Timestamp(now).floor(FLOWER_EVERY) + to_come * FLOWER_EVERY
    measured = pd.Series(
        pd.date_range(end=newest, periods=len(frame), freq=FLOWER_EVERY), index=frame.index
    )
    frame.insert(0, "entity_id", keys)
    frame["measured_at"] = iso_text(measured)
    frame["identified_at"] = iso_text(measured + IDENTIFIED_AFTER)
    return frame
