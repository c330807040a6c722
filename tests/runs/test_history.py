"""What the app saw at 14:05: whatever was published, repeated, backfilled or pruned since."""

from datetime import UTC, datetime
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_jobs.runs import claims, coverage, removal, retention
from tests.support.attempts import MIDNIGHT, ask, head, publish, span, tick
from tests.support.history import latest, now, prune, then

GRID = "*/10 * * * *"
KEYS = "abcd"
intervals = st.sampled_from([*map(tick, range(5)), span(5, 25), span(10, 40)])
publications = st.tuples(st.just("publish"), intervals, st.sets(st.sampled_from(KEYS), min_size=1))
# Up to which of the moments seen so far, and the age in minutes at which rows expire.
prunes = st.tuples(st.just("prune"), st.floats(0, 1), st.sampled_from([None, 5, 15, 35]))
schedules = st.lists(st.one_of(publications, publications, prunes), min_size=2, max_size=9)
numbers = count()
NOTHING_LEFT = """
    SELECT count(*) FROM prediction_runs AS r WHERE r.model = :model AND r.state = 'retired'
    AND (EXISTS (SELECT 1 FROM predictions AS p WHERE p.run_id = r.run_id)
         OR EXISTS (SELECT 1 FROM superseded_rows AS s WHERE s.run_id = r.run_id)
         OR EXISTS (SELECT 1 FROM current_rows AS c WHERE c.run_id = r.run_id))"""


class App:
    """In plain Python, what current_predictions shows."""

    def __init__(self, mode):
        self._mode = mode
        self._rows = {}  # entity: (age of its interval, score)
        self._newest = None

    @property
    def rows(self):
        """`{entity: score}`."""
        return {entity: answer for entity, (_, answer) in self._rows.items()}

    def publish(self, interval, entities, answer):
        """Of an interval the last run, and of an entity the newest interval; or the newest run."""
        age = (interval.end, interval.start)
        self._newest = max(self._newest or age, age)
        if self._mode == "replace":
            if age == self._newest:
                self._rows = dict.fromkeys(entities, (age, answer))
            return
        self._rows = {key: row for key, row in self._rows.items() if row[0] != age}
        for key in entities:
            self._rows[key] = max(self._rows.get(key, (age, -1)), (age, answer))

    def expire(self, minutes):
        """Rows of intervals that ended so long before the newest one go, in merge mode."""
        if self._mode == "merge" and minutes is not None and self._newest:
            end = self._newest[0]
            self._rows = {
                key: row
                for key, row in self._rows.items()
                if (end - row[0][0]).total_seconds() <= 60 * minutes
            }


def _check(warehouse, mode, schedule):
    """Follow a schedule step by step, and tell all that was seen from the history afterwards."""
    model, app, saw, marks = f"orders_{next(numbers)}", App(mode), {}, []
    kept_from = MIDNIGHT
    for step, (kind, *what) in enumerate(schedule):
        if kind == "publish":
            interval, entities = what
            app.publish(interval, entities, step / 10)
            publish(warehouse, interval, dict.fromkeys(entities, step / 10), mode=mode, model=model)
            marks.append(head(warehouse, model)[1:])
        elif saw:
            which, expire = what
            moments = sorted(saw)
            before = moments[int(which * (len(moments) - 1))]
            kept_from = max(kept_from, before)
            app.expire(expire)
            missing = _gaps(warehouse, model)
            assert prune(warehouse, before, expire, model).left == 0
            assert _gaps(warehouse, model) == missing
            assert ask(warehouse, NOTHING_LEFT, model=model) == [(0,)]
            assert prune(warehouse, before, expire, model) == retention.Pruned(model)
        else:
            continue
        shown = now(warehouse, model)
        assert {entity: answer for entity, answer, _ in shown} == app.rows
        saw[latest(warehouse, model)] = shown
        told = {moment: then(warehouse, moment, model) for moment in saw if moment >= kept_from}
        assert told == {moment: saw[moment] for moment in told}
    assert then(warehouse, datetime(2000, 1, 1, tzinfo=UTC), model) == []
    assert marks == sorted(marks)


def _gaps(warehouse, model):
    return coverage.gaps(warehouse, model, GRID, tick(9).end)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_the_history_tells_what_an_app_saw_at_any_moment(warehouse, mode):
    """Over any order of publications, reruns, backfills and prunes, back to what is kept."""

    @settings(max_examples=30 if warehouse.database.name == "sqlite" else 4, deadline=None)
    @given(schedules)
    def check(schedule):
        _check(warehouse, mode, schedule)

    check()


@pytest.mark.parametrize("large", [0, 100])
@pytest.mark.parametrize("mode", ["merge", "replace"])
def test_the_history_tells_it_wherever_the_rows_are(warehouse, monkeypatch, mode, large):
    """Also where runs have tables of their own, or are removed row by row."""
    monkeypatch.setattr(claims, "LARGE", large)
    monkeypatch.setattr(removal, "REMOVED_AT_ONCE", 1)
    monkeypatch.setattr(retention, "REMOVED_AT_ONCE", 1)
    monkeypatch.setattr(removal, "SMALL", 0)
    schedule = [
        *(("publish", tick(1), "ab"), ("publish", tick(2), "bc"), ("publish", tick(0), "abd")),
        *(("publish", tick(2), "c"), ("prune", 0.5, None), ("publish", span(5, 25), "ad")),
        *(("publish", tick(3), "b"), ("prune", 0.5, 15), ("publish", span(10, 40), "abc")),
        *(("publish", tick(0), "abd"), ("prune", 0.9, 5), ("publish", tick(5), "d")),
        ("prune", 1, 5),
    ]
    _check(warehouse, mode, schedule)
