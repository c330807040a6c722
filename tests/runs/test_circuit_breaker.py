"""A limit trips where chance does not explain what is seen, and only there."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from batch_jobs import Limits
from batch_jobs.interval import Volume
from batch_jobs.runs import circuit_breaker

DAY = timedelta(days=1)
TICK = timedelta(minutes=10)
NOW = datetime(2024, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("read", "rejected"), [(1, 0), (1, 1), (3, 1), (10, 5), (1000, 250), (1000, 270), (0, 0)]
)
def test_a_few_rejected_rows_let_the_good_ones_through(read, rejected):
    """Also all of a tiny interval, for one row is no evidence."""
    assert circuit_breaker.too_many_rejected(Limits(), read, rejected) is None


@pytest.mark.parametrize(("read", "rejected"), [(13, 13), (30, 15), (1000, 300), (10**6, 260_000)])
def test_more_rejected_rows_than_chance_explains_trip(read, rejected):
    """The message has the counts and the limit."""
    told = circuit_breaker.too_many_rejected(Limits(), read, rejected)
    assert told == (
        f"{rejected:,} of {read:,} rows were rejected, more than 25% "
        f"(see rejected_rows for the reasons)"
    )


def test_whoever_allows_every_rejection_gets_no_word():
    """And whoever allows none hears of the second."""
    assert circuit_breaker.too_many_rejected(Limits(rejected=1), 1000, 1000) is None
    assert circuit_breaker.too_many_rejected(Limits(rejected=0), 10**6, 1) is not None


def test_one_score_for_a_hundred_rows_trips():
    """A model that fell back to a constant is caught; a few equal rows are not."""
    told = circuit_breaker.constant_scores(Limits(), 100, (0.5, 0.5))
    assert told == "all 100 rows got the same score 0.5"
    assert circuit_breaker.constant_scores(Limits(), 99, (0.5, 0.5)) is None
    assert circuit_breaker.constant_scores(Limits(), 100, (0.5, 0.6)) is None
    assert circuit_breaker.constant_scores(Limits(), 0, None) is None
    assert circuit_breaker.constant_scores(Limits(constant_scores=True), 100, (0.5, 0.5)) is None


@pytest.mark.parametrize("read", [500, 1000, 2000, 470, 2100])
def test_a_population_of_about_the_usual_size_passes(read):
    """Between half and twice the median of the last runs, give or take what chance explains."""
    assert circuit_breaker.odd_population(Limits(), read, [900, 1000, 1100, 10, 5000]) is None


@pytest.mark.parametrize("read", [0, 100, 400, 2500, 10_000])
def test_a_population_that_shrank_or_grew_too_much_trips(read):
    """The message has the rows, the usual rows and the limits."""
    told = circuit_breaker.odd_population(Limits(), read, [900, 1000, 1100])
    assert told == (
        f"{read:,} rows were read where the last 3 runs had 1,000, not between 0.5 and 2 times "
        f"as many"
    )


def test_a_first_population_has_nothing_to_be_compared_with():
    """And a handful of rows may well become one."""
    assert circuit_breaker.odd_population(Limits(), 5, []) is None
    assert circuit_breaker.odd_population(Limits(), 1, [4, 5, 6]) is None


def past(rows, length=TICK, gap=timedelta(), until=NOW):
    """Intervals of a length one after the other, or with a gap between two, up to a moment."""
    starts = [until - (length + gap) * back for back in range(len(rows), 0, -1)]
    return [Volume(start, start + length, n) for start, n in zip(starts, rows, strict=True)]


def test_ten_times_the_fullest_interval_of_the_last_weeks_trips():
    """A small interval never does, nor one without a history."""
    assert circuit_breaker.surge(Limits(), 1001, 100) == (
        "1,001 rows were read where no interval as long had more than 100 in the last four weeks, "
        "over 10 times as many"
    )
    assert circuit_breaker.surge(Limits(), 1000, 100) is None
    assert circuit_breaker.surge(Limits(), 99, 1) is None
    assert circuit_breaker.surge(Limits(), 10**6, None) is None


@pytest.mark.parametrize(
    ("volumes", "length", "rows"),
    [
        ([], TICK, None),
        (past([3, 7, 5]), TICK, 7),
        (past([3, 7, 5]), 2 * TICK, 12),
        (past([0, 0, 9, 9, 0, 0]), 3 * TICK, 18),
        (past([144], DAY), TICK, 1),
        (past([144], DAY) + past([5, 2], TICK), TICK, 5),
        (past([144], DAY) + past([1] * 6, TICK), DAY, 144),
        (past([1] * 100), DAY, 144),
        (past([5, 9], gap=TICK), 4 * TICK, 28),
    ],
)
def test_intervals_of_any_length_tell_how_full_a_span_was(volumes, length, rows):
    """A tick is not measured by a day that was scored by hand, nor a day by a tick."""
    assert circuit_breaker.fullest(volumes, length) == rows


def test_a_short_history_allows_for_what_chance_has_kept_from_it():
    """Three rows in half an hour may well be a hundred a day, and also five hundred."""
    assert 144 < circuit_breaker.fullest(past([1, 1, 1]), DAY) < 600
    assert 144 < circuit_breaker.fullest(past([0, 0, 0]), DAY) < 300


def silent(volumes, ticks, limits=None):
    """What is said when no row has come for so many ticks after the last one."""
    last = max(volume.end for volume in volumes if volume.rows)
    limits = limits or Limits()
    return circuit_breaker.silent_too_long(limits, volumes, last, last + ticks * TICK, TICK)


def test_a_silence_is_measured_by_the_longest_one_before():
    """Twice the longest of the last weeks trips; a week at least must be known."""
    resting = past(([9] * 114 + [0] * 30) * 8 + [9])
    assert silent(resting, 60) is None
    assert silent(resting, 61) == (
        "the source gave no row for 10:10:00, longer than 10:00:00 (twice the longest silence of "
        "the last 8 days), and none since"
    )
    assert silent(resting[-6 * 144 :], 61) is None


def test_where_no_interval_was_ever_empty_a_single_one_is_no_outage():
    """Nor as many as chance brings about once a year, at the rate at which rows have come."""
    full = past([1000] * 8 * 144)
    assert silent(full, 1) is None
    assert "longer than 0:10:00 (one interval of the schedule)" in silent(full, 2)
    sparse = past([1] * 8 * 144)
    assert silent(sparse, 10) is None
    assert "longer than 1:49:00 (by chance less than once a year at the rate" in silent(sparse, 11)


def test_like_hours_are_compared_with_like():
    """A quiet hour of the night says nothing where nights have few rows, though days have many."""
    nights = past(([2] * 36 + [200] * 108) * 14 + [2] * 12)
    noons = past(([2] * 36 + [200] * 108) * 14 + [2] * 36 + [200] * 12)
    assert silent(nights, 5) is None
    assert "longer than 0:10:00" in silent(noons, 5)


def test_what_nobody_looked_at_is_no_silence_to_learn_from():
    """Days without a run, and what is silent still, do not let the next outage be longer."""
    outage = past([1] * 576, until=NOW - 3 * DAY) + past([1] * 576)
    assert silent(outage, 12) is not None
    assert silent(past([1] * 1152) + past([0] * 6, until=NOW + 6 * TICK), 12) is not None


def test_days_scored_by_hand_do_not_tell_whether_nights_have_rows():
    """A silence that they may hide is not known to be odd; one that they cannot is."""
    days = past([144] * 20, DAY)
    assert silent(days, 60) is None
    assert silent(days, 288) is not None


def test_a_model_file_may_say_how_long_its_source_may_be_silent():
    """Then nothing needs to be learnt."""
    limits = Limits(silence=DAY)
    assert silent(past([1]), 144, limits) is None
    assert silent(past([1, *[0] * 700, 1]), 288, limits) == (
        "the source gave no row for 2 days, 0:00:00, longer than 1 day, 0:00:00 (what the model "
        "file allows), and none since"
    )


@pytest.mark.parametrize(
    "fields", [{"rejected": 1.5}, {"rejected": -0.1}, {"surge": 1}, {"silence": -DAY}]
)
def test_limits_that_mean_nothing_are_refused(fields):
    """By the model file, before anything runs."""
    with pytest.raises(ValidationError):
        Limits(**fields)
