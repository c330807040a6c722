"""Damage is shown on the same rows, in several windows and the newest; drift alone is news."""

from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import ValidationError

from batch_jobs import Monitor
from batch_jobs.monitor import Performance
from batch_jobs.monitoring import episodes, judgement, performance, performance_rows
from batch_jobs.monitoring.monitor import monitor
from batch_jobs.monitoring.page import monitor_page
from batch_jobs.monitoring.performance_rows import Figure
from tests.support.attempts import ask
from tests.support.late_labels import (
    DAY,
    MONDAY,
    VALUE,
    label_all,
    loaded,
    open_world,
    outcomes_of,
    publish_all,
)

WEEK = 7 * DAY
on_sqlite = pytest.mark.parametrize("warehouse", ["sqlite"], indirect=True)


def _lived(warehouse, tmp_path, found, *weeks):
    """The judgements at the ends of some weeks, a day later."""
    world = open_world(warehouse, tmp_path)
    publish_all(warehouse, found)
    label_all(warehouse, found)
    told = []
    for number in weeks:
        now = MONDAY + number * WEEK + 2 * DAY
        performance.update(world, "late", now)
        told.append(judgement.judge(world, "late", now))
    return world, told


def test_labels_turned_round_are_damage_within_two_windows(warehouse, tmp_path):
    """On either database; it is one episode, for which training is asked once, and it ends."""
    found = outcomes_of(35, 24, flipped_from=MONDAY + 2 * WEEK)
    sound = [row for row in outcomes_of(35, 24) if row[0] >= MONDAY + 4 * WEEK]
    found = [row for row in found if row[0] < MONDAY + 4 * WEEK] + sound

    world, told = _lived(warehouse, tmp_path, found, 2, 3, 4)

    healthy, first, second = told
    assert (healthy.damage, healthy.since, healthy.retrain) == ((), None, False)
    assert healthy.smallest > 0
    assert "constant" in {each.evidence for each in first.damage}
    week = next(each for each in second.damage if each.grain == "week")
    assert (week.shown_in, week.of, week.rows) == (2, 3, week.rows)
    assert week.words.startswith("v1 ")
    assert second.damage[0].severity >= second.damage[-1].severity > 1
    assert second.retrain
    opened = {each.since for each in told[1:] if each.damage}
    assert len(opened) == 1
    episodes.acknowledge(warehouse, "late", second.at)
    assert not judgement.judge(world, "late", second.at).retrain

    now = MONDAY + 5 * WEEK + 2 * DAY
    performance.update(world, "late", now)
    assert judgement.judge(world, "late", now).damage == ()
    ((evidence, closed),) = ask(warehouse, "SELECT evidence, closed_at FROM damage_episodes")
    assert closed is not None
    assert loaded(evidence)[0]["model_version"] == "v1"


@on_sqlite
def test_healthy_weeks_are_no_damage_however_they_swing(warehouse, tmp_path):
    """And each tells how it did, and beside whom."""
    _, told = _lived(warehouse, tmp_path, outcomes_of(42, 12), 1, 3, 6)
    assert all(each.damage == () for each in told)
    assert told[-1].news[0].startswith("week of 2024-04-08: log-loss ")
    assert any("the constant known from training" in line for line in told[-1].news)
    assert told[-1].news[-1].startswith("the smallest damage that a week of these rows can show: ")


@on_sqlite
def test_scores_near_one_are_damage(warehouse, tmp_path):
    """Although the order of the rows, and so the area under the curve, is as ever."""
    found = [
        (start, key, 0.95 + 0.05 * score, *rest)
        for start, key, score, *rest in outcomes_of(21, 12, seed=5)
    ]
    _, (told,) = _lived(warehouse, tmp_path, found, 3)
    calibration = next(each for each in told.damage if each.evidence == "calibration")
    assert calibration.words.startswith("v1 answers too high on average by +0.")


@on_sqlite
def test_a_value_is_judged_by_how_far_it_is_off(warehouse, tmp_path):
    """In multiples of what a constant is off."""
    world = open_world(warehouse, tmp_path, VALUE)
    found = [
        (start, key, score + 0.5, *rest) for start, key, score, *rest in outcomes_of(21, 12, VALUE)
    ]
    publish_all(warehouse, found)
    label_all(warehouse, found)
    now = MONDAY + 3 * WEEK + DAY
    performance.update(world, "late", now)
    told = judgement.judge(world, "late", now)
    assert [each.evidence for each in told.damage] == ["calibration"]
    assert told.damage[0].excess == pytest.approx(0.5, abs=0.15)


def _compared(world, warehouse, worse_by, contender):
    """Let another version have done better on the rows of all windows."""
    windows = performance_rows.windows(warehouse, "late").values()
    for window in windows:
        figures = performance_rows.figures(warehouse, "late", window.grain, window.start)
        better = Figure(
            "", contender, "log_loss", False, 0.4, 0.3, 0.5, 84, 84, "v2",
            worse_by, worse_by - 0.01, worse_by + 0.01,
        )  # fmt: skip
        performance_rows.restate(
            warehouse, "late", [(replace(window), [*figures[window.start], better])]
        )
    return judgement.judge(world, "late", MONDAY + 3 * WEEK + DAY)


@on_sqlite
@pytest.mark.parametrize(("contender", "who"), [("since", "trained since"), ("before", "before")])
def test_another_version_that_does_better_is_damage_if_it_is_much(
    warehouse, tmp_path, contender, who
):
    """A loss that is shown to be higher by a hair is none."""
    world, (healthy,) = _lived(warehouse, tmp_path, outcomes_of(21, 12), 3)
    assert healthy.damage == ()
    assert _compared(world, warehouse, 0.015, contender).damage == ()
    told = _compared(world, warehouse, 0.15, contender)
    assert [each.evidence for each in told.damage] == [contender]
    assert f"worse than {'a version ' if contender == 'since' else 'the version '}{who}" in (
        told.damage[0].words
    )


@on_sqlite
def test_too_few_outcomes_are_not_judged(warehouse, tmp_path):
    """Those that come early are not those of all rows; nothing opens or closes meanwhile."""
    found = outcomes_of(7, 24)
    early = [row for number, row in enumerate(found) if number % 3 == 0]
    world = open_world(warehouse, tmp_path)
    publish_all(warehouse, found)
    label_all(warehouse, early)
    now = MONDAY + WEEK + DAY
    performance.update(world, "late", now)
    told = judgement.judge(world, "late", now)
    assert (told.damage, told.news, told.smallest) == ((), (), None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"damaged": 4}, "4 of the last 3 windows cannot be: raise of"),
        ({"deadline": timedelta(days=30)}, "must be shorter than labels_within"),
    ],
)
def test_options_that_contradict_each_other_are_told(options, told):
    """Each in one line, when the model file is read."""
    with pytest.raises(ValidationError, match=told):
        Monitor(performance=Performance(**options))


@on_sqlite
def test_the_verb_judges_and_a_page_shows_it(warehouse, tmp_path):
    """All that a person asks: what is wrong, since when, and how it looks beside others."""
    found = outcomes_of(21, 24, flipped_from=MONDAY + WEEK)
    world = open_world(warehouse, tmp_path)
    publish_all(warehouse, found)
    label_all(warehouse, found)
    report = monitor(world, "late", MONDAY + 3 * WEEK + 5 * DAY)
    page = monitor_page(world, report)
    assert report.restated > 20
    assert report.judgement.damage[0].words in page
    assert "Log-loss of what was published" in page
    assert "Nothing is unlike training." in page or report.drift
