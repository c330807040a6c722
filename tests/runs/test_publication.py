"""Readers see a run whole or not at all, and the newest one wins."""

import os
import random
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from textwrap import dedent

import pytest
from sqlalchemy import text

from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import IncompleteError
from batch_jobs.runs import ledger, publication, staging
from batch_jobs.scoring.counts import Counts
from tests.support.attempts import ask, claim, head, publish, score, scores, seen, span, tick
from tests.support.history import now

FUTURE = datetime(2999, 1, 1, tzinfo=UTC)
PINNED = "SELECT entity_id, score FROM predictions WHERE run_id = :run_id ORDER BY 1"


def test_a_published_run_is_seen_with_its_counts(warehouse):
    """Rows, status and ledger agree."""
    run = claim(warehouse, tick(0))
    score(warehouse, run, {"a": 0.1, "b": 0.2}, rejected=[("c", "bad", {})])
    assert publication.publish(warehouse, run.run_id).state == "published"
    assert seen(warehouse) == {"a": 0.1, "b": 0.2}
    assert head(warehouse) == (run.run_id, 10, 10)
    counts = "SELECT rows_read, rows_scored, rows_rejected, rows_skipped FROM prediction_runs"
    assert ask(warehouse, counts) == [(3, 2, 1, 0)]


def test_publishing_twice_changes_nothing(warehouse):
    """A repeated task gets the same answer, and the time of publication stays."""
    run = publish(warehouse, tick(0), {"a": 0.1})
    before = ask(warehouse, "SELECT * FROM prediction_runs"), now(warehouse)
    assert publication.publish(warehouse, run.run_id) == run
    assert (ask(warehouse, "SELECT * FROM prediction_runs"), now(warehouse)) == before


def test_an_interval_without_rows_is_published_in_merge_mode(warehouse):
    """Nothing arrived: the watermark moves, and what was known stays."""
    publish(warehouse, tick(0), {"a": 0.1})
    empty = publish(warehouse, tick(1), {})
    assert seen(warehouse) == {"a": 0.1}
    assert head(warehouse) == (empty.run_id, 20, 20)


def test_a_part_that_was_not_scored_holds_the_run_back(warehouse):
    """The error names the parts that are missing."""
    run = claim(warehouse, tick(0), ranges=[(None, "b"), ("b", "c"), ("c", None)])
    score(warehouse, run, {"b": 0.5}, part=1)
    with pytest.raises(IncompleteError, match="part 0, 2 of 3 was not scored"):
        publication.publish(warehouse, run.run_id)
    assert seen(warehouse) == {}


def test_counts_that_do_not_add_up_hold_the_run_back(warehouse):
    """One row is stored; whatever else is reported is an error, and the last good rows stay."""
    publish(warehouse, tick(0), {"a": 0.1})
    wrong = [Counts(2, 2), Counts(1, 0, 1), Counts(2, 1), Counts(1, 1, 1), Counts(0, 1), Counts()]
    for counts in wrong:
        run = claim(warehouse, tick(1))
        _, part = staging.open_part(warehouse, run.run_id, 0, run.token)
        staging.stage(warehouse, part, run.token, 0, scores({"a": 0.9}))
        staging.close_part(warehouse, part, run.token, counts)
        with pytest.raises(IncompleteError, match="reported, but 1 scored and 0 rejected rows"):
            publication.publish(warehouse, run.run_id)
        assert seen(warehouse) == {"a": 0.1}


def test_rows_that_went_missing_after_they_were_staged_hold_the_run_back(warehouse):
    """The rows are counted again before anything is published."""
    run = claim(warehouse, tick(0))
    score(warehouse, run, {"a": 0.1, "b": 0.2})
    with warehouse.write() as connection:
        connection.exec_driver_sql(f"DELETE FROM {run.rows_table} WHERE entity_id = 'a'")
    with pytest.raises(IncompleteError, match="but 1 scored"):
        publication.publish(warehouse, run.run_id)


def test_a_failed_run_is_not_published(warehouse):
    """Also if all of it is staged."""
    run = claim(warehouse, tick(0))
    score(warehouse, run, {"a": 0.1})
    staging.fail(warehouse, run.run_id, "no reason")
    with pytest.raises(IncompleteError, match="has failed"):
        publication.publish(warehouse, run.run_id)


def test_a_rerun_takes_the_place_of_the_run_before_it(warehouse):
    """In one step; a row that vanished from the source vanishes from what readers see."""
    first = publish(warehouse, tick(0), {"a": 0.1, "gone": 0.2})
    second = publish(warehouse, tick(0), {"a": 0.3, "new": 0.4})
    assert seen(warehouse) == {"a": 0.3, "new": 0.4}
    states = dict(ask(warehouse, "SELECT run_id, state FROM prediction_runs"))
    assert states == {first.run_id: "superseded", second.run_id: "published"}


def test_a_run_that_was_superseded_can_still_be_read_by_its_number(warehouse):
    """Whoever pages through a pinned run is not disturbed."""
    first = publish(warehouse, tick(0), {"a": 0.1, "b": 0.2})
    publish(warehouse, tick(0), {"a": 0.3})
    assert ask(warehouse, PINNED, run_id=first.run_id) == [("a", 0.1), ("b", 0.2)]


def test_the_newest_interval_wins_whatever_the_order_of_publication(warehouse):
    """A backfill joins rows that nobody else has, and overwrites none that are newer."""
    publish(warehouse, tick(2), {"a": 0.2})
    publish(warehouse, tick(0), {"a": 0.0, "old": 0.0})
    publish(warehouse, tick(1), {"a": 0.1, "old": 0.1})
    assert seen(warehouse) == {"a": 0.2, "old": 0.1}
    assert head(warehouse)[1] == 30


def test_a_forced_backfill_of_an_older_interval_touches_no_newer_row(warehouse):
    """Of two intervals that end together, the later start is the newer one."""
    publish(warehouse, tick(0), {"a": 0.0})
    publish(warehouse, span(0, 20), {"b": 0.1})
    publish(warehouse, tick(1), {"a": 0.2, "b": 0.2})
    publish(warehouse, tick(0), {"a": 0.5})
    publish(warehouse, span(0, 20), {"b": 0.5, "c": 0.5})
    assert seen(warehouse) == {"a": 0.2, "b": 0.2, "c": 0.5}


def test_in_replace_mode_the_newest_population_is_all_that_is_seen(warehouse):
    """Who left the population is gone."""
    publish(warehouse, tick(0), {"a": 0.1, "b": 0.1}, mode="replace")
    newest = publish(warehouse, tick(1), {"b": 0.2}, mode="replace")
    assert seen(warehouse) == {"b": 0.2}
    assert head(warehouse) == (newest.run_id, 20, 20)


def test_in_replace_mode_a_backfill_moves_nothing(warehouse):
    """It is recorded, and was never shown."""
    newest = publish(warehouse, tick(1), {"a": 0.2}, mode="replace")
    old = publish(warehouse, tick(0), {"a": 0.1}, mode="replace")
    assert (seen(warehouse), head(warehouse)) == ({"a": 0.2}, (newest.run_id, 20, 20))
    assert ledger.published_run(warehouse, "orders", tick(0)) == old


def test_in_replace_mode_an_empty_population_is_never_published(warehouse):
    """An empty source is a fault; readers keep the last good predictions."""
    publish(warehouse, tick(0), {"a": 0.1}, mode="replace")
    run = claim(warehouse, tick(1), mode="replace")
    score(warehouse, run, {}, rejected=[("a", "bad", {})])
    with pytest.raises(IncompleteError, match="scored no row of the population"):
        publication.publish(warehouse, run.run_id)
    assert seen(warehouse) == {"a": 0.1}


def test_models_do_not_see_each_other(warehouse):
    """The same keys and intervals of two models live side by side."""
    publish(warehouse, tick(0), {"a": 0.1}, model="orders")
    publish(warehouse, tick(0), {"a": 0.9}, model="customers", mode="replace")
    assert sorted(ask(warehouse, "SELECT model, entity_id, score FROM current_predictions")) == [
        ("customers", "a", 0.9),
        ("orders", "a", 0.1),
    ]


def test_the_watermark_waits_at_a_gap_and_jumps_when_it_is_healed(warehouse):
    """Fresh until the end of the newest interval before which nothing is missing."""
    publish(warehouse, tick(0), {})
    publish(warehouse, tick(2), {})
    assert head(warehouse)[1:] == (30, 10)
    publish(warehouse, tick(1), {})
    assert head(warehouse)[1:] == (30, 30)


def test_a_backfill_of_an_old_day_does_not_fake_freshness(warehouse):
    """Neither back nor forth, and a forced rerun of the newest moves nothing either."""
    publish(warehouse, tick(10), {})
    for number in (3, 9, 10):
        publish(warehouse, tick(number), {})
        assert head(warehouse)[1:] == (110, 110)


def test_the_watermark_goes_along_odd_spans_that_overlap(warehouse):
    """Coverage counts, not the grid."""
    publish(warehouse, tick(0), {})
    publish(warehouse, span(35, 60), {})
    publish(warehouse, span(15, 40), {})
    assert head(warehouse)[1:] == (60, 10)
    publish(warehouse, span(5, 15), {})
    assert head(warehouse)[1:] == (60, 60)


@pytest.mark.failure_mode(38)
def test_a_clock_that_jumps_back_does_not_disorder_the_history(warehouse):
    """A publication is never recorded before the one it follows."""
    publish(warehouse, tick(0), {"a": 0.1})
    with warehouse.write() as connection:
        connection.execute(
            text("UPDATE prediction_runs SET published_at = :then"), {"then": stored_time(FUTURE)}
        )
    publish(warehouse, tick(1), {"a": 0.2})
    ((published,),) = ask(warehouse, "SELECT published_at FROM serving_status")
    assert loaded_time(published) == FUTURE
    assert seen(warehouse) == {"a": 0.2}


@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_a_reader_beside_many_publications_sees_only_whole_states(warehouse, mode):
    """Each statement shows one run's rows, all of them, never fewer, and never an older run."""
    keys = [f"e{n}" for n in range(50)]
    publish(warehouse, tick(0), dict.fromkeys(keys, 0.0), mode=mode)
    done, states = threading.Event(), []

    def read():
        sql = "SELECT count(*), min(score), max(score), min(run_id), max(run_id) "
        while not done.is_set():
            states.extend(ask(warehouse, f"{sql} FROM current_predictions"))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 13):
        interval = tick(random.Random(number).choice([number, max(number - 1, 0)]))
        publish(warehouse, interval, dict.fromkeys(keys, float(number)), mode=mode)
    done.set()
    reader.join()
    assert len(states) > 10
    assert {count for count, *_ in states} == {50}
    assert all(low == high and first == last for _, low, high, first, last in states)


KILLED = """
    import os, signal, sys
    from batch_jobs.database.warehouse import Warehouse
    from batch_jobs.runs import publication, staging
    from tests.support.attempts import claim, score, tick

    point, warehouse = sys.argv[2], Warehouse(sys.argv[1])
    die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if point == "mid-stage":
        staging.require_part = die
    if point == "mid-publish":
        publication._advance_watermark = die
    run = claim(warehouse, tick(1))
    if point == "before-stage":
        die()
    score(warehouse, run, {"a": 0.5, "b": 0.5})
    publication.publish(warehouse, run.run_id)
    if point == "after-publish":
        die()
"""


@pytest.mark.parametrize("point", ["before-stage", "mid-stage", "mid-publish"])
def test_a_process_killed_on_its_way_leaves_the_last_good_rows_and_a_retry_publishes(
    warehouse_url, point
):
    """The kernel's SIGKILL, not an exception: nothing is tidied up."""
    warehouse = Warehouse(warehouse_url)
    warehouse.ensure_schema()
    publish(warehouse, tick(0), {"a": 0.1})
    assert _killed_at(warehouse_url, point) == -signal.SIGKILL
    assert (seen(warehouse), head(warehouse)[1:]) == ({"a": 0.1}, (10, 10))
    publish(warehouse, tick(1), {"a": 0.9, "b": 0.9})
    assert (seen(warehouse), head(warehouse)[1:]) == ({"a": 0.9, "b": 0.9}, (20, 20))


def test_a_process_killed_after_the_commit_has_published(warehouse_url):
    """Whatever its supervisor believes: the retry finds the interval done."""
    warehouse = Warehouse(warehouse_url)
    warehouse.ensure_schema()
    publish(warehouse, tick(0), {"a": 0.1})
    assert _killed_at(warehouse_url, "after-publish") == -signal.SIGKILL
    assert seen(warehouse) == {"a": 0.5, "b": 0.5}
    assert ledger.published_run(warehouse, "orders", tick(1)).state == "published"


def _killed_at(url, point):
    path = os.pathsep.join([".", "src"])
    return subprocess.run(
        [sys.executable, "-c", dedent(KILLED), url, point],
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    ).returncode
