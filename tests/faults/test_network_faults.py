"""Whatever the network before PostgreSQL loses: each step has exactly one effect, and none half.

Cases 25 to 28 of the failure modes. The network is that of tests/support/tcp_proxy.py. It carries
bytes and not packets, so what it swallows looks to the client as if it had arrived; that packets
are lost cannot be brought about without root, and tcp_user_timeout is not tried here.
"""

import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import FencedError, WarehouseUnavailableError
from batch_jobs.registry import champions, versions
from batch_jobs.runs import jobs
from batch_jobs.training import train
from tests.fault_models._rows import tick
from tests.support.deployment import shown
from tests.support.faults import until
from tests.support.mishaps import is_as_before, is_published_once, once, with_query
from tests.support.tcp_proxy import TcpProxy

COMMIT = b"COMMIT\0"
# After which place which step commits next: the claim, a chunk, a part, the publication.
STEPS = {
    "claim": ("plan.before_claim", 1),
    "stage": ("score.before_chunk", 2),
    "close part": ("score.all_staged", 1),
    "publish": ("publish.locked", 1),
}
HALF_WAY = [STEPS["stage"], STEPS["publish"]]

pytestmark = pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)


@pytest.fixture
def proxy(deployment):
    """The way to the server of the deployment."""
    with TcpProxy("127.0.0.1", deployment.server.port) as made:
        yield made


@pytest.fixture
def behind(deployment, proxy):
    """The settings of a job that has only this way; an idle session is ended after 0.3 s."""
    options = "-c idle_in_transaction_session_timeout=300ms"
    return with_query(deployment.settings, port=proxy.port, options=options, connect_timeout="2")


@pytest.mark.parametrize("way", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.failure_mode(25, 26)
def test_a_commit_that_is_lost_has_one_effect(deployment, proxy, behind, step, way):
    """Whether it was lost before the server or only the answer to it: the same call publishes."""
    place, hit = STEPS[step]
    cut = getattr(proxy, f"drop_{way}")
    with once(place, lambda: cut(COMMIT), hit):
        run = jobs.predict(behind, "ticks", tick(1))
    assert (proxy.cut.is_set(), proxy.answer) == (True, "COMMIT" if way == "after" else None)
    assert run.state == "published"
    assert (run.counts.read, run.counts.scored, run.counts.rejected) == (12, 11, 1)
    assert is_published_once(deployment)


@pytest.mark.parametrize("way", ["before", "after"])
@pytest.mark.failure_mode(25, 26)
def test_a_population_whose_commit_is_lost_is_published_once(deployment, proxy, behind, way):
    """Its table is attached with the commit, or with the one of the repetition."""
    with once("publish.locked", lambda: getattr(proxy, f"drop_{way}")(COMMIT)):
        assert jobs.predict(behind, "population", tick(1)).state == "published"
    assert proxy.cut.is_set()
    assert is_published_once(deployment, "population")


@pytest.mark.parametrize("way", ["before", "after"])
@pytest.mark.failure_mode(25)
def test_a_promotion_whose_commit_is_lost_is_recorded_once(deployment, proxy, behind, way):
    """The audit trail has one row for it, and the next run takes the version."""
    warehouse = Warehouse(behind.warehouse)
    serves = champions.champion(warehouse, "ticks").version
    (other,) = set(deployment.versions_of("ticks")) - {serves}
    version = versions.find_version(warehouse, "ticks", other)
    getattr(proxy, f"drop_{way}")(COMMIT)
    champions.promote(
        warehouse, version, expected=serves, action="promote", actor="tests", reason="better"
    )
    assert (proxy.cut.is_set(), proxy.answer) == (True, "COMMIT" if way == "after" else None)
    promoted = "SELECT version FROM promotions WHERE model = 'ticks' ORDER BY promotion_id"
    assert deployment.ask(promoted) == [(serves,), (other,)]
    assert deployment.predict("ticks", 1).model_version == other


@pytest.mark.parametrize(
    ("statement", "way"), [(b"COPY (", "before"), (b"INSERT INTO model_versions", "after")]
)
@pytest.mark.failure_mode(26)
def test_a_training_that_is_cut_off_registers_one_version(
    deployment, proxy, behind, statement, way
):
    """Whether it was reading the source or registering what it learnt."""
    known = "SELECT version FROM model_versions WHERE model = 'ticks'"
    before = deployment.ask(known)
    with Warehouse(deployment.url).write() as connection:
        connection.exec_driver_sql("UPDATE label_shift SET shift = 5")
    getattr(proxy, f"drop_{way}")(statement)
    version = train.train(behind, "ticks", tick(0).start)
    assert proxy.cut.is_set()
    assert sorted(deployment.ask(known)) == sorted([*before, (version.version,)])


@pytest.mark.parametrize(("place", "hit"), HALF_WAY)
@pytest.mark.failure_mode(27)
def test_whoever_vanishes_half_way_holds_nobody_up(
    deployment, proxy, behind, in_background, place, hit
):
    """The server ends its session; another attempt publishes; when it is back, it is fenced."""
    with once(place, proxy.blackhole, hit):
        vanished = in_background(jobs.predict, behind, "ticks", tick(1))
        until(proxy.swallowed.is_set, "the job to be cut off")
    assert is_as_before(deployment)
    assert deployment.predict("ticks", 1).state == "published"
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    proxy.pass_all()
    with pytest.raises(FencedError):
        vanished.result()
    assert is_published_once(deployment, states=("failed", "published"))


@pytest.mark.parametrize(("place", "hit"), HALF_WAY)
@pytest.mark.failure_mode(27)
def test_whoever_comes_back_from_a_black_hole_goes_on(
    deployment, proxy, behind, in_background, place, hit
):
    """Its connection is lost, and the transaction that was under way is repeated."""
    with once(place, proxy.blackhole, hit):
        job = in_background(jobs.predict, behind, "ticks", tick(1))
        until(proxy.swallowed.is_set, "the job to be cut off")
    assert is_as_before(deployment)
    proxy.pass_all()
    assert job.result().state == "published"
    assert is_published_once(deployment)


@pytest.mark.parametrize("way", ["blackhole", "refuse", "reset_peer"])
@pytest.mark.failure_mode(24)
def test_a_server_out_of_reach_fails_the_job_with_one_clear_line(
    deployment, proxy, behind, monkeypatch, way
):
    """Silence is an answer after connect_timeout; the next call finds everything as it was."""
    monkeypatch.setattr("batch_jobs.database.transactions.PATIENCE_SECONDS", 0)
    getattr(proxy, way)()
    with pytest.raises(WarehouseUnavailableError, match="did not answer") as caught:
        jobs.predict(behind, "ticks", tick(1))
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert deployment.server.password not in str(caught.value)
    assert is_as_before(deployment)
    proxy.pass_all()
    assert jobs.predict(behind, "ticks", tick(1)).state == "published"
    assert is_published_once(deployment)


@pytest.mark.parametrize(
    ("place", "hit", "model"),
    [
        *((*step, "ticks") for step in HALF_WAY),
        ("publish.before_commit", 1, "population"),
    ],
)
@pytest.mark.failure_mode(28)
def test_connections_that_are_reset_half_way_are_made_again(
    deployment, proxy, behind, model, place, hit
):
    """The transaction that was under way is repeated as a whole."""

    def reset():
        proxy.reset_peer()
        proxy.pass_all()

    with once(place, reset, hit):
        assert jobs.predict(behind, model, tick(1)).state == "published"
    assert is_published_once(deployment, model)


@pytest.mark.parametrize(
    ("way", "amount", "model"), [("bandwidth", 64_000, "ticks"), ("slicer", 50, "population")]
)
@pytest.mark.failure_mode(28)
def test_a_poor_network_is_only_slow(deployment, proxy, behind, model, way, amount):
    """64 kB in a second, or fifty bytes at a time, from the first connection to the last."""
    getattr(proxy, way)(amount)
    assert jobs.predict(behind, model, tick(1)).state == "published"
    assert is_published_once(deployment, model)


@pytest.mark.failure_mode(28)
def test_a_far_away_server_is_only_slow(deployment, proxy, behind):
    """It is 200 ms there and back for each statement of the transaction that publishes."""
    with (
        once("publish.audited", lambda: proxy.latency(100)),
        once("publish.committed", proxy.pass_all),
    ):
        assert jobs.predict(behind, "ticks", tick(1)).state == "published"
    assert is_published_once(deployment)
