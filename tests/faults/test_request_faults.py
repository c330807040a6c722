"""Attempts to answer requests that die, fail, hang or meet: each row is answered once, or none is.

A request of ten rows has three chunks.
"""

import signal

import pytest
from sqlalchemy import text

from batch_jobs.database.leases import new_token
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.requests.worker import answer
from tests.faults.test_faults import EVERYWHERE
from tests.faults.test_faults import PLACES as OF_A_RUN
from tests.support.asking import pass_the_lease, rejects, results, state, submit
from tests.support.faults import Order

MODEL = "ticks"
SCORED = [(n, f"e{n}", n * 1.0) for n in range(1, 11) if n != 5]
PLACES = [
    ("answer.claimed", 1),
    ("answer.chunk_stored", 1),
    ("answer.chunk_stored", 3),
    ("answer.before_finish", 1),
]


def _submit(deployment):
    """Ask for ten rows, of which the fifth does not fit; the first versions answer `x`."""
    rows = [(f"e{n}", {"x": None if n == 5 else n}) for n in range(1, 11)]
    return submit(deployment.settings, MODEL, rows)


def _answer(deployment):
    """What a later attempt answers, from this process."""
    return [one.request_id for one in answer(deployment.settings, MODEL, new_token())]


def _is_answered(deployment, request_id):
    """Whether every row is accounted for once, with the score that it has to have."""
    settings = deployment.settings
    found = [(n, key, round(score, 3)) for n, key, score in results(settings, request_id)]
    return (state(settings, request_id), found, list(rejects(settings, request_id))) == (
        ("done", 10, 9, 1),
        SCORED,
        [5],
    )


@pytest.fixture
def begun(attempt):
    """Start an attempt to answer to which something happens at a place."""

    def start(place, action="wait", hit=1, token=None):
        order = Order(place, action, hit)
        return attempt(answer, MODEL, token or new_token(), order=order).wait_at(place)

    return start


@pytest.mark.failure_mode("harness")
def test_every_place_is_tried():
    """Also one that will be made later; those of topics, beside the topics."""
    beside = {"exchange.submitted", "exchange.sent"}
    tried = {place for place, _ in PLACES} | {"answer.finished"} | beside
    assert EVERYWHERE - set(OF_A_RUN) == tried


@pytest.mark.parametrize(("place", "hit"), PLACES)
@pytest.mark.failure_mode(63)
def test_a_request_whose_attempt_was_killed_is_taken_over(deployment, begun, place, hit):
    """Once that one was silent for long enough; what it has stored is not scored again."""
    asked = _submit(deployment)
    assert begun(place, "kill", hit).result().code == -signal.SIGKILL
    assert _answer(deployment) == []
    assert state(deployment.settings, asked)[0] == "scoring"
    pass_the_lease(deployment.settings)
    assert _answer(deployment) == [asked]
    assert _is_answered(deployment, asked)


@pytest.mark.parametrize(("place", "hit"), PLACES)
@pytest.mark.failure_mode(63)
def test_a_request_whose_attempt_fails_waits_for_the_next(deployment, begun, place, hit):
    """Which goes on at once: the one that failed has let it go."""
    asked = _submit(deployment)
    assert begun(place, "fail", hit).result().error == "BrokenError"
    assert state(deployment.settings, asked)[0] == "waiting"
    assert _answer(deployment) == [asked]
    assert _is_answered(deployment, asked)


@pytest.mark.parametrize("action", ["kill", "fail"])
@pytest.mark.failure_mode(63)
def test_a_request_is_done_when_its_attempt_ends_after_the_commit(deployment, begun, action):
    """Whatever becomes of the attempt, nothing is left to do."""
    asked = _submit(deployment)
    begun("answer.finished", action).result()
    pass_the_lease(deployment.settings)
    assert _answer(deployment) == []
    assert _is_answered(deployment, asked)


@pytest.mark.parametrize(("place", "hit"), PLACES)
@pytest.mark.failure_mode(64)
def test_an_attempt_that_wakes_after_it_was_overtaken_changes_nothing(
    deployment, begun, place, hit
):
    """A stops, B takes over and is done, A goes on: it is fenced, and looks for other work."""
    asked = _submit(deployment)
    first = begun(place, hit=hit)
    pass_the_lease(deployment.settings)
    assert _answer(deployment) == [asked]
    outcome = first.go().result()
    assert (outcome.code, outcome.value) == (0, [])
    assert _is_answered(deployment, asked)


@pytest.mark.failure_mode(64)
def test_an_attempt_that_was_overtaken_half_way_changes_nothing(deployment, begun):
    """A stops, B takes over and stops, A goes on: it is fenced though B has not ended."""
    asked = _submit(deployment)
    first = begun("answer.chunk_stored")
    pass_the_lease(deployment.settings)
    second = begun("answer.claimed")
    assert first.go().result().value == []
    assert state(deployment.settings, asked) == ("scoring", 10, 4, 0)
    assert [one.request_id for one in second.go().result().value] == [asked]
    assert _is_answered(deployment, asked)


@pytest.mark.failure_mode(64)
def test_an_older_attempt_takes_nothing_over(deployment, begun):
    """However long the newer one is silent: a token that is lower came too late."""
    old = new_token()
    asked = _submit(deployment)
    first = begun("answer.chunk_stored")
    pass_the_lease(deployment.settings)
    assert answer(deployment.settings, MODEL, old) == []
    first.go().result()
    assert _is_answered(deployment, asked)


@pytest.mark.failure_mode(64)
def test_two_attempts_at_once_answer_different_requests(deployment, begun):
    """The second passes over what the first has claimed, and waits for nothing."""
    asked = [_submit(deployment) for _ in range(3)]
    first = begun("answer.claimed")
    assert _answer(deployment) == asked[1:]
    assert [one.request_id for one in first.go().result().value] == asked[:1]
    assert all(_is_answered(deployment, one) for one in asked)


@pytest.mark.parametrize(("place", "hit"), PLACES)
@pytest.mark.failure_mode(64)
def test_an_attempt_that_was_started_twice_stores_nothing_twice(deployment, begun, place, hit):
    """Both have the same token; either hears that the request is done, or is fenced."""
    asked = _submit(deployment)
    token = new_token()
    first = begun(place, hit=hit, token=token)
    assert [one.request_id for one in answer(deployment.settings, MODEL, token)] == [asked]
    assert first.go().result().code == 0
    assert _is_answered(deployment, asked)


def _kill_three(deployment, begun, place):
    """Let three attempts in a row be killed at a place."""
    for _ in range(3):
        begun(place, "kill").result()
        pass_the_lease(deployment.settings)


@pytest.mark.failure_mode(65)
def test_a_request_that_kills_its_attempts_fails(deployment, begun):
    """After three of them; the next request is answered, and the failure is told."""
    asked = _submit(deployment)
    _kill_three(deployment, begun, "answer.claimed")
    other = _submit(deployment)
    failed, done = answer(deployment.settings, MODEL, new_token())
    assert (failed.request_id, done.request_id) == (asked, other)
    assert failed.error == "3 attempts to answer it stopped without an error"
    assert state(deployment.settings, asked)[0] == "failed"
    assert _is_answered(deployment, other)


@pytest.mark.failure_mode(63)
def test_attempts_that_get_somewhere_are_not_held_against_a_request(deployment, begun):
    """Machines that are switched off in the middle of a long request do not make it fail."""
    asked = _submit(deployment)
    _kill_three(deployment, begun, "answer.chunk_stored")
    assert _answer(deployment) == [asked]
    assert _is_answered(deployment, asked)


@pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)
@pytest.mark.failure_mode(63)
def test_a_crash_of_the_server_half_way_is_outlived(deployment, begun):
    """The same attempt goes on once it is back, and nothing of what was stored is lost."""
    asked = _submit(deployment)
    first = begun("answer.chunk_stored")
    deployment.crash()
    assert [one.request_id for one in first.go().result().value] == [asked]
    assert _is_answered(deployment, asked)


@pytest.mark.failure_mode(64)
def test_a_request_that_was_removed_meanwhile_is_nobodys(deployment, begun):
    """An attempt that wakes after that finds nothing, and stores nothing."""
    asked = _submit(deployment)
    first = begun("answer.chunk_stored")
    with Warehouse(deployment.url).write() as connection:
        for table in ("request_results", "request_rejects", "request_rows", "requests"):
            connection.execute(text(f"DELETE FROM {table}"))
    assert first.go().result().value == []
    assert results(deployment.settings, asked) == []
