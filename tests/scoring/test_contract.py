"""Rows are held to what the model declares: a bad query stops the run, a bad value its own row."""

import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_jobs import BatchModel, Category, Interval, Number
from batch_jobs.errors import ContractError
from batch_jobs.scoring.contract import CURE_OF_DUPLICATES, check_features, check_labels

DAY = Interval(datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC))
MODEL = BatchModel(
    name="orders",
    description="Which orders come back?",
    features_query=":start :end",
    labels_query=":start :end",
    features={
        "amount": Number(ge=0, le=1e9, nullable=False),
        "weight": Number(),
        "country": Category(one_of=("kr", "us")),
        "shop": Category(nullable=False),
    },
    estimator=object,
)
GOOD = {
    "entity_id": "order-1",
    "as_of": "2024-02-29T12:00:00+00:00",
    "amount": 10.0,
    "weight": 1.5,
    "country": "kr",
    "shop": "north",
}


def _frame(*rows):
    """Rows as the warehouse gives them: objects; each differs from a good one."""
    keyed = [{**GOOD, "entity_id": f"order-{n}", **row} for n, row in enumerate(rows)]
    return pd.DataFrame(keyed, columns=list(GOOD), dtype="object")


def _arrow(frame):
    """The same rows as a stream gives them: columns of one type each, mixed ones of objects."""

    def column(values):
        types = {type(value) for value in values if value is not None}
        if len(types) > 1 or types & {Decimal, pd.Timestamp}:
            return pd.Series(values, dtype="object")
        try:
            return pa.array(values).to_pandas(integer_object_nulls=True)
        except (OverflowError, UnicodeEncodeError):
            return pd.Series(values, dtype="object")

    return pd.DataFrame({name: column(frame[name].tolist()) for name in frame})


def _plain(rows):
    """Rows that can be compared: NaN is None."""
    return rows.astype("object").where(rows.notna(), None).to_numpy().tolist()


def _problems(frame):
    with pytest.raises(ContractError) as caught:
        check_features(MODEL, frame, DAY)
    assert caught.value.subject == "features_query of orders"
    return list(caught.value.problems)


def test_rows_that_fit_come_out_typed_in_declared_order():
    """Numbers are float64, times UTC, and columns nobody declared are gone."""
    frame = _frame({}, {"as_of": "2024-02-29T21:00:00+09:00"}).assign(colour="red")
    checked = check_features(MODEL, frame[frame.columns[::-1]], DAY)
    assert list(checked.rows) == ["entity_id", "as_of", "amount", "weight", "country", "shop"]
    assert checked.rows["amount"].dtype == "float64"
    assert [checked.rows[name].dtype for name in ("entity_id", "country", "shop")] == ["str"] * 3
    assert set(checked.rows["as_of"]) == {pd.Timestamp("2024-02-29T12:00Z")}
    assert checked.rejected == []


def test_missing_columns_are_named_together():
    """With what the query does return, because one of them may only be misspelt."""
    problems = _problems(_frame({}).drop(columns=["as_of", "weight"]).assign(wieght=1))
    assert problems == [
        "does not return as_of, weight; it returns entity_id, amount, country, shop, wieght"
    ]


def test_a_column_that_comes_twice_is_refused():
    """Nobody could say which of the two is meant; one that nobody declared does no harm."""
    frame = _frame({"amount": -1}).assign(colour="red")
    doubled = pd.concat([frame, frame[["amount", "shop"]]], axis=1)
    assert _problems(doubled) == ["returns amount, shop more than once"]
    ((_, _, payload),) = check_features(
        MODEL, pd.concat([frame, frame[["colour"]]], axis=1), DAY
    ).rejected
    assert payload["colour"] == "red"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (None, "null or blank in 1 of 3 rows (e.g. None)"),
        (float("nan"), "null or blank in 1 of 3 rows (e.g. nan)"),
        ("", "null or blank in 1 of 3 rows (e.g. '')"),
        (" \t\n", "null or blank in 1 of 3 rows (e.g. ' \\t\\n')"),
        (1.5, "neither text nor a whole number nor a UUID in 1 of 3 rows (e.g. 1.5)"),
        (17.0, "neither text nor a whole number nor a UUID in 1 of 3 rows (e.g. 17.0)"),
        (True, "neither text nor a whole number nor a UUID in 1 of 3 rows (e.g. True)"),
        (b"order", "neither text nor a whole number nor a UUID in 1 of 3 rows (e.g. b'order')"),
        ("order-1", f"duplicated in 2 of 3 rows (e.g. 'order-1'){CURE_OF_DUPLICATES['merge']}"),
        (
            "a\0b",
            "not storable text (NUL or half a surrogate pair) in 1 of 3 rows (e.g. 'a\\x00b')",
        ),
        (
            "\ud800",
            "not storable text (NUL or half a surrogate pair) in 1 of 3 rows (e.g. '\\ud800')",
        ),
    ],
)
@pytest.mark.failure_mode(52)
def test_a_bad_key_stops_the_run_with_count_and_sample(key, expected):
    """A key that is wrong means that the query is wrong, so no row can be trusted."""
    assert _problems(_frame({"entity_id": key}, {}, {})) == [f"entity_id is {expected}"]


def test_a_key_may_be_two_hundred_characters_long_and_no_longer():
    """Characters, not bytes."""
    assert len(check_features(MODEL, _frame({"entity_id": "é" * 200}), DAY).rows) == 1
    assert "longer than 200 characters in 1 of 1" in _problems(_frame({"entity_id": "x" * 201}))[0]


@pytest.mark.parametrize("key", [None, "", " \t\n", "\u3000", "x" * 201, "a\0b", "order-1"])
def test_a_bad_key_among_texts_stops_the_run_in_the_same_words(key):
    """Columns that hold text alone are checked another way."""
    frame = _frame({"entity_id": key}, {}, {})
    arrow = frame.assign(entity_id=frame["entity_id"].astype("str"))
    assert _problems(arrow) == _problems(frame)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ([17, 18], ["17", "18"]),
        ([2**62 + 1, 3], [str(2**62 + 1), "3"]),
        ([17, "a"], ["17", "a"]),
        ([UUID(int=1), UUID(int=2)], [str(UUID(int=1)), str(UUID(int=2))]),
    ],
)
def test_whole_numbers_and_uuids_are_keys(keys, expected):
    """As most tables have them; their text is what readers ask for."""
    for form in (_frame, lambda *rows: _arrow(_frame(*rows))):
        rows = check_features(MODEL, form(*({"entity_id": key} for key in keys)), DAY).rows
        assert rows["entity_id"].tolist() == expected
    labels = check_labels(MODEL, _labels(*({"entity_id": key} for key in keys)))
    assert labels["entity_id"].tolist() == expected


def test_a_number_and_its_text_are_one_key():
    """Nobody could tell them apart once they are stored."""
    problems = _problems(_frame({"entity_id": 17}, {"entity_id": "17"}))
    assert problems[0].startswith("entity_id is duplicated in 2 of 2 rows")


def test_all_problems_of_keys_and_times_are_told_at_once():
    """With counts, and at most three sample keys of each."""
    doubled = [{"entity_id": f"twice-{n}"} for n in (1, 2, 3, 4)] * 2
    late, cure = {"as_of": "2024-03-01T00:00:00+00:00"}, CURE_OF_DUPLICATES["merge"]
    problems = _problems(_frame({"entity_id": ""}, {"entity_id": 5.5}, *doubled, late))
    assert problems == [
        "entity_id is null or blank in 1 of 11 rows (e.g. '')",
        "entity_id is neither text nor a whole number nor a UUID in 1 of 11 rows (e.g. 5.5)",
        "entity_id is duplicated in 8 of 11 rows (e.g. 'twice-1', 'twice-2', 'twice-3')" + cure,
        f"as_of is outside {DAY} in 1 of 11 rows (e.g. 2024-03-01T00:00:00Z)",
    ]


@pytest.mark.parametrize(
    "key",
    [
        "caf\u00e9",
        "cafe\u0301",
        "🛩️",
        "\u202eabc",
        "a\u200bb",
        "'; DROP TABLE orders;--",
        '"',
        "=1+1",
        "%s",
        "a\nb",
    ],
)
def test_any_other_text_is_a_key_as_it_is(key):
    """Neither normalised nor trimmed nor escaped."""
    assert check_features(MODEL, _frame({"entity_id": key}), DAY).rows["entity_id"].tolist() == [
        key
    ]


@pytest.mark.failure_mode(54)
def test_keys_that_look_alike_are_different_keys():
    """A composed and a decomposed accent are two texts."""
    frame = _frame({"entity_id": "caf\u00e9"}, {"entity_id": "cafe\u0301"})
    assert len(check_features(MODEL, frame, DAY).rows) == 2


@pytest.mark.parametrize(
    "as_of",
    [
        "2024-02-28T23:59:59.999999+00:00",
        "2024-03-01T00:00:00+00:00",
        "2024-02-29T12:00:00",
        "2024-02-29",
        "noon",
        None,
        1709208000,
        datetime(2024, 2, 29, 12),
        "+00:00",
        "2024-02-29T12:00:00\ud800",
        b"\xff",
    ],
)
def test_an_as_of_outside_the_interval_or_naive_stops_the_run(as_of):
    """The query returned rows that it was not asked for, or times that mean nothing certain."""
    words = ("as_of is outside", "as_of has no time zone", "as_of is no time", "as_of is null")
    assert _problems(_frame({"as_of": as_of}))[0].startswith(words)
    assert _problems(_arrow(_frame({"as_of": as_of}, {"as_of": as_of})))[0].startswith(words)


@pytest.mark.parametrize(
    ("as_of", "told"),
    [
        ("2024-02-29 12:00:00", "as_of has no time zone in 1 of 1 rows (e.g. '2024-02-29 12:00:00"),
        (datetime(2024, 2, 29, 12), "as_of has no time zone in 1 of 1 rows (e.g. '2024-02-29 12:"),
        (date(2024, 2, 29), "as_of has no time zone in 1 of 1 rows (e.g. '2024-02-29')"),
        (1709208000, "as_of is no time in 1 of 1 rows (e.g. '1709208000')"),
        (2460370.5, "as_of is no time in 1 of 1 rows (e.g. '2460370.5')"),
        ("noon", "as_of is no time in 1 of 1 rows (e.g. 'noon')"),
        (None, "as_of is null in 1 of 1 rows"),
        ("2024-03-01T09:30:00Z", "(e.g. 2024-03-01T09:30:00Z)"),
        ("2024-03-01T09:30+0200", "(e.g. 2024-03-01T07:30:00Z from '2024-03-01T09:30+0200')"),
    ],
)
def test_what_is_wrong_with_a_time_is_told_with_its_value_and_the_cure(as_of, told):
    """Not with a key, and not as if it lay outside where it does not."""
    [problem] = _problems(_frame({"as_of": as_of}))
    assert told in problem
    assert ("AT TIME ZONE 'UTC'" in problem) == ("no time" in told)


@pytest.mark.parametrize(
    "as_of",
    [
        "2024-02-29T00:00:00Z",
        "2024-02-29 23:59:59.999999+00:00",
        "2024-02-29T23:59:59.999999999Z",
        "2024-03-01T08:00:00+0900",
        "2024-03-01 08:00:00+09",
        datetime(2024, 2, 29, 12, tzinfo=UTC),
        pd.Timestamp("2024-02-29T12:00", tz="Asia/Seoul"),
    ],
)
def test_times_may_be_written_in_any_offset(as_of):
    """Texts and datetimes, as SQLite and PostgreSQL give them, also in one column."""
    expected = pd.Timestamp(as_of).tz_convert("UTC")
    for others in (
        [],
        [{}],
        [{"as_of": GOOD["as_of"]}, {"as_of": datetime(2024, 2, 29, 1, tzinfo=UTC)}],
    ):
        for form in (_frame, lambda *rows: _arrow(_frame(*rows))):
            rows = check_features(MODEL, form({"as_of": as_of}, *others), DAY).rows
            assert rows["as_of"][0] == expected
            assert len(rows) == 1 + len(others)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("12.5", 12.5),
        (" 7 ", 7.0),
        ("1e3", 1000.0),
        (True, 1.0),
        (Decimal("0.1"), 0.1),
        (2**63, float(2**63)),
        (2**53 + 1, float(2**53)),
        ("-9007199254740993", -float(2**53)),
        ("+73E184", 73e184),
        (None, None),
        (Decimal("NaN"), None),
        (5e-324, 5e-324),
        (-1.7e308, -1.7e308),
    ],
)
def test_numbers_may_come_as_text_bool_decimal_or_null(value, expected):
    """What means a finite number is one, in whatever company; NULL is NaN to the estimator."""
    for other in (value, None, 0.5, "0.5", True):
        for form in (_frame, lambda *rows: _arrow(_frame(*rows))):
            checked = check_features(MODEL, form({"weight": value}, {"weight": other}), DAY)
            got = checked.rows["weight"].tolist()[0]
            assert (None if math.isnan(got) else got) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], ["1", "2"]),
        ([1, None], ["1", None]),
        ([2**53 + 1, None], ["9007199254740993", None]),
        ([1.0, 0.5], ["1", "0.5"]),
        ([94105.0, None], ["94105", None]),
        ([1, 2.0, 2.5], ["1", "2", "2.5"]),
        ([UUID(int=10), None], [f"{'0' * 8}-0000-0000-0000-{'a':>012}", None]),
        ([True, None], ["true", None]),
        ([True, False], ["true", "false"]),
        (["1", None], ["1", None]),
        ([1, "x"], ["1", "x"]),
        ([Decimal("1.50"), None], ["1.5", None]),
        ([Decimal(94105), None], ["94105", None]),
        ([b"kr", None], ["kr", None]),
        ([None, None], [None, None]),
    ],
)
def test_a_category_is_the_text_of_each_value(values, expected):
    """A number has one text, whether or not its column has a NULL."""
    model = MODEL.model_copy(update={"features": {"shop": Category()}})
    frame = _frame(*[{"shop": value} for value in values])
    for form in (frame, _arrow(frame)):
        got = check_features(model, form, DAY).rows["shop"]
        assert got.dtype == "str"
        assert [None if pd.isna(text) else text for text in got] == expected


def test_whole_numbers_may_come_with_a_mask():
    """The nullable integers of pandas, as numbers and as categories."""
    frame = _arrow(_frame({}, {})).assign(
        weight=pd.array([7, None], dtype="Int64"), shop=pd.array([7, None], dtype="Int64")
    )
    checked = check_features(MODEL, frame, DAY)
    assert (checked.rows["weight"].tolist(), checked.rows["shop"].tolist()) == ([7.0], ["7"])
    assert [why for _, why, _ in checked.rejected] == ["shop fails not_nullable: None"]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("weight", "heavy", "weight is not a number: 'heavy'"),
        ("weight", "", "weight is not a number: ''"),
        ("weight", "nan", "weight is not a number: 'nan'"),
        ("weight", float("inf"), "weight fails finite: inf"),
        ("weight", "-inf", "weight fails finite: -inf"),
        ("weight", 10**400, "weight fails finite: inf"),
        ("weight", -(10**400), "weight fails finite: -inf"),
        ("weight", Decimal("1e400"), "weight fails finite: inf"),
        ("amount", -0.01, "amount fails greater_than_or_equal_to(0.0): -0.01"),
        ("amount", 2e9, "amount fails less_than_or_equal_to(1000000000.0): 2000000000.0"),
        ("amount", None, "amount fails not_nullable: nan"),
        ("country", "de", "country fails isin('kr', 'us'): 'de'"),
        ("country", "KR", "country fails isin('kr', 'us'): 'KR'"),
        ("shop", None, "shop fails not_nullable: None"),
        ("shop", "\ud800", "shop is not text: '\\ud800'; shop fails not_nullable: None"),
        ("country", b"\xff", "country is not text: b'\\xff'"),
        (
            "weight",
            pd.Timestamp("2024-02-29", tz="UTC"),
            "weight is not a number: Timestamp('2024-02-29 00:00:00+0000', tz='UTC')",
        ),
    ],
)
def test_a_bad_value_sets_its_own_row_aside(column, value, reason):
    """The others go on; the reason names column, rule and value."""
    for form in (_frame, lambda *rows: _arrow(_frame(*rows))):
        checked = check_features(MODEL, form({}, {column: value}, {}), DAY)
        assert checked.rows["entity_id"].tolist() == ["order-0", "order-2"]
        assert [(key, why) for key, why, _ in checked.rejected] == [("order-1", reason)]


def test_a_rejected_row_tells_all_its_reasons_and_keeps_what_was_read():
    """Whoever mends the source sees the row as it came, also columns nobody declared."""
    frame = _frame({"amount": -1, "weight": "heavy", "country": "de"}).assign(colour="red")
    ((key, reason, payload),) = check_features(MODEL, frame, DAY).rejected
    assert key == "order-0"
    assert [why.split()[0] for why in reason.split("; ")] == ["weight", "amount", "country"]
    assert (payload["amount"], payload["weight"], payload["colour"]) == (-1, "heavy", "red")


def test_what_was_read_is_kept_as_pythons_own_values():
    """Which JSON knows; NULL is None in every column."""
    frame = _arrow(_frame({"amount": -1, "weight": None, "country": None}, {"amount": 1}))
    ((_, _, payload),) = check_features(MODEL, frame.assign(count=3, kept=None), DAY).rejected
    assert payload == {
        **GOOD,
        "entity_id": "order-0",
        "amount": -1,
        "weight": None,
        "country": None,
        "count": 3,
        "kept": None,
    }
    assert {type(value) for value in payload.values()} == {str, int, type(None)}


@pytest.mark.parametrize("value", [datetime(2024, 2, 29, tzinfo=UTC), timedelta(1)])
def test_a_column_of_times_is_none_of_numbers(value):
    """Its microseconds since 1970 are nothing that the model was trained on."""
    checked = check_features(MODEL, _arrow(_frame(*[{"weight": value}] * 3)), DAY)
    assert (len(checked.rows), len(checked.rejected)) == (0, 3)
    assert checked.rejected[0][1].startswith("weight is not a number: Time")


def test_every_row_may_be_bad():
    """Then nothing is left to score, and nothing is lost."""
    checked = check_features(MODEL, _frame(*[{"amount": -1}] * 5), DAY)
    assert (len(checked.rows), len(checked.rejected)) == (0, 5)


def test_an_empty_frame_fits():
    """An interval without rows is no error; its columns are checked all the same."""
    checked = check_features(MODEL, _frame(), DAY)
    assert (len(checked.rows), checked.rejected) == (0, [])
    assert check_features(MODEL, _arrow(_frame()), DAY).rejected == []
    assert _problems(_frame().drop(columns="shop"))[0].startswith("does not return shop")


def test_the_index_of_the_frame_does_not_matter():
    """Rows are told apart by place, also if an index repeats."""
    frame = _frame({}, {"amount": -1}, {})
    frame.index = [7, 7, 7]
    checked = check_features(MODEL, frame, DAY)
    assert checked.rows["entity_id"].tolist() == ["order-0", "order-2"]
    assert checked.rejected[0][0] == "order-1"


wild = st.one_of(
    st.none(),
    st.floats(),
    st.integers(),
    st.integers(min_value=10**300, max_value=10**320),
    st.booleans(),
    st.decimals(allow_nan=False),
    st.just(Decimal("NaN")),
    st.text(max_size=5),
    st.sampled_from(["kr", "us", "1e999", "nan", "Infinity", "12"]),
)


kinds = [
    st.floats(),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats().map(repr),
    st.text(max_size=5),
    st.sampled_from(["kr", "us"]),
]
rows_of_one_type = st.fixed_dictionaries(
    dict.fromkeys(MODEL.features, st.sampled_from(kinds))
).flatmap(
    lambda chosen: st.lists(
        st.fixed_dictionaries({name: st.none() | kind for name, kind in chosen.items()}),
        max_size=9,
    )
)
rows_of_any_values = st.lists(
    st.fixed_dictionaries(dict.fromkeys(MODEL.features, wild)), max_size=8
)


@given(rows_of_any_values)
@settings(max_examples=60, deadline=None)
@pytest.mark.failure_mode(53)
def test_whatever_the_values_no_row_is_lost_and_none_comes_out_wild(values):
    """Every row read is either typed and within bounds, or rejected with a reason."""
    checked = check_features(MODEL, _frame(*values), DAY)
    rows = checked.rows
    assert len(rows) + len(checked.rejected) == len(values)
    assert rows["amount"].between(0, 1e9).all()
    assert not rows["weight"].isin([math.inf, -math.inf]).any()
    assert rows["country"].dropna().isin(["kr", "us"]).all()
    assert rows["shop"].notna().all()
    assert all(
        reason and json.dumps(payload, default=str) for _, reason, payload in checked.rejected
    )


@given(rows_of_any_values | rows_of_one_type, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_what_becomes_of_a_row_does_not_depend_on_its_chunk(values, size):
    """Checked together or in pieces, of any types, the same rows go on or are set aside."""
    frame = _frame(*values)
    whole = check_features(MODEL, frame, DAY)
    pieces = [
        check_features(MODEL, _arrow(frame[at : at + size]), DAY)
        for at in range(0, len(frame), size)
    ]
    assert [row for piece in pieces for row in _plain(piece.rows)] == _plain(whole.rows)
    assert [bad[:2] for piece in pieces for bad in piece.rejected] == [
        bad[:2] for bad in whole.rejected
    ]


def _labels(*rows):
    known = {"label": 1, "known_at": "2024-03-01T00:00:00+00:00"}
    return pd.DataFrame([{"entity_id": f"order-{n}", **known, **row} for n, row in enumerate(rows)])


def test_labels_come_out_with_times_in_utc_and_of_one_type():
    """Also where the warehouse gives Python objects, which scikit-learn would not take."""
    checked = check_labels(MODEL, _labels({}, {"label": 0}).astype("object"))
    assert checked["label"].dtype == "int64"
    assert checked["entity_id"].dtype == "str"
    assert checked["known_at"].tolist() == [pd.Timestamp("2024-03-01", tz="UTC")] * 2


def test_all_problems_of_labels_are_told_at_once():
    """Bad keys, missing labels and times that mean nothing certain."""
    bad = _labels({"entity_id": None}, {"label": None}, {"known_at": "2024-03-01T00:00:00"})
    with pytest.raises(ContractError) as caught:
        check_labels(MODEL, bad)
    assert [problem.split(" ")[0] for problem in caught.value.problems] == [
        "entity_id",
        "known_at",
        "label",
    ]


def test_the_columns_of_labels_are_required():
    """All that are missing, in one error."""
    with pytest.raises(ContractError, match="does not return label, known_at"):
        check_labels(MODEL, pd.DataFrame({"entity_id": ["order-1"]}))


def test_labels_of_a_population_say_of_which_moment_they_are():
    """Otherwise a customer's label of one snapshot would be joined to all of them."""
    population = MODEL.model_copy(update={"mode": "replace"})
    with pytest.raises(ContractError, match="does not return as_of"):
        check_labels(population, _labels({}))


def test_two_labels_for_one_key_are_refused():
    """Nobody could say which of them is true."""
    with pytest.raises(ContractError, match="duplicated in 2 of 2 rows"):
        check_labels(MODEL, _labels({"entity_id": "x"}, {"entity_id": "x"}))


def test_labels_of_one_key_at_several_moments_are_told_apart():
    """A population is labelled at each snapshot; a long key is no longer for that."""
    key = "x" * 200
    moments = [f"2024-02-{day}T00:00:00+00:00" for day in (27, 28)]
    rows = [{"entity_id": key, "as_of": moment} for moment in moments]
    assert len(check_labels(MODEL, _labels(*rows))) == 2
    with pytest.raises(ContractError, match="entity_id and as_of is duplicated in 2 of 3 rows"):
        check_labels(MODEL, _labels(*rows, rows[0]))


def test_the_moment_of_a_label_must_be_certain_too():
    """A naive `as_of` would match no row, silently."""
    with pytest.raises(ContractError, match="as_of has no time zone in 1 of 1 rows"):
        check_labels(MODEL, _labels({"as_of": "2024-02-29T00:00:00"}))
