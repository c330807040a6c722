"""Days are compared with days: a spell is no alarm, and a change of kind is one line in words."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import text

from batch_jobs.catalog import load_model
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval, due_between
from batch_jobs.monitoring import drift, drift_search, findings, folding, profiles
from batch_jobs.monitoring.statistics import Statistic
from batch_jobs.registry import champions
from batch_jobs.registry.references import reference_of
from batch_jobs.runs import jobs
from tests.benchmarks import drift as benchmark
from tests.conftest import TRAINED
from tests.support.attempts import ask

DAY = timedelta(days=1)


def execute(warehouse, sql, **values):
    """Change the warehouse behind everybody's back."""
    with warehouse.write() as connection:
        connection.execute(text(sql), values)


def _usual(values, kind="level", feature="x"):
    names = [Statistic("shape", feature, "1/1"), Statistic(kind, feature)]
    weekdays = np.arange(len(values)) % 7
    shape = np.full(len(values), 0.1)
    return drift.usual(names, np.column_stack([shape, values]), weekdays)


def _severity(known, value):
    found = drift.unusual([(known, np.array([0.1, value]), 0, 100.0)])
    return found[0].severity if found else 0.0


def test_limits_come_from_how_much_days_differ():
    """Of a feature that comes in spells one day may lie far off; of a steady one it may not."""
    rng = np.random.default_rng(0)
    spells, steady = _usual(rng.normal(0, 0.8, 56)), _usual(rng.normal(0, 0.02, 56))
    assert _severity(spells, 2.0) == 0
    assert _severity(steady, 2.0) > 3
    assert _severity(spells, 12.0) > 1


def test_weekdays_are_compared_with_their_own():
    """If they differ: a quiet Sunday is usual, and a Monday like it is not."""
    values = np.where(np.arange(56) % 7 == 6, 0.0, 5.0) + np.linspace(0, 0.1, 56)
    known = _usual(values, "volume", "rows")
    monday = drift.unusual([(known, np.array([0.1, 0.0]), 0, 100.0)])
    sunday = drift.unusual([(known, np.array([0.1, 0.0]), 6, 100.0)])
    assert [each.statistic.kind for each in monday] == ["volume"]
    assert sunday == []


def test_fewer_days_of_training_give_wider_limits():
    """For the farthest of few days is nearer, by chance, than the farthest of many."""
    values = np.random.default_rng(1).normal(0, 1, 56)
    few = _usual(np.clip(values[:8], -1, 1))
    many = _usual(np.clip(values, -1, 1))
    assert few.limits[0, 1] > many.limits[0, 1]


def test_an_echo_is_not_told_beside_its_cause():
    """What has one value has another mean, spread and shape; a broken relation follows from it."""
    kinds = ("level", "spread", "shape", "stuck")
    found = [drift.Unusual(Statistic(kind, "temp"), 0, 1, 1, 3.0) for kind in kinds]
    found.append(drift.Unusual(Statistic("relation", "dewp", "level"), 0, 1, 1, 9.0))
    assert [each.statistic.kind for each in drift.roots(found)] == ["stuck"]
    assert [each.statistic.feature for each in drift.roots(found[-1:])] == ["dewp"]


@pytest.fixture(scope="module")
def spring(flights_2013):
    """Rows of the real flights of February to April, without the scores of a model."""
    model = load_model("flight_delay", ("batch_jobs.models",))
    span = Interval(benchmark.START, benchmark.START + timedelta(days=56 + 14))
    from batch_jobs.training.dataset import read_whole

    rows = read_whole(flights_2013, model.features_query, span)
    rows["as_of"] = pd.to_datetime(rows["as_of"], utc=True)
    numbers = [name for name, kind in model.features.items() if kind.kind == "number"]
    return model, rows.astype(dict.fromkeys(numbers, "float64"))


@pytest.mark.slow
def test_quiet_weeks_of_real_flights_bring_no_alarm_and_changes_do(spring):
    """On the first day, but for the airport of which a third is missing: that takes days."""
    model, rows = spring
    names = ("temp in Celsius", "visib 30 % null", "a third of JFK missing")
    changes = {name: benchmark.CHANGES[name] for name in names}
    found = benchmark.measure(model, rows, None, changes, weeks=2)
    assert found["quiet"] == {}
    days = {name: [alarm[0] for alarm in alarms] for name, alarms in found["changes"].items()}
    assert days.pop("a third of JFK missing") == pytest.approx([3] * 2, abs=3)
    assert {day for each in days.values() for day in each} == {1}


@pytest.fixture
def orders(shop):
    """The example model of orders with 12 days published, two a day, on either database."""
    model = load_model("orders", shop.models).model_copy(update={"schedule": "0 */12 * * *"})
    settings = replace(shop, models=(model, *shop.models))
    for interval in due_between(model.schedule, TRAINED - 12 * DAY, TRAINED):
        jobs.predict(settings, "orders", interval)
    return settings, model, Warehouse(settings.warehouse)


def _days(warehouse):
    version = champions.champion(warehouse, "orders")
    layout = reference_of(version).layout
    return profiles.days_of(
        warehouse, "orders", version.version, layout, TRAINED - 30 * DAY, TRAINED + DAY
    )


def test_runs_merge_to_days_once_and_again_when_one_is_scored_anew(orders):
    """A day's profile is that of its rows; a second look changes nothing, another run does."""
    settings, model, warehouse = orders
    drift_search.look_for_drift(warehouse, model, TRAINED)
    before = ask(warehouse, "SELECT grain, span_start, runs, profile FROM profiles ORDER BY 1, 2")
    days = _days(warehouse)
    scored = ask(warehouse, "SELECT sum(rows_scored) FROM prediction_runs")[0][0]
    assert days.counts[:, 0].sum() == scored
    assert set(days.covered[1:-1]) == {1.0}
    assert set(days.missing) == {0}

    version = champions.champion(warehouse, "orders")
    layouts = {version.version: reference_of(version).layout}
    offset = timedelta(hours=3)
    assert folding.fold(warehouse, "orders", layouts, offset, TRAINED) == 0
    half = Interval(TRAINED - 2 * DAY, TRAINED - 1.5 * DAY)
    half = next(due_between(model.schedule, half.start - DAY, half.end + DAY))
    jobs.predict(settings, "orders", half, force=True)
    assert folding.fold(warehouse, "orders", layouts, offset, TRAINED - DAY) > 0
    after = ask(warehouse, "SELECT grain, span_start, runs, profile FROM profiles ORDER BY 1, 2")
    assert [row[3] for row in after] == [row[3] for row in before]
    assert [row[2] for row in after] != [row[2] for row in before]


def test_what_is_found_is_kept_for_readers_and_restated(orders):
    """One row a finding and window; a look that finds nothing any more leaves nothing."""
    *_, warehouse = orders
    finding = findings.Finding(
        *(
            "v1",
            TRAINED - DAY,
            TRAINED,
            "level",
            "x",
            "",
            1,
            20,
            1.0,
            9.0,
            0.0,
            2.0,
            3.5,
            1.0,
            "x up",
        ),
    )
    span = (TRAINED - DAY, TRAINED)
    for _ in range(2):
        findings.store(warehouse, "orders", [span], [finding], TRAINED)
    seen = ask(warehouse, "SELECT model, kind, severity, words FROM model_drift")
    assert [tuple(row) for row in seen] == [("orders", "level", 3.5, "x up")]
    assert findings.found_since(warehouse, "orders", TRAINED - 3 * DAY) == [finding]
    findings.store(warehouse, "orders", [span], [], TRAINED)
    assert ask(warehouse, "SELECT * FROM model_drift") == []


def test_a_version_of_an_older_release_is_one_line(orders):
    """It has no profile of its training; nothing else stops."""
    _, model, warehouse = orders
    execute(warehouse, "UPDATE run_parts SET profile = NULL")
    manifest = "'{}'" if warehouse.database.name == "sqlite" else "'{}'::jsonb"
    execute(warehouse, f"UPDATE model_versions SET manifest = {manifest}")
    judged, found, notes = drift_search.look_for_drift(warehouse, model, TRAINED)
    assert (judged, found) == (None, [])
    (note,) = notes
    assert "has no profile of its training, which an older release made" in note


def test_a_clock_that_ran_backwards_hides_no_run(orders):
    """What was published before the last look, as it seems, is merged all the same."""
    settings, model, warehouse = orders
    late = TRAINED + 400 * DAY
    drift_search.look_for_drift(warehouse, model, late)
    newest = next(due_between(model.schedule, TRAINED, TRAINED + DAY))
    jobs.predict(settings, "orders", newest)
    execute(
        warehouse,
        "UPDATE prediction_runs SET published_at = :at WHERE interval_end = :end",
        at=stored_time(datetime(2020, 1, 1, tzinfo=UTC)),
        end=stored_time(newest.end),
    )
    before = _days(warehouse).counts[:, 0].sum()
    drift_search.look_for_drift(warehouse, model, late)
    assert _days(warehouse).counts[:, 0].sum() > before
