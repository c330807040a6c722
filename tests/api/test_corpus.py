"""What no well-meaning client sends: whatever it is, the answer is 4xx and the server goes on."""

import asyncio
import base64
import http.client
import json
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from prediction_api import small_batches
from prediction_api.config import Config
from tests.conftest import _settings_in
from tests.support.api import ask, detail, serving

ORDER = {"amount": 9.5, "country": "kr"}
DEEP = 100_000
# Bodies, and what is in the way of reading or taking each.
BODIES = {
    "nothing": b"",
    "not JSON": b"amount=1",
    "half of it": b'{"features": ',
    "two of them": b'{"features": [1, "kr"]}{}',
    "NaN": b'{"features": [NaN, "kr"]}',
    "Infinity": b'{"features": [Infinity, "kr"]}',
    "minus Infinity": b'{"features": [-Infinity, "kr"]}',
    "a number beyond floats": b'{"features": [1e999, "kr"]}',
    "a whole number beyond floats": b'{"features": [%s, "kr"]}' % (b"9" * 400),
    "a whole number of too many digits": b'{"features": [%s, "kr"]}' % (b"9" * 5000),
    "bad UTF-8": b'{"features": [1, "\xff\xfe"]}',
    "UTF-16": '{"features": [1, "kr"]}'.encode("utf-16"),
    "a NUL byte": b'{"features": [1, "kr\x00"]}',
    "half a surrogate pair": b'{"features": [1, "\\ud800"]}',
    "a word that is too long": b'{"features": [1, "%s"]}' % (b"x" * 10_001),
    "deep lists": b"[" * DEEP,
    "deep objects": b'{"features":' * DEEP,
    "deep and closed": b'{"features":' + b"[" * DEEP + b"]" * DEEP + b"}",
    "text for a number": b'{"features": ["1", "kr"]}',
    "a truth for a number": b'{"features": [true, "kr"]}',
    "null for what must be": b'{"features": [null, "kr"]}',
    "a number below its bound": b'{"features": [-1, "kr"]}',
    "too few": b'{"features": [1]}',
    "too many": b'{"features": [1, "kr", 2]}',
    "far too many": b'{"features": [%s]}' % b",".join([b"1"] * 100_000),
    "another name": b'{"features": {"amount": 1, "land": "kr"}}',
    "one name more": b'{"features": {"amount": 1, "country": "kr", "__class__": "x"}}',
    "one field more": b'{"features": [1, "kr"], "model": "customers"}',
    "a list": b"[1]",
    "a number": b"1",
    "null": b"null",
    "a pickle": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
}
TYPES = ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=x", "é", ""]
PATHS = [
    "/models/orders/predictions/%00",
    "/models/orders/predictions/" + "x" * 201,
    "/models/orders/predictions/",
    "/models/orders/predictions/a?as_of=%00",
    "/models/orders/predictions/a?as_of=9999-12-31T23:59:59-23:59",
    "/models/%00/status",
    "/models/..%2f..%2fetc/status",
    "/models/" + "x" * 5000 + "/status",
    "/models/orders/runs/9223372036854775808/predictions",
    "/models/orders/runs/1/predictions?limit=0",
    "/models/orders/runs/1/predictions?limit=10001",
    "/models/orders/runs/1/predictions?format=pickle",
    "/models/orders/runs/1/predictions?after=%00",
    "/models/orders/runs/1/predictions?after=" + "x" * 201,
    "/models/orders/runs/-1/predictions",
    "/predict/99999999999999999999",
    "/predict/%ff",
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory, _trained_shop):
    """Settings of a shop of their own."""
    folder = tmp_path_factory.mktemp("corpus") / "shop"
    shutil.copytree(_trained_shop, folder)
    return _settings_in(folder)


@pytest.fixture(scope="module")
def client(settings):
    """A client of one server, which has to bear all of it."""
    with serving(settings, model="orders", body_bytes=2_000_000) as made:
        yield made


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_that_does_not_fit_is_refused(client, body):
    """As a problem that does not repeat what was sent."""
    headers = {"Content-Type": "application/json"}
    answer = client.post("/predict", content=body, headers=headers)
    assert detail(answer, 422 if answer.status_code == 422 else 400)
    assert len(answer.content) < 5000
    assert json.loads(answer.content, parse_constant=pytest.fail)


def test_all_that_is_wrong_is_told_by_its_place(client):
    """Each value with where it stands and what would be right."""
    body = {"features": {"amount": "much"}, "model": "x"}
    errors = {
        error["where"]: error["what"]
        for error in client.post("/predict", json=body).json()["errors"]
    }
    assert set(errors) == {
        "body.features.named.amount",
        "body.features.named.country",
        "body.model",
    }
    assert "valid number" in errors["body.features.named.amount"]


@pytest.mark.parametrize("content_type", TYPES)
def test_what_is_not_called_json_is_not_read_as_such(client, content_type):
    """A form that a web page lets a browser send is none of ours."""
    content, headers = json.dumps({"features": ORDER}), {"Content-Type": content_type.encode()}
    if content_type.startswith("application/json"):
        assert client.post("/predict", content=content, headers=headers).status_code == 200
        return
    assert detail(client.post("/predict", content=content, headers=headers), 422)


@pytest.mark.parametrize("path", PATHS)
def test_a_path_that_does_not_fit_is_refused(client, path):
    """Out of bounds, not storable, or nothing that is there."""
    answer = client.get(path)
    assert detail(answer, answer.status_code)
    assert answer.status_code in (404, 422)


TIME = "2024-03-01T00:00:00+00:00"
CURSORS = [
    "%",
    "[" * 1400,
    json.dumps({"began": TIME, "as_of": TIME, "after": "a", "score": 10**400}),
    json.dumps({"began": TIME, "as_of": "0001-01-01T00:00:00+23:59", "after": "a", "score": 1}),
    json.dumps({"began": "9999-12-31T23:59:59-23:59", "as_of": TIME, "after": "a", "score": 1}),
    json.dumps({"began": TIME, "run_id": 1, "after": "a", "score": 1, "x": 1}),
]


@pytest.mark.parametrize("cursor", CURSORS, ids=range(len(CURSORS)))
def test_a_cursor_that_somebody_made_up_leads_nowhere(client, cursor):
    """However deep, large or far away what stands in it is."""
    packed = base64.urlsafe_b64encode(cursor.encode()).decode()
    for given in (packed, packed[:-3], cursor[:50]):
        answer = client.get("/models/orders/predictions", params={"cursor": given})
        assert detail(answer, 404)


@pytest.mark.parametrize("name", ["0001-01-01T00:00:00+23:59", "2024", "x" * 50])
def test_an_event_that_nobody_was_told_of_is_none(client, name):
    """As an id that a listener comes again with."""
    answer = client.get("/models/orders/events", headers={"Last-Event-ID": name})
    assert detail(answer, 404)


LARGE = {
    "tensors": ("/v2/models/orders/infer", {"inputs": [{}] * 9000}, 422),
    "a long tensor": (
        "/v2/models/orders/infer",
        {"inputs": [{"name": "a", "shape": [9**5, 1], "datatype": "FP64", "data": [1] * 9**5}]},
        413,
    ),
    "a large shape": (
        "/v2/models/orders/infer",
        {"inputs": [{"name": "a", "shape": [10**18, 3], "datatype": "FP64", "data": [1]}]},
        413,
    ),
    "columns": (
        "/invocations",
        {"dataframe_split": {"columns": [str(n) for n in range(9000)], "data": [[1] * 9000]}},
        422,
    ),
    "rows": ("/invocations", {"instances": [[]] * 9000}, 422),
}


@pytest.mark.parametrize(("path", "body", "status"), LARGE.values(), ids=LARGE.keys())
def test_what_is_too_large_is_counted_before_it_is_looked_at(
    client, path, body, status, monkeypatch
):
    """Else look-ups would wait for a second, for a body of one megabyte."""
    monkeypatch.setattr(small_batches, "request_of", pytest.fail)
    answer = client.post(path, json=body)
    assert detail(answer, status)
    assert len(answer.content) < 5000


@pytest.mark.parametrize("key", ["", "x" * 201])
def test_a_key_that_cannot_be_kept_is_refused(client, key):
    """Too short or too long for the column."""
    answer = client.post("/predict", json={"features": ORDER}, headers={"Idempotency-Key": key})
    assert detail(answer, 422)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /models\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /models HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
)
def test_what_is_hardly_http_does_no_harm(client, raw):
    """It gets 4xx or is cut off, and the next one is answered."""
    with socket.create_connection((client.base_url.host, client.base_url.port), 30) as connection:
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        try:
            first = connection.recv(100)
        except ConnectionResetError:
            first = b""
    assert first == b"" or first.split()[1].startswith(b"4") or first.startswith(b"HTTP/1.1 2")
    assert client.get("/healthz").json() == {"ok": True}


def test_a_body_is_cut_off_where_it_becomes_too_large(client):
    """Whatever it says of its length: here it comes in chunks and says nothing."""

    def parts():
        for _ in range(30):
            yield b" " * 100_000

    headers = {"Content-Type": "application/json"}
    answer = client.post("/predict", content=parts(), headers=headers)
    allowed = "a body has at most 2,000,000 bytes (PREDICTION_API_BODY_BYTES)"
    assert detail(answer, 413) == allowed


def test_many_at_once_do_no_harm(client):
    """Good and bad ones side by side each get their own answer."""

    def post(number):
        bodies = [json.dumps({"features": [number, None]}).encode(), *list(BODIES.values())[:3]]
        answer = client.post(
            "/predict",
            content=bodies[number % 4],
            headers={"Content-Type": "application/json"},
        )
        return answer.status_code, answer.json().get("features", {}).get("amount")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(40)))
    assert [answer for answer in answers if answer[0] == 200] == [
        (200, float(number)) for number in range(0, 40, 4)
    ]
    assert {status for status, _ in answers} == {200, 400, 422}


def test_a_body_that_never_ends_is_given_up(settings):
    """408, and the client's connection is not waited for any longer."""
    config = Config(settings=settings, model="orders", seconds=0.1)

    async def receive():
        await asyncio.Event().wait()

    headers = [(b"content-type", b"application/json")]
    assert ask(config, "/predict", method="POST", headers=headers, receive=receive) == 408


def test_who_goes_away_does_no_harm(client):
    """A client that hangs up in the middle of its request leaves the others their answers."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port, timeout=300)
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b'{"features"')
    connection.close()
    assert client.post("/predict", json={"features": ORDER}).status_code == 200


def test_who_has_begun_to_ask_is_answered_before_the_end(settings):
    """A server that is told to stop takes nobody in, and lets nobody down."""
    body = json.dumps({"features": ORDER}).encode()
    with serving(settings, model="orders") as client:
        server = client.server
        connection = http.client.HTTPConnection(
            client.base_url.host, client.base_url.port, timeout=300
        )
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:5])
        while not server.server_state.tasks:
            server.thread.join(0.01)
        server.should_exit = True
        while server.servers[0].is_serving():
            server.thread.join(0.01)
        connection.send(body[5:])
        assert connection.getresponse().status == 200
        connection.close()
