"""What is asked for by who triggers a DAG: each entry means something, or is refused by name."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest

from batch_jobs import clock
from batch_jobs.errors import FormError
from batch_jobs.interval import Interval
from batch_jobs_airflow import forms

EVERY_TEN, WEEKLY = "*/10 * * * *", "0 3 * * 1"
NOON = datetime(2026, 11, 19, 12, tzinfo=UTC)  # a Thursday
TICK = timedelta(minutes=10)
MONDAY = datetime(2026, 11, 16, 3, tzinfo=UTC)
WEEK = Interval(MONDAY - timedelta(days=7), MONDAY)


@pytest.fixture(autouse=True)
def five_past_noon():
    """The clock stands still."""
    with clock.set_to(NOON + timedelta(minutes=5)):
        yield


def run(run_type="manual", start=None, end=None, logical=None, **conf):
    """A run as Airflow tells of it."""
    after = NOON + timedelta(minutes=5)
    return SimpleNamespace(
        run_type=run_type,
        data_interval_start=start,
        data_interval_end=end,
        logical_date=logical,
        run_after=after,
        conf=conf,
    )


def asked(dag_run, schedule=EVERY_TEN):
    """The starts of the intervals that somebody wants, in minutes from noon."""
    params = {name: param.value for name, param in forms.SPAN_PARAMS.items()} | dag_run.conf
    start, end = dag_run.data_interval_start, dag_run.data_interval_end
    own = Interval(start, end) if start else None
    found = forms.intervals(schedule, dag_run, params, own)
    return found and [(one.start - NOON) / timedelta(minutes=1) for one in found]


def entered(start, end):
    """The entries of an interval, in minutes from noon."""
    times = [(NOON + timedelta(minutes=minutes)).isoformat() for minutes in (start, end)]
    return dict(zip(("interval_start", "interval_end"), times, strict=True))


def given(start, end):
    """The same as a data interval."""
    return {"start": NOON + timedelta(minutes=start), "end": NOON + timedelta(minutes=end)}


DUE = given(-10, 0)  # what Airflow finds for a manual run, if nobody chooses anything else


@pytest.mark.parametrize(
    ("dag_run", "starts"),
    [
        (run(), None),
        (run(**DUE, logical=NOON + TICK / 2), None),
        (run(**given(-100, -90), logical=NOON - 9 * TICK), None),
        (run(**DUE, logical=NOON - timedelta(days=9)), None),  # the command line's date
        (run("scheduled", **given(-20, -10)), None),
        (run(force=True), [-10]),
        (run(force=True, **DUE, logical=NOON), [-10]),
        (run(**given(-60, -30), logical=NOON), [-60, -50, -40]),
        (run(**given(-60, -50), logical=NOON), [-60]),
        (run("backfill", **given(-60, -50)), [-60]),
        (run(**entered(-30, 0)), [-30, -20, -10]),
        (run(**DUE, logical=NOON, **entered(-30, -20)), [-30]),
        (run(**entered(-30, -20), accept="I looked", force=True), [-30]),
    ],
)
def test_what_is_asked_for_is_what_is_due_in_it(dag_run, starts):
    """A span stands for its due intervals; without one the run is about what is due by itself."""
    assert asked(dag_run) == starts


@pytest.mark.parametrize(
    ("dag_run", "words"),
    [
        (run(interval_end=NOON.isoformat()), "give both interval_start and interval_end"),
        (run(**entered(-10, -20)), "must end after it starts"),
        (run(**entered(-10, -10)), "must end after it starts"),
        (run(**entered(0, 10)), "ends in the future"),
        (run(**given(0, 10), logical=NOON), "ends in the future"),
        (run(**entered(-57, -44)), r"is \[2026-11-19T11:00:00Z, 2026-11-19T11:20:00Z\)"),
        (run(**entered(-57, -55)), r"is \[2026-11-19T11:00:00Z, 2026-11-19T11:10:00Z\)"),
        (run(**given(-60, 3), logical=NOON), r"is \[2026-11-19T11:00:00Z, 2026-11-19T12:00:00Z\)"),
        (
            run(**entered(-60 * 24 * 120, 0)),
            "more than 200 intervals; publish them with a backfill",
        ),
        (run(**entered(-60 * 24 * 120, 0) | {"force": True}), "more than 200 intervals"),
        (run(intervall_start="2026-11-19T11:00:00Z"), "unknown parameter 'intervall_start'; there"),
        (run("backfill", **given(-60, -50), Force=True), "unknown parameter 'Force'"),
        (run("backfill", **given(-60, -50), **entered(-30, -20)), "the run's own interval is"),
        (run(**given(-60, -40), logical=NOON, **entered(-30, -20)), "the run's own interval is"),
        (run(accept="I looked"), "accept needs interval_start and interval_end"),
        (run(accept="I looked", **DUE, logical=NOON), "accept needs"),
        (run(interval_start="2026-02-30T00:00:00Z", interval_end="2026-03-01T00:00:00Z"), "ISO"),
        (run(interval_start="2026-11-19T11:00:00", interval_end="2026-11-19T12:00:00"), "offset"),
    ],
)
@pytest.mark.failure_mode("forms")
def test_what_makes_no_sense_is_refused_in_words_that_help(dag_run, words):
    """Before anything is claimed."""
    with pytest.raises(FormError, match=words):
        asked(dag_run)


@pytest.mark.parametrize(
    ("dag_run", "moment"),
    [
        (run(), NOON + TICK / 2),
        (run(start=WEEK.start, end=WEEK.end, logical=NOON), NOON),
        (run("scheduled", start=WEEK.start, end=WEEK.end, logical=WEEK.start), WEEK.end),
        (run("backfill", start=WEEK.start, end=WEEK.end, logical=WEEK.start), WEEK.end),
        (run("asset_triggered"), NOON + TICK / 2),
        (run(start=WEEK.start, end=WEEK.start + TICK, logical=NOON), WEEK.start + TICK),
        (run(start=WEEK.start, end=WEEK.start, logical=NOON), WEEK.start),
    ],
)
def test_a_training_by_hand_is_as_of_now_unless_another_moment_is_given(dag_run, moment):
    """Airflow looks up the interval of the logical date, which ended last Monday."""
    assert forms.as_of(WEEKLY, dag_run) == moment


@pytest.mark.parametrize(
    ("dag_run", "words"),
    [
        (run(logical=NOON + TICK), "that is in the future"),
        (run(**given(-10, 10), logical=NOON), "that is in the future"),
        (run(as_of="2026-11-01T00:00:00Z"), "unknown parameter 'as_of'; there are: none"),
    ],
)
@pytest.mark.failure_mode("forms")
def test_a_training_that_makes_no_sense_is_refused(dag_run, words):
    """Before a process is started for it."""
    with pytest.raises(FormError, match=words):
        forms.as_of(WEEKLY, dag_run)
