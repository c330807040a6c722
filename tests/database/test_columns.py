"""Times as sources hold them: each form is compared as a time, or refused by name."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from batch_jobs.catalog import load_model
from batch_jobs.database import leases
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError, ContractError, TrainingDataError
from batch_jobs.interval import Interval
from batch_jobs.registry import promotion
from batch_jobs.runs import jobs
from batch_jobs.training import train
from batch_jobs.training.check import check
from tests.support.attempts import ask
from tests.support.planned import plan_due

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = Interval(TRAINED + timedelta(hours=10), TRAINED + timedelta(hours=11))
ORDERS = load_model("orders", ("tests.example_models",))
AS_TIMES = ORDERS.features_query.replace(
    "placed_at >= :start AND placed_at < :end",
    "datetime(placed_at) >= datetime(:start) AND datetime(placed_at) < datetime(:end)",
)
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
# SQL of a time that is held as the table of orders has it: 2024-03-01T10:00:00+00:00.
DAY, TIME = "substr(placed_at, 1, 10)", "substr(placed_at, 12, 8)"
FORMS = {
    "T": f"{DAY} || 'T' || {TIME} || '+00:00'",
    "Z": f"{DAY} || 'T' || {TIME} || 'Z'",
    "fractions": f"{DAY} || 'T' || {TIME} || '.250000+00:00'",
    "milliseconds": f"{DAY} || 'T' || {TIME} || '.250Z'",
    "space": f"{DAY} || ' ' || {TIME} || '+00:00'",
    "space and fractions": f"{DAY} || ' ' || {TIME} || '.250000+00:00'",
    "space and Z": f"{DAY} || ' ' || {TIME} || 'Z'",
    "small t": f"{DAY} || 't' || {TIME} || '+00:00'",
    "+0000": f"{DAY} || 'T' || {TIME} || '+0000'",
    "another offset": "strftime('%Y-%m-%dT%H:%M:%S', placed_at, '+2 hours') || '+02:00'",
    "no offset": f"{DAY} || 'T' || {TIME}",
    "space and no offset": f"{DAY} || ' ' || {TIME}",
    "date": DAY,
    "without hyphens": f"replace({DAY}, '-', '') || 'T' || replace({TIME}, ':', '') || 'Z'",
    "west": "strftime('%Y-%m-%dT%H:%M:%S', placed_at, '-5 hours') || '-05:00'",
    "epoch as text": "strftime('%s', placed_at)",
    "epoch": "CAST(strftime('%s', placed_at) AS INTEGER)",
    "epoch in milliseconds": "1000 * CAST(strftime('%s', placed_at) AS INTEGER)",
    "julian day": "julianday(placed_at)",
}
SORTED = ("T", "Z", "fractions", "milliseconds")


def _hold(settings, form, where="true"):
    """Give the orders, or some of them, the times in another form."""
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(text("ALTER TABLE orders RENAME TO held"))
        columns = "entity_id, amount, country, returned, settled_at"
        connection.execute(
            text(
                f"CREATE TABLE orders AS SELECT {columns}, CASE WHEN {where} THEN {FORMS[form]} "
                f"ELSE placed_at END AS placed_at FROM held"
            ),
            {"end": HOUR.end.isoformat()} if ":end" in where else {},
        )


@on_sqlite
@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_time_gives_the_rows_of_an_interval_or_is_refused_by_name(shop, form):
    """Never an empty run in silence, nor one of some of the rows."""
    _hold(shop, form)
    if form in SORTED:
        run = jobs.predict(shop, "orders", HOUR)
        assert run.counts.scored == 6
        return
    with pytest.raises(BatchJobsError, match=r"as_of|labelled rows|no row") as caught:
        jobs.predict(shop, "orders", HOUR)
    assert caught.value.exit_code == 2
    states = "SELECT count(*) FROM prediction_runs WHERE state = 'published'"
    assert ask(Warehouse(shop.warehouse), states) == [(0,)]


@on_sqlite
@pytest.mark.parametrize("form", [form for form in FORMS if form not in (*SORTED, "date")])
def test_one_row_of_another_form_is_not_left_out_in_silence(shop, form):
    """Its interval is refused by name; the next one goes on."""
    _hold(shop, form, "entity_id = (SELECT max(entity_id) FROM held WHERE placed_at < :end)")
    if form == "+0000":  # sorts where it belongs, and says what it means
        assert jobs.predict(shop, "orders", HOUR).counts.scored == 6
        return
    with pytest.raises(BatchJobsError, match="as_of") as caught:
        jobs.predict(shop, "orders", HOUR)
    assert caught.value.exit_code == 2
    after = Interval(HOUR.end, HOUR.end + timedelta(hours=1))
    assert jobs.predict(shop, "orders", after).counts.scored == 6


@on_sqlite
@pytest.mark.parametrize("form", ["space", "another offset", "west", "space and no offset"])
def test_a_late_row_of_another_form_is_told_of(shop, form):
    """Once; what was published before stays, and other intervals go on."""
    with Warehouse(shop.warehouse).write() as connection:
        connection.execute(text("CREATE TABLE late AS SELECT * FROM orders"))
        gone = "DELETE FROM orders WHERE entity_id = (SELECT max(entity_id) FROM orders WHERE "
        connection.execute(text(f"{gone} placed_at < :end)"), {"end": HOUR.end.isoformat()})
    assert jobs.predict(shop, "orders", HOUR).counts.scored == 5
    with Warehouse(shop.warehouse).write() as connection:
        connection.execute(text("DROP TABLE orders"))
        connection.execute(text("ALTER TABLE late RENAME TO orders"))
    late = "entity_id = (SELECT max(entity_id) FROM held WHERE placed_at < :end)"
    _hold(shop, form, late)
    newest = Interval(HOUR.end, HOUR.end + timedelta(hours=1))
    planned = plan_due(shop, "orders", newest, leases.new_token())
    assert [run.interval for run in planned] == [HOUR, newest]
    with pytest.raises(ContractError, match="as_of"):
        jobs.score_and_publish(shop, planned[0], planned[0].token)
    assert jobs.score_and_publish(shop, planned[1], planned[1].token).counts.scored == 6
    served = "SELECT count(*) FROM current_predictions"
    assert ask(Warehouse(shop.warehouse), served) == [(11,)]
    later = Interval(newest.end, newest.end + timedelta(hours=1))
    planned = plan_due(shop, "orders", later, leases.new_token())
    assert [run.interval for run in planned] == [later]


@on_sqlite
@pytest.mark.parametrize("form", [form for form in FORMS if form not in SORTED])
def test_neither_check_nor_training_takes_a_form_that_is_not_found(shop, form):
    """Also where the newest interval has no row to see it by."""
    _hold(shop, form)
    failed = [found.said for found in check(shop, "orders", TRAINED) if not found.holds]
    assert any("as_of" in said or "no row" in said for said in failed)
    with pytest.raises((ContractError, TrainingDataError)):
        train.train(shop, "orders", TRAINED)


@on_sqlite
@pytest.mark.parametrize("form", ["space", "julian day"])
def test_a_few_times_of_another_form_are_found_among_many(shop, form):
    """By the interval of one of them, before a version learns without them."""
    _hold(shop, form, "entity_id LIKE '%7' AND placed_at < '2024-02-29'")
    with pytest.raises(ContractError, match="as_of"):
        train.train(shop, "orders", TRAINED)


@on_sqlite
@pytest.mark.parametrize("form", ["space", "space and fractions", "another offset"])
def test_a_query_that_compares_times_as_times_takes_each_form(shop, form):
    """As the error says: the same rows, checked, learnt and scored."""
    _hold(shop, form)
    model = ORDERS.model_copy(update={"features_query": AS_TIMES})
    settings = replace(shop, models=(model, *shop.models))
    version = train.train(settings, "orders", TRAINED)
    promotion.promote(settings, "orders", version.version, actor="ann", reason="times")
    assert jobs.predict(settings, "orders", HOUR).counts.scored == 6


@on_sqlite
def test_an_interval_that_really_has_no_row_is_published_empty(shop):
    """Its neighbours' rows are not taken for its own."""
    with Warehouse(shop.warehouse).write() as connection:
        gone = "DELETE FROM orders WHERE placed_at >= :start AND placed_at < :end"
        connection.execute(
            text(gone), {"start": HOUR.start.isoformat(), "end": HOUR.end.isoformat()}
        )
    assert jobs.predict(shop, "orders", HOUR).counts.read == 0


SPACE = "replace(placed_at, 'T', ' ')"


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("kind", "held"),
    [
        ("date", "placed_at"),
        ("timestamp", "placed_at"),
        ("timestamptz", "placed_at"),
        ("text", SPACE),
        ("text", f"CASE WHEN strpos(placed_at, ':30:') > 0 THEN {SPACE} ELSE placed_at END"),
        ("text", "replace(placed_at, '-', '')"),
    ],
    ids=["date", "timestamp", "timestamptz", "space", "some with space", "without hyphens"],
)
def test_a_type_of_time_on_postgresql_gives_its_rows_or_is_refused(shop, kind, held):
    """A text is compared as one there, too, and a date lies in no hour of its day."""
    with Warehouse(shop.warehouse).write_source() as connection:
        connection.exec_driver_sql("SET LOCAL timezone = 'UTC'")
        connection.exec_driver_sql(
            f"ALTER TABLE orders ALTER placed_at TYPE {kind} USING CAST({held} AS {kind})"
        )
    if kind == "timestamptz":
        assert jobs.predict(shop, "orders", HOUR).counts.scored == 6
        return
    with pytest.raises(ContractError, match="as_of"):
        jobs.predict(shop, "orders", HOUR)


ENDLESS = [
    ("placed_at", "infinity", "as_of is outside"),
    ("placed_at", "-infinity", "as_of is outside"),
    ("placed_at", "0044-03-15 BC", "as_of is outside"),
    ("placed_at", "12000-01-01", "as_of is outside"),
    ("settled_at", "infinity", None),
    ("settled_at", "12000-01-01", None),
]


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("column", "moment", "words"), ENDLESS)
def test_moments_outside_of_the_calendar_are_far_away_and_not_long_ago(shop, column, moment, words):
    """A label that is known at infinity is not known; a row of it lies in no interval."""
    model = ORDERS
    with Warehouse(shop.warehouse).write_source() as connection:
        connection.exec_driver_sql(
            f"ALTER TABLE orders ALTER {column} TYPE timestamptz USING {column}::timestamptz"
        )
        connection.exec_driver_sql(
            f"UPDATE orders SET {column} = '{moment}' WHERE entity_id LIKE 'order-000_1'"
        )
    if words is None:
        version = train.train(shop, "orders", TRAINED)
        assert version.manifest["label_coverage"] > 0.9
        return
    anywhere = "placed_at >= :start AND placed_at < :end OR entity_id LIKE 'order-000_1'"
    query = model.features_query.replace("placed_at >= :start AND placed_at < :end", anywhere)
    settings = replace(
        shop, models=(model.model_copy(update={"features_query": query}), *shop.models)
    )
    with pytest.raises(ContractError, match=words):
        train.train(settings, "orders", TRAINED)
