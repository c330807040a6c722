"""Training sees what was known at its moment, learns before the cut and evaluates after it."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import LinearSVC

from batch_jobs import BatchModel, Gate, Number
from batch_jobs.catalog import load_model
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ModelFileError, TrainingDataError
from batch_jobs.evaluation.metrics import baseline, calibration_error, evaluate, measure
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.training.dataset import read_split, split_by_time
from batch_jobs.training.fit import fit

NOW = datetime(2024, 3, 1, tzinfo=UTC)
CUT = NOW - timedelta(days=2)
HOUR = timedelta(hours=1)


def _model(estimator=LogisticRegression, **changed):
    fields = {
        "name": "orders",
        "description": "Which orders come back?",
        "features_query": ":start :end",
        "labels_query": ":start :end",
        "features": {"amount": Number()},
        "estimator": estimator,
        "history": timedelta(days=10),
        "holdout": timedelta(days=2),
        "gate": Gate(min_rows=1),
    }
    return BatchModel(**fields | changed)


def _rows(count, first=NOW - timedelta(days=10), step=HOUR, known_after=HOUR):
    """Features and labels of one order a step; every other one comes back."""
    as_of = pd.Series([pd.Timestamp(first + n * step) for n in range(count)])
    keys = [f"order-{n}" for n in range(count)]
    numbers = np.arange(count)
    features = pd.DataFrame({"entity_id": keys, "as_of": as_of, "amount": numbers.astype(float)})
    labels = pd.DataFrame(
        {"entity_id": keys, "label": numbers % 2, "known_at": as_of + known_after}
    )
    return features, labels


def _labelled(count):
    features, labels = _rows(count)
    return features.merge(labels)


def test_nothing_is_learnt_that_was_scored_or_known_after_the_cut():
    """The hold-out evaluates a model that cannot have seen any of it."""
    split = split_by_time(_model(), *_rows(240, known_after=timedelta(hours=3)), NOW)
    assert split.cut == CUT
    assert split.fit["as_of"].max() == CUT - timedelta(hours=3)
    assert split.fit["known_at"].max() == CUT
    assert split.holdout["as_of"].min() == CUT


def test_a_label_that_is_not_known_yet_does_not_exist():
    """Known at the very moment counts, a microsecond later does not."""
    features, labels = _rows(240)
    labels.loc[238, "known_at"] = NOW
    labels.loc[239, "known_at"] = NOW + timedelta(microseconds=1)
    evaluated = split_by_time(_model(), features, labels, NOW).holdout["entity_id"].tolist()
    assert evaluated[-1] == "order-238"


def test_labels_of_the_future_change_nothing():
    """Training as of a moment gives the same split today and a year later."""
    features, labels = _rows(240, known_after=timedelta(hours=5))
    then = labels[labels["known_at"] <= NOW]
    ripe, now = (
        split_by_time(_model(), features, labels, NOW),
        split_by_time(_model(), features, then, NOW),
    )
    pd.testing.assert_frame_equal(ripe.fit, now.fit)
    pd.testing.assert_frame_equal(ripe.holdout, now.holdout)


def test_coverage_is_the_share_of_recent_rows_whose_label_is_known():
    """Half of the two days are labelled within a day."""
    split = split_by_time(_model(), *_rows(240, known_after=timedelta(days=1)), NOW)
    assert split.coverage == pytest.approx(25 / 48)


def test_a_population_is_labelled_at_each_snapshot():
    """Where labels have an `as_of`, a customer's label of today is not that of last week."""
    features, labels = _rows(240)
    features["entity_id"] = labels["entity_id"] = "customer-1"
    split = split_by_time(_model(), features, labels.assign(as_of=features["as_of"]), NOW)
    assert split.holdout["label"].tolist() == [0, 1] * 24


@pytest.mark.parametrize(
    ("count", "gate", "expected"),
    [
        (2, Gate(min_rows=1), "0 labelled rows to evaluate on, at least 1 are needed"),
        (0, Gate(min_rows=1), "0 labelled rows to learn from, at least 2 are needed"),
        (240, Gate(min_rows=49), "48 labelled rows to evaluate on, at least 49 are needed"),
    ],
)
@pytest.mark.failure_mode(48)
def test_too_few_rows_stop_the_training(count, gate, expected):
    """The message says how many there are and how many it takes; nothing is promoted."""
    with pytest.raises(TrainingDataError, match=expected):
        split_by_time(_model(gate=gate), *_rows(count), NOW)


@pytest.mark.failure_mode(48)
def test_a_single_class_stops_the_training_of_a_classifier():
    """The message names the class; nothing is promoted."""
    rows = _labelled(10).assign(label="kept")
    with pytest.raises(TrainingDataError, match="all 10 rows to learn from have the label 'kept'"):
        fit(_model(), rows)


def test_a_regressor_may_learn_a_constant():
    """Only classifiers need two classes."""
    fitted = fit(_model(DummyRegressor), _labelled(10).assign(label=7.0))
    assert fitted.estimator.predict([[1.0]]) == [7.0]


def test_the_score_is_the_probability_of_the_class_that_the_model_file_names():
    """Its metrics are those of that class, whatever sorts last."""
    rows = _labelled(40).assign(label=lambda frame: np.where(frame["amount"] < 20, "ill", "well"))
    told, untold = fit(_model(positive="ill"), rows), fit(_model(), rows)
    assert (told.classes, told.positive, untold.positive) == (("ill", "well"), "ill", "well")
    scores, labels = told.scores_and_labels(told.answers(told.inputs(rows)))
    assert (scores[0] > 0.9, scores[-1] < 0.1) == (True, True)
    assert (labels[0].as_py(), labels[-1].as_py()) == ("ill", "well")
    shares = [evaluate(each, rows).metrics["base_rate"] for each in (told, untold)]
    assert shares == [0.5, 0.5]
    assert evaluate(told, rows[:25]).metrics["base_rate"] == 0.8
    assert evaluate(told, rows[:25]).metrics["roc_auc"] == 1.0


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["ill", "well"], r"positive: 'yes' names .* 2: 'ill', 'well'; write one of 'ill', 'well'"),
        (["a", "b", "c"], r"the labels have 3: 'a', 'b', 'c'; leave it out"),
    ],
)
def test_a_positive_class_that_is_none_of_two_is_refused(labels, words):
    """Before the fit, with the classes that there are."""
    rows = _labelled(30).assign(label=np.resize(labels, 30))
    with pytest.raises(ModelFileError, match=words):
        fit(_model(positive="yes"), rows)


def test_a_regression_has_no_positive_class():
    """Whoever names one has another estimator in mind."""
    with pytest.raises(ModelFileError, match="positive: LinearRegression is not a classifier"):
        fit(_model(LinearRegression, positive="1"), _labelled(10))


def test_a_classifier_without_probabilities_is_told_how_to_get_them():
    """The message shows the code to write."""
    with pytest.raises(ModelFileError, match=r"CalibratedClassifierCV\(LinearSVC\(\)\)"):
        fit(_model(lambda: LinearSVC(C=1e-9)), _labelled(10))


def test_the_metrics_of_two_classes_are_those_of_scikit_learn():
    """Computed once from the same probabilities."""
    truth = np.array([0, 1, 1, 0, 1, 0])
    answer = np.array([0.1, 0.8, 0.4, 0.6, 0.9, 0.2])
    evaluated = measure(truth, np.column_stack([1 - answer, answer]), ("0", "1"))
    assert evaluated.metrics == pytest.approx(
        {
            "log_loss": metrics.log_loss(truth, answer),
            "brier": metrics.brier_score_loss(truth, answer),
            "accuracy": metrics.accuracy_score(truth, answer > 0.5),
            "roc_auc": metrics.roc_auc_score(truth, answer),
            "base_rate": 0.5,
            "calibration_error": calibration_error(
                [(p, t, 1) for p, t in zip(answer, truth, strict=True)]
            ),
        }
    )
    assert evaluated.losses.mean() == pytest.approx(metrics.log_loss(truth, answer))


def test_the_metrics_of_three_classes_are_those_of_scikit_learn():
    """Without the area under a curve that only two classes have."""
    classes = ("a", "b", "c")
    truth = np.array(["a", "b", "c", "b"])
    answer = np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.8, 0.1]])
    evaluated = measure(truth, answer, classes)
    assert evaluated.metrics == pytest.approx(
        {
            "log_loss": metrics.log_loss(truth, answer),
            "brier": metrics.brier_score_loss(truth, answer, scale_by_half=False),
            "accuracy": 0.75,
            # Right with 0.7, 0.5 and 0.8; two bins hold the equal 0.4 and 0.5 apart.
            "calibration_error": calibration_error(
                [(0.4, 0, 1), (0.5, 1, 1), (0.7, 1, 1), (0.8, 1, 1)]
            ),
        }
    )


def test_the_metrics_of_a_regression_are_those_of_scikit_learn():
    """The loss is the squared error."""
    truth, answer = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    evaluated = measure(truth, answer.reshape(-1, 1), None)
    assert evaluated.metrics == pytest.approx(
        {
            "mae": metrics.mean_absolute_error(truth, answer),
            "rmse": metrics.root_mean_squared_error(truth, answer),
        }
    )
    assert evaluated.losses.tolist() == [0.25, 0.0, 1.0]


def test_a_class_that_was_never_learnt_is_a_bounded_loss():
    """A new class in the hold-out counts as a miss, not as an infinite loss."""
    evaluated = measure(np.array(["a", "new"]), np.array([[0.9, 0.1]] * 2), ("a", "b"))
    assert evaluated.losses.tolist() == pytest.approx([-np.log(0.9), -np.log(1e-15)])
    assert evaluated.metrics["accuracy"] == 0.5


@pytest.mark.parametrize("wild", [np.nan, np.inf])
@pytest.mark.parametrize("classes", [None, ("0",)])
def test_an_estimator_that_answers_no_number_cannot_be_evaluated(wild, classes):
    """Otherwise its NaN loss would compare as not worse than any other."""
    with pytest.raises(
        TrainingDataError, match=r"answered nan or inf for 1 of 2 rows to evaluate on"
    ):
        measure(np.array([0, 1]), np.array([[0.5], [wild]]), classes)


def test_one_class_to_evaluate_on_is_too_few():
    """No area under the curve can be told."""
    with pytest.raises(TrainingDataError, match="all 3 rows to evaluate on have the label 0"):
        measure(np.zeros(3, dtype=int), np.full((3, 2), 0.5), ("0", "1"))


@pytest.mark.parametrize(
    ("estimator", "constant"),
    [(LogisticRegression, DummyClassifier(strategy="prior")), (LinearRegression, DummyRegressor())],
)
def test_the_baseline_is_the_best_constant_of_the_rows_learnt_from(estimator, constant):
    """The same as scikit-learn's dummy estimators."""
    rows = _labelled(40).assign(label=lambda frame: (frame["amount"] % 3 == 0).astype(int))
    learnt, evaluated = rows[:30], rows[30:]
    constant.fit(learnt[["amount"]], learnt["label"])
    model = _model(estimator)
    got = baseline(fit(model, learnt), learnt, evaluated)
    wanted = evaluate(Fitted.of(constant, model.features), evaluated)
    assert got.losses.tolist() == pytest.approx(wanted.losses.tolist())


def test_calibration_error_is_the_distance_from_what_came_true():
    """By hand: of ten rows said to be 0.8, and ten said to be 0.3, so many came true."""
    sure = np.repeat([0.3, 0.8], 10)
    labels = np.array([1] * 5 + [0] * 5 + [1] * 8 + [0] * 2)
    evaluated = measure(labels, np.column_stack([1 - sure, sure]), ("0", "1"))
    assert evaluated.reliability == [
        (pytest.approx(0.3), pytest.approx(0.5), 10),
        (pytest.approx(0.8), pytest.approx(0.8), 10),
    ]
    # Of ten rows, 0.3 is so far from 0.5 by chance that of 0.04 there are 0.021 left.
    assert evaluated.metrics["calibration_error"] == pytest.approx(np.sqrt(0.04 - 0.021) / 2)


def test_calibration_of_many_classes_is_that_of_the_predicted_one():
    """Nine of ten predictions are right, and were said to be so with 0.6."""
    answer = np.tile([0.6, 0.2, 0.2], (10, 1))
    labels = np.array(["a"] * 9 + ["b"])
    evaluated = measure(labels, answer, ("a", "b", "c"))
    assert evaluated.reliability == [(pytest.approx(0.6), pytest.approx(0.9), 10)]
    assert evaluated.metrics["calibration_error"] == pytest.approx(np.sqrt(0.09 - 0.024))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [100, 168, 300, 5000])
def test_calibration_is_evaluated_by_more_than_chance_on_few_rows(rows):
    """Few sound probabilities are refused, and most of those that are off by 0.2."""
    chance, refused = np.random.default_rng(rows), {0.0: 0, 0.2: 0}
    for _ in range(200):
        truth = chance.uniform(0.1, 0.7, rows)
        labels = (chance.uniform(size=rows) < truth).astype(int)
        for off in refused:
            answer = np.column_stack([1 - truth - off, truth + off])
            found = measure(labels, answer, ("0", "1")).metrics["calibration_error"]
            refused[off] += found > Gate().calibration
    assert refused[0.0] <= 16
    assert refused[0.2] >= 170


def test_regressions_have_no_reliability_curve():
    """There is no probability to come true."""
    evaluated = measure(np.array([1.0, 2.0]), np.array([[1.0], [3.0]]), None)
    assert evaluated.reliability == []
    assert "calibration_error" not in evaluated.metrics


@pytest.mark.parametrize(
    ("count", "late", "told"),
    [
        (240, timedelta(days=3), "3 days after .* the hold-out is the last 2 days: let holdout be"),
        (48, HOUR, "the newest row is old: try --as-of 2024-02-22T00:00Z"),
        (240, None, "labels_query returns no row of the 10 days before: try an --as-of"),
        (0, HOUR, "features_query returns no row of the 10 days before: try an --as-of"),
    ],
)
def test_too_few_labels_tell_how_late_they_come_and_when_there_are_some(count, late, told):
    """Also if there is none at all."""
    features, labels = _rows(count, known_after=late or HOUR)
    labels = labels if late else labels[:0]
    with pytest.raises(TrainingDataError, match=told):
        split_by_time(_model(), features, labels, NOW)


def test_rows_of_one_time_are_learnt_from_in_one_order():
    """However the database returns them; the fit of trees depends on it."""
    features, labels = _rows(240)
    features["as_of"] = features["as_of"].dt.floor("6h")
    one = split_by_time(_model(), features, labels, NOW)
    other = split_by_time(_model(), features.sample(frac=1, random_state=1), labels, NOW)
    assert one.fit.equals(other.fit)
    assert one.holdout.equals(other.holdout)


@pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
def test_a_model_may_be_due_less_often_than_its_history_is_long(shop):
    """Such as one that is scored once a year, whose texts of time are looked up all the same."""
    model = load_model("orders", shop.models).model_copy(update={"schedule": "0 0 1 1 *"})
    split = read_split(Warehouse(shop.warehouse), model, NOW)
    assert len(split.holdout) > 0
