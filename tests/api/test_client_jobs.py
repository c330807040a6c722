"""The client computes, submits and waits, takes back, and exports; on both databases."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.requests import worker
from batch_jobs.runs import jobs
from prediction_api.client import (
    AsyncPredictionClient,
    NoPredictionError,
    PredictionClient,
    RefusedError,
)
from tests.api.test_requests import ORDERS, as_csv, as_parquet
from tests.conftest import TRAINED
from tests.support.api import KEY, OTHER_KEY, serving
from tests.support.attempts import ask

ORDER = {"amount": 90.0, "country": "kr"}
KEYS = {"keys": (KEY, OTHER_KEY), "hosts": ("*",), "model": "orders"}


@pytest.fixture
def url(shop):
    """A server of the shop, with two keys, which answers requests of many rows."""
    with serving(shop, answer=True, **KEYS) as client:
        yield str(client.base_url)


@pytest.fixture
def client(url):
    """Our client of it."""
    with PredictionClient(url, key=KEY, timeout=60) as made:
        yield made


def test_a_prediction_is_computed(client):
    """Of features by name or as declared; the same key gives the same answer."""
    first = client.predict("orders", ORDER, idempotency_key="k")
    assert client.predict("orders", [90.0, "kr"], idempotency_key="k") == first
    again = client.predict("orders", ORDER)
    assert (again.score, again.id != first.id) == (first.score, True)
    with pytest.raises(RefusedError, match=r"422: .*amount.*greater than or equal to 0") as caught:
        client.predict("orders", {"amount": -1, "country": "kr"})
    assert caught.value.status == 422


@pytest.mark.parametrize("kind", ["rows", "csv", "parquet"])
def test_many_rows_are_submitted_and_waited_for(client, kind):
    """With their progress; what came of each, in their order, with its reason if rejected."""
    sent = {"rows": ORDERS, "csv": as_csv(), "parquet": as_parquet()}[kind]
    submitted, told = client.submit("orders", sent, kind), []
    ended = client.wait(submitted.id, told=told.append)
    assert (ended.state, ended.progress, told[-1]) == ("done", 1.0, ended)
    results = list(client.results(submitted.id))
    assert [(row.row, row.entity_id) for row in results] == list(
        enumerate(["a", "=b", None, "a"], 1)
    )
    assert [row.score is None for row in results] == [False, True, False, True]
    assert "amount" in results[1].reason


def test_requests_are_listed_for_who_has_sent_them(client, url):
    """The newest first, and those of no other key."""
    ids = [client.submit("orders", ORDERS).id for _ in range(3)]
    assert [one.id for one in client.requests()] == ids[::-1]
    assert [one.id for one in client.requests(limit=1)] == ids[2:]
    with PredictionClient(url, key=OTHER_KEY) as other:
        assert other.requests() == []
        with pytest.raises(RefusedError, match="no request of this id"):
            other.cancel(ids[0])


def test_a_request_is_taken_back_before_it_is_answered(shop):
    """It stays so, is never answered, and goes as others do; what is over cannot be taken back."""
    with serving(shop, **KEYS) as server, PredictionClient(str(server.base_url), key=KEY) as client:
        first, second = (client.submit("orders", ORDERS).id for _ in range(2))
        with pytest.raises(TimeoutError, match="is waiting after"):
            client.wait(first, seconds=0.1)
        assert client.cancel(first) == client.cancel(first)
        answered = worker.answer(shop, "orders", "1")
        assert [one.request_id for one in answered] == [second]
        assert client.wait(first).state == "cancelled"
        assert list(client.results(first)) == []
        with pytest.raises(RefusedError, match="409: the request is over: its state is done"):
            client.cancel(second)
        warehouse = Warehouse(shop.warehouse)
        assert ask(warehouse, "SELECT state FROM requests ORDER BY created_at") == [
            ("failed",),
            ("done",),
        ]


def test_a_request_is_taken_back_while_it_is_answered(shop, monkeypatch):
    """What was stored until then is nobody's result, and the next request is answered."""
    with serving(shop, **KEYS) as server, PredictionClient(str(server.base_url), key=KEY) as client:
        first, second = (client.submit("orders", ORDERS).id for _ in range(2))

        claimed = worker.queue.claim

        def claim_and_take_back(*arguments):
            found = claimed(*arguments)
            if client.progress(first).state == "scoring":
                client.cancel(first)
            return found

        monkeypatch.setattr(worker.queue, "claim", claim_and_take_back)
        answered = worker.answer(shop, "orders", "1")
        assert [one.request_id for one in answered] == [second]
        assert client.progress(first).state == "cancelled"


@pytest.fixture
def published(shop):
    """The shop, whose models have published an hour."""
    for name in ("orders", "customers"):
        jobs.predict(shop, name, Interval(TRAINED, TRAINED + timedelta(hours=1)))
    return shop


def test_all_that_is_current_is_exported(published):
    """As rows, Arrow and pandas; filtered, sorted, and the first ones of them; awaited or not."""
    with serving(published, **KEYS) as server:
        url = str(server.base_url)
        with PredictionClient(url, key=KEY, timeout=60) as client:
            rows = list(client.export("customers"))
            table = client.to_arrow("customers")
            assert table.column("entity_id").to_pylist() == [row.entity_id for row in rows]
            assert client.to_pandas("customers")["score"].tolist() == [row.score for row in rows]
            highest = list(client.export("customers", sort="-score", top=3))
            assert [row.score for row in highest] == sorted(row.score for row in rows)[:-4:-1]
            few = list(client.export("customers", prefix="customer-1", min_score=rows[0].score))
            assert few == [
                row
                for row in rows
                if row.entity_id.startswith("customer-1") and row.score >= rows[0].score
            ]
            assert list(client.export("customers", published_after=datetime.now(UTC))) == []
            with pytest.raises(ValueError, match="has no offset"):
                client.to_arrow("customers", published_after=datetime(2024, 3, 1))
            past = client.get_past("customers", rows[0].entity_id, datetime.now(UTC))
            assert (past.score, past.superseded_at) == (rows[0].score, None)
            with pytest.raises(NoPredictionError):
                client.get_past("customers", "none", datetime.now(UTC))
            assert client.status("customers").row_count == len(rows)

        async def awaited():
            async with AsyncPredictionClient(url, key=KEY, timeout=60) as client:
                submitted = await client.submit("orders", ORDERS)
                await client.cancel(submitted.id)
                ended = await client.wait(submitted.id)
                found = [row async for row in client.export("customers")]
                frame = await client.to_pandas("customers", top=2)
                computed = await client.predict("orders", ORDER)
                return ended.state, found, len(frame), computed.model

        assert asyncio.run(awaited()) == ("cancelled", rows, 2, "orders")
