"""The gate's page tells the verdict in words, and draws each part that the report has."""

import numpy as np
import pandas as pd
import pytest

from batch_jobs import Gate
from batch_jobs.evaluation.gate import Compared, decide
from batch_jobs.evaluation.metrics import Evaluation, measure
from batch_jobs.reports.gate import gate_page, metrics_table, verdict

ROWS = 1_000
CHANCE = np.random.default_rng(0)
AS_OF = pd.Series(pd.date_range("2024-03-01", periods=ROWS, freq="20min", tz="UTC"))
TRUTH = (CHANCE.random(ROWS) < 0.3).astype(int)
SLICES = pd.DataFrame({"country": np.where(np.arange(ROWS) % 2, "fr", "<b>")})
MANIFEST = {
    "version": "v2",
    "as_of": "2024-03-15T03:00:00+00:00",
    "rows_fit": 12_345,
    "label_coverage": 0.9731,
    "libraries": {"scikit-learn": "1.9.1"},
}


def _evaluated(weight):
    """A classifier that leans on the truth by a weight between 0 and 1."""
    sure = 0.3 + weight * (TRUTH - 0.3) + CHANCE.normal(0, 0.02, ROWS)
    sure = np.clip(sure, 0.01, 0.99)
    return measure(TRUTH, np.column_stack([1 - sure, sure]), ("0", "1"))


pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def report():
    """A challenger that is better than the champion `v1`, in both countries."""
    return decide(
        Gate(slices=("country",)),
        AS_OF,
        challenger=_evaluated(0.5),
        baseline=_evaluated(0),
        champion=Compared("v1", _evaluated(0.3)),
        slices=SLICES,
    ).as_dict()


def _page(report, manifest=MANIFEST):
    return gate_page("orders", "v2", report, manifest)


def test_the_page_tells_the_verdict_and_its_reasons(report):
    """In words, before all drawings."""
    made = _page(report)
    told = made[: made.index("<svg")]
    assert "<h1>orders v2</h1>" in told
    assert "May replace v1." in told
    assert report["reasons"][0][1:].split(":")[0] in told
    assert "Evaluated on 1,000 labelled rows." in told


@pytest.mark.parametrize(
    ("promote", "champion", "told"),
    [
        (True, "v1", "May replace v1."),
        (True, None, "May serve: it would be the first to do so."),
        (False, "v1", "Refused: v1 goes on serving."),
        (False, None, "Refused: nobody serves yet."),
    ],
)
def test_each_verdict_has_its_sentence(promote, champion, told):
    """Whoever serves, or nobody."""
    assert verdict({"promote": promote, "champion": champion}) == told


def test_the_page_draws_losses_differences_reliability_and_slices(report):
    """Each drawing says what it shows, and names who is in it."""
    made = _page(report)
    for label in ("Mean log-loss of each", "log-loss less the other", "Reliability", "champion"):
        assert label in made
    assert made.count("<svg") == 4
    assert "95% bootstrap intervals" in made
    assert "country=&lt;b&gt;" in made
    assert "<b>" not in made


def test_the_metrics_stand_side_by_side(report):
    """One row a metric, one column a contender, in one order."""
    [row] = [row for row in metrics_table(report) if row["metric"] == "log loss"]
    assert list(row) == ["metric", "challenger", "champion", "baseline"]
    assert row["challenger"] < row["champion"] < row["baseline"]
    assert row["challenger"] == report["losses"]["challenger"]["mean"]


def test_the_page_tells_what_the_version_was_made_of(report):
    """Rows, coverage, times and libraries of the manifest."""
    made = _page(report)
    for told in ("12,345", "0.9731", "2024-03-15 03:00 UTC", "trained with scikit-learn", "1.9.1"):
        assert told in made


def test_the_first_version_has_a_page(report):
    """There is no champion to compare with, and no slice."""
    gate = Gate(calibration=None)
    first = decide(gate, AS_OF, challenger=_evaluated(0.5), baseline=_evaluated(0)).as_dict()
    made = _page(first)
    assert made.count("<svg") == 3
    assert "there is no champion to compare with" in made.lower()


def test_a_regression_has_no_reliability():
    """Its loss is the squared error."""
    errors = CHANCE.normal(0, 1, ROWS) ** 2
    one, other = Evaluation(errors, {"rmse": 1.0}), Evaluation(errors + 1, {"rmse": 1.4})
    made = _page(decide(Gate(), AS_OF, challenger=one, baseline=other).as_dict())
    assert "Mean squared error of each" in made
    assert "Reliability" not in made


def test_the_bound_is_told_where_there_is_one(report):
    """As the rule has it; without a champion there is none, and an older report has no rule."""
    assert "kept out if its whole line lies beyond zero" in _page(report)
    assert "let in only if its whole line lies before" in _page(
        report | {"rule": "significant_gain"}
    )
    for without in ({"to_champion": None}, {"rule": "unheard of"}):
        assert "Compared with the champion" not in _page(report | without)


def test_a_classifier_that_always_gives_one_probability_is_drawn(report):
    """Its curve is a point."""
    curves = {name: [(0.3, 0.31, ROWS)] for name in ("challenger", "baseline")}
    assert "share that came true" in _page(report | {"reliability": curves})


@pytest.mark.parametrize("missing", ["losses", "confidence", "reliability", "slices", "rule"])
def test_a_report_of_an_older_version_is_drawn_without_what_it_lacks(report, missing):
    """Which later versions of batch-jobs have added."""
    old = {name: value for name, value in report.items() if name != missing}
    assert "May replace v1." in _page(old, {})


def test_a_loss_that_is_no_number_is_drawn_all_the_same():
    """The page of a challenger that is refused for it must not fail."""
    broken = Evaluation(np.full(ROWS, np.nan), {"log_loss": float("nan")})
    made = _page(decide(Gate(), AS_OF, challenger=broken, baseline=_evaluated(0)).as_dict())
    assert "Refused: nobody serves yet." in made


def test_many_slices_are_drawn_to_the_worst_twenty(report):
    """A drawing of a hundred would be as long as ten screens; the table has them all."""
    slices = {f"airport={n:03}": {"mean": n, "low": n - 1, "high": n + 1} for n in range(100)}
    made = _page(report | {"slices": slices})
    assert "The 20 worst of 100 are drawn." in made
    assert made.count("airport=099") == 2
    assert made.count("airport=000") == 1


def test_the_same_report_gives_the_same_page(report):
    """Drawing it again changes no byte."""
    assert _page(report) == _page(report)
