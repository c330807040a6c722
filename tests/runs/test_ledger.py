"""The ledger lets only the newest attempt at an interval change anything, and forgets nothing."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_jobs.errors import ConfigurationError, FencedError, IncompleteError
from batch_jobs.interval import due_between
from batch_jobs.runs import claims, coverage, publication, removal, staging
from batch_jobs.scoring.counts import Counts
from tests.support.attempts import (
    MIDNIGHT,
    ask,
    claim,
    find_run,
    loaded_json,
    publish,
    score,
    scores,
    seen,
    span,
    tick,
)

OLD, NEW, NEWER = "01a-old", "01b-new", "01c-newer"
TEN = "*/10 * * * *"
NOON = MIDNIGHT + timedelta(hours=12)
LONG_AGO = MIDNIGHT


def _states(warehouse):
    return dict(ask(warehouse, "SELECT token, state FROM prediction_runs"))


def _staged(warehouse):
    return ask(warehouse, "SELECT entity_id, score FROM predictions ORDER BY 1")


def test_a_lower_token_is_refused_once_a_higher_one_has_claimed(warehouse):
    """Also if the lower one was paused before it ever claimed."""
    claim(warehouse, tick(0), NEW)
    with pytest.raises(FencedError, match="a newer attempt has claimed this interval") as caught:
        claim(warehouse, tick(0), OLD)
    assert caught.value.exit_code == 3
    assert _states(warehouse) == {NEW: "staging"}


def test_a_higher_token_fails_the_attempt_before_it(warehouse):
    """The ledger keeps both and says why."""
    claim(warehouse, tick(0), OLD)
    claim(warehouse, tick(0), NEW)
    assert _states(warehouse) == {OLD: "failed", NEW: "staging"}
    errors = ask(warehouse, "SELECT error FROM prediction_runs WHERE state = 'failed'")
    assert errors == [("fenced off by a newer attempt",)]


def test_the_same_token_claims_the_same_run(warehouse):
    """A repeated task goes on where it was."""
    first = claim(warehouse, tick(0), OLD, ranges=[(None, "m"), ("m", None)])
    assert claim(warehouse, tick(0), OLD, ranges=[(None, "x"), ("x", None)]) == first
    assert ask(warehouse, "SELECT key_from FROM run_parts") == [(None,), ("m",)]


def test_other_intervals_and_other_models_are_not_fenced(warehouse):
    """A claim is on one interval of one model."""
    claim(warehouse, tick(0), NEW)
    assert claim(warehouse, tick(1), OLD).state == "staging"
    assert claim(warehouse, tick(0), OLD, model="customers").state == "staging"


def test_a_fenced_attempt_is_stopped_at_every_later_step(warehouse):
    """Opening a part, staging, closing and publishing: nothing of it is seen."""
    run = claim(warehouse, tick(0), OLD)
    _, part = staging.open_part(warehouse, run.run_id, 0, OLD)
    claim(warehouse, tick(0), NEW)
    for act in (
        lambda: staging.open_part(warehouse, run.run_id, 0, OLD),
        lambda: staging.stage(warehouse, part, OLD, 0, scores({"a": 0.5})),
        lambda: staging.close_part(warehouse, part, OLD, Counts()),
        lambda: publication.publish(warehouse, run.run_id),
    ):
        with pytest.raises(FencedError):
            act()
    assert (_staged(warehouse), seen(warehouse)) == ([], {})


def test_a_paused_attempt_cannot_bring_back_its_rows_after_a_newer_one_published(warehouse):
    """It wakes with everything staged, and is fenced off at the very last step."""
    paused = claim(warehouse, tick(0), OLD)
    score(warehouse, paused, {"a": 0.1})
    publish(warehouse, tick(0), {"a": 0.9})
    with pytest.raises(FencedError):
        publication.publish(warehouse, paused.run_id)
    assert seen(warehouse) == {"a": 0.9}


def test_staged_rows_are_invisible(warehouse):
    """No view shows them before they are published."""
    score(warehouse, claim(warehouse, tick(0)), {"a": 0.5})
    assert seen(warehouse) == {}
    assert ask(warehouse, "SELECT * FROM prediction_history") == []
    assert ask(warehouse, "SELECT * FROM serving_status") == []


def test_a_part_that_is_opened_again_begins_anew(warehouse):
    """What the try before left half staged is gone, so nothing is counted twice."""
    run = claim(warehouse, tick(0), OLD)
    _, part = staging.open_part(warehouse, run.run_id, 0, NEW)
    staging.stage(warehouse, part, NEW, 0, scores({"a": 0.1}), [("b", "bad", {})])
    score(warehouse, run, {"a": 0.2, "c": 0.3}, token=NEWER)
    assert _staged(warehouse) == [("a", 0.2), ("c", 0.3)]
    assert ask(warehouse, "SELECT * FROM rejected_rows") == []


def test_an_older_try_of_a_part_is_fenced_off_once_a_newer_one_opened_it(warehouse):
    """At opening, staging and closing."""
    run = claim(warehouse, tick(0), OLD)
    _, part = staging.open_part(warehouse, run.run_id, 0, NEW)
    staging.open_part(warehouse, run.run_id, 0, NEWER)
    for act in (
        lambda: staging.open_part(warehouse, run.run_id, 0, NEW),
        lambda: staging.stage(warehouse, part, NEW, 0, scores({"a": 0.1})),
        lambda: staging.close_part(warehouse, part, NEW, Counts()),
    ):
        with pytest.raises(FencedError, match="part 0: a newer try is scoring this part"):
            act()
    assert _staged(warehouse) == []


def test_an_older_try_of_a_part_cannot_fail_the_run_of_a_newer_one(warehouse):
    """The newer try reads the source again, and may find it mended."""
    run = claim(warehouse, tick(0), OLD)
    _, part = staging.open_part(warehouse, run.run_id, 0, NEW)
    staging.open_part(warehouse, run.run_id, 0, NEWER)
    staging.fail_part(warehouse, part.run_id, part.part, NEW, "bad rows")
    assert find_run(warehouse, run.run_id).state == "staging"
    staging.fail_part(warehouse, part.run_id, part.part, NEWER, "bad rows")
    assert find_run(warehouse, run.run_id).state == "failed"


def test_a_part_that_is_staged_already_is_left_alone(warehouse):
    """Whoever opens it again is told so, with its counts."""
    run = claim(warehouse, tick(0), OLD)
    score(warehouse, run, {"a": 0.1})
    _, part = staging.open_part(warehouse, run.run_id, 0, NEWER)
    assert (part.staged, part.counts) == (True, Counts(1, 1))
    assert _staged(warehouse) == [("a", 0.1)]


def test_parts_do_not_disturb_each_other(warehouse):
    """Opening one removes nothing of another."""
    run = claim(warehouse, tick(0), OLD, ranges=[(None, "m"), ("m", None)])
    score(warehouse, run, {"a": 0.1}, part=0)
    score(warehouse, run, {"z": 0.9}, part=1)
    assert _staged(warehouse) == [("a", 0.1), ("z", 0.9)]
    publication.publish(warehouse, run.run_id)
    assert seen(warehouse) == {"a": 0.1, "z": 0.9}


def test_a_failed_run_is_not_revived(warehouse):
    """Only a new attempt can score the interval; the error says how to start one."""
    run = claim(warehouse, tick(0), OLD)
    staging.fail(warehouse, run.run_id, "no reason")
    with pytest.raises(IncompleteError, match=r"has failed: no reason; only a new attempt"):
        staging.open_part(warehouse, run.run_id, 0, OLD)
    assert claim(warehouse, tick(0), OLD).state == "failed"
    assert claim(warehouse, tick(0), NEW).state == "staging"


def test_a_published_run_cannot_be_failed(warehouse):
    """A late failure of a task does not take away what readers see."""
    run = publish(warehouse, tick(0), {"a": 0.5})
    staging.fail(warehouse, run.run_id, "too late")
    assert find_run(warehouse, run.run_id).state == "published"


def test_a_run_that_never_was_is_told_so(warehouse):
    """Instead of an empty answer."""
    with pytest.raises(IncompleteError, match="the ledger has no run 7"):
        find_run(warehouse, 7)


def test_the_payload_of_a_rejected_row_is_json_whatever_was_read(warehouse):
    """JSON has no NaN and no infinity, and the database checks it."""
    stored = {
        "nan": (float("nan"), None),
        "inf": (float("inf"), "inf"),
        "-inf": (np.float64("-inf"), "-inf"),
        "no time": (pd.NaT, "NaT"),
        "int64": (np.int64(3), 3),
        "bool": (np.bool_(True), True),
        "large": (2**70, 2**70),
        "decimal": (Decimal("1.50"), "1.50"),
        "bytes": (b"\xff", "b'\\xff'"),
        "time": (MIDNIGHT, "2024-03-01 00:00:00+00:00"),
        "text": ("\ud800'; DROP TABLE predictions;--", "\ud800'; DROP TABLE predictions;--"),
    }
    row = {name: value for name, (value, _) in stored.items()}
    score(warehouse, claim(warehouse, tick(0)), {}, rejected=[("a", "bad", row)])
    ((payload,),) = ask(warehouse, "SELECT payload FROM rejected_rows")
    assert loaded_json(payload) == {name: text for name, (_, text) in stored.items()}


def test_keys_are_stored_to_the_byte(warehouse):
    """As scored rows and as rejected ones."""
    keys = [
        "caf\u00e9",
        "cafe\u0301",
        "🛩️",
        "a\u200bb",
        "'; DROP TABLE fences;--",
        "%s",
        "a\nb",
        '"',
    ]
    rejected = [(f"{key}!", "bad", {}) for key in keys]
    score(warehouse, claim(warehouse, tick(0)), dict.fromkeys(keys, 0.5), rejected=rejected)
    assert sorted(_staged(warehouse)) == [(key, 0.5) for key in sorted(keys)]
    stored = ask(warehouse, "SELECT entity_id FROM rejected_rows")
    assert sorted(stored) == sorted((key,) for key, *_ in rejected)


def test_what_failed_runs_left_behind_is_swept(warehouse):
    """Rows of other models, of published runs and of those being staged stay."""
    publish(warehouse, tick(0), {"a": 0.5})
    score(warehouse, claim(warehouse, tick(1)), {"b": 0.5})
    score(warehouse, claim(warehouse, tick(0), model="other"), {"c": 0.5})
    left = claim(warehouse, tick(2))
    score(warehouse, left, {"d": 0.5, "e": 0.5})
    staging.fail(warehouse, left.run_id, "killed")
    assert removal.sweep(warehouse, "orders", LONG_AGO) == 1
    assert [key for key, _ in _staged(warehouse)] == ["a", "b", "c"]
    assert removal.sweep(warehouse, "orders", LONG_AGO) == 0


def test_a_run_whose_attempt_died_long_ago_is_failed_and_swept(warehouse):
    """Nobody else would ever say so; one that was claimed since is left alone."""
    dead = claim(warehouse, tick(0))
    score(warehouse, dead, {"a": 0.5})
    moment = datetime.now(UTC)
    score(warehouse, claim(warehouse, tick(1)), {"b": 0.5})
    assert removal.sweep(warehouse, "orders", moment) == 1
    assert (
        find_run(warehouse, dead.run_id).error == "abandoned: its attempt stopped without an error"
    )
    assert [key for key, _ in _staged(warehouse)] == ["b"]


def test_the_table_of_a_large_run_that_failed_is_swept(warehouse, monkeypatch):
    """On PostgreSQL it had one for itself, which is gone; SQLite has one for all."""
    monkeypatch.setattr(claims, "LARGE", 0)
    publish(warehouse, tick(0), {"a": 0.5}, mode="replace")
    left = claim(warehouse, tick(1), mode="replace")
    score(warehouse, left, {"b": 0.5})
    staging.fail(warehouse, left.run_id, "killed")
    assert removal.sweep(warehouse, "orders", LONG_AGO) == 1
    if warehouse.database.name == "postgresql":
        assert ask(warehouse, f"SELECT to_regclass('{left.rows_table}')") == [(None,)]
    assert (_staged(warehouse), seen(warehouse)) == ([("a", 0.5)], {"a": 0.5})


def test_a_model_keeps_its_mode(warehouse):
    """Rows by key and whole populations cannot be seen as one; the error names the way out."""
    publish(warehouse, tick(0), {"a": 0.5})
    with pytest.raises(ConfigurationError, match=r"published in merge mode .* another name"):
        claim(warehouse, tick(1), mode="replace")
    assert seen(warehouse) == {"a": 0.5}


def _gaps(warehouse, until=NOON, since=None):
    return [str(gap) for gap in coverage.gaps(warehouse, "orders", TEN, until, since)]


def test_before_the_first_publication_nothing_is_missing(warehouse):
    """Nobody could tell since when."""
    claim(warehouse, tick(0))
    assert _gaps(warehouse) == []


def test_gaps_are_the_due_intervals_that_no_published_run_covers(warehouse):
    """Staged and failed runs cover nothing, nor do runs of another model."""
    for number in (1, 2, 5):
        publish(warehouse, tick(number), {})
    claim(warehouse, tick(3))
    publish(warehouse, tick(4), {}, model="other")
    assert _gaps(warehouse, tick(7).end) == [str(tick(n)) for n in (3, 4, 6, 7)]
    assert _gaps(warehouse, tick(7).end, since=tick(4).start) == [str(tick(n)) for n in (4, 6, 7)]


def test_a_long_run_covers_several_intervals_and_two_may_share_one(warehouse):
    """What counts is that every moment of the interval is covered."""
    publish(warehouse, tick(0), {})
    publish(warehouse, span(10, 37), {})
    publish(warehouse, span(35, 55), {})
    assert _gaps(warehouse, tick(6).end) == [str(tick(5)), str(tick(6))]


def test_in_replace_mode_gaps_are_told_though_readers_do_not_feel_them(warehouse):
    """The newest population is fresh, whatever was missed before it."""
    publish(warehouse, tick(0), {"a": 0.1}, mode="replace")
    publish(warehouse, tick(2), {"a": 0.1}, mode="replace")
    assert _gaps(warehouse, tick(2).end) == [str(tick(1))]
    assert coverage.fresh_until(warehouse, "orders") == tick(2).end


def test_before_the_first_publication_nothing_is_fresh(warehouse):
    """There is no watermark yet."""
    assert coverage.fresh_until(warehouse, "orders") is None


def test_an_interval_that_was_published_in_part_is_a_gap(warehouse):
    """Also the very first one: the watermark waits for its other half."""
    publish(warehouse, span(3, 7), {})
    assert _gaps(warehouse, tick(1).end) == [str(tick(0)), str(tick(1))]


spans = st.tuples(st.integers(0, 60), st.integers(1, 35)).map(lambda at: span(at[0], sum(at)))


@given(st.lists(spans, max_size=6))
@settings(max_examples=100, deadline=None)
def test_an_interval_is_uncovered_if_any_of_its_minutes_is(published):
    """Whatever the spans, against counting minutes one by one."""
    due = list(due_between(TEN, MIDNIGHT, MIDNIGHT + timedelta(hours=2)))
    minute = timedelta(minutes=1)
    covered = {at for run in published for at in _minutes(run, minute)}
    expected = [gap for gap in due if not covered.issuperset(_minutes(gap, minute))]
    bounds = sorted((run.start, run.end) for run in published)
    assert list(coverage._uncovered(due, bounds)) == expected


def _minutes(interval, minute):
    return [interval.start + n * minute for n in range((interval.end - interval.start) // minute)]


def test_intervals_that_another_attempt_is_scoring_are_known(warehouse):
    """Until it is finished, or was claimed too long ago to be alive."""
    for number in range(3):
        claim(warehouse, tick(number), OLD)
    publish(warehouse, tick(0), {})
    staging.fail(warehouse, claim(warehouse, tick(1), NEW).run_id, "")
    now = ask(warehouse, "SELECT max(claimed_at) FROM prediction_runs")[0][0]
    later = pd.Timestamp(now).to_pydatetime() + timedelta(seconds=1)
    assert coverage.being_staged(warehouse, "orders", MIDNIGHT) == {tick(2)}
    assert coverage.being_staged(warehouse, "orders", later) == set()
