"""The client gives what its policy names, says which it gave, and how old it is."""

import asyncio
import re
from datetime import UTC, datetime, timedelta

import pytest

from batch_jobs import clock
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from prediction_api.client import (
    AsyncPredictionClient,
    Given,
    MisconfiguredError,
    NoPredictionError,
    Policy,
    PredictionClient,
)
from tests.support.api import KEY, serving, settings_of
from tests.support.attempts import publish

HOUR = timedelta(hours=1)
DEFAULT = Given(0.5, None, "default", None, None)


@pytest.fixture
def warehouse(tmp_path):
    """A warehouse to which an interval that ended a moment ago was published."""
    made = Warehouse(f"sqlite:///{tmp_path}/w.db")
    made.ensure_schema()
    now = datetime.now(UTC)
    publish(made, Interval(now - timedelta(minutes=10), now), {"a/b": 0.25})
    return made


@pytest.fixture
def server(warehouse):
    """A client of a server on that warehouse, which tells its URL."""
    with serving(settings_of(str(warehouse._url))) as made:
        yield made


def open_client(server, **policy):
    """A client of ours."""
    return PredictionClient(str(server.base_url), policy=Policy(**policy))


def stop(server):
    """End a server, and wait for its end."""
    server.server.should_exit = True
    server.close()
    server.server.thread.join()


def test_what_is_fresh_is_given_as_such(server):
    """With its age, and all that the API tells; asked again, the API says that it is known."""
    with open_client(server) as client:
        given = client.get("orders", "a/b")
        assert (given.score, given.label, given.source) == (0.25, None, "fresh")
        assert timedelta(0) <= given.age < HOUR
        assert given.prediction.model_version == "v1"
        assert client.get("orders", "a/b").score == 0.25
    told = server.get("/metrics").text
    assert re.search(r'status="304"} 1\.0', told)


def test_what_is_stale_is_the_last_good_if_the_policy_has_it(server):
    """As long as it is not too old; else the default, or an error that says why."""
    with clock.set_to(datetime.now(UTC) + 9 * HOUR):
        with open_client(server, last_good_for=HOUR) as client:
            given = client.get("orders", "a/b")
            assert (given.score, given.source) == (0.25, "last_good")
        with open_client(server, default=0.5) as client:
            assert client.get("orders", "a/b") == DEFAULT
        with (
            open_client(server) as client,
            pytest.raises(NoPredictionError, match="the model is stale, and the last good"),
        ):
            client.get("orders", "a/b")


def test_a_server_that_is_gone_leaves_the_last_good(server):
    """What it said last, of each entity; of what it never said, there is only the default."""
    with (
        open_client(server, last_good_for=HOUR, default=0.5) as client,
        open_client(server) as strict,
    ):
        assert client.get("orders", "a/b").source == strict.get("orders", "a/b").source == "fresh"
        stop(server)
        given = client.get("orders", "a/b")
        assert (given.score, given.source) == (0.25, "last_good")
        assert client.get("orders", "x") == DEFAULT
        with pytest.raises(NoPredictionError, match="the API does not answer: ConnectError"):
            strict.get("orders", "a/b")


def test_a_warehouse_that_is_gone_leaves_the_last_good(server, warehouse, tmp_path):
    """503 is no answer either."""
    with open_client(server, last_good_for=HOUR) as client:
        client.get("orders", "a/b")
        (tmp_path / "w.db").rename(tmp_path / "elsewhere.db")
        assert client.get("orders", "a/b").source == "last_good"
        with pytest.raises(NoPredictionError, match="the API answers 503"):
            client.get("orders", "x")


def test_an_entity_without_a_prediction_has_the_default(server):
    """Or an error that says what is missing."""
    with open_client(server, default=0.5) as client:
        assert client.get("orders", "x") == DEFAULT
    with open_client(server) as client, pytest.raises(NoPredictionError, match="this entity"):
        client.get("orders", "x")


def test_a_wrong_request_is_an_error_whatever_the_policy(warehouse):
    """A default would hide a key that is missing."""
    settings = settings_of(str(warehouse._url))
    with serving(settings, keys=(KEY,), hosts=("*",)) as server:
        with (
            open_client(server, default=0.5) as client,
            pytest.raises(MisconfiguredError, match="401"),
        ):
            client.get("orders", "a/b")
        with PredictionClient(str(server.base_url), key=KEY) as client:
            assert client.get("orders", "a/b").score == 0.25


def test_what_is_awaited_is_the_same(server):
    """Fresh, known, gone."""

    async def run():
        policy = Policy(last_good_for=HOUR, default=0.5)
        async with AsyncPredictionClient(str(server.base_url), policy=policy) as client:
            first = await client.get("orders", "a/b")
            again = await client.get("orders", "a/b")
            missing = await client.get("orders", "x")
            await asyncio.to_thread(stop, server)
            return first.source, again.source, missing, (await client.get("orders", "a/b")).source

    assert asyncio.run(run()) == ("fresh", "fresh", DEFAULT, "last_good")
