"""What was published meets what became of it."""

import numpy as np
import pandas as pd
import pytest

from batch_jobs.evaluation import ground_truth
from batch_jobs.reports.backtest import replay_page

HOURS = pd.to_datetime([f"2024-03-01T0{hour}:00Z" for hour in range(3)], utc=True)


def _predictions(scores, predicted, hours=None):
    places = hours or [0] * len(scores)
    return pd.DataFrame(
        {
            "entity_id": [f"e{n}" for n in range(len(scores))],
            "score": scores,
            "predicted": predicted,
            "interval_start": HOURS[places],
            "interval_end": HOURS[[place + 1 for place in places]],
        }
    )


def _rows(scores, predicted, truth):
    return _predictions(scores, predicted).assign(truth=truth)


def test_a_prediction_without_an_outcome_is_counted_and_not_evaluated():
    """Coverage says how many were evaluated."""
    labels = pd.DataFrame({"entity_id": ["e0", "e2", "e9"], "label": [1, 0, 1]})
    rows = ground_truth.with_ground_truth(_predictions([0.8, 0.3, 0.4], ["1", "0", "0"]), labels)
    found = ground_truth.figures(rows, ground_truth.classes_of(rows))
    assert (found["rows_scored"], found["label_coverage"]) == (3, 0.6667)
    assert found["brier"] == pytest.approx((0.2**2 + 0.4**2) / 2)
    assert found["log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert (found["auc"], found["accuracy"]) == (1, 1)


def test_an_outcome_that_is_not_known_changes_no_class_of_the_others():
    """It makes floats of whole numbers, and 1.0 is class 1."""
    labels = pd.DataFrame({"entity_id": ["e0", "e1", "e2"], "label": [1, 2, 3]})
    predictions = _predictions([0.8, 0.6, 0.4, 0.4], ["1", "2", "3", "3"])
    rows = ground_truth.with_ground_truth(predictions, labels)
    assert ground_truth.figures(rows, ground_truth.classes_of(rows))["accuracy"] == 1


def test_an_outcome_of_a_population_is_that_of_its_moment():
    """The same customer has another one at another hour."""
    predictions = _predictions([1.0, 2.0], None, [0, 1]).assign(entity_id="ann")
    labels = pd.DataFrame({"entity_id": "ann", "as_of": HOURS[[1, 0]], "label": [2.5, 1.5]})
    rows = ground_truth.with_ground_truth(predictions, labels)
    assert rows["truth"].tolist() == [1.5, 2.5]
    assert ground_truth.figures(rows, ground_truth.classes_of(rows))["mae"] == 0.5


def test_of_many_classes_it_is_known_how_often_the_predicted_one_came_true():
    """Of the others no probability was published."""
    rows = _rows([0.5, 0.6, 0.7], ["a", "b", "c"], ["a", "b", "d"])
    found = ground_truth.figures(rows, ground_truth.classes_of(rows))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert "log_loss" not in found


@pytest.mark.parametrize("truth", [[1, 1], [None, None]])
def test_a_week_whose_outcomes_are_alike_or_unknown_has_no_metric(truth):
    """And does not stop the report."""
    rows = _rows([0.5, 0.6], ["1", "1"], truth)
    assert "log_loss" not in ground_truth.figures(rows, ["0", "1"])


def test_three_classes_of_which_two_came_are_three():
    """The versions that scored know them, whatever the outcomes were."""
    rows = _rows([0.9] * 4, ["a", "b", "a", "b"], ["a", "b", "a", "b"])
    classes = ground_truth.classes_of(rows, [{"classes": ["a", "b", "c"], "positive": None}])
    assert ground_truth.figures(rows, classes) == {
        "rows_scored": 4,
        "label_coverage": 1.0,
        "accuracy": 1.0,
    }


def test_the_score_is_that_of_the_class_that_the_version_names():
    """Whatever sorts last; one class that came does not make it another."""
    rows = _rows([0.9, 0.2, 0.8], ["ill", "well", "ill"], ["ill", "well", "ill"])
    classes = ground_truth.classes_of(rows, [{"classes": ["ill", "well"], "positive": "ill"}])
    assert classes == ["well", "ill"]
    found = ground_truth.figures(rows, classes)
    assert (found["auc"], found["accuracy"], found["base_rate"]) == (1, 1, pytest.approx(2 / 3))


def test_scores_are_counted_between_0_and_1_if_they_are_probabilities():
    """So that two replays are drawn on one scale; values have their own."""
    assert ground_truth.histogram(_rows([0.5, 0.52], None, 1))["edges"][::20] == [0, 1]
    assert ground_truth.histogram(_rows([-3.0, 7.0], None, 1))["edges"][::20] == [-3, 7]
    assert sum(ground_truth.histogram(_rows([0.1, 0.9], None, 1))["counts"]) == 2


def _report(gate, **figures):
    start, end = "2024-03-01T00:00:00+00:00", "2024-03-08T00:00:00+00:00"
    training = {"as_of": start, "version": "v1", "champion": "v1", "metrics": {}}
    return {
        "model": "orders",
        "start": start,
        "end": end,
        "gate": gate,
        "intervals": 9,
        "published": 9,
        "weeks": [{"start": start, "rows_scored": 7, "rows_rejected": 2, "label_coverage": 1.0}],
        "history": [
            {**training, "outcome": "promoted", "reason": "the first"},
            {**training, "outcome": "kept", "reason": "worse <than> it"},
        ],
        "scores": {"edges": [0.0, 0.5, 1.0], "counts": [3, 4]},
        **figures,
    }


def test_the_page_tells_each_training_and_compares_gates():
    """Escaped, in one file, and the same each time."""
    shared = {"log_loss": 0.4321}
    reports = [_report("always", shared=shared), _report("non_inferiority", shared=shared)]
    reports[0]["weeks"][0]["log_loss"] = 0.5
    page = replay_page(reports)
    assert "worse &lt;than&gt; it" in page
    assert page.count("0.4321") == 2
    assert page.count("<svg") == 4
    assert "Log-loss of the week" in page
    assert page == replay_page(reports)


def test_a_replay_without_outcomes_is_drawn_too():
    """It has no metric by week."""
    page = replay_page([_report("always", history=[], weeks=[])])
    assert "<svg" in page
    assert "Log-loss" not in page
