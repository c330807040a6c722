"""Rows that came late are scored where they belong, and by whom, once; hindsight is marked as such.

Case 58 of the failure modes, on both databases.
"""

from datetime import timedelta

import pytest

from batch_jobs import catalog
from batch_jobs.database.leases import new_token
from batch_jobs.database.transactions import stored_time
from batch_jobs.interval import Interval
from batch_jobs.registry import promotion
from batch_jobs.runs import backfills, jobs
from tests.fault_models._rows import START, STEP, expected, number_of, tick
from tests.support.deployment import shown
from tests.support.mishaps import change
from tests.support.planned import plan, plan_due

on_sqlite = pytest.mark.parametrize("deployment", ["sqlite"], indirect=True)
SHIFT = 10_000_000  # of the second version
SHARED = """
    SELECT CAST(round(score) AS integer) FROM current_predictions
    WHERE model = 'ticks' AND entity_id = 'shared-2'"""


def span(first, last):
    """From the start of one tick to the end of another."""
    return Interval(tick(first).start, tick(last).end)


def hold_back(deployment, number, key):
    """Let a row of a tick not be there yet; call the answer when it comes."""
    name = f"held_{new_token().replace('-', '')}"
    where = f"WHERE model = 'ticks' AND entity_id = '{key}' AND at = :at"
    at = stored_time(tick(number).start)
    change(
        deployment.settings,
        f"CREATE TABLE {name} AS SELECT * FROM fault_rows {where}",
        f"DELETE FROM fault_rows {where}",
        at=at,
    )
    return lambda: change(deployment.settings, f"INSERT INTO fault_rows SELECT * FROM {name}")


def run_due(deployment, number):
    """The ticks that are due with this one, all scored and published, and by which versions."""
    token = new_token()
    runs = plan_due(deployment.settings, "ticks", tick(number), token)
    for run in runs:
        if run.state == "staging":
            for part in range(2):
                jobs.score(deployment.settings, "ticks", run.run_id, part, token)
            jobs.publish(deployment.settings, run.run_id)
    return {number_of(run.interval.start): run.model_version for run in runs}


def backfill(deployment, first, last, **options):
    """`{tick: run}` of a backfill."""
    runs = backfills.backfill(deployment.settings, "ticks", span(first, last), **options)
    return {number_of(run.interval.start): run.run_id for run in runs}


def versions(deployment):
    """The first version, which serves, and the second."""
    return sorted(deployment.versions_of("ticks"), key=deployment.versions.get)


def promote(deployment):
    """Let the second version serve from now on."""
    _, second = versions(deployment)
    promotion.promote(deployment.settings, "ticks", second, actor="tests", reason="now")


@pytest.fixture
def changed(monkeypatch):
    """Plan with fields of the model changed: `changed(look_back=...)`."""

    def change_model(**fields):
        model = catalog.load_model("ticks", ("tests.fault_models",)).model_copy(update=fields)
        monkeypatch.setattr("batch_jobs.registry.deployment.load_model", lambda *_: model)

    return change_model


@pytest.mark.failure_mode(58)
def test_a_late_row_is_scored_by_the_next_run_with_the_version_of_its_interval(deployment):
    """What readers see of an interval is of one version, though another serves by now; once."""
    arrive = hold_back(deployment, 1, "group-01-4")
    first, second = versions(deployment)
    deployment.predict("ticks", 1)
    promote(deployment)
    arrive()
    assert run_due(deployment, 2) == {1: first, 2: second}
    assert deployment.seen("ticks") == shown("ticks", [0, 1]) | expected("ticks", 2, SHIFT)
    assert run_due(deployment, 3) == {3: second}
    assert deployment.states("ticks", 1) == ["superseded", "published"]


@pytest.mark.failure_mode(58)
def test_a_late_row_of_a_known_entity_is_late_all_the_same(deployment):
    """What readers have of it is of an older interval; a newer one is not bettered."""
    arrive_2, arrive_1 = (hold_back(deployment, number, "shared-2") for number in (2, 1))
    for number in (1, 2):
        deployment.predict("ticks", number)
    assert deployment.ask(SHARED) == [(52,)]
    arrive_2()
    assert list(run_due(deployment, 3)) == [2, 3]
    assert deployment.ask(SHARED) == [(352,)]
    arrive_1()
    assert list(run_due(deployment, 4)) == [4]


@pytest.mark.failure_mode(58)
def test_a_late_row_of_an_entity_that_was_rejected_once_is_late_all_the_same(deployment):
    """The rejection was of another interval."""
    at = stored_time(tick(1).start)
    change(
        deployment.settings,
        "UPDATE fault_rows SET entity_id = 'group-02-0' WHERE entity_id = 'bad-01' AND at = :at",
        at=at,
    )
    arrive = hold_back(deployment, 2, "group-02-0")
    for number in (1, 2):
        deployment.predict("ticks", number)
    arrive()
    assert list(run_due(deployment, 3)) == [2, 3]
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2, 3])


@pytest.mark.failure_mode(58)
def test_a_late_row_that_is_rejected_is_looked_at_once(deployment):
    """It is recorded with its reason, and no later run scores its interval again for it."""
    arrive = hold_back(deployment, 1, "bad-01")
    deployment.predict("ticks", 1)
    arrive()
    assert list(run_due(deployment, 2)) == [1, 2]
    assert list(run_due(deployment, 3)) == [3]
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2, 3])


@pytest.mark.failure_mode(58)
def test_a_late_row_at_the_edge_belongs_to_one_interval(deployment):
    """To the microsecond; and once it is scored, it is late no more."""
    for number in (1, 2):
        deployment.predict("ticks", number)
    late = "INSERT INTO fault_rows VALUES ('ticks', :key, :at, :at, 5)"
    for key, at in (("last", tick(1).end - timedelta(microseconds=1)), ("first", tick(2).start)):
        change(deployment.settings, late, key=key, at=stored_time(at))
    assert list(run_due(deployment, 3)) == [1, 2, 3]
    assert list(run_due(deployment, 4)) == [4]
    shown_of = "SELECT interval_start FROM current_predictions WHERE entity_id = :key"
    for key, number in (("last", 1), ("first", 2)):
        ((start,),) = deployment.ask(shown_of, key=key)
        assert number_of(start) == number


@pytest.mark.failure_mode(40)
def test_missed_and_late_intervals_are_planned_oldest_first(deployment):
    """And the newest at the end; each once."""
    arrive = hold_back(deployment, 2, "group-02-1")
    deployment.predict("ticks", 2)
    arrive()
    assert list(run_due(deployment, 4)) == [1, 2, 3, 4]
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2, 3, 4])


@pytest.mark.failure_mode(58)
def test_a_late_row_outside_the_look_back_waits_for_a_backfill(deployment, changed):
    """Which scores its interval, once, and leaves the others alone."""
    changed(look_back=2 * STEP)
    arrive = hold_back(deployment, 1, "group-01-4")
    before = backfill(deployment, 1, 3)
    arrive()
    assert list(run_due(deployment, 4)) == [4]
    after = backfill(deployment, 1, 3)
    assert {number for number in before if before[number] != after[number]} == {1}
    assert backfill(deployment, 1, 3) == after
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2, 3, 4])


@pytest.mark.failure_mode(58)
def test_a_model_may_leave_late_rows_to_backfills(deployment, changed):
    """Then a run does not read the look-back again."""
    changed(rescore_late=False)
    arrive = hold_back(deployment, 1, "group-01-4")
    deployment.predict("ticks", 1)
    arrive()
    assert list(run_due(deployment, 2)) == [2]
    backfill(deployment, 1, 2)
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2])


@pytest.mark.failure_mode(58)
def test_a_backfill_scores_late_rows_with_the_version_of_their_interval(deployment):
    """Unless it is forced, which scores everything anew."""
    arrive = hold_back(deployment, 1, "group-01-4")
    deployment.predict("ticks", 1)
    promote(deployment)
    arrive()
    backfill(deployment, 1, 1)
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    backfill(deployment, 1, 1, force=True, champion="current")
    assert deployment.seen("ticks") == shown("ticks", [0]) | expected("ticks", 1, SHIFT)
    assert deployment.states("ticks", 1) == ["superseded", "superseded", "published"]


@pytest.mark.failure_mode(58)
def test_an_interval_that_is_being_scored_is_left_to_its_attempt(deployment):
    """Though a row came late for it."""
    arrive = hold_back(deployment, 1, "group-01-4")
    deployment.predict("ticks", 1)
    arrive()
    plan(deployment.settings, "ticks", tick(1), new_token(), force=True)
    assert list(run_due(deployment, 2)) == [2]


@pytest.mark.failure_mode(58)
def test_a_population_has_no_late_rows(deployment):
    """The next run reads all of it anyway."""
    late = "INSERT INTO fault_rows VALUES ('population', 'late', :at, :at, 5)"
    change(deployment.settings, late, at=stored_time(tick(0).start))
    runs = plan_due(deployment.settings, "population", tick(3), new_token())
    assert [run.interval for run in runs] == [tick(3)]
    assert (
        backfills.backfill(deployment.settings, "population", span(0, 0))[0].run_id < runs[0].run_id
    )


@on_sqlite
@pytest.mark.failure_mode(58)
def test_a_late_row_without_a_time_does_not_keep_the_newest_interval_back(deployment):
    """Nobody can tell where it belongs."""
    deployment.predict("ticks", 1)
    odd = "INSERT INTO fault_rows VALUES ('ticks', 'odd', :at, :at, 5)"
    change(deployment.settings, odd, at=f"{stored_time(tick(1).start)} or so")
    assert list(run_due(deployment, 2)) == [2]
    assert deployment.seen("ticks") == shown("ticks", [0, 1, 2])


@pytest.fixture
def history(deployment):
    """The first version serves from tick 1 on, and the second from the middle of tick 3 on.

    The second was trained when tick 3 began.
    """
    promote(deployment)
    first, second = versions(deployment)
    change(
        deployment.settings,
        "ALTER TABLE promotions DISABLE TRIGGER USER"
        if deployment.server
        else "DROP TRIGGER promotions_keep_update",
    )
    for version, moment in ((first, START + STEP), (second, START + 3.5 * STEP)):
        change(
            deployment.settings,
            f"UPDATE promotions SET promoted_at = :moment WHERE version = '{version}'",
            moment=stored_time(moment),
        )
    change(
        deployment.settings,
        f"UPDATE model_versions SET as_of = :moment WHERE version = '{second}'",
        moment=stored_time(tick(3).start),
    )
    return first, second


TABLES = ("prediction_runs", "prediction_history")
CURRENT = "(SELECT * FROM prediction_history WHERE superseded_at IS NULL) AS h"
HINDSIGHT = """
    SELECT DISTINCT interval_start, model_version, hindsight FROM {table}
    WHERE model = 'ticks' AND interval_start >= :start ORDER BY interval_start"""


def recorded(deployment, table, first):
    """`{tick: (version, hindsight)}` from a tick on, as a table or view of the ledger tells it."""
    rows = deployment.ask(HINDSIGHT.format(table=table), start=stored_time(tick(first).start))
    return {number_of(start): (version, bool(mark)) for start, version, mark in rows}


@pytest.mark.failure_mode("hindsight")
def test_a_backfill_takes_the_version_that_served_then(deployment, history):
    """So nothing is known by hindsight."""
    first, second = history
    backfill(deployment, 1, 4)
    then = {1: (first, False), 2: (first, False), 3: (second, False), 4: (second, False)}
    for table in TABLES:
        assert recorded(deployment, table, 1) == then


@pytest.mark.failure_mode("hindsight")
def test_a_backfill_with_todays_version_is_marked_as_hindsight(deployment, history):
    """Where that one was trained after the interval."""
    _, second = history
    backfill(deployment, 1, 4, champion="current")
    marked = {n: (second, n in {1, 2}) for n in (1, 2, 3, 4)}
    for table in TABLES:
        assert recorded(deployment, table, 1) == marked


@pytest.mark.failure_mode("hindsight")
def test_before_anybody_served_the_version_of_today_scores(deployment, history, caplog):
    """And the log says so; it was trained later, so it is hindsight."""
    _, second = history
    backfill(deployment, -1, -1)
    assert recorded(deployment, "prediction_history", -1)[-1] == (second, True)
    assert "had no champion" in caplog.text


@pytest.mark.failure_mode("hindsight")
def test_hindsight_is_the_same_by_whichever_door(deployment, history):
    """A version and an interval have one mark: by a run, a backfill, late rows and a rollback."""
    first, second = history
    expected = {n: (second, n in {1, 2}) for n in (1, 2, 3)}
    arrive = hold_back(deployment, 1, "group-01-4")
    for number in expected:
        deployment.predict("ticks", number)
    assert recorded(deployment, "prediction_history", 1) == expected
    arrive()
    assert run_due(deployment, 4) == {1: second, 4: second}
    backfill(deployment, 2, 3, champion="current", force=True)
    assert recorded(deployment, CURRENT, 1) == expected | {4: (second, False)}
    backfills.rollback(deployment.settings, "ticks", first, actor="tests", reason="worse")
    assert recorded(deployment, CURRENT, 1) == dict.fromkeys((1, 2, 3, 4), (first, False))


@pytest.mark.failure_mode("hindsight")
def test_a_run_of_an_interval_older_than_its_version_is_marked_as_hindsight(deployment):
    """The version has learnt from what came after."""
    for number in (-2, 1):
        deployment.predict("ticks", number)
    marks = recorded(deployment, "prediction_runs", -2)
    assert {number: mark for number, (_, mark) in marks.items()} == {-2: True, 0: False, 1: False}
