"""The client tells what is set up wrongly, and gives a default only for a server that is away."""

import asyncio
import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import quote

import httpx
import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from prediction_api.client import (
    AsyncPredictionClient,
    AwayError,
    Given,
    MisconfiguredError,
    NoPredictionError,
    Policy,
    PredictionApiError,
    PredictionClient,
    RefusedError,
    lookups,
)
from tests.support.api import KEY, serving, settings_of
from tests.support.attempts import publish
from tests.support.postgres_server import free_port

AS_CLIENT = {"Authorization": f"Bearer {KEY}"}
DEFAULT = Given(0.5, None, "default", None, None)
POLICY = Policy(last_good_for=timedelta(hours=6), default=0.5)
TOLD = {
    "model": "orders",
    "entity_id": "a",
    "score": 1,
    "label": None,
    "model_version": "v1",
    "run_id": 1,
    **dict.fromkeys(
        ("interval_start", "interval_end", "published_at", "fresh_until"), "2024-03-01T00:00:00Z"
    ),
    "stale": False,
    "age_seconds": 1,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with a key and forty entities, and its URL."""
    made = Warehouse(f"sqlite:///{tmp_path_factory.mktemp('w')}/w.db")
    made.ensure_schema()
    now = datetime.now(UTC)
    rows = {f"key {number}": number / 400 for number in range(400)} | dict.fromkeys(ODD, 0.125)
    publish(made, Interval(now - timedelta(minutes=10), now), rows)
    with serving(settings_of(str(made)), keys=(KEY,), hosts=("*",)) as client:
        yield str(client.base_url)


ODD = (".", "..", "a/../b", "a\nb", "/a//b/", "100%", "?x=1#y", "ключ", '"; DROP', " ")


@contextmanager
def gateway(status, body=b"", **headers):
    """Something else than the API, which always gives one answer."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815 # as http.server calls it

        def log_message(self, *_):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_port}"
        finally:
            made.shutdown()
            thread.join()


WRONG = {
    "the prefix": (lambda url: f"{url}/api", KEY, "orders", r"/api/v1/.* answers 404 "),
    "the model": (lambda url: url, KEY, "ordres", "there is no model ordres"),
    "the key": (
        lambda url: url,
        "another-key-of-length",
        "orders",
        "401: .* give the client",
    ),
    "no key": (lambda url: url, None, "orders", "401"),
    "https for http": (lambda url: url.replace("http:", "https:"), KEY, "orders", "TLS fails"),
    "no scheme": (lambda url: url.removeprefix("http://"), KEY, "orders", "has no scheme"),
    "a query": (lambda url: f"{url}/?key=x", KEY, "orders", "more than a host and a path"),
    "another scheme": (
        lambda url: url.replace("http:", "postgresql:"),
        KEY,
        "orders",
        "write http",
    ),
    "a newline in the key": (lambda url: url, f"{KEY}\n", "orders", "newline at its end; strip it"),
}


@pytest.mark.parametrize(("wrong", "key", "model", "told"), WRONG.values(), ids=WRONG)
def test_what_is_set_up_wrongly_is_an_error_at_once(server, wrong, key, model, told):
    """And no default for ever; one entity or many, awaited or not, it is the same error."""

    async def awaited():
        async with AsyncPredictionClient(wrong(server), key=key, policy=POLICY) as client:
            await client.get_many(model, ["key 1"])

    def waited():
        with PredictionClient(wrong(server), key=key, policy=POLICY) as client:
            client.get(model, "key 1")

    with pytest.raises(MisconfiguredError, match=told):
        waited()
    with pytest.raises(MisconfiguredError, match=told):
        asyncio.run(awaited())


GATEWAYS = [
    (404, b"<html>not here", {"Content_Type": "text/html"}, MisconfiguredError),
    (404, b"{}", {"Content_Type": "application/json"}, MisconfiguredError),
    (410, b"", {}, MisconfiguredError),
    (400, b"<html>plain HTTP was sent to the HTTPS port", {}, MisconfiguredError),
    (200, b"<html>sign in", {"Content_Type": "text/html"}, MisconfiguredError),
    (200, b"<html>sign in", {"Content_Type": "application/json", "ETag": "x"}, MisconfiguredError),
    (200, b"{}", {"Content_Type": "application/json", "ETag": "x"}, MisconfiguredError),
    (200, b"[1]", {"Content_Type": "application/json"}, MisconfiguredError),
    (200, json.dumps(TOLD | {"score": "1"}).encode(), {"Content_Type": "application/json"}, None),
    (200, b"\x00", {"Content_Type": "application/json", "Content_Encoding": "gzip"}, None),
    (302, b"", {"Location": "/login"}, MisconfiguredError),
    (304, b"", {}, MisconfiguredError),
    (429, b"", {"Retry_After": "7"}, RefusedError),
    (500, b"<html>oh", {}, RefusedError),
    *((status, b"<html>", {}, DEFAULT) for status in (502, 503, 504)),
    (200, json.dumps(TOLD).encode(), {"Content_Type": "application/json"}, 1.0),
]


@pytest.mark.parametrize(("status", "body", "headers", "expected"), GATEWAYS)
def test_the_answers_of_gateways_are_told_apart(status, body, headers, expected):
    """Neither JSONDecodeError nor KeyError, and a default only for 502, 503 and 504."""
    with gateway(status, body, **headers) as url, PredictionClient(url, policy=POLICY) as client:
        if isinstance(expected, Given | float):
            given = client.get("orders", "a")
            assert expected in (given, given.score)
            return
        with pytest.raises(expected or MisconfiguredError) as caught:
            client.get("orders", "a")
        assert getattr(caught.value, "retry_after", None) == (7 if status == 429 else None)
        with pytest.raises(PredictionApiError):
            client.get_many("orders", ["a"])


def test_a_server_that_is_away_is_no_misconfiguration():
    """Nobody listens, or whoever listens says nothing; without a default it is told."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port in (free_port(), silent.getsockname()[1]):
            url = f"http://127.0.0.1:{port}"
            with PredictionClient(url, policy=POLICY, timeout=0.2) as client:
                assert client.get("orders", "a") == DEFAULT
                assert client.get_many("orders", ["a"]).given == {"a": DEFAULT}
            with PredictionClient(url, timeout=0.2) as client:
                with pytest.raises(NoPredictionError, match="the API does not answer"):
                    client.get("orders", "a")
                with pytest.raises(AwayError):
                    client.get_many("orders", ["a"])


class Dropping(httpx.BaseTransport):
    """A way on which what is sent is dropped so many times, or the server is away."""

    def __init__(self, *outcomes):
        self.outcomes, self.sent = list(outcomes), 0

    def handle_request(self, request):
        """Fail as the outcomes say, and answer after that."""
        self.sent += 1
        if self.outcomes and isinstance(failing := self.outcomes.pop(0), Exception):
            raise failing
        return httpx.Response(200, json=TOLD)


DROP = httpx.RemoteProtocolError("Server disconnected without sending a response.")


def test_what_was_dropped_is_sent_once_more():
    """An idle connection was closed just then; if it happens again, the server is away."""
    for outcomes, sent, score in (((DROP,), 2, 1.0), ((DROP, httpx.ReadError("x")), 2, 0.5)):
        way = Dropping(*outcomes)
        with PredictionClient("http://x", policy=POLICY, transport=way) as client:
            assert client.get("orders", "a").score == score
        assert way.sent == sent


def test_a_server_that_is_away_is_asked_again_as_often_as_is_said():
    """After pauses that grow."""
    way = Dropping(httpx.ConnectError("refused"), httpx.ReadTimeout("late"))
    with PredictionClient("http://x", retries=2, transport=way) as client:
        assert client.get("orders", "a").score == 1.0
    assert way.sent == 3


def test_any_key_that_can_be_stored_can_be_asked_for(server):
    """Dots, slashes and newlines, alone and among many; what no key can be is told at once."""
    with PredictionClient(server, key=KEY) as client:
        for key in ODD:
            assert client.get("orders", key).score == 0.125, key
            assert client.get_past("orders", key, datetime.now(UTC)).score == 0.125, key
            path = f"/v1/models/orders/predictions/{quote(key, safe='')}"
            if key not in {".", ".."}:  # of which clients make another path
                asked = httpx.get(server.rstrip("/") + path, headers=AS_CLIENT)
                assert asked.json()["entity_id"] == key
        with pytest.raises(NoPredictionError, match=r"no prediction of '\.\.'"):
            client.get_past("orders", "..", datetime(2024, 1, 1, tzinfo=UTC))
        found = client.get_many("orders", [*ODD, "none", "key 4", 17])
        assert list(found.given) == [*ODD, "key 4"]
        assert found.missing == ["none", "17"]
        for wrong in ("", "a\0b", "a" * 201, "\ud800"):
            with pytest.raises(ValueError, match="no key can be"):
                client.get("orders", wrong)
        with pytest.raises(TypeError, match="a key is text"):
            client.get("orders", None)


def test_threads_share_one_client(server, monkeypatch):
    """Also while what it remembers is pushed out by others."""
    monkeypatch.setattr(lookups, "REMEMBERED", 2)
    with PredictionClient(server, key=KEY, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        asked = [f"key {number % 5}" for number in range(200)]
        scores = [given.score for given in pool.map(lambda key: client.get("orders", key), asked)]
    assert scores == [number % 5 / 400 for number in range(200)]


def test_many_tasks_share_one_client(server):
    """Three hundred at once get their answers over ten connections."""

    async def run():
        async with AsyncPredictionClient(server, key=KEY) as client:
            some = (client.get("orders", f"key {number}") for number in range(300))
            return await asyncio.gather(*some)

    assert [given.score for given in asyncio.run(run())] == [number / 400 for number in range(300)]


def test_the_client_needs_httpx_alone():
    """Nothing of the library, and no pandas, pyarrow, SQLAlchemy or pydantic."""
    code = (
        "import sys, prediction_api.client\n"
        "heavy = {'batch_jobs', 'pandas', 'pyarrow', 'sqlalchemy', 'pydantic', 'fastapi'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
