"""Two attempts at once, in an order that is laid down, and what exactly comes of it.

The way of Delta Lake's tests: each attempt waits at a named place until it is told to go on
(https://github.com/delta-io/delta, OptimisticTransactionPhases). Where one holds the lock of a
writer, the other cannot go on, in whatever order the two are let go.
"""

import pytest

from batch_jobs.database.leases import new_token
from batch_jobs.registry import promotion
from batch_jobs.runs import jobs
from tests.fault_models._rows import tick
from tests.support.deployment import shown
from tests.support.faults import Order
from tests.support.planned import plan

FENCED, PUBLISHED = 3, 0


@pytest.fixture
def paused(attempt):
    """Start an attempt of `serving.predict` and wait until it waits at a place."""

    def start(model, number, place, hit=1, **options):
        order = Order(place, "wait", hit)
        return attempt(jobs.predict, model, tick(number), order=order, **options).wait_at(place)

    return start


def _is_sound(deployment, model="ticks"):
    """No more is wrong once the next run has cleaned up."""
    deployment.predict(model, 9)
    return (deployment.leftovers(), deployment.unsound()) == ([], [])


@pytest.mark.failure_mode(12)
def test_a_claim_that_was_overtaken_before_it_staged_a_row(deployment, paused):
    """A claims, B claims and publishes, A goes on: A is fenced."""
    first = paused("ticks", 1, "plan.claimed")
    deployment.predict("ticks", 1)
    assert first.go().result().code == FENCED
    assert deployment.states("ticks", 1) == ["failed", "published"]
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert _is_sound(deployment)


@pytest.mark.failure_mode(12)
def test_an_attempt_that_was_overtaken_with_all_rows_staged(deployment, paused):
    """A has staged all, B claims, A wants to publish: A is fenced, though B has published nothing.

    B may have read other rows: what A would show could never be taken back in time.
    """
    first = paused("ticks", 1, "score.closed", hit=2)
    second = paused("ticks", 1, "plan.claimed")
    assert first.go().result().code == FENCED
    assert deployment.seen("ticks") == shown("ticks", [0])
    assert second.go().result().code == PUBLISHED
    assert deployment.states("ticks", 1) == ["failed", "published"]
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert _is_sound(deployment)


@pytest.mark.parametrize("model", ["ticks", "population"])
@pytest.mark.failure_mode(12)
def test_an_attempt_stays_fenced_when_the_one_that_overtook_it_dies(deployment, paused, model):
    """A has staged all, B claims and dies, A goes on: fenced; the tick waits for a retry."""
    first = paused(model, 1, "publish.sealed")
    paused(model, 1, "plan.claimed").close()
    assert first.go().result().code == FENCED
    assert deployment.seen(model) == shown(model, [0])
    deployment.predict(model, 1)
    assert deployment.states(model, 1) == ["failed", "failed", "published"]
    assert deployment.seen(model) == shown(model, [0, 1])
    assert _is_sound(deployment, model)


@pytest.mark.failure_mode(11)
def test_an_attempt_that_wakes_before_its_claim_disturbs_no_newer_one(deployment, paused):
    """A begins, B claims, A claims: A is refused, and B publishes as if nothing had been."""
    first = paused("ticks", 1, "plan.before_claim")
    second = paused("ticks", 1, "score.chunk_staged")
    assert first.go().result().code == FENCED
    assert second.go().result().code == PUBLISHED
    assert deployment.states("ticks", 1) == ["published"]
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert _is_sound(deployment)


@pytest.mark.parametrize(
    ("model", "place"), [("ticks", "publish.locked"), ("population", "publish.before_commit")]
)
@pytest.mark.failure_mode(15)
def test_a_claim_waits_for_a_publication_that_has_begun(deployment, paused, model, place):
    """A publishes, B claims meanwhile: A is seen first, then B takes its place."""
    second = paused(model, 1, "plan.before_claim", token="ffffffff-ffff-7fff-bfff-ffffffffffff")
    first = paused(model, 1, place)
    second.go()
    assert deployment.seen(model) == shown(model, [0])
    assert (first.go().result().code, second.result().code) == (PUBLISHED, PUBLISHED)
    assert deployment.states(model, 1) == ["superseded", "published"]
    assert deployment.seen(model) == shown(model, [0, 1])
    assert _is_sound(deployment, model)


@pytest.mark.failure_mode(15)
def test_a_run_that_two_tasks_publish_is_published_once(deployment, attempt):
    """A publishes the run, and so does B: both hear of the same publication."""
    model = "population"
    run = plan(deployment.settings, model, tick(1), new_token(), parts=1)
    jobs.score(deployment.settings, model, run.run_id, 0, run.token)
    order = Order("publish.before_commit", "wait")
    first = attempt(jobs.publish, run.run_id, order=order).wait_at(order.place)
    second = attempt(jobs.publish, run.run_id)
    assert first.go().result().code == PUBLISHED
    assert second.result().value == first.result().value
    assert deployment.states(model, 1) == ["published"]
    assert _is_sound(deployment, model)


@pytest.mark.parametrize(
    ("model", "early", "late"), [("ticks", 1, 2), ("ticks", 2, 1), ("population", 2, 1)]
)
@pytest.mark.failure_mode(16)
def test_two_ticks_that_are_published_at_once(deployment, paused, model, early, late):
    """One has the lock, the other waits for it: both are published, and the newer one is seen."""
    first = paused(model, early, "publish.before_commit")
    second = paused(model, late, "plan.before_claim").go()
    assert deployment.seen(model) == shown(model, [0])
    assert (first.go().result().code, second.result().code) == (PUBLISHED, PUBLISHED)
    assert deployment.seen(model) == shown(model, [0, 1, 2])
    assert _is_sound(deployment, model)


@pytest.mark.parametrize("model", ["ticks", "population"])
@pytest.mark.failure_mode(16)
def test_a_backfill_that_ends_after_a_newer_tick_moves_nothing_back(deployment, paused, model):
    """A stages tick 0 anew, B publishes tick 1, A publishes: tick 1 stays what is seen."""
    backfill = paused(model, 0, "publish.audited", force=True)
    deployment.predict(model, 1)
    assert backfill.go().result().code == PUBLISHED
    assert deployment.states(model, 0) == ["superseded", "published"]
    assert deployment.seen(model) == shown(model, [0, 1])
    assert _is_sound(deployment, model)


@pytest.mark.failure_mode(15)
def test_a_part_that_two_tries_score_belongs_to_the_newer_one(deployment, attempt):
    """A stages half a part, B scores the part, A goes on: A is fenced, and the run is whole."""
    run = plan(deployment.settings, "ticks", tick(1), new_token())
    tokens = [new_token() for _ in range(3)]
    order = Order("score.chunk_staged", "wait")
    first = attempt(jobs.score, "ticks", run.run_id, 0, tokens[1], order=order)
    first.wait_at(order.place)
    oldest = attempt(jobs.score, "ticks", run.run_id, 0, tokens[0])
    assert oldest.result().code == FENCED
    second = attempt(jobs.score, "ticks", run.run_id, 0, tokens[2], order=order)
    second.wait_at(order.place)
    assert first.go().result().code == FENCED
    assert second.go().result().code == 0
    jobs.score(deployment.settings, "ticks", run.run_id, 1, tokens[1])
    assert jobs.publish(deployment.settings, run.run_id).state == "published"
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert _is_sound(deployment)


@pytest.mark.parametrize(
    ("place", "codes"), [("score.chunk_staged", (0, 0)), ("score.before_chunk", (3, 0))]
)
@pytest.mark.failure_mode(15)
def test_an_attempt_that_was_started_twice_does_no_harm(deployment, paused, place, codes):
    """A stages a chunk, B has the same token and takes the part over, A goes on, then B.

    If B has staged that chunk too, each goes on where the other stopped, and both publish the same
    run. If it has not, A finds its chunk gone and is fenced. Airflow starts no task twice, but
    nothing else keeps a person from it.
    """
    token = new_token()
    first = paused("ticks", 1, "score.chunk_staged", token=token)
    second = paused("ticks", 1, place, token=token)
    assert (first.go().result().code, second.go().result().code) == codes
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert _is_sound(deployment)


@pytest.mark.failure_mode(16)
def test_a_sweep_leaves_alone_what_is_being_staged(deployment, paused):
    """A stages tick 1, B plans tick 2 and so sweeps: A publishes every row."""
    model = "population"
    first = paused(model, 1, "score.chunk_staged", hit=2)
    deployment.predict(model, 2)
    assert first.go().result().code == PUBLISHED
    assert deployment.seen(model) == shown(model, [0, 1, 2])
    assert _is_sound(deployment, model)


@pytest.mark.parametrize(("model", "hit"), [("ticks", 1), ("ticks", 2), ("population", 2)])
@pytest.mark.failure_mode(12)
def test_rows_are_swept_from_under_an_attempt_that_was_overtaken(deployment, paused, model, hit):
    """A stages, B claims its tick and dies, C sweeps, A goes on: fenced, and no row comes back.

    At its second hit A has staged its whole part, and looks for keys that were rejected twice.
    """
    first = paused(model, 1, "score.chunk_staged", hit=hit)
    paused(model, 1, "plan.claimed").close()
    deployment.predict(model, 2)
    assert first.go().result().code == FENCED
    deployment.predict(model, 1)
    assert deployment.seen(model) == shown(model, [0, 1, 2])
    assert _is_sound(deployment, model)


@pytest.mark.failure_mode(45)
def test_a_promotion_while_a_run_is_scored_mixes_no_versions(deployment, paused):
    """A stages tick 1, another version is promoted, B publishes tick 2, A goes on."""
    versions = deployment.versions_of("ticks")
    other = next(version for version in versions if deployment.versions[version])
    first = paused("ticks", 1, "score.chunk_staged")
    promotion.promote(deployment.settings, "ticks", other, actor="tests", reason="better")
    deployment.predict("ticks", 2)
    newer = shown("ticks", [2], deployment.versions[other])
    assert deployment.seen("ticks") == shown("ticks", [0]) | newer
    assert first.go().result().code == PUBLISHED
    assert deployment.seen("ticks") == shown("ticks", [0, 1]) | newer
    assert _is_sound(deployment)
