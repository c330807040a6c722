"""Whole numbers and UUIDs, which most tables have for keys, go the whole way as their text."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.interval import Interval
from batch_jobs.runs import backfills, jobs
from batch_jobs.training import train
from batch_jobs.training.check import check
from tests.support.attempts import ask

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)
HOUR = Interval(TRAINED, TRAINED + timedelta(hours=1))
NUMBER = "CAST(substr(entity_id, 7) AS bigint)"
# A key of each type, made of `order-02880`, and how it is then asked for.
KEYS = {
    "bigint": (NUMBER, "2880"),
    "numeric(20,0)": (f"CAST({NUMBER} AS numeric(20,0))", "2880"),
    "uuid": (
        "CAST('00000000-0000-0000-0000-0000000' || substr(entity_id, 7) AS uuid)",
        "00000000-0000-0000-0000-000000002880",
    ),
    "varchar(20)": ("CAST(entity_id AS varchar(20))", "order-02880"),
    "integer": ("CAST(substr(entity_id, 7) AS integer)", "2880"),
}
each = pytest.mark.parametrize(
    ("shop", "kind"),
    [("sqlite", "bigint"), ("sqlite", "integer"), *(("postgresql", kind) for kind in KEYS)],
    indirect=["shop"],
)


def _hold(shop, key):
    columns = "placed_at, amount, country, returned, settled_at"
    with Warehouse(shop.warehouse).write_source() as connection:
        connection.execute(text("ALTER TABLE orders RENAME TO texts"))
        connection.execute(
            text(f"CREATE TABLE orders AS SELECT {key} AS entity_id, {columns} FROM texts")
        )


def _seen(shop):
    query = "SELECT entity_id, score FROM current_predictions ORDER BY entity_id"
    return dict(map(tuple, ask(Warehouse(shop.warehouse), query)))


@each
def test_parts_share_all_keys_among_them(shop, kind):
    """Each row is read by one part, however many there are; the score is as in one."""
    before = _predicted(shop)
    key, wanted = KEYS[kind]
    _hold(shop, key)
    for parts in (1, 4):
        jobs.predict(shop, "orders", HOUR, parts=parts, force=True)
        found = _seen(shop)
        assert wanted in found
        assert sorted(found.values()) == pytest.approx(sorted(before.values()), abs=1e-12)


def _predicted(shop):
    jobs.predict(shop, "orders", HOUR)
    found = _seen(shop)
    with Warehouse(shop.warehouse).write() as connection:
        connection.execute(text("DELETE FROM current_rows"))
    return found


@each
def test_late_rows_and_labels_are_joined_by_their_key(shop, kind):
    """A row that is published is not late; training finds the labels, and check holds the keys."""
    key, wanted = KEYS[kind]
    _hold(shop, key)
    run = jobs.predict(shop, "orders", HOUR)
    [again] = {found.run_id for found in backfills.backfill(shop, "orders", _grid(HOUR))[:1]}
    assert run.run_id < again
    assert backfills.backfill(shop, "orders", _grid(HOUR))[0].run_id == again
    assert train.train(shop, "orders", TRAINED).manifest["rows_judged"] == 559
    failed = [found for found in check(shop, "orders", TRAINED) if not found.holds]
    assert failed == []
    assert wanted in _seen(shop)


def _grid(span):
    return Interval(span.start, span.start + timedelta(minutes=10))


@pytest.mark.parametrize(
    ("shop", "key"),
    [("sqlite", f"1.0 * {NUMBER}"), ("postgresql", f"CAST({NUMBER} AS double precision)")],
    indirect=["shop"],
)
def test_a_float_is_no_key(shop, key):
    """It may have lost digits, and `17.0` joins with nothing; the error says what may be."""
    _hold(shop, key)
    with pytest.raises(ContractError, match="entity_id is neither text nor a whole number nor a U"):
        jobs.predict(shop, "orders", HOUR)
