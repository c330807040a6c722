"""A run that is complete and looks wrong is kept from readers, on both databases.

Cases 47, 49 and 50 of the failure modes; the limits by themselves are in
tests/runs/test_circuit_breaker.py.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batch_jobs import clock
from batch_jobs.catalog import load_model
from batch_jobs.database import leases
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import CircuitBreakerError, IncompleteError
from batch_jobs.interval import Interval
from batch_jobs.runs import jobs
from tests.support.attempts import ask, seen
from tests.support.mishaps import change
from tests.support.planned import plan_due

OPENED = datetime(2024, 2, 10, tzinfo=UTC)  # the shop of the example models, as in conftest.py
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
TICK = timedelta(minutes=10)
VERSION = "SELECT version FROM model_versions WHERE model = 'orders'"


def day(number):
    """A day of the shop, from its opening on."""
    return Interval(OPENED + number * DAY, OPENED + (number + 1) * DAY)


def tick(number):
    """Ten minutes of its tenth day, which have one order."""
    return Interval(day(10).start + number * TICK, day(10).start + (number + 1) * TICK)


def hours(number):
    """Five hours of its tenth day, which have thirty orders."""
    return Interval(tick(30 * number).start, tick(30 * number + 29).end)


# What happens to the shop between two runs: the model, the intervals, and what is said of it.
ODDITIES = {
    "rejects": (
        "orders",
        hours,
        ["UPDATE orders SET amount = -1 WHERE amount < 50"],
        "rows were rejected",
    ),
    "surge": (
        "orders",
        tick,
        [
            """INSERT INTO orders
               SELECT c.entity_id || d.entity_id, '2024-02-20T00:15:00+00:00', 5, 'kr', NULL, NULL
               FROM customers AS c, customers AS d WHERE d.visits < 2"""
        ],
        "101 rows were read where",
    ),
    "shrunk": (
        "customers",
        day,
        ["DELETE FROM customers WHERE visits > 4"],
        "5 rows were read where",
    ),
    "grown": (
        "customers",
        day,
        [
            """INSERT INTO customers SELECT c.entity_id || d.entity_id, c.visits, c.spent
               FROM customers AS c, customers AS d WHERE d.visits < 4"""
        ],
        "250 rows were read where",
    ),
    "constant": (
        "customers",
        day,
        [
            "INSERT INTO customers SELECT 'more' || entity_id, visits, spent FROM customers",
            "UPDATE customers SET visits = 3",
        ],
        "all 100 rows got the same score",
    ),
}


@pytest.mark.parametrize("oddity", ODDITIES)
@pytest.mark.failure_mode(47, 50)
def test_what_looks_too_wrong_is_not_published_unless_somebody_accepts_it(shop, oddity):
    """It fails and says what to do, and readers keep what they have; a reason lets it through."""
    name, interval, statements, words = ODDITIES[oddity]
    jobs.predict(shop, name, interval(0))
    before = seen(Warehouse(shop.warehouse))
    change(shop, *statements)
    with pytest.raises(CircuitBreakerError, match=words) as caught:
        jobs.predict(shop, name, interval(1))
    assert caught.value.exit_code == 1
    assert f"--start {interval(1).start.isoformat()}" in str(caught.value)
    assert seen(Warehouse(shop.warehouse)) == before
    failed = "SELECT state, error FROM prediction_runs ORDER BY run_id DESC LIMIT 1"
    assert ask(Warehouse(shop.warehouse), failed) == [("failed", str(caught.value))]
    accepted = jobs.predict(shop, name, interval(1), accept="it is so")
    assert (accepted.state, accepted.accepted) == ("published", "it is so")
    stored = "SELECT run_id, accepted FROM prediction_runs ORDER BY run_id DESC LIMIT 1"
    assert ask(Warehouse(shop.warehouse), stored) == [(accepted.run_id, "it is so")]
    assert seen(Warehouse(shop.warehouse)) != before


@pytest.mark.failure_mode(49)
def test_a_source_that_falls_silent_is_told_from_one_that_rests(shop):
    """What it did before is known; a day of rest is published as an empty interval.

    After twice the longest rest it is taken for dead, until it speaks again.
    """
    change(shop, "DELETE FROM orders WHERE placed_at NOT LIKE '%T12:00:00+00:00'")
    rest = "DELETE FROM orders WHERE placed_at >= :start AND placed_at < :end"
    change(shop, rest, start=stored_time(day(4).start), end=stored_time(day(5).start))
    change(shop, rest, start=stored_time(day(9).start), end="9999")
    for start, end in ((0, 4), (4, 5), (5, 9), (9, 10), (10, 11)):
        jobs.predict(shop, "orders", Interval(day(start).start, day(end).start))
    counts = "SELECT rows_read FROM prediction_runs ORDER BY run_id"
    read = [count for (count,) in ask(Warehouse(shop.warehouse), counts)]
    assert read == [4, 0, 4, 0, 0]
    before = seen(Warehouse(shop.warehouse))
    dead = r"no row for 3 days.*longer than 2 days.*and none since"
    with pytest.raises(CircuitBreakerError, match=dead):
        jobs.predict(shop, "orders", day(11))
    assert seen(Warehouse(shop.warehouse)) == before
    later = "INSERT INTO orders VALUES ('order-late', :at, 5, 'kr', NULL, NULL)"
    change(shop, later, at=stored_time(day(13).start))
    assert jobs.predict(shop, "orders", day(11)).counts.read == 0
    assert jobs.predict(shop, "orders", day(13)).counts.scored == 1


@pytest.fixture
def known(shop):
    """The shop after ten days that were published hour by hour, six orders each."""
    version = ask(Warehouse(shop.warehouse), VERSION)[0][0]
    change(
        shop,
        *(
            f"""INSERT INTO prediction_runs (model, interval_start, interval_end, state, mode,
                  model_version, rows_read, rows_scored, rows_rejected, rows_skipped, published_at,
                  token, claimed_at)
                VALUES ('orders', '{start}', '{end}', 'published', 'merge', '{version}', 6, 6, 0, 0,
                  '{end}', '{end}', '{end}')"""
            for start, end in (
                (stored_time(OPENED + n * HOUR), stored_time(OPENED + (n + 1) * HOUR))
                for n in range(240)
            )
        ),
    )
    return shop


def hour(number):
    """An hour of the shop's eleventh day."""
    return Interval(day(10).start + number * HOUR, day(10).start + (number + 1) * HOUR)


@pytest.mark.failure_mode(49)
def test_a_quiet_hour_is_no_outage_and_keeps_nothing_back(known):
    """Where rows have come in every hour; and once they come again, a longer one is none either."""
    gone = "DELETE FROM orders WHERE placed_at >= :start"
    change(known, "CREATE TABLE kept AS SELECT * FROM orders", gone, start=stored_time(hour(2).end))
    change(known, gone, start=stored_time(hour(2).start))
    for number in range(3):
        jobs.predict(known, "orders", hour(number))
    with pytest.raises(CircuitBreakerError, match=r"for 2:00:00, longer than 1:49:00 \(by"):
        jobs.predict(known, "orders", hour(3))
    back = "INSERT INTO orders SELECT * FROM kept WHERE placed_at >= :start"
    change(known, back, start=stored_time(hour(4).start))
    assert jobs.predict(known, "orders", hour(4)).counts.scored == 6
    assert jobs.predict(known, "orders", hour(3)).counts.read == 0


@pytest.mark.failure_mode(49)
def test_an_empty_interval_that_was_refused_is_published_once_there_are_rows_again(shop):
    """By the next run, which is not kept back by it."""
    model = load_model("orders", shop.models)
    limits = model.limits.model_copy(update={"silence": TICK})
    settings = replace(shop, models=(model.model_copy(update={"limits": limits}), *shop.models))
    quiet = "DELETE FROM orders WHERE placed_at >= :start AND placed_at < :end"
    change(shop, quiet, start=stored_time(tick(1).start), end=stored_time(tick(3).start))
    for number in (0, 1):
        jobs.predict(settings, "orders", tick(number))
    with clock.set_to(tick(2).end), pytest.raises(CircuitBreakerError, match="no row for 0:20:00"):
        jobs.predict(settings, "orders", tick(2))
    with clock.set_to(tick(3).end):
        token = leases.new_token()
        for run in plan_due(settings, "orders", tick(3), token):
            jobs.score_and_publish(settings, run, token)
    ended = """SELECT interval_start, rows_read FROM prediction_runs WHERE state = 'published'
        ORDER BY interval_start"""
    found = {loaded_time(start): read for start, read in ask(Warehouse(shop.warehouse), ended)}
    assert found == {tick(n).start: read for n, read in enumerate([1, 0, 0, 1])}


@pytest.mark.failure_mode(49)
def test_hours_that_nobody_published_are_no_silence(known):
    """The source had rows in them, whatever the ledger knows."""
    change(
        known,
        "DELETE FROM orders WHERE placed_at >= :start",
        start=stored_time(day(11).start),
    )
    assert jobs.predict(known, "orders", Interval(day(11).start, day(11).start + TICK))
    with pytest.raises(CircuitBreakerError, match="no row for 1 day"):
        jobs.predict(known, "orders", day(11))


@pytest.mark.slow
@pytest.mark.failure_mode(50)
def test_a_day_by_hand_is_measured_as_a_day_and_a_tick_as_a_tick(shop):
    """Whichever came first: what counts is how many rows come in a time."""
    for number in range(3):
        jobs.predict(shop, "orders", tick(number))
    assert jobs.predict(shop, "orders", day(11)).counts.scored == 144
    more = """INSERT INTO orders SELECT c.entity_id || d.entity_id, :at, 5, 'kr', NULL, NULL
              FROM customers AS c, customers AS d WHERE d.visits < 20"""
    after = Interval(day(12).start, day(12).start + TICK)
    change(shop, more, at=stored_time(after.start))
    with pytest.raises(CircuitBreakerError, match="1,001 rows were read where no interval as long"):
        jobs.predict(shop, "orders", after)


@pytest.mark.failure_mode(49)
def test_an_empty_population_takes_nothing_away(shop):
    """It is refused, however small the one before was."""
    change(shop, "DELETE FROM customers WHERE visits > 1")
    jobs.predict(shop, "customers", day(10))
    change(shop, "UPDATE customers SET entity_id = 'x' || entity_id")
    change(shop, "CREATE TABLE kept AS SELECT * FROM customers", "DELETE FROM customers")
    before = seen(Warehouse(shop.warehouse))
    with pytest.raises(IncompleteError, match="keep the last good predictions"):
        jobs.predict(shop, "customers", day(11), accept="whatever")
    assert seen(Warehouse(shop.warehouse)) == before
    change(shop, "INSERT INTO customers SELECT * FROM kept")
    jobs.predict(shop, "customers", day(11))
    assert seen(Warehouse(shop.warehouse)).keys() == {"xcustomer-0", "xcustomer-1"}
