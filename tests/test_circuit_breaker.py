"""A limit trips where chance does not explain what is seen, and only there."""

from datetime import timedelta

import pytest
from pydantic import ValidationError

from batch_jobs import Limits, circuit_breaker

DAY = timedelta(days=1)


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


def test_ten_times_the_fullest_interval_of_the_last_weeks_trips():
    """A small interval never does, nor one without a history."""
    assert circuit_breaker.surge(Limits(), 1001, 100) == (
        "1,001 rows were read where no interval of the last four weeks had more than 100, over "
        "10 times as many"
    )
    assert circuit_breaker.surge(Limits(), 1000, 100) is None
    assert circuit_breaker.surge(Limits(), 99, 1) is None
    assert circuit_breaker.surge(Limits(), 10**6, None) is None


def test_a_silence_is_measured_by_the_longest_one_before():
    """Twice the longest of the last weeks trips; a week at least must be known."""
    told = circuit_breaker.silent_too_long(Limits(), 13 * DAY / 24, DAY / 4, 20 * DAY)
    assert told == (
        "the source gave no row for 13:00:00, longer than 12:00:00 (twice the longest silence of "
        "the last 20 days), and none since"
    )
    assert circuit_breaker.silent_too_long(Limits(), 12 * DAY / 24, DAY / 4, 20 * DAY) is None
    assert circuit_breaker.silent_too_long(Limits(), 5 * DAY, DAY / 4, 6 * DAY) is None
    assert circuit_breaker.silent_too_long(Limits(), 5 * DAY, None, 20 * DAY) is None


def test_a_model_file_may_say_how_long_its_source_may_be_silent():
    """Then nothing needs to be learnt."""
    limits = Limits(silence=DAY)
    assert circuit_breaker.silent_too_long(limits, DAY, None, 0 * DAY) is None
    told = circuit_breaker.silent_too_long(limits, 2 * DAY, 5 * DAY, 9 * DAY)
    assert told == (
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
