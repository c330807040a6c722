"""Compiled trees answer as scikit-learn's own do, in every bit, or are not taken."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from batch_jobs import Number
from batch_jobs.scoring import code_cache, compiled_trees
from batch_jobs.scoring import predict as predict_
from batch_jobs.scoring.compiled_trees import compiled
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.scoring.predict import MANY_ROWS, Predictor

ROWS = 4_000
NUMBERS = ["a", "b", "c"]
BOOSTED = {"max_iter": 12, "random_state": 0, "categorical_features": "from_dtype"}


def people(seed, *, known=True):
    """Numbers, some missing, and categories of few and many kinds; unknown ones unless `known`."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(ROWS, len(NUMBERS))).round(1), columns=NUMBERS)
    frame = frame.mask(rng.random(frame.shape) < 0.1)
    few = np.array(["x", "y", "z", None], "object")[rng.integers(0, 4, ROWS)]
    many = np.array([f"k{number}" for number in rng.integers(0, 80, ROWS)], "object")
    if not known:
        many[::9] = "new"
        frame.loc[::7, "a"] = -np.inf
    return frame.assign(few=pd.Categorical(few), many=pd.Categorical(many))


def answers(frame, classes):
    """What the models learn: it depends on every column."""
    numbers = frame[NUMBERS].fillna(0.5).sum(axis=1)
    codes = frame["few"].cat.codes + frame["many"].cat.codes % 5
    return ((numbers * 3 + codes).round() % classes).astype("int64")


def predict(estimator, frame):
    """What is published: probabilities, or values."""
    return Fitted.of(estimator, {}).answers(frame)


@pytest.mark.parametrize(
    ("kind", "settings", "classes"),
    [
        (HistGradientBoostingClassifier, {}, 2),
        (HistGradientBoostingClassifier, {"max_leaf_nodes": 64, "min_samples_leaf": 5}, 2),
        (HistGradientBoostingClassifier, {"max_leaf_nodes": 2}, 4),
        (HistGradientBoostingClassifier, {"max_depth": 3, "l2_regularization": 1.0}, 4),
        (HistGradientBoostingRegressor, {}, 50),
        (HistGradientBoostingRegressor, {"loss": "poisson", "max_bins": 100}, 50),
        (HistGradientBoostingRegressor, {"loss": "quantile", "quantile": 0.9}, 50),
    ],
)
@pytest.mark.parametrize("columns", [NUMBERS, ["few", "many"], [*NUMBERS, "few", "many"]])
def test_answers_are_equal_in_every_bit(kind, settings, classes, columns):
    """Missing and infinite numbers, missing and unknown categories, one class or many."""
    frame = people(1)
    estimator = kind(**BOOSTED, **settings).fit(frame[columns], answers(frame, classes))
    faster = compiled(estimator)

    for rows in (frame, people(2), people(3, known=False), people(4)[:1], people(5)[:129]):
        wanted = predict(estimator, rows[columns])
        assert np.array_equal(predict(faster, rows[columns]), wanted)
        assert not len(rows) > 1 or len(np.unique(wanted)) > 1


def test_trees_without_a_split_are_added_too():
    """A constant answer makes trees of one leaf."""
    frame = people(1)[NUMBERS]
    estimator = HistGradientBoostingRegressor(max_iter=2).fit(frame, np.full(ROWS, 0.25))

    assert np.array_equal(predict(compiled(estimator), frame), predict(estimator, frame))


def test_last_step_of_a_pipeline_is_compiled():
    """And the pipeline itself is left as it was."""
    frame = people(1)[NUMBERS]
    last = HistGradientBoostingClassifier(max_iter=5, random_state=0)
    pipeline = make_pipeline(FunctionTransformer(lambda rows: rows * 2), last)
    pipeline.fit(frame, answers(people(1), 2))
    faster = compiled(pipeline)

    assert faster.steps[-1][1] is not last
    assert pipeline.steps[-1][1] is last
    assert np.array_equal(predict(faster, frame), predict(pipeline, frame))


class Doubled(HistGradientBoostingRegressor):
    """One that predicts in a way of its own."""

    def predict(self, X):
        """Twice what its trees say."""
        return 2 * super().predict(X)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # scikit-learn's: inf - inf
def test_what_is_of_another_kind_is_not_compiled():
    """Other estimators, subclasses, trees of too many leaves, thresholds between infinities."""
    frame = people(1)[NUMBERS]
    label = answers(people(1), 50)
    rng = np.random.default_rng(0)
    endless = np.where(rng.random((ROWS, 1)) < 0.05, np.inf, rng.normal(size=(ROWS, 1)))
    endless[::9] = np.nan
    infinite = HistGradientBoostingRegressor(max_iter=3).fit(endless, np.isfinite(endless[:, 0]))
    thresholds = [tree.nodes["num_threshold"] for [tree] in infinite._predictors]
    assert np.isnan(np.concatenate(thresholds)).any()

    assert compiled(infinite) is None
    assert compiled(RandomForestClassifier(n_estimators=2).fit(frame.fillna(0), label)) is None
    assert compiled(Doubled(max_iter=2).fit(frame, label)) is None
    wide = HistGradientBoostingRegressor(max_iter=1, max_leaf_nodes=65, min_samples_leaf=5)
    assert compiled(wide.fit(frame, np.random.default_rng(0).random(ROWS))) is None


@pytest.fixture
def boosted():
    """An estimator that has learned, and what it predicts."""
    frame = people(1)[NUMBERS]
    estimator = HistGradientBoostingClassifier(max_iter=3).fit(frame, answers(people(1), 2))
    return Fitted.of(estimator, dict.fromkeys(NUMBERS, Number())), frame


def test_trees_are_compiled_after_many_rows(boosted, monkeypatch):
    """Until then the estimator itself predicts; the answers are the same."""
    fitted, frame = boosted
    predictor = Predictor(fitted)
    monkeypatch.setattr(predictor, "_rows_left", ROWS + 1)

    first = predictor.answers(frame)
    assert predictor.fitted is fitted
    second = predictor.answers(frame)
    assert predictor.fitted is not fitted
    assert np.array_equal(first, second)
    assert np.array_equal(predictor.answers(frame), first)
    assert MANY_ROWS > ROWS


def broken(_):
    """Compile nothing, since an attribute is missing."""
    raise AttributeError("scikit-learn has changed")


class Wrong:
    """What a compiler with a bug makes of an estimator."""

    def __init__(self, estimator):
        self.classes_, self._estimator = estimator.classes_, estimator

    def __sklearn_tags__(self):
        return self._estimator.__sklearn_tags__()

    def predict_proba(self, inputs):
        """Almost the same."""
        return np.nextafter(self._estimator.predict_proba(inputs), 1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (broken, "trees are not compiled: AttributeError: scikit-learn has changed"),
        (Wrong, "trees are not compiled: another answer than the estimator's own"),
        (lambda _: None, None),
    ],
)
def test_estimator_goes_on_where_compiling_fails(boosted, monkeypatch, caplog, make, told):
    """One bit in one row is enough to refuse what was compiled."""
    fitted, frame = boosted
    monkeypatch.setattr(compiled_trees, "compiled", make)
    monkeypatch.setattr(predict_, "MANY_ROWS", 1)
    predictor = Predictor(fitted)

    with caplog.at_level(logging.INFO):
        answer = predictor.answers(frame)

    assert predictor.fitted is fitted
    assert np.array_equal(answer, fitted.estimator.predict_proba(frame))
    assert [record.message for record in caplog.records] == ([told] if told else [])


def test_trees_are_compiled_where_they_cannot_be_kept(boosted, monkeypatch, caplog):
    """As in a container that is only read: each process compiles them anew, and says so."""
    from numba.core.caching import CacheImpl

    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    monkeypatch.setattr(code_cache, "problem", lambda: code_cache.UNKEPT)
    compiled_trees._machine_code.cache_clear()
    fitted, frame = boosted
    predictor = Predictor(fitted)
    monkeypatch.setattr(predictor, "_rows_left", ROWS)
    expected = fitted.answers(fitted.inputs(frame))
    for _ in range(2):
        assert np.array_equal(predictor.answers(frame), expected)
    compiled_trees._machine_code.cache_clear()
    assert predictor.fitted is not fitted
    assert caplog.messages == [code_cache.UNKEPT]


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("", None), ("cache", None), ("cache/not/yet", None), ("file", code_cache.UNKEPT)],
)
def test_status_tells_where_compiled_trees_cannot_be_kept(tmp_path, folder, expected):
    """By default they are beside the package, or in the user's cache."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "file").touch()
    environ = {"NUMBA_CACHE_DIR": str(tmp_path / folder)} if folder else {}
    assert code_cache.problem(environ) == expected
