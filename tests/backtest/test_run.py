"""A replay is what the DAGs would have done: no more, no less, and the same each time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from sqlalchemy.engine import make_url

from batch_jobs import Gate
from batch_jobs.backtest import monitored
from batch_jobs.backtest.features import read_features
from batch_jobs.backtest.replay import Replay, trainings
from batch_jobs.backtest.report import predictions, shared_figures
from batch_jobs.backtest.run import live, prepare
from batch_jobs.catalog import load_model
from batch_jobs.database.transactions import loaded_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError, ContractError, IntervalError
from batch_jobs.interval import Interval
from batch_jobs.registry.champions import champion_at
from batch_jobs.reports.backtest import replay_page
from tests.support.attempts import ask
from tests.support.faults import until

WAITING = """SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'"""
START, END = datetime(2024, 2, 20, 3, tzinfo=UTC), datetime(2024, 2, 29, 3, tzinfo=UTC)
SIX_HOURS = timedelta(hours=6)
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


@pytest.fixture
def replayed(shop, tmp_path):
    """A replay of nine days with a training every third: `replayed(name, rule, **fields)`."""

    def make(name="orders", rule=None, folder="replay", **fields):
        fields = {
            "schedule": "0 3/6 * * *",
            "train_schedule": "0 3 */3 * *",
            "chunk_rows": 500,
        } | fields
        model = load_model(name, shop.models).model_copy(update=fields)
        origin = replace(shop, models=(model, *shop.models))
        return Replay(origin, name, Interval(START, END), tmp_path / folder, rule)

    return make


def _runs(replay):
    sql = """
        SELECT interval_end, model_version, state, hindsight, rows_scored, published_at
        FROM prediction_runs ORDER BY interval_end"""
    return ask(Warehouse(replay.settings.warehouse), sql)


def test_every_due_interval_is_scored_by_the_champion_of_its_time(replayed, shop):
    """From the first training on; nothing is of our time, and the warehouse sees nothing of it."""
    replay = replayed()
    before = ask(Warehouse(shop.warehouse), "SELECT count(*) FROM model_versions")

    told = live(replay)

    ticks = [START + number * SIX_HOURS for number in range(1, 37)]
    warehouse = Warehouse(replay.settings.warehouse)
    runs = _runs(replay)
    # What ends at the tick of a training is scored before it.
    champions = [champion_at(warehouse, "orders", tick - timedelta(seconds=1)) for tick in ticks]
    served = [(tick, each.version) for tick, each in zip(ticks, champions, strict=True) if each]
    assert [(loaded_time(end), version) for end, version, *_ in runs] == served
    assert {(state, bool(late), rows) for _, _, state, late, rows, _ in runs} == {
        ("published", False, 36)
    }
    assert [loaded_time(run[-1]) for run in runs] == [tick for tick, _ in served]
    assert (told["intervals"], told["published"]) == (36, len(served))
    assert (told["trainings"], told["promotions"] + told["refusals"]) == (3, 3)
    assert told["rows_scored"] == 36 * len(served)
    assert 0.5 < told["auc"] < 0.9
    versions = ask(warehouse, "SELECT as_of, created_at FROM model_versions")
    assert all(START <= loaded_time(as_of) == loaded_time(made) < END for as_of, made in versions)
    assert ask(Warehouse(shop.warehouse), "SELECT count(*) FROM prediction_runs") == [(0,)]
    assert ask(Warehouse(shop.warehouse), "SELECT count(*) FROM model_versions") == before


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
def test_no_transaction_waits_while_another_one_does(replayed, postgres, in_background):
    """The source has been read whole when its rows are kept, however long that has to wait."""
    replay = replayed()
    prepare(replay)
    url = make_url(replay.settings.warehouse)
    with postgres.connect(url.database, autocommit=False) as holder:
        holder.execute(f"LOCK TABLE {url.query['schema']}.replay_weeks IN SHARE MODE")
        kept = in_background(read_features, replay, replay.weeks[0])
        with postgres.connect(url.database) as watcher:
            until(lambda: watcher.execute(WAITING).fetchall(), "the rows to be kept")
            idle = "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
            assert watcher.execute(idle).fetchall() == [(holder.info.backend_pid,)]
        holder.rollback()
    kept.result()
    read = ask(Warehouse(replay.settings.warehouse), "SELECT count(*) FROM replay_features")
    assert read == [(288,)]


@on_sqlite
def test_two_replays_are_alike_also_if_one_was_interrupted(replayed):
    """In every score; the second goes on where it stopped, and counts the time of both."""
    whole, halved = replayed(), replayed(folder="again")
    told = live(whole)
    seen = []

    def stop(count):
        seen.append(count)
        if len(seen) == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(halved, progress=stop)
    done = len(_runs(halved))
    again = live(halved)
    spent = ask(
        Warehouse(halved.settings.warehouse), "SELECT count(*), sum(seconds) FROM replay_seconds"
    )
    assert spent == [(2, pytest.approx(again["seconds"], abs=0.05))]

    assert 0 < done < told["published"]
    assert {**again, "seconds": 0} == {**told, "seconds": 0}
    assert predictions(halved).equals(predictions(whole))


@on_sqlite
def test_monitoring_tells_what_it_would_have_told_and_changes_nothing(replayed):
    """Look by look, also once more with other settings; the replay's own figures stay."""
    replay = replayed(gate=Gate(min_rows=20))
    told = live(replay)
    watched = monitored.watched(replay)
    assert {**live(replay), "seconds": 0} == {**told, "seconds": 0}
    assert [month["month"] for month in watched["months"]] == ["2024-02", "2024-03"]
    assert watched["alarms"] == []
    (week,) = watched["weeks"]
    assert (week["start"][:10], week["damaged"], week["metric"]) == (
        "2024-02-19",
        False,
        "log_loss",
    )
    assert week["low"] < week["value"] < week["high"]
    assert week["value"] < week["constant"]
    assert monitored.watched(replay)["weeks"] == watched["weeks"]
    page = replay_page([told | {"monitor": watched}])
    assert "Monitoring, by the gate non_inferiority: 0 alarms and " in page


@on_sqlite
def test_a_population_is_replayed_as_a_whole(replayed):
    """In replace mode, each interval scores all customers."""
    replay = replayed("customers", schedule="0 3 * * *")
    told = live(replay)
    assert told["published"] == told["rows_scored"] / 50 > 5
    assert told["rmse"] < 1
    assert told["label_coverage"] == 1


@on_sqlite
def test_gates_are_compared_on_the_rows_that_all_have_published(replayed):
    """A gate that wants a gain refuses more than one that wants none."""
    rules = ("always", "significant_gain")
    gate = Gate(min_rows=20, confidence=0.9999)
    replays = [
        replayed(rule=rule, folder=rule, gate=gate, train_schedule="0 3 */2 * *") for rule in rules
    ]
    always, careful = (live(replay) for replay in replays)
    assert (always["gate"], careful["gate"]) == rules
    assert careful["refusals"] > always["refusals"]
    rows = {figures["rows_scored"] for figures in shared_figures(replays)}
    assert rows == {min(always["rows_scored"], careful["rows_scored"])}


@on_sqlite
def test_a_training_that_fails_is_told_and_nobody_serves_yet(replayed):
    """As in the DAG: the task fails, and predictions have no champion."""
    replay = replayed(history=timedelta(hours=2), holdout=timedelta(hours=1))
    told = live(replay)
    assert (told["published"], told["promotions"]) == (0, 0)
    assert {training.outcome for training in trainings(replay)} == {"failed"}
    assert all("labelled rows" in training.reason for training in trainings(replay))


@on_sqlite
def test_what_was_begun_otherwise_is_not_gone_on_with(replayed):
    """Unless one begins anew."""
    prepare(replayed())
    other = replayed(look_back=timedelta(hours=5))
    with pytest.raises(ConfigurationError, match=r"has another replay \(file\); give another"):
        prepare(other)
    longer = replace(replayed(), span=Interval(START, END - SIX_HOURS))
    with pytest.raises(ConfigurationError, match=r"another replay \(end 2024-02-29T03:00"):
        prepare(longer)
    prepare(other, fresh=True)
    prepare(other)


def test_a_warehouse_in_its_own_right_is_never_removed(shop):
    """Only one that lies beside another."""
    with pytest.raises(ConfigurationError, match="in its own right; it stays"):
        Warehouse(shop.warehouse).database.remove()


@on_sqlite
def test_a_query_that_is_not_additive_is_refused(replayed):
    """Its weeks would tell another story than its intervals."""
    model = replayed().model
    query = model.features_query.replace(
        "amount,",
        "(SELECT count(*) FROM orders WHERE placed_at >= :start AND placed_at < :end) AS amount,",
    )
    replay = replayed(features_query=query)
    with pytest.raises(ContractError, match="is not additive: the interval from 2024-"):
        live(replay)
    assert _runs(replay) == []


@on_sqlite
@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        (START, datetime(2100, 1, 1, tzinfo=UTC), "ends in the future"),
        (START, START + timedelta(minutes=5), "holds no whole interval"),
    ],
)
def test_a_time_that_cannot_be_replayed_is_refused(replayed, start, end, words):
    """Before anything is written."""
    replay = replace(replayed(), span=Interval(start, end))
    with pytest.raises(IntervalError, match=words):
        prepare(replay)
    assert not replay.folder.exists()


@on_sqlite
def test_weeks_are_cut_at_the_ticks_of_training(replayed):
    """And cover the time replayed without a hole."""
    weeks = replayed().weeks
    assert [week.start.day for week in weeks] == [20, 22, 25, 28]
    assert (weeks[0].start, weeks[-1].end) == (START, END)
    assert all(one.end == other.start for one, other in pairwise(weeks))
