"""Past windows are judged by what readers saw in time, and restated as outcomes become known."""

from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn import metrics

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.monitoring import performance, performance_rows
from tests.support.attempts import ask
from tests.support.late_labels import (
    DAY,
    MANY,
    MONDAY,
    TWO,
    VALUE,
    label,
    label_all,
    open_world,
    outcomes_of,
    publish,
    publish_all,
    register,
)

WEEK = 7 * DAY
LATER = MONDAY + WEEK + 5 * DAY
ALL = "SELECT * FROM model_performance_rows ORDER BY grain, window_start, slice, contender, metric"
on_sqlite = pytest.mark.parametrize("warehouse", ["sqlite"], indirect=True)


def _figures(warehouse, grain="week", start=MONDAY):
    """`{(contender, metric, estimated): figure}` of all rows of one window."""
    found = performance_rows.figures(warehouse, "late", grain, start).get(start, [])
    return {(each.contender, each.metric, each.estimated): each for each in found}


def _windows(warehouse):
    return performance_rows.windows(warehouse, "late")


def test_metrics_are_those_of_the_rows_that_readers_saw(warehouse, tmp_path):
    """As scikit-learn has them, on either database, each inside its interval."""
    world = open_world(warehouse, tmp_path)
    found = outcomes_of(7, 24)
    publish_all(warehouse, found)
    label_all(warehouse, found)

    restated = performance.update(world, "late", LATER)

    scores = np.array([score for _, _, score, *_ in found])
    came = np.array([told == "yes" for *_, told, _ in found])
    told = _figures(warehouse)
    wanted = {
        "log_loss": metrics.log_loss(came, scores),
        "brier": metrics.brier_score_loss(came, scores),
        "auc": metrics.roc_auc_score(came, scores),
        "base_rate": came.mean(),
        "bias": (scores - came).mean(),
    }
    for metric, value in wanted.items():
        figure = told["published", metric, False]
        assert figure.value == pytest.approx(value, abs=1e-12)
        assert figure.low <= figure.value <= figure.high
    assert [window.grain for window in restated.windows].count("day") == 7
    constant = metrics.log_loss(came, np.full(len(came), 0.3))
    assert told["constant", "log_loss", False].value == pytest.approx(constant)
    paired = told["constant", "log_loss", False]
    assert paired.worse_by == pytest.approx(wanted["log_loss"] - constant)
    assert paired.worse_by_high < 0
    (counts,) = ask(
        warehouse,
        """SELECT row_count, label_count FROM model_performance
           WHERE grain = 'week' AND metric = 'auc' AND estimated = 0 AND contender = 'published'""",
    )
    assert counts == (168, 168)
    assert performance.update(world, "late", LATER).windows == ()


@on_sqlite
def test_scores_promise_what_comes_before_any_outcome(warehouse, tmp_path):
    """An estimate, named as one, and near what then comes if the scores are calibrated."""
    world = open_world(warehouse, tmp_path)
    found = outcomes_of(7, 96)
    publish_all(warehouse, found)
    performance.update(world, "late", LATER)
    before = _figures(warehouse)
    assert {estimated for _, _, estimated in before} == {True}
    label_all(warehouse, found)
    performance.update(world, "late", LATER)
    after = _figures(warehouse)
    for metric in ("log_loss", "auc", "brier", "base_rate"):
        promised = before["published", metric, True]
        assert after["published", metric, True] == promised
        assert promised.value == pytest.approx(after["published", metric, False].value, abs=0.05)


@on_sqlite
def test_a_row_counts_if_readers_saw_it_in_time(warehouse, tmp_path):
    """The first one published; none in hindsight, and none published after its outcome."""
    world = open_world(warehouse, tmp_path)
    six = timedelta(hours=6)
    publish(warehouse, MONDAY, {"first": (0.25, "no"), "gone": (0.1, "no")})
    publish(warehouse, MONDAY, {"first": (0.75, "yes"), "new": (0.5, "no")}, at=MONDAY + six)
    publish(warehouse, MONDAY + DAY, {"late": (0.5, "no")}, at=MONDAY + DAY + six)
    publish(warehouse, MONDAY + 2 * DAY, {"wise": (0.9, "yes")}, hindsight=True)
    known = MONDAY + timedelta(hours=2)
    label(warehouse, [("first", MONDAY, "no", known + six), ("gone", MONDAY, "no", known)])
    label(warehouse, [("late", MONDAY + DAY, "no", known + DAY)])
    label(warehouse, [("wise", MONDAY + 2 * DAY, "yes", known + 3 * DAY)])

    performance.update(world, "late", LATER)

    week = _windows(warehouse)["week", MONDAY]
    assert (week.row_count, week.label_count, week.late_count) == (3, 2, 1)
    brier = _figures(warehouse)["published", "brier", False]
    assert brier.value == pytest.approx((0.25**2 + 0.1**2) / 2)


@on_sqlite
def test_a_deadline_says_which_row_counts(warehouse, tmp_path):
    """The one that readers saw then, and not the first one."""
    world = open_world(warehouse, tmp_path, deadline=timedelta(hours=5))
    publish(warehouse, MONDAY, {"a": (0.25, "no"), "b": (0.5, "no")})
    publish(warehouse, MONDAY, {"a": (0.75, "yes")}, at=MONDAY + timedelta(hours=5))
    publish(warehouse, MONDAY, {"a": (0.1, "no")}, at=MONDAY + timedelta(hours=9))
    label(warehouse, [("a", MONDAY, "yes", MONDAY + DAY)])
    performance.update(world, "late", LATER)
    assert _figures(warehouse)["published", "brier", False].value == pytest.approx(0.25**2)
    assert _windows(warehouse)["week", MONDAY].row_count == 1


WEEKS = outcomes_of(9, 4, seed=3)


def _arrived(folder, arriving, cuts):
    """All figures once outcomes have arrived in some order, looked at in between."""
    warehouse = Warehouse(f"sqlite:///{folder}/warehouse.db")
    warehouse.ensure_schema()
    world = open_world(warehouse, folder)
    publish_all(warehouse, WEEKS)
    for first, last in pairwise([0, *cuts, len(WEEKS)]):
        label_all(warehouse, arriving[first:last])
        performance.update(world, "late", LATER if last < len(WEEKS) else MONDAY + 60 * DAY)
    assert all(window.final for window in _windows(warehouse).values())
    return ask(warehouse, ALL)


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """All figures of one computation."""
    return _arrived(tmp_path_factory.mktemp("once"), WEEKS, [])


@settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.permutations(range(len(WEEKS))),
    cuts=st.lists(st.integers(1, len(WEEKS) - 1), min_size=1, max_size=3, unique=True),
)
def test_final_figures_are_those_of_one_computation(tmp_path_factory, at_once, order, cuts):
    """To the last digit, in whatever order outcomes arrive, and however often it was looked."""
    arriving = [WEEKS[place] for place in order]
    assert _arrived(tmp_path_factory.mktemp("order"), arriving, sorted(cuts)) == at_once
    assert len(at_once) > 100


@on_sqlite
def test_odd_labels_are_told_in_one_line_each(warehouse, tmp_path):
    """Labels that never come, that change, and that are of no class."""
    world = open_world(warehouse, tmp_path)
    found = outcomes_of(7, 4)
    publish_all(warehouse, found)
    silent = performance.update(world, "late", MONDAY + 40 * DAY)
    assert not any("again" in note for note in silent.notes)
    assert len(silent.notes) == 1
    assert silent.notes[0].startswith(
        "no outcome of the week of 2024-03-04 has become known within 28 days"
    )

    second = [(at + WEEK, f"{key}b", *rest, known + WEEK) for at, key, *rest, known in found]
    publish_all(warehouse, second)
    label_all(warehouse, second)
    performance.update(world, "late", LATER + WEEK)
    before = _figures(warehouse, start=MONDAY + WEEK)["published", "brier", False].value
    with warehouse.write_source() as connection:
        from sqlalchemy import text

        connection.execute(text("UPDATE outcomes SET label = 'maybe' WHERE entity_id = 'e0b'"))
    changed = performance.update(world, "late", LATER + WEEK + DAY)
    assert any(note.startswith("labels of the week of 2024-03-11 th") for note in changed.notes)
    after = _figures(warehouse, start=MONDAY + WEEK)["published", "brier", False]
    assert (after.label_count, after.value != before) == (len(second) - 1, True)


@on_sqlite
def test_a_clock_that_runs_backwards_restates_nothing(warehouse, tmp_path):
    """What is known once stays known."""
    world = open_world(warehouse, tmp_path)
    found = outcomes_of(7, 4)
    publish_all(warehouse, found)
    label_all(warehouse, found)
    performance.update(world, "late", LATER)
    told = ask(warehouse, ALL)
    assert performance.update(world, "late", LATER - 4 * DAY).windows == ()
    assert ask(warehouse, ALL) == told


@on_sqlite
def test_a_source_that_does_not_answer_is_a_note(warehouse, tmp_path):
    """In the words of the database, and nothing is stored."""
    world = open_world(warehouse, tmp_path)
    publish_all(warehouse, outcomes_of(7, 1))
    with warehouse.write_source() as connection:
        from sqlalchemy import text

        connection.execute(text("DROP TABLE outcomes"))
    told = performance.update(world, "late", LATER)
    assert told.windows == ()
    assert len(told.notes) == 1
    assert "no such table: outcomes" in told.notes[0]


@pytest.mark.parametrize(("kind", "metric"), [(MANY, "accuracy"), (VALUE, "rmse")])
@on_sqlite
def test_classes_and_values_have_metrics_of_their_own(warehouse, tmp_path, kind, metric):
    """Of many classes what the published one allows; of a regression no estimate."""
    world = open_world(warehouse, tmp_path, kind)
    found = outcomes_of(7, 24, kind)
    publish_all(warehouse, found)
    label_all(warehouse, found)
    performance.update(world, "late", LATER)
    told = _figures(warehouse)
    if kind is VALUE:
        errors = np.array([score - truth for _, _, score, _, truth, _ in found])
        wanted = {"mae": np.abs(errors).mean(), "rmse": np.sqrt((errors**2).mean())}
        assert not any(estimated for *_, estimated in told)
        assert told["constant", "mse", False].worse_by < 0
    else:
        wanted = {"accuracy": np.mean([said == truth for _, _, _, said, truth, _ in found])}
        assert told["published", "accuracy", True].value == pytest.approx(
            wanted["accuracy"], abs=0.1
        )
        assert ("published", "log_loss", False) not in told
    for name, value in wanted.items():
        assert told["published", name, False].value == pytest.approx(value)
    assert told["published", metric, False].label_count == 168


@on_sqlite
def test_classes_are_the_manifests_whatever_came(warehouse, tmp_path):
    """Two of three classes, and whole numbers that a database gives as floats."""
    numbers = {"classes": ["0", "1", "2"], "positive": None, "constant": [0.5, 0.3, 0.2]}
    world = open_world(warehouse, tmp_path, numbers)
    publish(warehouse, MONDAY, {"a": (0.9, "1"), "b": (0.6, "0"), "c": (0.7, "1")})
    with warehouse.write_source() as connection:
        from sqlalchemy import text

        connection.execute(text("DROP TABLE outcomes"))
        connection.execute(
            text("CREATE TABLE outcomes (entity_id TEXT, at TEXT, label REAL, known_at TEXT)")
        )
    later = MONDAY + timedelta(hours=5)
    label(warehouse, [("a", MONDAY, 1, later), ("b", MONDAY, 1, later)])
    performance.update(world, "late", LATER)
    told = _figures(warehouse)
    assert told["published", "accuracy", False].value == 0.5
    assert ("published", "auc", False) not in told


@on_sqlite
def test_a_version_whose_artifact_is_lost_is_a_note(warehouse, tmp_path):
    """Everything else is told all the same."""
    world = open_world(warehouse, tmp_path)
    found = outcomes_of(7, 4)
    publish_all(warehouse, found)
    label_all(warehouse, found)
    register(warehouse, "v2", MONDAY + 6 * DAY, TWO)
    told = performance.update(world, "late", LATER)
    assert any(note.startswith("v1 cannot score the rows again: ") for note in told.notes)
    assert ("published", "auc", True) in _figures(warehouse)
