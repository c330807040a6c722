"""An interval is planned, scored and published; what fails keeps back nothing but itself."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import IntegrityError

from batch_jobs.catalog import load_model
from batch_jobs.database.leases import new_token
from batch_jobs.database.transactions import bounds
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import (
    ArtifactError,
    BatchJobsError,
    ContractError,
    FencedError,
    IncompleteError,
    IntervalError,
    NoChampionError,
)
from batch_jobs.interval import Interval
from batch_jobs.registry import champions, promotion
from batch_jobs.registry import versions as registry
from batch_jobs.registry.loading import load_version
from batch_jobs.runs import backfills, jobs, ledger, overview, staging
from batch_jobs.training import train
from tests.support.attempts import ask, find_run, forget_promotions, loaded_json, retell, seen
from tests.support.planned import plan, plan_due

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)
FIRST_ORDER = 20 * 144  # the shop takes an order every ten minutes, and this is the first after


def span(start, end):
    """The interval between two minutes after the training."""
    return Interval(TRAINED + timedelta(minutes=start), TRAINED + timedelta(minutes=end))


def tick(number):
    """The interval of ten minutes of that number."""
    return span(10 * number, 10 * number + 10)


def _order(number):
    return f"order-{FIRST_ORDER + number:05}"


HOURS = span(0, 300)
# What no database has a say in is tried with one.
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


@pytest.fixture
def variant(shop, tmp_path, monkeypatch):
    """Settings in which fields of an example model are changed: `variant(chunk_rows=3)`.

    What a version is trained for, its champion was trained for.
    """
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name="orders", **fields):
        package = f"variant_{new_token().replace('-', '')}"
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / f"{name}.py").write_text(
            f"from tests.example_models.{name} import model as original\n"
            f"model = original.model_copy(update={fields!r})\n"
        )
        settings = replace(shop, models=(package, *shop.models))
        if set(registry.CONTRACT) & set(fields):
            retell(settings, name)
        return settings

    return make


def _ask(settings, sql, **values):
    return ask(Warehouse(settings.warehouse), sql, **values)


def _change(settings, sql):
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(text(sql))


def _seen(settings):
    return seen(Warehouse(settings.warehouse))


def _counts(settings):
    sql = "SELECT rows_read, rows_scored, rows_rejected, rows_skipped FROM prediction_runs"
    return _ask(settings, f"{sql} ORDER BY run_id DESC LIMIT 1")[0]


def _states(settings):
    return Counter(state for (state,) in _ask(settings, "SELECT state FROM prediction_runs"))


def test_what_is_published_is_what_the_champion_says_of_the_rows(shop):
    """The same features query and the same estimator as in training, nothing in between."""
    run = jobs.predict(shop, "orders", HOURS)
    model, warehouse = load_model("orders", shop.models), Warehouse(shop.warehouse)
    (rows,) = warehouse.stream(model.features_query, bounds(HOURS), 1000)
    version = champions.champion(warehouse, "orders")
    estimator = load_version(shop, model, version).estimator
    inputs = rows[["amount", "country"]].astype({"amount": float, "country": "category"})
    expected = dict(zip(rows["entity_id"], estimator.predict_proba(inputs)[:, 1], strict=True))
    assert _seen(shop) == pytest.approx(expected)
    assert (run.state, run.model_version) == ("published", version.version)
    assert _counts(shop) == (30, 30, 0, 0)


def test_the_interval_is_half_open(shop):
    """The order at its start belongs to it, and the one at its end to the next."""
    jobs.predict(shop, "orders", tick(3))
    assert list(_seen(shop)) == [_order(3)]


def test_repeating_a_published_interval_is_no_work_and_no_change(shop):
    """The same run answers."""
    first = jobs.predict(shop, "orders", HOURS)
    assert jobs.predict(shop, "orders", HOURS) == first
    assert _states(shop) == {"published": 1}


@pytest.mark.failure_mode(18)
def test_a_forced_rerun_of_the_same_rows_gives_the_same_predictions(shop):
    """Whatever the chunks and parts."""
    jobs.predict(shop, "orders", HOURS)
    before = _seen(shop)
    jobs.predict(shop, "orders", HOURS, force=True, parts=3)
    assert _seen(shop) == pytest.approx(before, rel=1e-14)
    assert _states(shop) == {"published": 1, "superseded": 1}


def test_a_forced_rerun_sees_what_has_changed_in_the_source(shop):
    """Late rows come, and rows that vanished go."""
    jobs.predict(shop, "orders", tick(0))
    _change(shop, f"UPDATE orders SET entity_id = 'late' WHERE entity_id = '{_order(0)}'")
    jobs.predict(shop, "orders", tick(0), force=True)
    assert list(_seen(shop)) == ["late"]


@pytest.mark.parametrize("parts", [1, 2, 5, 8])
def test_parts_share_the_rows_of_an_interval_without_gap_or_overlap(shop, parts):
    """Evenly, and also where there are more parts than rows."""
    run = jobs.predict(shop, "orders", span(0, 50), parts=parts)
    assert sorted(_seen(shop)) == [_order(number) for number in range(5)]
    read = _ask(shop, "SELECT rows_read FROM run_parts WHERE run_id = :id", id=run.run_id)
    assert (len(read), sum(n for (n,) in read)) == (parts, 5)
    assert max(n for (n,) in read) - min(n for (n,) in read) <= 1


@pytest.mark.parametrize("parts", [1, 4, 8])
def test_a_population_is_rescored_whole_whatever_the_parts(shop, parts):
    """All six customers, every hour."""
    _change(shop, "DELETE FROM customers WHERE visits > 5")
    jobs.predict(shop, "customers", span(0, 60), parts=parts)
    assert sorted(_seen(shop)) == [f"customer-{number}" for number in range(6)]


def test_parts_of_an_interval_without_rows_are_all_empty(shop):
    """Nothing arrived: a recorded, successful run."""
    _change(shop, "DELETE FROM orders WHERE placed_at >= '2024-03-01'")
    assert jobs.predict(shop, "orders", tick(0), parts=3).state == "published"
    assert (_counts(shop), _seen(shop)) == ((0, 0, 0, 0), {})
    assert overview.status(shop, "orders")[0]["fresh_until"] == tick(0).end.isoformat()


def test_keys_that_sort_oddly_are_scored_once_each(shop):
    """Upper and lower case, accents and quotes, at the edges of the parts."""
    keys = ["a", "A", "á", "Z", "z", "'", '"', "%s", "0", "00", "🛩️", "'; DROP TABLE orders;--"]
    for number, key in enumerate(keys):
        with Warehouse(shop.warehouse).write() as connection:
            sql = text("UPDATE orders SET entity_id = :key WHERE entity_id = :old")
            connection.execute(sql, {"key": key, "old": _order(number)})
    jobs.predict(shop, "orders", span(0, 10 * len(keys)), parts=5)
    assert sorted(_seen(shop)) == sorted(keys)


def test_a_query_may_end_in_a_comment(variant):
    """Also where it stands inside another one."""
    query = load_model("orders", ("tests.example_models",)).features_query
    settings = variant(features_query=f"{query} -- all of them")
    jobs.predict(settings, "orders", HOURS, parts=2)
    assert len(_seen(settings)) == 30


def test_rows_that_do_not_fit_are_set_aside_with_reason_and_payload(shop):
    """The others are published, and the counts add up."""
    _change(shop, f"UPDATE orders SET amount = -5 WHERE entity_id = '{_order(3)}'")
    _change(shop, f"UPDATE orders SET amount = NULL WHERE entity_id = '{_order(20)}'")
    run = jobs.predict(shop, "orders", HOURS, parts=2)
    assert _counts(shop) == (30, 28, 2, 0)
    rows = _ask(
        shop, "SELECT run_id, model, entity_id, reason, payload FROM rejected_rows ORDER BY 3"
    )
    assert [row[:4] for row in rows] == [
        (run.run_id, "orders", _order(3), "amount fails greater_than_or_equal_to(0.0): -5.0"),
        (run.run_id, "orders", _order(20), "amount fails not_nullable: nan"),
    ]
    assert loaded_json(rows[0][4])["amount"] == -5


@on_sqlite
@pytest.mark.parametrize("wild", [np.nan, np.inf, 1.5, -0.25])
@pytest.mark.failure_mode(47)
def test_a_row_to_which_the_model_answers_no_probability_is_set_aside(shop, monkeypatch, wild):
    """Neither stored as a score nor lost."""

    def answers(_, inputs):
        return np.where(inputs[["amount"]] < 85, [[0.5, 0.5]], [[0.5, wild]])

    monkeypatch.setattr("batch_jobs.scoring.golden.unlike_golden", lambda *_: None)
    monkeypatch.setattr("batch_jobs.scoring.fitted.Fitted.answers", answers)
    jobs.predict(shop, "orders", HOURS)
    read, scored, rejected, _ = _counts(shop)
    assert (read, scored + rejected, len(_seen(shop))) == (30, 30, scored)
    assert set(_ask(shop, "SELECT reason FROM rejected_rows")) == {(f"the model answered {wild}",)}


@pytest.mark.parametrize(
    ("shop", "parts", "distance", "amount"),
    [
        *product(["sqlite"], [1, 3], [1, 15], ["amount", "-1"]),
        *product(["postgresql"], [1, 3], [15], ["amount"]),
        ("postgresql", 1, 1, "-1"),
    ],
    indirect=["shop"],
)
@pytest.mark.failure_mode(51)
def test_a_key_that_comes_twice_stops_the_run_wherever_it_comes(shop, parts, distance, amount):
    """In one chunk or in two, fit or unfit: one error with count and sample, nothing published."""
    jobs.predict(shop, "orders", span(-60, 0))
    before = _seen(shop)
    _change(
        shop,
        f"UPDATE orders SET entity_id = '{_order(2)}', amount = {amount} "
        f"WHERE entity_id = '{_order(2 + distance)}'",
    )
    with pytest.raises(ContractError, match=f"is duplicated in 2 .*rows .e.g. '{_order(2)}'"):
        jobs.predict(shop, "orders", HOURS, parts=parts)
    assert (_seen(shop), _states(shop)) == (before, {"published": 1, "failed": 1})


REFUSE = {
    "sqlite": """
        CREATE TRIGGER refuse BEFORE INSERT ON predictions
        BEGIN SELECT RAISE(ABORT, 'no room for it'); END""",
    "postgresql": """
        CREATE FUNCTION serving.refuse() RETURNS trigger LANGUAGE plpgsql AS
          $$BEGIN RAISE EXCEPTION 'no room for it' USING ERRCODE = '23514'; END$$;
        CREATE TRIGGER refuse BEFORE INSERT ON serving.shared_predictions
          FOR EACH ROW EXECUTE FUNCTION serving.refuse()""",
}


def test_what_else_a_database_refuses_is_told_as_what_it_is(shop):
    """Not as a key that comes twice, which nobody would find."""
    warehouse = Warehouse(shop.warehouse)
    with warehouse.write() as connection:
        connection.exec_driver_sql(REFUSE[warehouse.database.name])
    with pytest.raises(IntegrityError, match="no room for it"):
        jobs.predict(shop, "orders", HOURS)
    assert _states(shop) == {"failed": 1}
    with warehouse.read() as connection:
        (error,) = connection.scalars(text("SELECT error FROM prediction_runs"))
    assert "no room for it" in error
    assert "duplicated" not in error


@pytest.mark.parametrize("parts", [1, 3])
def test_a_key_that_is_null_stops_the_run_wherever_it_comes(shop, parts):
    """It belongs to no range of keys, and is not lost between them."""
    _change(shop, f"UPDATE orders SET entity_id = NULL WHERE entity_id = '{_order(20)}'")
    with pytest.raises(ContractError, match="entity_id is null or blank in 1 of"):
        jobs.predict(shop, "orders", HOURS, parts=parts)
    assert _states(shop) == {"failed": 1}


def test_why_a_run_failed_stays_in_the_ledger(shop):
    """And what it had staged is swept away by the next one."""
    _change(shop, f"UPDATE orders SET entity_id = ' ' WHERE entity_id = '{_order(20)}'")
    with pytest.raises(ContractError):
        jobs.predict(shop, "orders", HOURS)
    assert "null or blank" in _ask(shop, "SELECT error FROM prediction_runs")[0][0]
    assert _ask(shop, "SELECT count(*) FROM predictions") != [(0,)]
    jobs.predict(shop, "orders", tick(0))
    assert _ask(shop, "SELECT count(*) FROM predictions") == [(1,)]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (
            "SELECT entity_id, placed_at AS as_of, colour FROM orders",
            {
                "sqlite": "no such column: colour",
                "postgresql": 'column "colour" does not exist',
            },
        ),
        (
            "SELECT * FROM orderz",
            {
                "sqlite": "no such table: orderz",
                "postgresql": 'relation "orderz" does not exist',
            },
        ),
        (
            "DELETE FROM orders",
            {
                "sqlite": 'near "DELETE": syntax error',
                "postgresql": 'syntax error at or near "FROM"',
            },
        ),
    ],
)
def test_a_query_that_does_not_compile_stops_before_anything_is_claimed(variant, query, words):
    """In the words of the database; exit 2."""
    settings = variant(features_query=f"{query} WHERE placed_at BETWEEN :start AND :end")
    words = words[Warehouse(settings.warehouse).database.name]
    with pytest.raises(ContractError, match=words) as caught:
        jobs.predict(settings, "orders", HOURS)
    assert (caught.value.exit_code, _states(settings)) == (2, {})


@on_sqlite
def test_a_column_that_the_query_does_not_return_fails_the_run(variant):
    """The model declares `country`, and the last good predictions stay."""
    settings = variant(
        features_query="SELECT entity_id, placed_at AS as_of, amount FROM orders "
        "WHERE placed_at >= :start AND placed_at < :end"
    )
    with pytest.raises(ContractError, match="does not return country; it returns entity_id, as_of"):
        jobs.predict(settings, "orders", HOURS)
    assert _states(settings) == {"failed": 1}


@on_sqlite
@pytest.mark.failure_mode(40)
def test_an_interval_of_the_future_is_refused(shop):
    """Its rows are not all there; nothing is claimed."""
    now = datetime.now(UTC)
    with pytest.raises(IntervalError, match="ends in the future; it can be scored from"):
        jobs.predict(shop, "orders", Interval(now, now + timedelta(minutes=10)))
    assert _states(shop) == {}


def test_without_a_champion_nothing_is_claimed(shop):
    """The error says what to run first."""
    forget_promotions(Warehouse(shop.warehouse))
    with pytest.raises(NoChampionError, match="orders has no champion yet; run `batch-jobs train"):
        jobs.predict(shop, "orders", HOURS)
    assert _states(shop) == {}


@on_sqlite
@pytest.mark.failure_mode(41)
def test_a_corrupted_artifact_fails_the_run_and_readers_keep_what_they_have(shop):
    """No byte of it is deserialised."""
    run = jobs.predict(shop, "orders", tick(0))
    path = Path(shop.model_store, "orders", run.model_version, "model.joblib")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="has changed"):
        jobs.predict(shop, "orders", tick(1))
    assert (list(_seen(shop)), _states(shop)) == ([_order(0)], {"published": 1, "failed": 1})


def test_a_promotion_between_plan_and_score_does_not_mix_versions(shop):
    """A run keeps the version it was planned with, and the next one takes the new one."""
    challenger = train.train(shop, "orders", TRAINED + timedelta(hours=6))
    run = plan(shop, "orders", HOURS, new_token(), parts=2)
    jobs.score(shop, "orders", run.run_id, 0, run.token)
    promotion.promote(shop, "orders", challenger.version, actor="tests", reason="now")
    jobs.score(shop, "orders", run.run_id, 1, run.token)
    jobs.publish(shop, run.run_id)
    assert run.model_version != challenger.version
    versions = "SELECT DISTINCT model_version FROM current_predictions"
    assert _ask(shop, versions) == [(run.model_version,)]
    assert jobs.predict(shop, "orders", tick(50)).model_version == challenger.version


def test_a_run_asks_once_who_the_champion_is(shop):
    """And is of that version from its plan to its publication, whoever is promoted meanwhile."""
    asked = []

    def listen(_connection, _cursor, statement, *_):
        if "FROM promotions" in statement:
            asked.append(statement)

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        jobs.predict(shop, "orders", tick(0))
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    assert len(asked) == 1


def test_an_attempt_that_was_overtaken_stops_at_its_next_step(shop):
    """Exit 3, and what the newer one published stays."""
    paused = plan(shop, "orders", HOURS, new_token(), parts=2)
    jobs.score(shop, "orders", paused.run_id, 0, paused.token)
    newer = jobs.predict(shop, "orders", HOURS)
    for act in (
        lambda: jobs.score(shop, "orders", paused.run_id, 1, paused.token),
        lambda: jobs.publish(shop, paused.run_id),
        lambda: plan(shop, "orders", HOURS, paused.token, force=True),
    ):
        with pytest.raises(FencedError) as caught:
            act()
        assert caught.value.exit_code == 3
    assert ledger.published_run(Warehouse(shop.warehouse), "orders", HOURS) == newer


def test_scoring_a_part_again_answers_with_its_counts(shop):
    """A task that is repeated after its success does no work."""
    run = plan(shop, "orders", HOURS, new_token(), parts=2)
    first = jobs.score(shop, "orders", run.run_id, 0, run.token)
    assert jobs.score(shop, "orders", run.run_id, 0, new_token()) == first
    assert first.read == 15


def test_publishing_what_was_not_scored_fails_the_run(shop):
    """The ledger says which part is missing."""
    run = plan(shop, "orders", HOURS, new_token(), parts=2)
    jobs.score(shop, "orders", run.run_id, 0, run.token)
    with pytest.raises(IncompleteError, match="part 1 of 2 was not scored"):
        jobs.publish(shop, run.run_id)
    assert _states(shop) == {"failed": 1}


def _finish(settings, runs):
    """Score and publish each run as the tasks do: one that fails keeps back no other."""
    failed = []
    for run in runs:
        try:
            jobs.score(settings, "orders", run.run_id, 0, run.token)
            jobs.publish(settings, run.run_id)
        except BatchJobsError:
            failed.append(run.interval)
    return failed


@pytest.mark.failure_mode(20)
def test_after_an_outage_the_missed_intervals_are_planned_oldest_first(shop):
    """And then the newest, all with the same token."""
    jobs.predict(shop, "orders", tick(0))
    jobs.predict(shop, "orders", tick(2))
    runs = plan_due(shop, "orders", tick(5), new_token())
    assert [run.interval for run in runs] == [tick(number) for number in (1, 3, 4, 5)]
    assert _finish(shop, runs) == []
    assert overview.status(shop, "orders")[0]["fresh_until"] == tick(5).end.isoformat()


@on_sqlite
def test_the_first_plan_ever_heals_nothing(shop):
    """Before the first publication nothing is missing."""
    runs = plan_due(shop, "orders", tick(5), new_token())
    assert [run.interval for run in runs] == [tick(5)]


@on_sqlite
@pytest.mark.failure_mode(40)
def test_intervals_older_than_the_look_back_stay_and_are_told(shop, caplog):
    """With the command that publishes them; two hours are healed."""
    jobs.predict(shop, "orders", tick(0))
    runs = plan_due(shop, "orders", tick(20), new_token())
    assert [run.interval for run in runs] == [tick(number) for number in range(8, 21)]
    assert "due intervals from 2024-03-01T00:10:00+00:00 on are older than" in caplog.text
    assert (
        "backfill orders --start 2024-03-01T00:10:00+00:00 --end 2024-03-01T01:20:00+00:00"
        in caplog.text
    )


def test_intervals_that_another_attempt_is_scoring_are_left_to_it(shop):
    """Until it has had an hour; then it is taken for dead."""
    jobs.predict(shop, "orders", tick(0))
    other = plan(shop, "orders", tick(1), new_token())
    runs = plan_due(shop, "orders", tick(3), new_token())
    assert [run.interval for run in runs] == [tick(2), tick(3)]
    _change(shop, "UPDATE prediction_runs SET claimed_at = '2024-03-01' WHERE state = 'staging'")
    runs = plan_due(shop, "orders", tick(3), new_token())
    assert [run.interval for run in runs] == [tick(1), tick(2), tick(3)]
    assert find_run(Warehouse(shop.warehouse), other.run_id).state == "failed"


def test_a_missed_interval_that_a_newer_attempt_has_claimed_does_not_stop_the_newest(shop):
    """A try by hand that failed in the meantime has the higher token."""
    early = new_token()
    jobs.predict(shop, "orders", tick(0))
    by_hand = plan(shop, "orders", tick(1), new_token())
    staging.fail(Warehouse(shop.warehouse), by_hand.run_id, "given up")
    runs = plan_due(shop, "orders", tick(2), early)
    assert [run.interval for run in runs] == [tick(2)]


@on_sqlite
def test_a_missed_interval_that_fails_does_not_keep_the_newest_back(shop):
    """It stays a gap, and the watermark waits for it."""
    jobs.predict(shop, "orders", tick(0))
    _change(shop, f"UPDATE orders SET entity_id = '' WHERE entity_id = '{_order(1)}'")
    runs = plan_due(shop, "orders", tick(2), new_token())
    assert _finish(shop, runs) == [tick(1)]
    assert sorted(_seen(shop)) == [_order(0), _order(2)]
    assert overview.status(shop, "orders")[0]["fresh_until"] == tick(0).end.isoformat()


@on_sqlite
def test_a_newest_interval_that_is_published_is_left_alone(shop):
    """A second run of the same tick finds nothing to do."""
    done = jobs.predict(shop, "orders", tick(0))
    assert plan_due(shop, "orders", tick(0), new_token()) == [done]


def test_a_population_needs_no_healing(shop):
    """The newest run makes up for all that was missed."""
    jobs.predict(shop, "customers", span(0, 60))
    runs = plan_due(shop, "customers", span(300, 360), new_token())
    assert [run.interval for run in runs] == [span(300, 360)]


@on_sqlite
def test_a_plan_of_the_future_claims_nothing(shop):
    """Nor does it heal."""
    jobs.predict(shop, "orders", tick(0))
    soon = datetime.now(UTC) + timedelta(minutes=1)
    with pytest.raises(IntervalError, match="ends in the future"):
        plan_due(shop, "orders", Interval(tick(2).start, soon), new_token())
    assert _states(shop) == {"published": 1}


def test_a_backfill_publishes_every_due_interval_of_a_span_oldest_first(shop):
    """What is published is left alone, and what readers see as newest stays so."""
    newest = jobs.predict(shop, "orders", tick(4))
    jobs.predict(shop, "orders", tick(1))
    told = []
    runs = backfills.backfill(shop, "orders", span(0, 45), progress=told.append)
    assert [run.interval for run in runs] == [tick(number) for number in range(4)]
    assert told == runs
    assert _states(shop) == {"published": 5}
    assert overview.status(shop, "orders")[0]["run_id"] == newest.run_id


@on_sqlite
def test_gaps_are_the_due_intervals_up_to_now(variant):
    """As many as have passed since, but for those that are published."""
    settings, day = variant(schedule="0 0 * * *"), 24 * 60
    assert overview.gaps(settings, "orders") == []
    jobs.predict(settings, "orders", span(0, day))
    jobs.predict(settings, "orders", span(2 * day, 3 * day))
    found = overview.gaps(settings, "orders")
    assert found[:2] == [span(day, 2 * day), span(3 * day, 4 * day)]
    assert datetime.now(UTC) - found[-1].end < timedelta(days=1)


def test_the_status_tells_what_readers_see_of_each_model(shop):
    """One row a model, by name."""
    names = ["customers", "orders"]
    assert [(row["model"], row["run_id"]) for row in overview.status(shop)] == [
        (name, None) for name in names
    ]
    jobs.predict(shop, "orders", tick(0))
    jobs.predict(shop, "customers", span(0, 60))
    assert [row["model"] for row in overview.status(shop) if row["run_id"]] == names
    (row,) = overview.status(shop, "customers")
    assert (row["row_count"], row["fresh_until"]) == (50, "2024-03-01T01:00:00+00:00")


@on_sqlite
def test_progress_is_told_chunk_by_chunk(shop):
    """Seven rows at a time, as the model says: memory is bounded by the chunk."""
    told = []
    jobs.predict(shop, "orders", HOURS, progress=told.append)
    assert told == [7, 7, 7, 7, 2]
