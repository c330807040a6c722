"""Many entities in one request: of one published state, in their order; on both databases."""

from datetime import timedelta
from threading import Event, Thread

import pytest

from batch_jobs.database.transactions import stored_time
from tests.api.test_reading import api  # noqa: F401 # a fixture
from tests.support.api import detail
from tests.support.attempts import claim, publish, score, tick
from tests.support.history import latest

PATH = "/v1/models/{}/predictions:lookup"


def look_up(api, *keys, model="orders", **body):  # noqa: F811
    """What the server says of keys."""
    return api.post(PATH.format(model), json={"entity_ids": list(keys), **body})


@pytest.fixture
def shop_api(api, request):  # noqa: F811
    """The server, which is also asked by POST."""
    api.post = api.get.__self__.post
    return api


@pytest.mark.parametrize(("model", "mode"), [("orders", "merge"), ("customers", "replace")])
def test_entities_are_told_in_their_order(shop_api, model, mode):
    """Each as it would be alone, also one that is asked for twice; those without are named."""
    keys = ["b", ".", "..", "a/b", "x\ny", "ключ", "'; --", "a"]
    publish(
        shop_api.warehouse, tick(0), dict.fromkeys(keys, 0.5) | {"a": 0.25}, mode=mode, model=model
    )
    told = look_up(shop_api, *keys, "none", "a", "none", model=model).json()
    assert [row and row["entity_id"] for row in told["predictions"]] == [*keys, None, "a", None]
    assert told["missing"] == ["none"]
    alone = shop_api.get(f"/v1/models/{model}/predictions/a").json()
    shared = {name: alone.pop(name) for name in ("fresh_until", "stale")}
    del alone["age_seconds"]
    assert told["predictions"][-2] == alone
    assert {name: told[name] for name in shared} == shared


def test_a_thousand_keys_are_taken_and_no_more(shop_api):
    """Nor none, nor what is no key; each is told with its place."""
    publish(shop_api.warehouse, tick(0), {"7": 0.5})
    told = look_up(shop_api, *map(str, range(1000))).json()
    assert (told["predictions"][7]["score"], len(told["missing"])) == (0.5, 999)
    for wrong in ([], ["x"] * 1001, [""], ["a\0b"], ["x" * 201], [7], [None], "x"):
        body = {"entity_ids": wrong}
        assert detail(shop_api.post(PATH.format("orders"), json=body), 422)
    surrogate = b'{"entity_ids": ["\\ud800"]}'
    sent = {"content": surrogate, "headers": {"Content-Type": "application/json"}}
    assert detail(shop_api.post(PATH.format("orders"), **sent), 422)
    assert detail(look_up(shop_api, "7", as_of="then"), 422)
    assert detail(look_up(shop_api, "7", as_of="2024-03-01T00:00:00Z", run_id=1), 422)


def test_the_past_and_a_pinned_run_can_be_asked_for(shop_api):
    """What readers saw then, and what a run says whatever came after it."""
    first = publish(shop_api.warehouse, tick(0), {"a": 0.25, "b": 0.5})
    then = latest(shop_api.warehouse)
    publish(shop_api.warehouse, tick(1), {"a": 0.75})
    told = look_up(shop_api, "a", "b", "c", as_of=stored_time(then)).json()
    assert [row and row["score"] for row in told["predictions"]] == [0.25, 0.5, None]
    assert told["predictions"][0]["superseded_at"] > told["as_of"]
    assert told["fresh_until"] is None
    before = look_up(shop_api, "a", as_of=stored_time(then - timedelta(minutes=1))).json()
    assert before["missing"] == ["a"]
    pinned = look_up(shop_api, "a", "b", run_id=first.run_id).json()
    assert [row["score"] for row in pinned["predictions"]] == [0.25, 0.5]
    assert look_up(shop_api, "a", run_id=99).json()["missing"] == ["a"]
    staged = claim(shop_api.warehouse, tick(2))
    score(shop_api.warehouse, staged, {"a": 0.1})
    assert look_up(shop_api, "a", run_id=staged.run_id).json()["missing"] == ["a"]


def test_what_is_not_there_is_told_by_its_type(shop_api):
    """A URL under which the server says what it means and what to do."""
    unknown = look_up(shop_api, "a", model="unknown")
    assert detail(unknown, 404) == "there is no model unknown"
    unpublished = look_up(shop_api, "a")
    assert detail(unpublished, 404) == "orders has not published anything yet"
    for answer, words in ((unknown, "GET /v1/models"), (unpublished, "first prediction run")):
        assert words in shop_api.get(answer.json()["type"]).text
    assert detail(shop_api.get("/problems/x"), 404)


def test_many_are_of_one_published_state(shop_api):
    """Whatever is published meanwhile: all scores of an answer are of one run."""
    keys = [f"c{number}" for number in range(300)]
    publish(
        shop_api.warehouse, tick(0), dict.fromkeys(keys, 0.0), mode="replace", model="customers"
    )
    ended = Event()

    def go_on():
        for number in range(1, 8):
            rows = dict.fromkeys(keys, number / 10)
            publish(shop_api.warehouse, tick(number), rows, mode="replace", model="customers")
        ended.set()

    thread = Thread(target=go_on)
    thread.start()
    seen = set()
    while not ended.is_set():
        told = look_up(shop_api, *keys, model="customers").json()
        runs = {(row["run_id"], row["score"]) for row in told["predictions"]}
        assert len(runs) == 1
        seen |= runs
    thread.join()
    assert len(seen) > 1
