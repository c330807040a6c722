"""Whatever befalls an attempt wherever: readers keep what they have, and a retry publishes.

Every place that the library names is tried: the process is killed, it fails, or it is stopped,
overtaken, and goes on.
"""

import re
import signal
from pathlib import Path

import pytest

import batch_jobs
from batch_jobs.runs import jobs
from tests.fault_models._rows import tick
from tests.support.deployment import shown
from tests.support.faults import Order

LIBRARY = Path(batch_jobs.__file__).parent
EVERYWHERE = {
    place
    for path in LIBRARY.rglob("*.py")
    for place in re.findall(r'failpoint\("([a-z_.]+)"\)', path.read_text())
}
# Those of a prediction run; test_request_faults.py has the others.
PLACES = sorted(place for place in EVERYWHERE if not place.startswith(("answer.", "exchange.")))
# In the middle of a part, with rows of it staged.
SECOND = ("score.before_chunk", "score.chunk_staged")
# Here the attempt holds the lock of a writer.
LOCKED = ("publish.locked", "publish.before_pointer", "publish.before_commit")
# The modes differ in where rows are staged and how they are published; the rest is the same.
CASES = [
    *((place, "ticks") for place in PLACES),
    *((place, "population") for place in PLACES if place.split(".")[0] == "publish"),
    ("score.chunk_staged", "population"),
]


@pytest.mark.failure_mode("harness")
def test_every_verb_has_places_to_fail_at():
    """Wherever its modules lie: without any, the tests below would try nothing."""
    verbs = {place.split(".")[0] for place in EVERYWHERE}
    assert verbs == {"plan", "score", "publish", "answer", "exchange"}
    assert set(SECOND) | set(LOCKED) <= set(PLACES)


def _order(place, action):
    # Stopped before its second chunk, it might hold SQLite's lock: the first is being staged.
    is_free = (place, action) != ("score.before_chunk", "stop")
    return Order(place, action, 2 if place in SECOND and is_free else 1)


def _after_the_fault(place):
    """The ticks that are published after a fault in an attempt at tick 1."""
    return [0, 1] if place == "publish.committed" else [0]


def _retry_and_go_on(deployment, model):
    """Tick 1 again, then the next: what was given up is gone, and all else is right."""
    assert deployment.predict(model, 1).state == "published"
    assert deployment.seen(model) == shown(model, [0, 1])
    deployment.predict(model, 2)
    assert deployment.seen(model) == shown(model, [0, 1, 2])
    assert (deployment.leftovers(), deployment.unsound()) == ([], [])


@pytest.mark.failure_mode("harness")
def test_there_are_places_in_every_step():
    """So that the tests of this file do not run out of them unnoticed."""
    assert {place.split(".")[0] for place in PLACES} == {"plan", "score", "publish"}
    assert {*SECOND, *LOCKED} < set(PLACES)


@pytest.mark.parametrize(("place", "model"), CASES)
@pytest.mark.failure_mode(1, 2, 3, 4, 5, 6, 7)
def test_attempts_that_are_stopped_killed_or_fail_are_made_good_by_a_retry(
    deployment, attempt, place, model
):
    """Readers keep what they have, and the runs that come next clean up.

    The one that was stopped wakes after its retry and the next tick, and changes nothing: exit 3.
    Nothing is tidied up by the one that SIGKILL ends, nor by the one with an exception that the
    library does not know.
    """
    zombie = None
    if place not in LOCKED:
        zombie = attempt(jobs.predict, model, tick(1), order=_order(place, "stop")).stopped()
    killed = attempt(jobs.predict, model, tick(1), force=True, order=_order(place, "kill"))
    assert killed.result().code == -signal.SIGKILL
    assert deployment.seen(model) == shown(model, _after_the_fault(place))
    failed = attempt(jobs.predict, model, tick(1), force=True, order=_order(place, "fail"))
    assert (failed.result().code, failed.result().error) == (1, "BrokenError")
    assert deployment.seen(model) == shown(model, _after_the_fault(place))
    _retry_and_go_on(deployment, model)
    if zombie is not None:
        ended = zombie.signal(signal.SIGCONT).result()
        assert ended.code == (0 if place == "publish.committed" else 3), ended
        assert deployment.seen(model) == shown(model, [0, 1, 2])
        assert (deployment.leftovers(), deployment.unsound()) == ([], [])


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL])
@pytest.mark.parametrize("place", [LOCKED[0], LOCKED[-1]])
@pytest.mark.failure_mode(13)
def test_an_attempt_that_is_stopped_while_it_publishes_holds_no_reader_up(
    deployment, attempt, reader, place, end
):
    """Writers wait: on SQLite until it goes on or dies, on PostgreSQL until its session is ended.

    It publishes if it wakes in time, and the retry then takes its place; a killed one leaves no
    trace.
    """
    zombie = attempt(
        jobs.predict, "ticks", tick(1), order=_order(place, "stop"), settings=deployment.hasty()
    ).stopped()
    waiting = Order("plan.before_claim", "wait")
    retry = attempt(jobs.predict, "ticks", tick(1), order=waiting).wait_at(waiting.place)
    retry.go()
    watched = reader()
    assert watched.looked(5).reads
    if deployment.server:
        assert retry.result().code == 0
    else:
        assert deployment.seen("ticks") == shown("ticks", [0])
        assert not retry.ended()
    ended = zombie.signal(end).result()
    assert retry.result().code == 0
    woken = 3 if deployment.server else 0
    assert ended.code == (woken if end == signal.SIGCONT else -end), ended
    published = not deployment.server and end == signal.SIGCONT
    assert deployment.states("ticks", 1) == ["superseded" if published else "failed", "published"]
    assert watched.stop().violations == {}
    _retry_and_go_on(deployment, "ticks")
