"""What a client does to a connection before, between and after its requests; sockets are real."""

import http.client
import json
import resource
import socket
from contextlib import ExitStack, contextmanager

import pytest

from batch_jobs.errors import ConfigurationError
from prediction_api import connections
from prediction_api.__main__ import require_address, server_options
from prediction_api.config import Config
from tests.support.api import KEY, listening, serving, settings_of

ASK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
BODY = b"POST /requests HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
FORM = (
    b"POST /sign-in HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/x-www-form-urlencoded\r\n"
)
SECONDS = 60  # after which a test has failed


@pytest.fixture
def settings(tmp_path):
    """Settings of a warehouse that is not there: nothing here comes so far."""
    return settings_of(f"sqlite:///{tmp_path}/w.db")


def connected(client, address="127.0.0.1"):
    """A connection from an address, which has said nothing yet."""
    there = (client.base_url.host, client.base_url.port)
    return socket.create_connection(there, SECONDS, source_address=(address, 0))


def told(connection):
    """Status and body of an answer after which the connection is closed; None without one."""
    parts = b""
    try:
        while part := connection.recv(65536):
            parts += part
    except ConnectionResetError:
        pass
    if not parts:
        return None, ""
    head, _, body = parts.partition(b"\r\n\r\n")
    assert b"problem+json" in head
    return int(head.split()[1]), json.loads(body)["detail"]


def until(server, is_so):
    """Wait until something is so of what a server has."""
    for _ in range(100 * SECONDS):
        if is_so(server.server_state):
            return
        server.thread.join(0.01)
    pytest.fail("it did not come to that")


def healthy(client, address="127.0.0.1"):
    """Whether a new client of an address is answered."""
    with connected(client, address) as connection:
        connection.sendall(ASK + b"\r\n")
        return connection.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("said", [b"", ASK + b"X: "], ids=["nothing", "half a head"])
def test_nobody_is_locked_out_by_connections_that_wait(settings, said):
    """Those that have waited longest give way, whether to their own address or to another one."""
    with (
        serving(settings, connections=100, connections_of_one=60) as client,
        ExitStack() as opened,
    ):
        for number in range(300):
            connection = opened.enter_context(connected(client, f"127.0.0.{2 + number % 3}"))
            connection.sendall(said)
            if number % 50 == 49:
                assert all(healthy(client, f"127.0.0.{n}") for n in (1, 2, 9))
        kept = len(client.server.server_state.connections)
    assert kept <= 100 + 9


def test_a_quiet_connection_gives_way_to_its_own_address_first(settings):
    """Who holds many closes his own, and the kept connection of somebody else goes on."""
    with (
        serving(settings, connections=10, connections_of_one=5) as client,
        connected(client, "127.0.0.2") as kept,
        ExitStack() as opened,
    ):
        for _ in range(20):
            opened.enter_context(connected(client, "127.0.0.3"))
            kept.sendall(ASK + b"\r\n")
            assert kept.recv(65536).startswith(b"HTTP/1.1 200")
            while not told_whole(kept):
                pass


def told_whole(kept):
    """Read what is left of an answer; true once it is whole."""
    kept.setblocking(False)
    try:
        kept.recv(65536)
    except BlockingIOError:
        return True
    finally:
        kept.setblocking(True)
    return False


def test_what_is_being_answered_is_not_cut_off(settings):
    """A newcomer without a place is told so, and which setting gives more; others have theirs."""
    with (
        serving(settings, connections=9, connections_of_one=2, seconds=60) as client,
        connected(client) as first,
        connected(client) as second,
    ):
        for one in (first, second):
            one.sendall(FORM + b"Content-Length: 4\r\n\r\nke")
        until(client.server, lambda state: len(state.tasks) == 2)
        with connected(client) as third:
            status, detail = told(third)
        assert status == 503
        assert "PREDICTION_API_CONNECTIONS_OF_ONE" in detail
        assert healthy(client, "127.0.0.2")
        first.sendall(b"y=")
        assert first.recv(12) == b"HTTP/1.1 401"


def test_there_is_room_for_probes_of_this_machine_when_all_are_busy(settings):
    """Others are refused."""
    with (
        serving(settings, connections=1, seconds=60) as client,
        connected(client, "127.0.0.2") as busy,
    ):
        busy.sendall(FORM + b"Content-Length: 4\r\n\r\nke")
        until(client.server, lambda state: state.tasks)
        with connected(client, "127.0.0.3") as other:
            assert told(other)[0] == 503
        assert healthy(client)


HALF = {
    "nothing": (b"", None),
    "half a head": (ASK + b"X: a", 408),
    "line ends": (b"\r\n\r\n", None),
    "half a body, which nobody reads": (BODY + b"\r\n{", 401),
}


@pytest.mark.parametrize(("said", "status"), HALF.values(), ids=HALF.keys())
def test_what_does_not_come_is_not_waited_for(settings, said, status, monkeypatch):
    """Neither a head nor the rest of a body that nobody wants."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with (
        serving(settings, keys=(KEY,), model="orders") as client,
        connected(client) as connection,
    ):
        connection.sendall(said)
        assert told(connection)[0] == status
        until(client.server, lambda state: not state.connections)


def test_who_has_asked_may_wait_with_the_next_request(settings, monkeypatch):
    """Longer than a head may take, and than the five seconds that common clients keep it for."""
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.05)
    assert server_options(Config(settings=settings))["timeout_keep_alive"] > 60
    with serving(settings) as client, connected(client) as connection:
        kept = http.client.HTTPConnection("localhost")
        kept.sock = connection
        for _ in range(3):
            kept.request("GET", "/healthz")
            assert kept.getresponse().read() == b'{"ok":true}'
            client.server.thread.join(0.1)


ENDLESS = {
    "a head's value": (ASK + b"X: ", b"a" * 4096, 431),
    "many heads": (ASK, b"X: aaaaaaaa\r\n" * 300, 431),
    "a path": (b"GET /", b"a" * 4096, 431),
    "line ends": (b"", b"\r\n" * 2000, 431),
    "a trailer": (FORM + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 4096, 431),
    "a chunk's extension": (FORM + b"Transfer-Encoding: chunked\r\n\r\n5;", b"a" * 4096, 431),
}


@pytest.mark.parametrize(("begin", "part", "status"), ENDLESS.values(), ids=ENDLESS.keys())
def test_a_head_without_an_end_is_cut_off(settings, begin, part, status):
    """Before it is put together: little more is read than a head may have."""
    sent = 0
    with serving(settings, seconds=60) as client, connected(client) as connection:
        connection.sendall(begin)
        try:
            while sent < 10_000_000:
                connection.sendall(part)
                sent += len(part)
        except ConnectionError:
            pass
        assert sent < 10_000_000  # what the system keeps on the way is many times what we read
        found, _ = told(connection)
        assert found in (status, None)
        assert healthy(client)


def test_a_head_that_is_too_large_is_told_as_such(settings):
    """431 if it comes at once, too."""
    with serving(settings) as client:
        answer = client.get("/healthz", headers={"X": "a" * 40_000})
        assert answer.status_code == 431
        assert answer.json()["detail"] == "a head has at most 32,768 bytes"
        assert client.get("/healthz", headers={"X": "a" * 30_000}).status_code == 200


def test_an_answer_that_is_not_fetched_is_given_up(settings):
    """Its bytes are not kept for who does not read them."""

    async def much(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x" * 20_000_000})

    config = Config(settings=settings)
    with (
        short_kept(listening(much, config)) as server,
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection,
    ):
        connection.sendall(ASK + b"\r\n")
        until(server, lambda state: state.connections)
        until(server, lambda state: not state.connections)


@contextmanager
def short_kept(listening_server):
    """A server that keeps connections for little time."""
    with listening_server as server:
        server.config.timeout_keep_alive = 0.1
        yield server


def test_a_server_may_open_as_many_files_as_it_has_connections(settings, monkeypatch):
    """Systems give a process 1,024 at first, and more if it asks."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    from prediction_api.__main__ import serve

    serve(Config(settings=settings, connections=100))
    assert given == [(350, hard)]


def test_a_port_that_is_taken_is_told_before_anything_begins(settings):
    """With the variable that chooses another one."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = Config(settings=settings, port=other.getsockname()[1])
        with pytest.raises(
            ConfigurationError, match=r"\(Address already in use\); set PREDICTION_A"
        ):
            require_address(config)
    require_address(config)
