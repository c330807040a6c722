"""Times as sources hold them: each form is compared as a time, or refused by name."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from batch_jobs import lifecycle, serving
from batch_jobs.catalog import load_model
from batch_jobs.checking import check
from batch_jobs.errors import BatchJobsError, ContractError, TrainingDataError
from batch_jobs.interval import Interval
from batch_jobs.warehouse import Warehouse
from tests.attempts import ask

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
    "epoch": "CAST(strftime('%s', placed_at) AS INTEGER)",
    "epoch in milliseconds": "1000 * CAST(strftime('%s', placed_at) AS INTEGER)",
    "julian day": "julianday(placed_at)",
}
SORTED = ("T", "Z", "fractions", "milliseconds")


def _hold(settings, form, where="true"):
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(text("ALTER TABLE orders RENAME TO held"))
        columns = "entity_id, amount, country, returned, settled_at"
        connection.execute(
            text(
                f"CREATE TABLE orders AS SELECT {columns}, CASE WHEN {where} THEN {FORMS[form]} "
                f"ELSE placed_at END AS placed_at FROM held"
            )
        )


@on_sqlite
@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_time_gives_the_rows_of_an_interval_or_is_refused_by_name(shop, form):
    """Never an empty run in silence, nor one of some of the rows."""
    _hold(shop, form)
    if form in SORTED:
        run = serving.predict(shop, "orders", HOUR)
        assert run.counts.scored == 6
        return
    with pytest.raises(BatchJobsError, match=r"as_of|labelled rows|no row") as caught:
        serving.predict(shop, "orders", HOUR)
    assert caught.value.exit_code == 2
    states = "SELECT count(*) FROM prediction_runs WHERE state = 'published'"
    assert ask(Warehouse(shop.warehouse), states) == [(0,)]


@on_sqlite
@pytest.mark.parametrize("form", [form for form in FORMS if form not in SORTED])
def test_neither_check_nor_training_takes_a_form_that_is_not_found(shop, form):
    """Also where the newest interval has no row to see it by."""
    _hold(shop, form)
    failed = [found.said for found in check(shop, "orders", TRAINED) if not found.holds]
    assert any("as_of" in said or "no row" in said for said in failed)
    with pytest.raises((ContractError, TrainingDataError)):
        lifecycle.train(shop, "orders", TRAINED)


@on_sqlite
@pytest.mark.parametrize("form", ["space", "julian day"])
def test_a_few_times_of_another_form_are_found_among_many(shop, form):
    """By the interval of one of them, before a version learns without them."""
    _hold(shop, form, "entity_id LIKE '%7' AND placed_at < '2024-02-29'")
    with pytest.raises(ContractError, match="as_of"):
        lifecycle.train(shop, "orders", TRAINED)


@on_sqlite
@pytest.mark.parametrize("form", ["space", "space and fractions", "another offset"])
def test_a_query_that_compares_times_as_times_takes_each_form(shop, form):
    """As the error says: the same rows, checked, learnt and scored."""
    _hold(shop, form)
    model = ORDERS.model_copy(update={"features_query": AS_TIMES})
    settings = replace(shop, models=(model, *shop.models))
    version = lifecycle.train(settings, "orders", TRAINED)
    lifecycle.promote(settings, "orders", version.version, actor="ann", reason="times")
    assert serving.predict(settings, "orders", HOUR).counts.scored == 6


@on_sqlite
def test_an_interval_that_really_has_no_row_is_published_empty(shop):
    """Its neighbours' rows are not taken for its own."""
    with Warehouse(shop.warehouse).write() as connection:
        gone = "DELETE FROM orders WHERE placed_at >= :start AND placed_at < :end"
        connection.execute(
            text(gone), {"start": HOUR.start.isoformat(), "end": HOUR.end.isoformat()}
        )
    assert serving.predict(shop, "orders", HOUR).counts.read == 0
