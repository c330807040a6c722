"""Who listens is told of each publication, and of a request's end; on both databases."""

import asyncio
import json

import pytest

from batch_jobs.requests import worker
from prediction_api import events
from prediction_api.client import AsyncPredictionClient, MisconfiguredError, PredictionClient
from tests.api.test_reading import api  # noqa: F401 # a fixture
from tests.api.test_requests import ORDERS
from tests.support.api import detail, serving
from tests.support.attempts import publish, tick


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Look for what is new more often than a test would wait."""
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.02)


def url_of(api):  # noqa: F811
    """Where the server is."""
    return str(api.get.__self__.base_url)


def test_each_publication_is_told_in_turn(api):  # noqa: F811
    """Of who comes again with the last that was heard, also what happened meanwhile."""
    publish(api.warehouse, tick(0), {"a": 0.1})
    first = api.get("/v1/models/orders/status").json()["published_at"]
    runs = [publish(api.warehouse, tick(n), {"a": n / 10, "b": 0.5}).run_id for n in (1, 2)]
    publish(api.warehouse, tick(0), {"x": 1.0}, mode="replace", model="customers")

    async def listen():
        async with AsyncPredictionClient(url_of(api)) as client:
            stream = client.publications("orders", first)
            found = [await anext(stream), await anext(stream)]
            await asyncio.to_thread(publish, api.warehouse, tick(3), {"a": 0.3})
            found.append(await anext(stream))
            await stream.aclose()
            return found

    told = asyncio.run(listen())
    assert [one.run_id for one in told[:2]] == runs
    assert [one.row_count for one in told] == [2, 2, 1]
    assert told[0].interval_end == tick(1).end


def test_a_stream_that_ends_is_taken_up_where_it_was(api, monkeypatch):  # noqa: F811
    """The server ends each after some minutes."""
    monkeypatch.setattr(events, "LONGEST_SECONDS", 0.0)
    publish(api.warehouse, tick(0), {"a": 0.1})
    first = api.get("/v1/models/orders/status").json()["published_at"]
    with PredictionClient(url_of(api)) as client:
        stream = client.publications("orders", first)
        for number in (1, 2, 3):
            publish(api.warehouse, tick(number), {"a": 0.1})
            assert next(stream).interval_end == tick(number).end
        stream.close()


def test_only_so_many_listen(api, monkeypatch):  # noqa: F811
    """The others are told to come again; a wrong model or id is an error at once."""
    publish(api.warehouse, tick(0), {"a": 0.1})
    monkeypatch.setattr(events, "MOST_LISTENERS", 0)
    assert "listen already" in detail(api.get("/v1/models/orders/events"), 503)
    monkeypatch.setattr(events, "MOST_LISTENERS", 1)
    assert detail(api.get("/v1/models/none/events"), 404) == "there is no model none"
    wrong = api.get("/v1/models/orders/events", headers={"Last-Event-ID": "x"})
    assert detail(wrong, 404)
    with (
        PredictionClient(url_of(api)) as client,
        pytest.raises(MisconfiguredError, match="there is no model none"),
    ):
        next(client.publications("none"))


def test_the_end_of_a_request_is_told(shop):
    """How far it is at first, and whenever that changes; then the stream ends."""
    with serving(shop, model="orders") as client:
        answer = client.post("/v1/requests", json={"rows": ORDERS})
        assert answer.headers["retry-after"] == "1"
        url = answer.json()["url"]
        assert client.get(url).headers["retry-after"] == "1"
        told = []
        with client.stream("GET", f"{url}/events") as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    told.append(json.loads(line.removeprefix("data: "))["state"])
                    if told == ["waiting"]:
                        worker.answer(shop, "orders", "1")
                if line.startswith("event: "):
                    last = line
        assert (told[0], told[-1], last) == ("waiting", "done", "event: over")
        assert "retry-after" not in client.get(url).headers
