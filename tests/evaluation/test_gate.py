"""A challenger is promoted unless it is shown to be worse, or is no better than a guess."""

import json

import numpy as np
import pandas as pd
import pytest

from batch_jobs import Gate
from batch_jobs.evaluation.bootstrap import paired_difference
from batch_jobs.evaluation.gate import Compared, decide
from batch_jobs.evaluation.metrics import Evaluation

DAYS = 14
PER_DAY = 50
AS_OF = pd.Series(pd.date_range("2024-03-01", periods=DAYS * PER_DAY, freq="28.8min", tz="UTC"))
CHANCE = np.random.default_rng(0)
NOISE = CHANCE.normal(0, 0.3, len(AS_OF))


def _evaluated(loss, noise=0.0, **metrics):
    return Evaluation(np.full(len(AS_OF), loss) + noise, {"log_loss": loss, **metrics})


def _decide(challenger, champion=None, gate=None):
    return decide(
        gate or Gate(),
        AS_OF,
        challenger=challenger,
        baseline=_evaluated(0.9),
        champion=champion and Compared("v1", champion),
    )


def test_the_first_challenger_is_promoted():
    """There is nobody to compare with, but the baseline is beaten."""
    report = _decide(_evaluated(0.5))
    assert (report.promote, report.reasons) == (True, ["there is no champion to compare with"])
    assert (report.rows, report.champion, report.to_champion) == (len(AS_OF), None, None)


def test_a_better_challenger_is_promoted():
    """Its interval lies below zero."""
    report = _decide(_evaluated(0.4, NOISE), _evaluated(0.5))
    assert report.promote
    assert report.to_champion.high < 0


def test_a_challenger_that_is_shown_to_be_worse_is_kept_out():
    """The reason tells the difference and its interval."""
    report = _decide(_evaluated(0.6, NOISE), _evaluated(0.5))
    assert not report.promote
    assert report.to_champion.low > 0
    assert report.reasons[0].startswith("its loss is shown to be worse than that of v1: +0.0")


@pytest.mark.parametrize("mean", [0.495, 0.505])
def test_a_challenger_that_differs_by_noise_is_promoted(mean):
    """The newer data wins a draw."""
    report = _decide(_evaluated(mean, NOISE - NOISE.mean()), _evaluated(0.5))
    assert report.promote
    assert report.to_champion.low < 0 < report.to_champion.high


def test_a_bad_day_alone_shows_nothing():
    """Errors within a day go together, so one bad day of fourteen is not many bad rows."""
    bad_day = np.where(np.arange(len(AS_OF)) < PER_DAY, 1.0, 0.0)
    report = _decide(_evaluated(0.5, bad_day - 0.03), _evaluated(0.5))
    assert report.to_champion.mean > 0
    assert report.promote


@pytest.mark.parametrize("span", ["1s", "1min"])
def test_a_hold_out_of_few_days_is_evaluated_all_the_same(span):
    """One day is no sample of days: noise within it may not keep a challenger out."""
    as_of = pd.Series(pd.date_range("2024-03-01", periods=len(AS_OF), freq=span, tz="UTC"))
    noisy, worse = _evaluated(0.501, NOISE - NOISE.mean()), _evaluated(0.6, NOISE)
    champion, gate = _evaluated(0.5), Gate()
    fixed = {"baseline": _evaluated(0.9), "champion": Compared("v1", champion)}
    assert decide(gate, as_of, challenger=noisy, **fixed).promote
    assert not decide(gate, as_of, challenger=worse, **fixed).promote


def test_a_challenger_no_better_than_a_guess_is_kept_out():
    """Also where there is no champion: nothing is better than a constant."""
    for loss in (0.9, 0.95):
        report = _decide(_evaluated(loss))
        assert not report.promote
        assert "no better than the baseline's 0.9000" in report.reasons[0]


@pytest.mark.parametrize(
    ("gate", "reason"),
    [
        (Gate(at_least={"roc_auc": 0.71}), "roc_auc 0.7 is below 0.71"),
        (Gate(at_most={"brier": 0.19}), "brier 0.2 is above 0.19"),
        (Gate(at_least={"accuracy": 0.5}), "accuracy None is below 0.5"),
        (Gate(at_most={"rmse": 1}), "rmse None is above 1.0"),
    ],
)
def test_a_challenger_must_reach_the_floors(gate, reason):
    """A metric that was not measured is not reached."""
    report = _decide(_evaluated(0.5, roc_auc=0.7, brier=0.2), gate=gate)
    assert (report.promote, report.reasons) == (False, [reason])


def test_a_floor_that_is_met_exactly_is_met():
    """At least means at least."""
    gate = Gate(at_least={"roc_auc": 0.7}, at_most={"brier": 0.2})
    assert _decide(_evaluated(0.5, roc_auc=0.7, brier=0.2), gate=gate).promote


def test_all_grounds_are_told():
    """Below the floor, worse than a guess and worse than the champion: three reasons."""
    gate = Gate(at_least={"roc_auc": 0.7})
    assert len(_decide(_evaluated(1.0), _evaluated(0.5), gate).reasons) == 3


def test_a_loss_that_is_no_number_is_never_good_enough():
    """NaN compares as neither worse nor better, and must not slip through."""
    report = _decide(
        _evaluated(float("nan"), roc_auc=float("nan")), gate=Gate(at_least={"roc_auc": 0})
    )
    assert not report.promote
    assert len(report.reasons) == 2


def _unheard(**changed):
    """What becomes of a challenger whose champion cannot be scored."""
    champion = Compared("v1", problem="no such column: temp")
    evaluated = {"challenger": _evaluated(0.5), "baseline": _evaluated(0.9)}
    return decide(Gate(**changed), AS_OF, **evaluated, champion=champion)


def test_a_champion_that_cannot_be_scored_is_not_replaced_unheard():
    """The report says why, and that a person has to decide: nobody knows which is better."""
    report = _unheard()
    assert report.reasons == [
        "it cannot be compared with the champion v1: no such column: temp; a person has to decide"
    ]
    assert (report.promote, report.undecided) == (False, True)


def test_a_person_is_not_asked_about_what_speaks_against_itself():
    """Its own bound is broken, whoever serves."""
    report = _unheard(at_most={"log_loss": 0.4})
    assert (report.promote, report.undecided, len(report.reasons)) == (False, False, 2)


def test_who_always_promotes_compares_with_nobody():
    """The rule says that comparisons do not count."""
    report = _unheard(rule="always")
    assert (report.promote, report.undecided) == (True, False)


def test_both_are_compared_on_the_entities_that_both_can_score():
    """The champion has fewer rows; the challenger's others do not count against either."""
    half = np.arange(0, len(AS_OF), 2)
    champion = Compared("v1", Evaluation(np.full(len(half), 0.5), {}), half)
    losses = np.where(np.arange(len(AS_OF)) % 2, 5.0, 0.4)
    challenger = Evaluation(losses, {})
    report = decide(
        Gate(), AS_OF, challenger=challenger, baseline=_evaluated(9.0), champion=champion
    )
    assert report.to_champion.mean == pytest.approx(-0.1)
    assert f"on the {len(half)} of {len(AS_OF)} rows that both can score" in report.reasons[0]


def test_a_comparison_on_too_few_rows_is_none():
    """Fewer than the gate asks for."""
    few = np.arange(10)
    champion = Compared("v1", Evaluation(np.full(10, 0.5), {}), few)
    report = decide(
        Gate(), AS_OF, challenger=_evaluated(0.4), baseline=_evaluated(0.9), champion=champion
    )
    assert "it can score 10 of the 700 rows" in report.reasons[0]
    assert (report.undecided, report.to_champion) == (True, None)


def test_equal_challengers_are_rarely_refused_for_a_slice_of_one_day():
    """Its interval has a width, though one day resampled is always that day."""
    refused, gate = 0, Gate(slices=("kind",), min_rows=40, calibration=None)
    kind = pd.DataFrame({"kind": np.where(AS_OF.dt.day == 3, "promotion", "usual")})
    for seed in range(60):
        noise = np.random.default_rng(seed).normal(0, 0.2, len(AS_OF))
        report = decide(
            gate,
            AS_OF,
            challenger=_evaluated(0.5, noise),
            baseline=_evaluated(5.0),
            champion=Compared("v1", _evaluated(0.5)),
            slices=kind,
        )
        found = report.slices["kind=promotion"]
        assert found.low < found.mean < found.high
        refused += any("kind=promotion" in reason for reason in report.reasons)
    assert refused <= 5


def test_the_same_entities_in_each_snapshot_are_no_new_evidence():
    """Fifty customers seen fourteen times tell as much as fifty, not as seven hundred."""
    entities = pd.Series([f"customer-{n % PER_DAY}" for n in range(len(AS_OF))])
    habit = np.random.default_rng(3).normal(0, 0.3, PER_DAY)
    challenger = _evaluated(0.5, np.tile(habit, DAYS))
    fixed = {
        "challenger": challenger,
        "baseline": _evaluated(5.0),
        "champion": Compared("v1", _evaluated(0.5)),
    }
    by_day = decide(Gate(), AS_OF, **fixed).to_champion
    by_entity = decide(Gate(), AS_OF, entities=entities, **fixed).to_champion
    assert by_day.high - by_day.low < 1e-9  # each day is the same
    wide = 2 * 1.96 * habit.std() / np.sqrt(PER_DAY)
    assert by_entity.high - by_entity.low == pytest.approx(wide, rel=0.2)


def test_a_rule_that_always_promotes_says_so_like_a_person():
    """And tells the comparison all the same."""
    report = _decide(_evaluated(0.6), _evaluated(0.5), Gate(rule="always"))
    assert report.reasons == [
        (
            "its rule promotes it whatever a comparison says; its loss less that of v1 is "
            "+0.1000 [+0.1000, +0.1000]"
        )
    ]


def test_the_same_rows_always_give_the_same_verdict():
    """The bootstrap's seed is fixed, so a retried task does not change its mind."""
    challenger, champion = _evaluated(0.5, NOISE), _evaluated(0.5)
    assert _decide(challenger, champion) == _decide(challenger, champion)


def test_the_report_is_plain_json():
    """It is stored with the version."""
    report = _decide(_evaluated(0.5, NOISE), _evaluated(0.5)).as_dict()
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    """On 300 simulated fortnights with good and bad days, 90 % intervals cover 80 to 96 %."""
    blocks = np.repeat(np.arange(DAYS), PER_DAY)
    covered = []
    for seed in range(300):
        chance = np.random.default_rng(seed)
        by_day = chance.normal(0.1, 0.3, DAYS)[blocks]
        one = Evaluation(by_day + chance.normal(0, 0.5, len(blocks)), {})
        got = paired_difference(one, Evaluation(np.zeros(len(blocks)), {}), blocks, 0.9)
        covered.append(got.low <= 0.1 <= got.high)
    assert 0.80 <= np.mean(covered) <= 0.96


def _by_rule(rule, challenger, champion):
    return _decide(challenger, champion, Gate(rule=rule))


@pytest.mark.parametrize(
    ("rule", "loss", "promoted"),
    [
        *(("non_inferiority", 0.4, True), ("non_inferiority", 0.5, True)),
        *(("non_inferiority", 0.6, False), ("significant_gain", 0.4, True)),
        *(("significant_gain", 0.5, False), ("significant_gain", 0.6, False)),
        *(("always", 0.4, True), ("always", 0.6, True), ("always", 0.95, True)),
    ],
)
def test_each_rule_promotes_what_it_says(rule, loss, promoted):
    """Shown better, no difference shown, shown worse, and worse than a constant."""
    report = _by_rule(rule, _evaluated(loss, NOISE - NOISE.mean()), _evaluated(0.5))
    assert report.promote == promoted
    assert len(report.reasons) == 1


def test_bounds_of_the_model_hold_under_every_rule():
    """`always` overrules comparisons, and not what the model file asks for."""
    gate = Gate(rule="always", at_least={"roc_auc": 0.7})
    assert not _decide(_evaluated(0.4, roc_auc=0.6), _evaluated(0.5), gate).promote
    assert _decide(_evaluated(0.6, roc_auc=0.8), _evaluated(0.5), gate).promote


@pytest.mark.parametrize(
    ("own", "champions", "bound", "promoted"),
    [
        *((0.05, None, 0.1, True), (0.2, None, 0.1, False), (0.2, None, None, True)),
        *((0.2, 0.3, 0.1, True), (0.2, 0.15, 0.1, False), (None, None, 0.1, True)),
    ],
)
def test_probabilities_that_are_far_off_are_kept_out(own, champions, bound, promoted):
    """Unless the champion's are further off on the same rows, as after a storm."""
    challenger = _evaluated(0.4, **({} if own is None else {"calibration_error": own}))
    champion = champions and _evaluated(0.5, calibration_error=champions)
    report = _decide(challenger, champion, Gate(calibration=bound))
    assert report.promote == promoted
    assert promoted or "its probabilities are off by 0.200 on average" in report.reasons[0]


def test_a_challenger_that_is_worse_within_a_slice_is_kept_out():
    """Though it is better on the whole; a slice of few rows has no say."""
    country = pd.Series(np.where(np.arange(len(AS_OF)) % 5 == 0, "de", "fr"))
    country[:20] = "it"
    worse = np.where(country == "de", 0.3, -0.2)
    champion = _evaluated(0.5)
    fixed = {"baseline": _evaluated(0.9), "champion": Compared("v1", champion)}
    gate = Gate(slices=("country",), min_rows=100)
    slices = country.to_frame("country")
    report = decide(gate, AS_OF, challenger=_evaluated(0.5, worse), slices=slices, **fixed)
    assert list(report.slices) == ["country=de", "country=fr"]
    assert not report.promote
    assert report.reasons[0].startswith("its loss is shown to be worse where country=de: +0.3000")
    even = decide(gate, AS_OF, challenger=_evaluated(0.5, NOISE), slices=slices, **fixed)
    assert even.promote
