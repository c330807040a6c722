"""What a value is as category, number and key does not depend on how it is held or sent."""

import io
import json
import math
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel, Category, Number
from batch_jobs.requests.rows import features_of, frame_of
from batch_jobs.scoring.contract import check_features, check_labels
from batch_jobs.scoring.fitted import class_text
from batch_jobs.scoring.keys import key_problems
from prediction_api.uploads import CSV, JSON, PARQUET, Most, Reader

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = Interval.parse("2026-11-20T12:00Z", "2026-11-20T13:00Z")
UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
REFUSED = object()
# How it is held: its text as a category, the number, its text as a key, and another value of the
# type, which must change none of it.
POSTGRESQL = {
    "9410::smallint": ("9410", 9410, "9410", "1::smallint"),
    "94105::int": ("94105", 94105, "94105", "1"),
    "94105::bigint": ("94105", 94105, "94105", "1"),
    "9007199254740993::bigint": ("9007199254740993", 2.0**53, "9007199254740993", "1"),
    "94105::numeric(10, 0)": ("94105", 94105, "94105", "1"),
    "99999999999999999999::numeric(20, 0)": ("99999999999999999999", 1e20, "9" * 20, "1"),
    "9007199254740993::numeric": ("9007199254740993", 2.0**53, None, "0.5"),
    "94105::numeric": ("94105", 94105, None, "0.5"),
    "94105.00::numeric(12, 2)": ("94105", 94105, REFUSED, "0.5"),
    "12.50::numeric(12, 2)": ("12.5", 12.5, REFUSED, "1"),
    "0.0000001::numeric": ("0.0000001", 1e-7, REFUSED, "1"),
    "'NaN'::numeric": (None, None, REFUSED, "1"),
    "0.1::real": ("0.1", pytest.approx(0.1), REFUSED, "1"),
    "94105::real": ("94105", 94105, REFUSED, "0.5"),
    "94105::double precision": ("94105", 94105, REFUSED, "0.5"),
    "0.0000001::double precision": ("0.0000001", 1e-7, REFUSED, "1"),
    "1e20::double precision": (REFUSED, 1e20, REFUSED, "1"),
    "true": ("true", 1, REFUSED, "false"),
    "'94105.0'::text": ("94105.0", 94105, "94105.0", "'1'"),
    "'00501'::varchar(9)": ("00501", 501, "00501", "'1'"),
    "'501'::char(9)": ("501", 501, "501", "'1'"),
    "'501  '::text": ("501  ", 501, "501  ", "'1'"),
    f"'{UUID.upper()}'::uuid": (UUID, REFUSED, UUID, "NULL"),
    "date '2026-11-20'": ("2026-11-20", REFUSED, REFUSED, "date '2026-11-21'"),
    "timestamptz '2026-11-20 00:00+00'": (REFUSED, REFUSED, REFUSED, "now()"),
    "timestamp '2026-11-20 00:00'": (REFUSED, REFUSED, REFUSED, "now()::timestamp"),
    "interval '1 day'": (REFUSED, REFUSED, REFUSED, "NULL"),
    "ARRAY[1, 2]": (REFUSED, REFUSED, REFUSED, "NULL"),
    "inet '10.0.0.1'": (REFUSED, REFUSED, REFUSED, "NULL"),
    "'1'::json": ("1", 1, "1", "NULL"),
    "'kr'::bytea": ("kr", REFUSED, REFUSED, "NULL"),
    "'\\x00ff'::bytea": (REFUSED, REFUSED, REFUSED, "NULL"),
}
SQLITE = {
    "94105": ("94105", 94105, "94105", "0.5"),
    "9007199254740993": ("9007199254740993", 2.0**53, "9007199254740993", "0.5"),
    "94105.0": ("94105", 94105, REFUSED, "1"),
    "0.1": ("0.1", 0.1, REFUSED, "1"),
    "'94105.0'": ("94105.0", 94105, "94105.0", "1"),
    "'00501'": ("00501", 501, "00501", "0.5"),
    "x'6b72'": ("kr", REFUSED, REFUSED, "1"),
    "x'00ff'": (REFUSED, REFUSED, REFUSED, "'a'"),
}


def _model(kind):
    return BatchModel(
        description="One feature.",
        features_query="SELECT :start, :end",
        labels_query="SELECT :start, :end",
        features={"value": kind(nullable=True)},
        estimator=lambda: None,
    )


def _found(kind, column):
    """The first value as the estimator gets it."""
    keys = pd.array([f"k{place}" for place in range(len(column))], "str")
    frame = pd.DataFrame({"entity_id": keys, "as_of": pd.Timestamp(NOON), "value": column})
    checked = check_features(_model(kind), frame, HOUR)
    if "k0" in [key for key, *_ in checked.rejected]:
        return REFUSED
    value = checked.rows["value"].tolist()[0]
    return None if isinstance(value, float) and math.isnan(value) else value


def _key(column):
    if key_problems(column):
        return REFUSED
    labels = {"entity_id": column, "label": 1, "known_at": pd.Timestamp(NOON)}
    return check_labels(_model(Number), pd.DataFrame(labels))["entity_id"].tolist()[0]


@pytest.mark.parametrize(
    ("warehouse", "types"),
    [("sqlite", SQLITE), ("postgresql", POSTGRESQL)],
    ids=["sqlite", "postgresql"],
    indirect=["warehouse"],
)
def test_a_value_is_the_same_however_the_database_holds_it(warehouse, types):
    """Alone, beside NULL and beside another one; what means nothing certain is refused."""
    names = {held: f"c{place}" for place, held in enumerate(types)}
    others = {held: expected[-1] for held, expected in types.items()}
    one = "SELECT " + ", ".join(f"{held} AS {name}" for held, name in names.items())
    null = "SELECT " + ", ".join("NULL" for _ in names)
    other = "SELECT " + ", ".join(others.values())
    for query in (one, f"{one} UNION ALL {null}", f"{one} UNION ALL {other}"):
        (chunk,) = warehouse.stream(query.replace("::", r"\:\:"), {}, 10)
        for held, (category, number, key, _) in types.items():
            column = chunk[names[held]]
            assert _found(Category, column) == category, (held, query == one)
            assert _found(Number, column) == number, (held, query == one)
            if key is not None and query == one:
                assert _key(column) == key, held


def test_money_is_refused_by_name(postgres_url):
    """It would come as cents."""
    with pytest.raises(ContractError, match=r"price is of type money; CAST\(price AS numeric\)"):
        list(Warehouse(postgres_url).stream("SELECT CAST(5 AS money) AS price", {}, 10))


def _parquet(value, kind=None):
    sink = io.BytesIO()
    pq.write_table(pa.table({"value": pa.array([value], kind)}), sink)
    return PARQUET, sink.getvalue()


def _json(value):
    return JSON, json.dumps({"rows": [{"value": value}]}).encode()


def _csv(value):
    return CSV, f"value\n{value}\n".encode()


@pytest.mark.parametrize(
    ("kind", "expected", "sent"),
    [
        (Category, "94105", [_json(94105), _json(94105.0), _json("94105"), _csv("94105")]),
        (Category, "94105", [_parquet(94105), _parquet(94105.0), _parquet("94105")]),
        (Category, "94105", [_parquet(94105, pa.decimal128(10, 0)), _parquet(b"94105")]),
        (Category, "94105", [_parquet(94105, pa.decimal256(40, 2)), _parquet(94105, pa.uint64())]),
        (Category, "12.5", [_json(12.5), _csv("12.5"), _parquet(12.5)]),
        (Category, "0.0000001", [_json(1e-7), _parquet(1e-7)]),
        (Category, "9007199254740993", [_json(2**53 + 1), _parquet(2**53 + 1)]),
        (Category, "94105.0", [_json("94105.0"), _csv("94105.0"), _parquet("94105.0")]),
        (Category, "00501", [_json("00501"), _csv("00501"), _parquet("00501", pa.string_view())]),
        (Category, "true", [_json(True), _csv("true"), _parquet(True)]),
        (Category, None, [_json(None), _csv('""'), _parquet(None, pa.string())]),
        (Category, REFUSED, [_json(1e20), _parquet(1e20)]),
        (Number, 94105.0, [_json(94105), _json("94105"), _csv("94105"), _csv("94105.0")]),
        (Number, 12.5, [_json(12.5), _csv("12.50"), _parquet("12.50"), _parquet(12.5)]),
        (Number, 1.0, [_json(True), _csv("True"), _parquet(True)]),
        (Number, REFUSED, [_json("x"), _csv("x"), _parquet("x"), _parquet(b"x")]),
    ],
)
def test_a_value_is_the_same_through_whichever_door_it_comes(kind, expected, sent):
    """As the database's would be, in the tables above."""
    model = _model(kind)
    for form, body in sent:
        (row,) = Reader(model, Most(10, 100_000)).read(form, body)
        read = features_of(model, json.dumps(dict(row.features)))
        frame = frame_of(model, {"1": read})
        assert _found(kind, frame["value"]) == expected, (form, body)


def test_a_label_is_the_same_however_its_column_holds_it(warehouse):
    """One REAL among integers, or another type, changes the name of no class."""
    held = ["1", "1.0", "CAST(1 AS numeric(1, 0))", "CAST(1 AS bigint)", "CAST(1 AS real)"]
    rows = [f"SELECT 'a' AS entity_id, {sql} AS label, :known AS known_at" for sql in held]
    rows.append(f"{rows[0]} UNION ALL SELECT 'b', 0.0, :known")
    for query in rows:
        values = {"known": NOON.isoformat()}
        (chunk,) = warehouse.stream(query, values, 10)
        labels = check_labels(_model(Category), chunk)["label"]
        assert class_text(labels.iloc[0]) == "1", query


def test_a_label_that_is_a_truth_value_is_spelt_as_categories_are(postgres_url):
    """In lower case."""
    (chunk,) = Warehouse(postgres_url).stream("SELECT true AS label", {}, 10)
    assert class_text(chunk["label"].to_numpy()[0]) == "true"


def test_a_reason_does_not_repeat_a_long_value():
    """It is in the payload already."""
    model = _model(Category).model_copy(update={"features": {"value": Category(one_of=("a", "b"))}})
    frame = pd.DataFrame({"entity_id": ["k"], "as_of": pd.Timestamp(NOON), "value": ["x" * 10_000]})
    [(_, reason, _)] = check_features(model, frame, HOUR).rejected
    assert len(reason) < 300


def test_text_keys_of_fixed_width_are_late_only_once(postgres_url):
    """Blanks at the end of char(n) are no part of a key, as they are none of its text."""
    warehouse = Warehouse(postgres_url)
    with warehouse.read() as connection:
        stored = connection.scalar(text("SELECT CAST(CAST('a' AS char(5)) AS text)"))
    (chunk,) = warehouse.stream("SELECT CAST('a' AS char(5)) AS entity_id", {}, 10)
    assert chunk["entity_id"].tolist() == [stored]
