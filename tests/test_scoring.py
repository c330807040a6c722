"""A row's score depends on the row and the version alone, and means what the contract says."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from batch_jobs import Category, Number
from batch_jobs.errors import ContractError
from batch_jobs.scoring import Fitted, as_inputs, categories_of

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
