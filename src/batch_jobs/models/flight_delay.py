"""Will a flight from New York arrive more than 15 minutes late? Asked two hours before it leaves.

Source tables (`batch-jobs init --samples` fills them): `flights`, the timetable and what became of
each flight, and `weather`, hourly observations at the three airports. All a row is scored on was
known at its `as_of`, two hours before the scheduled departure: timetable, route, weather, and how
the flights that left or landed until then had fared.

Averages over time are window functions over one stream of events, so the same text runs on SQLite
and on PostgreSQL, on ten minutes and on half a year. Time is counted in whole minutes because
`RANGE BETWEEN 120 PRECEDING` then means the same on both.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from batch_jobs.model import BatchModel, Category, Gate, Number

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

FEATURES_QUERY = """
WITH bounds AS (
    SELECT MIN(as_of_minute) AS earliest, MAX(as_of_minute) AS latest
    FROM flights
    WHERE as_of >= :start AND as_of < :end
),
events AS (
    -- the flights to score
    SELECT
        entity_id, as_of_minute AS minute, carrier, origin, dest,
        CAST(NULL AS INTEGER) AS dep_delay, CAST(NULL AS INTEGER) AS made_up, 0 AS waiting
    FROM flights
    WHERE as_of >= :start AND as_of < :end
    UNION ALL
    -- departures, when they happen
    SELECT NULL, departed_minute, carrier, origin, dest, dep_delay, NULL, 0
    FROM flights, bounds
    WHERE departed_minute BETWEEN earliest - 360 AND latest
    UNION ALL
    -- landings, when they happen, with the minutes made up on the way
    SELECT NULL, landed_minute, carrier, origin, dest, NULL, dep_delay - arr_delay, 0
    FROM flights, bounds
    WHERE landed_minute BETWEEN earliest - 720 AND latest
    UNION ALL
    -- a flight that does not leave on time joins the queue of its airport at its scheduled time
    SELECT NULL, as_of_minute + 120, carrier, origin, dest, NULL, NULL, 1
    FROM flights, bounds
    WHERE as_of_minute BETWEEN earliest - 480 AND latest - 120
        AND (dep_delay > 0 OR dep_delay IS NULL)
    UNION ALL
    -- and quits it when it leaves, or after six hours
    SELECT
        NULL, as_of_minute + 120 + CASE WHEN dep_delay < 360 THEN dep_delay ELSE 360 END,
        carrier, origin, dest, NULL, NULL, -1
    FROM flights, bounds
    WHERE as_of_minute BETWEEN earliest - 480 AND latest - 120
        AND (dep_delay > 0 OR dep_delay IS NULL)
),
recent AS (
    SELECT
        entity_id,
        SUM(waiting) OVER queue AS waiting,
        CAST(SUM(dep_delay) OVER origin_6h AS DOUBLE PRECISION)
            / COUNT(dep_delay) OVER origin_6h AS origin_delay_6h,
        CAST(SUM(made_up) OVER origin_6h AS DOUBLE PRECISION)
            / COUNT(made_up) OVER origin_6h AS origin_made_up_6h,
        CAST(SUM(dep_delay) OVER carrier_3h AS DOUBLE PRECISION)
            / COUNT(dep_delay) OVER carrier_3h AS carrier_delay_3h,
        CAST(SUM(made_up) OVER dest_12h AS DOUBLE PRECISION)
            / COUNT(made_up) OVER dest_12h AS dest_made_up_12h
    FROM events
    WINDOW
        queue AS (PARTITION BY origin ORDER BY minute RANGE UNBOUNDED PRECEDING),
        origin_6h AS (PARTITION BY origin ORDER BY minute RANGE 360 PRECEDING),
        carrier_3h AS (PARTITION BY carrier ORDER BY minute RANGE 180 PRECEDING),
        dest_12h AS (PARTITION BY dest ORDER BY minute RANGE 720 PRECEDING)
)
SELECT
    flight.entity_id, flight.as_of, flight.carrier, flight.origin, flight.dest, flight.distance,
    flight.scheduled_elapsed, flight.local_weekday AS weekday,
    flight.local_hour * 60 + flight.local_minute AS minute_of_day,
    weather.temp, weather.dewp, weather.humid, weather.wind_dir, weather.wind_speed,
    weather.wind_gust, weather.precip, weather.pressure, weather.visib,
    recent.waiting, recent.origin_delay_6h, recent.origin_made_up_6h, recent.carrier_delay_3h,
    recent.dest_made_up_12h
FROM recent
-- said once more, so that PostgreSQL knows how few flights there are to join
JOIN flights AS flight
    ON flight.entity_id = recent.entity_id AND flight.as_of >= :start AND flight.as_of < :end
LEFT JOIN weather
    ON weather.origin = flight.origin AND weather.minute = flight.as_of_minute / 60 * 60
"""

LABELS_QUERY = """
SELECT entity_id, CASE WHEN arr_delay > 15 THEN 1 ELSE 0 END AS label, landed_at AS known_at
FROM flights
WHERE as_of >= :start AND as_of < :end AND arr_delay IS NOT NULL
"""

FEATURES = {
    # timetable and route: miles, minutes, day and minute of New York's week
    "carrier": Category(nullable=False),
    "origin": Category(one_of=("EWR", "JFK", "LGA"), nullable=False),
    "dest": Category(nullable=False),
    "distance": Number(ge=0, nullable=False),
    "scheduled_elapsed": Number(ge=0, nullable=False),
    "weekday": Number(ge=1, le=7, nullable=False),
    "minute_of_day": Number(ge=0, le=1439, nullable=False),
    # weather at the origin: Fahrenheit, percent, degrees, mph, inches, millibars, miles
    "temp": Number(),
    "dewp": Number(),
    "humid": Number(ge=0),
    "wind_dir": Number(ge=0, le=360),
    "wind_speed": Number(ge=0),
    "wind_gust": Number(ge=0),
    "precip": Number(ge=0),
    "pressure": Number(),
    "visib": Number(ge=0),
    # flights that should have left the origin in the last six hours and have not
    "waiting": Number(ge=0, nullable=False),
    # mean minutes late at departure, and made up on the way; none if no flight was seen
    "origin_delay_6h": Number(),
    "origin_made_up_6h": Number(),
    "carrier_delay_3h": Number(),
    "dest_made_up_12h": Number(),
}


def estimator() -> HistGradientBoostingClassifier:
    """Boosted trees, which take missing values and categories as they are."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_iter=60,
        max_leaf_nodes=15,
        max_features=0.5,
        min_samples_leaf=50,
        l2_regularization=1.0,
        categorical_features="from_dtype",
        early_stopping=False,
        random_state=0,
    )


model = BatchModel(
    description="Probability that a flight from New York arrives more than 15 minutes late.",
    features_query=FEATURES_QUERY,
    labels_query=LABELS_QUERY,
    features=FEATURES,
    estimator=estimator,
    history=timedelta(weeks=8),
    holdout=timedelta(weeks=1),
    gate=Gate(min_rows=1000, at_least={"roc_auc": 0.55}),
    title="Late arrivals from New York",
    labels={"0": "on time", "1": "late"},
    tags=("sample",),
)
