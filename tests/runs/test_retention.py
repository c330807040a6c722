"""What readers have not seen for long is removed, whole runs at a time; what they see is not."""

import threading
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from sqlalchemy import text

from batch_jobs import clock
from batch_jobs.database import leases
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.requests import worker
from batch_jobs.runs import claims, coverage, ledger, publication, removal, retention, staging
from batch_jobs.runs.retention import Pruned
from tests.support.asking import state, submit
from tests.support.attempts import ask, claim, find_run, head, publish, score, seen, tick
from tests.support.history import latest, now, prune, states, stored, then

GRID = "*/10 * * * *"


class KilledError(Exception):
    """What ends a prune in a test, and what nobody takes for a fault of the database."""


@pytest.fixture
def large_runs(monkeypatch):
    """Every run is as one of many rows, which are removed two at a time."""
    monkeypatch.setattr(removal, "SMALL", 0)
    monkeypatch.setattr(retention, "REMOVED_AT_ONCE", 2)
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 2)
    monkeypatch.setattr(claims, "LARGE", 1)


def test_a_replaced_population_is_retired_when_it_is_old(warehouse):
    """It stays in the history for as long as it is kept, and its number in the ledger for ever."""
    first = publish(warehouse, tick(0), {"a": 0.1, "b": 0.1}, mode="replace")
    publish(warehouse, tick(1), {"a": 0.2}, mode="replace")
    moment = latest(warehouse)
    publish(warehouse, tick(2), {"a": 0.3}, mode="replace")
    assert prune(warehouse, before=moment) == Pruned("orders")
    assert then(warehouse, first.published_at) != []
    assert prune(warehouse, before=latest(warehouse)).rows == 2
    assert states(warehouse) == ["retired", "published", "published"]
    assert then(warehouse, first.published_at) == []
    assert len(then(warehouse, moment)) == 1
    assert find_run(warehouse, first.run_id).counts == first.counts
    assert seen(warehouse) == {"a": 0.3}


def test_in_merge_mode_a_run_is_retired_when_all_its_rows_are_superseded(warehouse):
    """One row that is current keeps its run, for the unit is the run."""
    publish(warehouse, tick(0), {"a": 0.1, "b": 0.1})
    publish(warehouse, tick(1), {"a": 0.2, "b": 0.2, "c": 0.2})
    publish(warehouse, tick(2), {"a": 0.3, "b": 0.3})
    moment = latest(warehouse) + timedelta(microseconds=1)
    publish(warehouse, tick(3), {"c": 0.4})
    assert prune(warehouse, before=moment) == Pruned("orders", retired=1, rows=2)
    assert states(warehouse) == ["retired", "published", "published", "published"]
    assert stored(warehouse) == (6, 3, 0)
    assert seen(warehouse) == {"a": 0.3, "b": 0.3, "c": 0.4}
    assert prune(warehouse, before=datetime.now(UTC)).rows == 3


def test_a_run_that_was_scored_again_is_retired_too(warehouse):
    """State superseded, in either mode."""
    for mode, model in (("merge", "orders"), ("replace", "customers")):
        for answer in (0.1, 0.2):
            publish(warehouse, tick(0), {"a": answer}, mode=mode, model=model)
        assert prune(warehouse, before=datetime.now(UTC), model=model).retired == 1
    assert states(warehouse) == ["retired", "published"] * 2
    assert stored(warehouse) == (2, 0, 0)


def test_nothing_that_readers_see_is_ever_removed(warehouse):
    """However short it is kept: the newest run stays, and so does all that is current."""
    publish(warehouse, tick(0), {"a": 0.1})
    publish(warehouse, tick(1), {})
    publish(warehouse, tick(0), {"a": 0.1}, mode="replace", model="customers")
    before = seen(warehouse), head(warehouse), head(warehouse, "customers")
    for model in ("orders", "customers"):
        far = datetime(2999, 1, 1, tzinfo=UTC)
        assert prune(warehouse, before=far, model=model) == Pruned(model)
    assert (seen(warehouse), head(warehouse), head(warehouse, "customers")) == before
    assert states(warehouse) == ["published"] * 3


def test_a_model_that_stopped_publishing_loses_nothing(warehouse):
    """Ages count from its newest interval, years ago, and not from today."""
    publish(warehouse, tick(0), {"a": 0.1}, mode="replace")
    publish(warehouse, tick(1), {"a": 0.2}, mode="replace")
    everything = stored(warehouse)
    pruned = retention.prune(warehouse, "orders", timedelta(microseconds=1), timedelta(minutes=30))
    assert pruned == Pruned("orders")
    assert stored(warehouse) == everything


def test_before_the_first_publication_there_is_nothing_to_prune(warehouse):
    """Nor for a model that nobody knows."""
    claim(warehouse, tick(0))
    assert retention.prune(warehouse, "orders", timedelta(days=1)) == Pruned("orders")
    assert retention.prune(warehouse, "nobody", timedelta(days=1)) == Pruned("nobody")


def test_rows_that_expire_leave_what_is_current_and_stay_in_the_history(warehouse):
    """Then they are kept as long as all that is not seen any more."""
    publish(warehouse, tick(0), {"a": 0.1, "b": 0.1})
    publish(warehouse, tick(1), {"b": 0.2})
    publish(warehouse, tick(4), {"c": 0.3})
    moment, before = latest(warehouse), now(warehouse)
    assert prune(warehouse, expire=40) == Pruned("orders")
    assert prune(warehouse, expire=35) == Pruned("orders", expired=1)
    assert seen(warehouse) == {"b": 0.2, "c": 0.3}
    assert then(warehouse, moment) == before
    assert then(warehouse, latest(warehouse)) == now(warehouse)
    assert prune(warehouse, expire=5) == Pruned("orders", expired=1)
    assert seen(warehouse) == {"c": 0.3}
    assert then(warehouse, moment) == before
    assert prune(warehouse, before=datetime.now(UTC), expire=5).retired == 2
    assert states(warehouse) == ["retired", "retired", "published"]
    assert stored(warehouse) == (1, 0, 0)


def test_an_expired_interval_is_no_gap_and_not_late_and_can_be_scored_again(warehouse):
    """By force; then its rows are current until they expire again."""
    publish(warehouse, tick(0), {"a": 0.1})
    publish(warehouse, tick(9), {"b": 0.2})
    prune(warehouse, expire=30)
    assert ledger.published_run(warehouse, "orders", tick(0)).is_done
    assert ledger.published_between(warehouse, "orders", tick(0)) == []
    publish(warehouse, tick(0), {"a": 0.3, "b": 0.3})
    assert seen(warehouse) == {"a": 0.3, "b": 0.2}
    assert prune(warehouse, expire=30).expired == 1
    assert seen(warehouse) == {"b": 0.2}


def test_rows_of_an_expired_run_that_are_not_cleared_yet_stand_in_nobodys_way(
    warehouse, monkeypatch
):
    """A prune that died half-way through: an older interval is published as if they were gone."""
    publish(warehouse, tick(1), {"a": 0.1, "b": 0.1})
    publish(warehouse, tick(9), {"z": 0.2})
    with monkeypatch.context() as patch, pytest.raises(KilledError):  # noqa: PT012
        _allow(patch, 1)
        prune(warehouse, expire=30)
    assert seen(warehouse) == {"z": 0.2}
    expired = latest(warehouse)
    publish(warehouse, tick(0), {"a": 0.3, "z": 0.3})
    publish(warehouse, tick(2), {"b": 0.4})
    assert seen(warehouse) == {"a": 0.3, "b": 0.4, "z": 0.2}
    assert [row[0] for row in then(warehouse, expired)] == ["z"]
    assert then(warehouse, latest(warehouse)) == now(warehouse)
    prune(warehouse, expire=200)
    assert seen(warehouse) == {"a": 0.3, "b": 0.4, "z": 0.2}


def test_retired_intervals_are_no_gaps(warehouse):
    """Neither beyond a gap that nobody ever healed, where the watermark stays, nor before it."""
    publish(warehouse, tick(0), {"a": 0.1})
    publish(warehouse, tick(2), {"a": 0.2})
    publish(warehouse, tick(3), {"a": 0.3})
    assert prune(warehouse, before=datetime.now(UTC)).retired == 2
    assert states(warehouse) == ["retired", "retired", "published"]
    missing = [tick(1)]
    assert coverage.gaps(warehouse, "orders", GRID, tick(3).end) == missing
    assert head(warehouse)[1:] == (40, 10)
    for number in (0, 2):
        assert ledger.published_run(warehouse, "orders", tick(number)).state == "retired"
    publish(warehouse, tick(1), {})
    assert coverage.gaps(warehouse, "orders", GRID, tick(3).end) == []
    assert head(warehouse)[1:] == (40, 40)


def test_retired_populations_are_no_gaps(warehouse):
    """In replace mode every due interval is looked at."""
    for number in range(3):
        publish(warehouse, tick(number), {"a": 0.1}, mode="replace")
    assert prune(warehouse, before=datetime.now(UTC)).retired == 2
    assert coverage.gaps(warehouse, "orders", GRID, tick(2).end) == []


def test_the_run_that_was_published_last_answers_for_its_interval(warehouse):
    """Not the one before it, which is retired."""
    publish(warehouse, tick(0), {"a": 0.1})
    again = publish(warehouse, tick(0), {"a": 0.2})
    prune(warehouse, before=datetime.now(UTC))
    assert ledger.published_run(warehouse, "orders", tick(0)) == again


def test_a_repeated_publication_of_a_retired_run_changes_nothing(warehouse):
    """A zombie that wakes after a season: the answer is that its work is done."""
    first = publish(warehouse, tick(0), {"a": 0.1})
    publish(warehouse, tick(1), {"a": 0.2})
    prune(warehouse, before=datetime.now(UTC))
    before = ask(warehouse, "SELECT * FROM prediction_runs"), now(warehouse)
    assert publication.publish(warehouse, first.run_id).is_done
    assert claim(warehouse, tick(0), first.token).is_done
    assert (ask(warehouse, "SELECT * FROM prediction_runs"), now(warehouse)) == before


def test_rejected_rows_go_with_their_run(warehouse):
    """And those of a failed run when it is old, with nothing else of it; current ones stay."""
    bad = [("x", "no amount", {"amount": None})]
    run = claim(warehouse, tick(0))
    score(warehouse, run, {"a": 0.1}, rejected=bad)
    staging.fail(warehouse, run.run_id, "a test")
    for number in (0, 1):
        run = claim(warehouse, tick(number))
        score(warehouse, run, {"a": 0.1}, rejected=bad)
        publication.publish(warehouse, run.run_id)
    assert prune(warehouse).rejected == 0
    assert prune(warehouse, before=datetime.now(UTC)).rejected == 2
    assert ask(warehouse, "SELECT run_id FROM rejected_rows") == [(run.run_id,)]
    assert states(warehouse) == ["failed", "retired", "published"]


BAD = [("x", "no amount", {"amount": None})]


def test_rejected_rows_of_a_run_without_any_other_go_too(warehouse):
    """Nothing ever supersedes such a run; it is kept as long as what nobody sees."""
    run = claim(warehouse, tick(0))
    score(warehouse, run, {}, rejected=BAD)
    publication.publish(warehouse, run.run_id)
    publish(warehouse, tick(1), {"a": 0.1})
    assert prune(warehouse) == Pruned("orders")
    assert prune(warehouse, before=datetime.now(UTC)) == Pruned("orders", retired=1, rejected=1)
    assert states(warehouse) == ["retired", "published"]
    assert stored(warehouse) == (1, 0, 0)


def test_rejected_rows_of_a_model_that_was_never_published_go_by_the_clock(warehouse):
    """And those of one whose runs all fail by now; a run that is being scored keeps its own."""
    publish(warehouse, tick(0), {"a": 0.1}, model="customers")
    for model in ("orders", "customers"):
        for number in (1, 2):
            run = claim(warehouse, tick(number), model=model)
            score(warehouse, run, {}, rejected=BAD)
            if number == 1:
                staging.fail(warehouse, run.run_id, "a test")
        assert retention.prune(warehouse, model, timedelta(days=1)).rejected == 0
        with clock.set_to(datetime.now(UTC) + timedelta(days=2)):
            assert retention.prune(warehouse, model, timedelta(days=1)).rejected == 1
    assert stored(warehouse)[2] == 2


def test_many_small_runs_are_removed_together(warehouse, monkeypatch):
    """Few transactions, each of a bounded number of rows."""
    for number in range(9):
        publish(warehouse, tick(number), {"a": 0.1, "b": 0.1})
    monkeypatch.setattr(removal, "SMALL", 5)
    monkeypatch.setattr(retention, "SMALL", 5)
    write, transactions = Warehouse.write, []
    monkeypatch.setattr(Warehouse, "write", lambda self: transactions.append(1) or write(self))
    assert prune(warehouse, before=datetime.now(UTC)) == Pruned("orders", retired=8, rows=16)
    assert len(transactions) == 4
    assert stored(warehouse) == (2, 0, 0)


def _allow(patch, transactions):
    """Let so many write transactions through, and none after that."""
    write, left = Warehouse.write, count(transactions, -1)

    def bounded(self):
        if next(left) <= 0:
            raise KilledError
        return write(self)

    patch.setattr(Warehouse, "write", bounded)


@pytest.mark.usefixtures("large_runs")
@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_a_prune_that_is_interrupted_anywhere_is_completed_by_the_next(
    warehouse, monkeypatch, mode
):
    """Each one comes a transaction further; no view ever shows half a run."""
    rows = dict.fromkeys("abcde", 0.1)
    bad = [("x", "bad", {}), ("y", "bad", {}), ("z", "bad", {})]
    for number in range(3):
        run = claim(warehouse, tick(number), mode=mode)
        score(warehouse, run, rows, rejected=bad)
        publication.publish(warehouse, run.run_id)
    moment = datetime.now(UTC)
    expired = publish(warehouse, tick(-9), dict.fromkeys("fghij", 0.2), mode=mode)
    both = now(warehouse)
    current = [row for row in both if mode == "replace" or row[2] != expired.run_id]
    for allowed in range(1, 60):
        with monkeypatch.context() as patch:
            _allow(patch, allowed)
            try:
                prune(warehouse, before=moment, expire=60)
                break
            except KilledError:
                pass
        assert now(warehouse) == current
        assert then(warehouse, expired.published_at) == both
        shown = ask(warehouse, "SELECT run_id, count(*) FROM prediction_history GROUP BY run_id")
        assert {rows for _, rows in shown} == {5}
    assert allowed > 5
    assert states(warehouse) == ["retired", "retired", "published", "published"]
    assert stored(warehouse) == (10, 0, 3)
    assert prune(warehouse, before=moment, expire=60) == Pruned("orders")


def _on_sqlite(tmp_path):
    made = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    made.ensure_schema()
    for number in range(2):
        publish(made, tick(number), {f"e{n}": 0.1 for n in range(40)}, mode="replace")
    return made


@pytest.mark.slow
@pytest.mark.usefixtures("large_runs")
def test_on_sqlite_other_writers_have_their_turn(tmp_path):
    """Between one small transaction and the next, although SQLite has no queue."""
    warehouse = _on_sqlite(tmp_path)
    counts, pruning = [], threading.Thread(target=prune, args=(warehouse, datetime.now(UTC)))
    pruning.start()
    while pruning.is_alive():
        with warehouse.write() as connection:
            counts.append(connection.scalar(text("SELECT count(*) FROM predictions")))
    pruning.join()
    assert [rows for rows in counts if 40 < rows < 80] != []
    assert stored(warehouse) == (40, 0, 0)


@pytest.mark.failure_mode(31)
def test_on_sqlite_the_log_is_cut_unless_a_reader_needs_it(tmp_path, monkeypatch):
    """Such a reader is not waited for, as writers would have to wait along."""
    warehouse = _on_sqlite(tmp_path)
    log = tmp_path / "warehouse.db-wal"
    monkeypatch.setattr("batch_jobs.database.sqlite.BUSY_TIMEOUT_MS", 3_600_000)
    with warehouse.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM current_predictions")) == 40
        pruning = threading.Thread(target=prune, args=(warehouse, datetime.now(UTC)), daemon=True)
        pruning.start()
        pruning.join(60)
        assert not pruning.is_alive()
        assert log.stat().st_size > 0
        publish(warehouse, tick(2), {"a": 0.1}, mode="replace")
    prune(warehouse, before=datetime.now(UTC))
    assert not log.exists() or log.stat().st_size == 0


@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_readers_beside_publications_and_prunes_see_only_whole_states(warehouse, monkeypatch, mode):
    """Two prunes at once, too: each statement shows one run, all of it."""
    monkeypatch.setattr(claims, "LARGE", 1)
    keys = [f"e{n}" for n in range(50)]
    publish(warehouse, tick(0), dict.fromkeys(keys, 0.0), mode=mode)
    done, states_seen, failures = threading.Event(), [], []

    def watch():
        sql = "SELECT count(*), min(score), max(score), min(run_id), max(run_id) "
        while not done.is_set():
            states_seen.extend(ask(warehouse, f"{sql} FROM current_predictions"))
            for query in ("prediction_history", "predictions"):
                ask(warehouse, f"SELECT run_id, count(*) FROM {query} GROUP BY run_id")

    def keep_pruning():
        while not done.is_set():
            try:
                prune(warehouse, before=datetime.now(UTC))
            except Exception as error:  # noqa: BLE001 - whatever it is, the test must hear of it
                failures.append(error)

    threads = [threading.Thread(target=act) for act in (watch, keep_pruning, keep_pruning)]
    for thread in threads:
        thread.start()
    for number in range(1, 12):
        publish(warehouse, tick(number), dict.fromkeys(keys, float(number)), mode=mode)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(states_seen) > 5
    assert {rows for rows, *_ in states_seen} == {50}
    assert all(low == high and first == last for _, low, high, first, last in states_seen)
    prune(warehouse, before=datetime.now(UTC))
    assert stored(warehouse) == (50, 0, 0)


def test_finished_requests_go_by_the_clock(shop, monkeypatch):
    """With all that came of them, after `keep`, in batches; those that wait stay."""
    monkeypatch.setattr("batch_jobs.requests.retention.REMOVED_AT_ONCE", 2)
    monkeypatch.setattr("batch_jobs.requests.retention.REQUESTS_AT_ONCE", 2)
    rows = [("a", {"amount": n, "country": None}) for n in range(-1, 4)]
    asked = [submit(shop, "orders", rows) for _ in range(4)]
    worker.answer(shop, "orders", leases.new_token())
    waiting = submit(shop, "orders", rows)
    warehouse = Warehouse(shop.warehouse)
    kept = asked[-1]
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE requests SET finished_at = '2020-01-01T00:00:00+00:00'
                WHERE state = 'done' AND request_id <> :id"""),
            {"id": kept},
        )
    pruned = retention.prune(warehouse, "orders", timedelta(days=1))
    assert (pruned.requests, str(pruned)) == (3, "3 requests are removed")
    counts = {"requests": 2, "request_rows": 10, "request_results": 4, "request_rejects": 1}
    for table, left in counts.items():
        assert ask(warehouse, f"SELECT count(*) FROM {table}") == [(left,)], table
    assert (state(shop, kept)[0], state(shop, waiting)[0]) == ("done", "waiting")


def test_what_was_computed_on_request_goes_by_the_clock(warehouse, monkeypatch):
    """Of that model, after `keep`, in batches, whether or not it has ever published."""
    monkeypatch.setattr("batch_jobs.runs.retention.REMOVED_AT_ONCE", 2)
    today = datetime.now(UTC)
    publish(warehouse, tick(0), {"a": 0.1})
    publish(warehouse, tick(0), {"a": 0.1}, model="customers")
    insert = text("""
        INSERT INTO online_predictions (prediction_id, model, model_version, features, score,
          created_at, client, request_sha256) VALUES (:id, :model, 'v1', '{}', 1, :at, '', '')""")
    with warehouse.write() as connection:
        for number, model in enumerate(["orders"] * 6 + ["customers"], start=1):
            at = stored_time(today - timedelta(days=number))
            connection.execute(insert, {"id": number, "model": model, "at": at})
    pruned = retention.prune(warehouse, "orders", timedelta(days=2.5))
    assert pruned == Pruned("orders", online=4)
    assert str(pruned) == "4 predictions on request are removed"
    left = "SELECT prediction_id FROM online_predictions ORDER BY 1"
    assert ask(warehouse, left) == [(1,), (2,), (7,)]
