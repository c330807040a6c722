"""A row's score depends on the row and the version alone, and means what the contract says."""

import gc
import weakref
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from catboost import CatBoostClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from lightgbm import LGBMClassifier
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from xgboost import XGBClassifier

from batch_jobs import Category, Number
from batch_jobs.errors import ContractError
from batch_jobs.scoring.fitted import Fitted, as_inputs, categories_of
from batch_jobs.scoring.predict import answered

FEATURES = {"amount": Number(), "country": Category()}
CHANCE = np.random.default_rng(0)
ROWS = pd.DataFrame(
    {
        "entity_id": [f"order-{n}" for n in range(40)],
        "country": pd.Series(CHANCE.choice(["kr", "us", None], 40), dtype="str"),
        "amount": CHANCE.uniform(0, 100, 40).round(1),
    }
)
TWO = (ROWS["amount"] > 50).to_numpy().astype(int)
THREE = np.array(["low", "middle", "high"])[(ROWS["amount"] // 34).astype(int)]


def _encoded(estimator):
    one_hot = OneHotEncoder(handle_unknown="ignore")
    columns = make_column_transformer((one_hot, ["country"]), remainder="passthrough")
    return make_pipeline(columns, estimator)


def _boosted():
    return HistGradientBoostingClassifier(categorical_features="from_dtype", max_iter=5)


ESTIMATORS = {
    "binary": _encoded(LogisticRegression(C=0.01, max_iter=1000)),
    "multiclass": _encoded(LogisticRegression(C=0.01, max_iter=1000)),
    "regression": _encoded(LinearRegression()),
    "forest": _encoded(RandomForestRegressor(5, random_state=0)),
    "boosting": _boosted(),
}
ANSWERS = {
    "binary": TWO,
    "multiclass": THREE,
    "regression": ROWS["amount"],
    "forest": ROWS["amount"],
    "boosting": TWO,
}


def _fitted(estimator, rows, answers, features=FEATURES):
    categories = categories_of(rows, features)
    estimator.fit(as_inputs(rows, features, categories), answers)
    return Fitted.of(estimator, features, categories)


FITTED = {kind: _fitted(estimator, ROWS, ANSWERS[kind]) for kind, estimator in ESTIMATORS.items()}


def _scored(estimator, rows):
    scores, labels = estimator.scores_and_labels(estimator.answers(estimator.inputs(rows)))
    pairs = zip(scores.tolist(), labels.to_pylist(), strict=True)
    return dict(zip(rows["entity_id"], pairs, strict=True))


@pytest.mark.parametrize("kind", FITTED)
@given(
    st.permutations(range(len(ROWS))),
    st.sets(st.integers(1, len(ROWS) - 1)).map(lambda cuts: [0, *sorted(cuts), len(ROWS)]),
)
@settings(max_examples=15, deadline=None)
def test_scores_do_not_depend_on_the_chunk(kind, order, cuts):
    """However the rows are cut into chunks: the same labels, and scores but for rounding."""
    whole, shuffled, pieces = _scored(FITTED[kind], ROWS), ROWS.iloc[order], {}
    for start, end in pairwise(cuts):
        pieces |= _scored(FITTED[kind], shuffled[start:end])
    pieces = {key: pieces[key] for key in whole}
    assert [label for _, label in pieces.values()] == [label for _, label in whole.values()]
    assert [score for score, _ in pieces.values()] == pytest.approx(
        [score for score, _ in whole.values()], rel=1e-14, abs=1e-14
    )


@pytest.mark.parametrize("kind", FITTED)
def test_scores_do_not_depend_on_the_order(kind):
    """Shuffled rows keep their scores."""
    shuffled = ROWS.sample(frac=1, random_state=1)
    assert _scored(FITTED[kind], shuffled) == _scored(FITTED[kind], ROWS)


@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.failure_mode(46)
def test_the_order_of_columns_does_not_matter(kind):
    """The estimator gets the features by name, in declared order."""
    assert _scored(FITTED[kind], ROWS[ROWS.columns[::-1]]) == _scored(FITTED[kind], ROWS)


@pytest.mark.parametrize("kind", FITTED)
def test_an_estimator_fitted_on_python_texts_takes_arrow_ones(kind):
    """A champion that was trained on object columns scores as it did."""
    objects = ROWS.astype({"country": "object"})
    fitted = _fitted(clone(FITTED[kind].estimator), objects, ANSWERS[kind])
    assert _scored(fitted, ROWS) == _scored(fitted, objects)


@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.parametrize("dtype", ["str", "object"])
@pytest.mark.failure_mode(48)
def test_a_category_that_was_never_seen_is_scored_alone_as_in_company(kind, dtype):
    """A chunk may hold nothing but an unknown category, or nothing but NULL."""
    for country in ("de", None):
        rows = ROWS.assign(country=pd.Series([country] * len(ROWS), dtype=dtype))
        assert _scored(FITTED[kind], rows[:1])["order-0"] == pytest.approx(
            _scored(FITTED[kind], rows)["order-0"]
        )


def test_the_score_of_two_classes_is_the_probability_of_the_second():
    """Also where the first is predicted; the label is the predicted class as text."""
    fitted, inputs = FITTED["binary"], FITTED["binary"].inputs(ROWS)
    scores, labels = fitted.scores_and_labels(fitted.answers(inputs))
    assert scores.tolist() == fitted.estimator.predict_proba(inputs)[:, 1].tolist()
    assert labels.to_pylist() == ["1" if score > 0.5 else "0" for score in scores]


def test_the_score_of_more_classes_is_the_probability_of_the_predicted_one():
    """And the label says which one that is."""
    fitted, inputs = FITTED["multiclass"], FITTED["multiclass"].inputs(ROWS)
    scores, labels = fitted.scores_and_labels(fitted.answers(inputs))
    assert scores.tolist() == fitted.estimator.predict_proba(inputs).max(axis=1).tolist()
    assert labels.to_pylist() == fitted.estimator.predict(inputs).tolist()


def test_the_score_of_a_regression_is_its_value_and_has_no_label():
    """There is no class to name."""
    fitted, inputs = FITTED["regression"], FITTED["regression"].inputs(ROWS)
    scores, labels = fitted.scores_and_labels(fitted.answers(inputs))
    assert scores.tolist() == fitted.estimator.predict(inputs).tolist()
    assert (labels.type, labels.null_count) == (pa.string(), len(inputs))


class Short(LinearRegression):
    """An estimator that loses a row."""

    def predict(self, X):
        """All but the first."""
        return super().predict(X)[1:]


def test_an_estimator_that_loses_a_row_is_found_out():
    """Otherwise every score would belong to another key."""
    short = _fitted(Short(), ROWS, TWO, {"amount": Number()})
    with pytest.raises(ContractError, match="estimator: answered 39 rows where it was given 40"):
        short.answers(short.inputs(ROWS))


def _strict():
    """scikit-learn's default raises at a category that it does not know."""
    columns = make_column_transformer((OneHotEncoder(), ["country"]), remainder="passthrough")
    return make_pipeline(columns, LogisticRegression())


class Counting:
    """What is asked of a version, counted."""

    def __init__(self, fitted):
        self.fitted, self.calls = fitted, 0

    def __call__(self, rows):
        """The answers to some rows."""
        self.calls += 1
        return self.fitted.answers(self.fitted.inputs(rows))


def test_rows_at_which_the_estimator_raises_are_found_by_halving():
    """Each with the estimator's own words; the others are answered as without them."""
    fitted = _fitted(_strict(), ROWS, TWO)
    odd = ROWS.assign(country=ROWS["country"].where(~ROWS.index.isin([7, 30]), "violet"))
    ask = Counting(fitted)
    answer, refused = answered(ask, odd)
    assert list(refused) == [7, 30]
    assert all("unknown categories ['violet']" in error for error in refused.values())
    rest = odd.drop(index=[7, 30])
    assert answer == pytest.approx(fitted.answers(fitted.inputs(rest)), abs=1e-14)
    assert ask.calls < 4 * 6  # each of the two takes twice as many calls as forty can be halved


def test_an_estimator_that_raises_at_most_rows_is_at_fault_itself():
    """Nobody waits until each of them has been tried."""
    fitted = _fitted(_strict(), ROWS, TWO)
    many = pd.concat([ROWS.assign(country="violet")] * 5, ignore_index=True)
    ask = Counting(fitted)
    with pytest.raises(ValueError, match="violet"):
        answered(ask, many)
    assert ask.calls < len(many) / 5


def test_at_however_many_rows_the_estimator_raises_the_others_may_be_answered():
    """Where rows are of different people, nobody pays for what another one has asked."""
    fitted = _fitted(_strict(), ROWS, TWO)
    many = pd.concat([*[ROWS.assign(country="violet")] * 4, ROWS], ignore_index=True)
    answer, refused = answered(Counting(fitted), many, most=len(many))
    assert list(refused) == list(range(4 * len(ROWS)))
    assert answer == pytest.approx(fitted.answers(fitted.inputs(ROWS)), abs=1e-14)


def test_rows_at_which_the_estimator_raises_may_lie_together():
    """A key tells who they are: a new shop's rows come one after the other."""
    fitted = _fitted(_strict(), ROWS, TWO)
    many = pd.concat([ROWS.assign(country="violet"), *[ROWS] * 4], ignore_index=True)
    ask = Counting(fitted)
    answer, refused = answered(ask, many)
    assert (list(refused), len(answer)) == (list(range(len(ROWS))), 4 * len(ROWS))


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_what_no_row_is_to_blame_for_is_raised_at_once(error):
    """A machine without memory would only get less of it."""
    calls = []

    def ask(rows):
        calls.append(len(rows))
        raise error

    with pytest.raises(error):
        answered(ask, ROWS)
    assert calls == [len(ROWS)]


def test_a_row_alone_is_refused_and_not_raised():
    """It is all there is, and another row may be answered."""
    answer, refused = answered(
        Counting(_fitted(_strict(), ROWS, TWO)), ROWS.assign(country="x")[:1]
    )
    assert (answer, list(refused)) == (None, [0])


def test_no_fitted_model_is_kept_alive():
    """Once nobody holds a version, its memory is free."""
    fitted = _fitted(clone(ESTIMATORS["binary"]), ROWS, TWO)
    estimator = weakref.ref(fitted.estimator)
    fitted.scores_and_labels(fitted.answers(fitted.inputs(ROWS)))
    del fitted
    gc.collect()
    assert estimator() is None


OTHERS = {
    "LightGBM": lambda: LGBMClassifier(n_estimators=5, min_child_samples=2, verbose=-1, n_jobs=1),
    "XGBoost": lambda: XGBClassifier(n_estimators=5, enable_categorical=True, n_jobs=1),
    "CatBoost": lambda: CatBoostClassifier(
        iterations=5, cat_features=["country"], verbose=0, allow_writing_files=False, thread_count=1
    ),
    "pipeline": lambda: _encoded(LogisticRegression()),
    "boosting": _boosted,
}
KNOWN = ROWS.assign(country=ROWS["country"].fillna("us"))


@pytest.mark.parametrize("library", OTHERS)
@pytest.mark.parametrize("company", ["whole", "alone", "turned", "one country", "a stranger"])
def test_whoever_shares_a_chunk_no_library_answers_otherwise(library, company):
    """Categories are those of training: not those of a chunk, which has one of them or none."""
    fitted = _fitted(OTHERS[library](), KNOWN, TWO)
    whole = fitted.answers(fitted.inputs(KNOWN))
    pieces = {
        "whole": [KNOWN],
        "alone": [KNOWN[place : place + 1] for place in range(len(KNOWN))],
        "turned": [KNOWN[::-1]],
        "one country": [KNOWN[KNOWN["country"] == country] for country in ("kr", "us")],
        "a stranger": [pd.concat([KNOWN, KNOWN[:1].assign(country="zz", entity_id="zz")])],
    }[company]
    found = {}
    for piece in pieces:
        answer, refused = answered(lambda rows: fitted.answers(fitted.inputs(rows)), piece)
        keys = [key for place, key in enumerate(piece["entity_id"]) if place not in refused]
        found |= dict(zip(keys, answer.tolist(), strict=True))
    wanted = dict(zip(KNOWN["entity_id"], whole.tolist(), strict=True))
    assert {key: found[key] for key in wanted} == {
        key: pytest.approx(value, abs=1e-12) for key, value in wanted.items()
    }


@pytest.mark.parametrize("library", ["LightGBM", "XGBoost", "boosting"])
def test_an_interval_whose_category_is_null_throughout_is_scored(library):
    """As each of its rows would be among others."""
    fitted = _fitted(OTHERS[library](), ROWS, TWO)
    nothing = ROWS.assign(country=pd.Series([None] * len(ROWS), dtype="str"))
    among = pd.concat([nothing, KNOWN], ignore_index=True)
    whole = fitted.answers(fitted.inputs(among))[: len(ROWS)]
    assert fitted.answers(fitted.inputs(nothing)) == pytest.approx(whole, abs=1e-12)
