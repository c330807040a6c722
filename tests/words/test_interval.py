"""Intervals are half-open and in UTC; a schedule cuts time into them without gap or overlap."""

from datetime import UTC, datetime, timedelta, timezone
from itertools import islice, pairwise

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_jobs.errors import IntervalError
from batch_jobs.interval import (
    Interval,
    due_between,
    floor_to_grid,
    newest_due,
    parse_time,
    require_aware,
)

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
TEN = "*/10 * * * *"
moments = st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))
schedules = st.sampled_from(
    [TEN, "0 * * * *", "7-59/13 * * * *", "30 3 * * 1", "0 9 * * 1-5", "0 0 1 * *", "59 23 31 * *"]
)


def test_a_naive_time_is_refused_and_the_message_says_what_to_write():
    """Nobody guesses the zone of a time: the error shows the same time with its Z."""
    with pytest.raises(IntervalError, match="write 2024-03-01T12:00:00Z if it is UTC"):
        parse_time("2024-03-01T12:00:00")


def test_a_date_alone_is_refused_as_naive():
    """A date has no offset either."""
    with pytest.raises(IntervalError, match="write 2024-03-01T00:00:00Z if it is UTC"):
        parse_time("2024-03-01")


@pytest.mark.parametrize("wrong", ["yesterday", "", "2024-02-30T00:00:00Z", "1709294400"])
def test_what_is_no_time_is_refused_with_an_example(wrong):
    """The error repeats what was given and shows a time that would do."""
    with pytest.raises(IntervalError, match=r"is not an ISO 8601 time, such as 2026-"):
        parse_time(wrong)


@pytest.mark.parametrize("extreme", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_a_time_that_has_no_place_in_utc_is_refused(extreme):
    """The ends of the calendar give a clear error instead of an overflow."""
    with pytest.raises(IntervalError, match="out of range"):
        parse_time(extreme)


def test_times_of_any_offset_become_utc():
    """The offset is used and then gone."""
    assert parse_time("2024-03-01T21:00:00+09:00") == NOON
    assert parse_time("2024-03-01T21:00:00+09:00").tzinfo == UTC
    assert require_aware(NOON.astimezone(timezone(timedelta(hours=-5)))).tzinfo == UTC


@pytest.mark.parametrize("length", [timedelta(0), timedelta(minutes=-10)])
def test_an_interval_ends_after_it_starts(length):
    """An empty or reversed interval is refused."""
    with pytest.raises(IntervalError, match="must end after it starts"):
        Interval(NOON, NOON + length)


def test_intervals_of_the_same_moments_are_equal_whatever_their_zones():
    """Only the moment counts, so a set of intervals knows doubles."""
    seoul = timezone(timedelta(hours=9))
    there = Interval(NOON.astimezone(seoul), NOON.astimezone(seoul) + timedelta(hours=1))
    assert {there} == {Interval(NOON, NOON + timedelta(hours=1))}


def test_an_interval_that_ends_in_the_future_is_refused():
    """Its rows are not all there yet; one that ends right now is over."""
    interval = Interval(NOON, NOON + timedelta(hours=1))
    assert interval.require_past(NOON + timedelta(hours=1)) is interval
    with pytest.raises(IntervalError, match=r"can be scored from 2024-03-01T13:00:00\+00:00 on"):
        interval.require_past(NOON + timedelta(minutes=59))


def test_on_a_tick_the_newest_due_interval_ends_there():
    """At 12:00 sharp the interval from 11:50 has just ended."""
    assert newest_due(TEN, NOON) == Interval(NOON - timedelta(minutes=10), NOON)


@pytest.mark.parametrize("late", [timedelta(microseconds=1), timedelta(minutes=9, seconds=59)])
def test_between_ticks_the_newest_due_interval_ends_at_the_last_tick(late):
    """The interval that is running is not due."""
    assert newest_due(TEN, NOON + late) == Interval(NOON - timedelta(minutes=10), NOON)


def test_just_before_a_tick_the_interval_before_is_the_newest():
    """A microsecond before 12:00, the interval that ends there is not over."""
    expected = Interval(NOON - timedelta(minutes=20), NOON - timedelta(minutes=10))
    assert expected == newest_due(TEN, NOON - timedelta(microseconds=1))


@pytest.mark.failure_mode(39)
def test_the_grid_knows_leap_days_and_the_end_of_the_year():
    """29 February and New Year's Eve are days like any other."""
    daily = "0 0 * * *"
    leap = list(due_between(daily, datetime(2024, 2, 28, tzinfo=UTC), NOON))
    assert [(i.start.day, i.end.day) for i in leap] == [(28, 29), (29, 1)]
    new_year = newest_due(TEN, datetime(2024, 1, 1, 0, 5, tzinfo=UTC))
    assert str(new_year) == "[2023-12-31T23:50:00Z, 2024-01-01T00:00:00Z)"


@pytest.mark.failure_mode(39)
def test_changes_of_the_clock_in_summer_do_not_touch_the_grid():
    """The grid is in UTC: both change days of 2024 have 144 intervals of ten minutes."""
    for day in (datetime(2024, 3, 10, tzinfo=UTC), datetime(2024, 11, 3, tzinfo=UTC)):
        due = list(due_between(TEN, day, day + timedelta(days=1)))
        assert len(due) == 144
        assert {i.end - i.start for i in due} == {timedelta(minutes=10)}


def test_only_whole_intervals_are_due():
    """Ends off the grid leave out the intervals they cut."""
    due = list(due_between(TEN, NOON + timedelta(minutes=1), NOON + timedelta(minutes=39)))
    assert [i.start.minute for i in due] == [10, 20]


def test_a_span_shorter_than_the_grid_holds_no_interval():
    """So does one that is reversed."""
    assert list(due_between(TEN, NOON, NOON + timedelta(minutes=9))) == []
    assert list(due_between(TEN, NOON, NOON - timedelta(hours=1))) == []


def test_naive_times_are_refused_on_the_grid_too():
    """The grid's functions take no naive time."""
    naive = datetime(2024, 3, 1)
    for ask in (lambda: newest_due(TEN, naive), lambda: list(due_between(TEN, naive, naive))):
        with pytest.raises(IntervalError, match="has no UTC offset"):
            ask()


@pytest.mark.parametrize(
    "schedule",
    [
        *(TEN, "* * * * *", "7-59/13 */5 * * *", "0 9 * * 1-5", "59 23 31 * *", "30 4 1,15 * 5"),
        *("15 3,21 29 2 *", "0 0 L * *", "0 12 * * 1#2", "1-3 0 * 6-8 0", "0 3 * * 7"),
    ],
)
def test_the_grid_is_that_of_cron(schedule):
    """Though it is made day by day: the same ticks as those that croniter finds one by one."""
    for start in (datetime(2023, 12, 30, 23, 59, tzinfo=UTC), NOON, NOON + timedelta(minutes=7)):
        found = []
        ticks = croniter(schedule, start - timedelta.resolution)
        for interval in islice(due_between(schedule, start, start + timedelta(days=4000)), 1500):
            found += [interval.start, interval.end]
        expected = list(islice(ticks.all_next(datetime), len(found) // 2 + 1))
        assert found == [tick for pair in pairwise(expected) for tick in pair]


@given(schedules, moments, st.integers(0, 60 * 48), st.integers(0, 60 * 48))
@settings(max_examples=40, deadline=None)
@pytest.mark.failure_mode(39)
def test_due_intervals_tile_time_without_gap_or_overlap(schedule, start, first, second):
    """Two neighbouring spans that meet on a tick hold the same intervals as the span of both."""
    middle = floor_to_grid(schedule, start + timedelta(minutes=first))
    end = middle + timedelta(minutes=second)
    whole = list(due_between(schedule, start, end))
    parts = [*due_between(schedule, start, middle), *due_between(schedule, middle, end)]
    assert all(left.end == right.start for left, right in pairwise(whole))
    assert all(start <= interval.start and interval.end <= end for interval in whole)
    if middle >= start:
        assert parts == whole


@given(schedules, moments)
@settings(max_examples=40, deadline=None)
def test_the_newest_due_interval_is_the_last_one_of_the_grid(schedule, now):
    """It ends at or before now, and the interval after it does not."""
    newest = newest_due(schedule, now)
    assert newest.end <= now
    assert newest.end == floor_to_grid(schedule, now)
    assert list(due_between(schedule, newest.start, now)) == [newest]
