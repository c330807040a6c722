"""A server of the prediction API in a thread of the test's process, and what its answers tell."""

import asyncio
from contextlib import contextmanager
from threading import Event, Thread

import httpx
import uvicorn

from batch_jobs.settings import Settings
from prediction_api.__main__ import server_options
from prediction_api.config import Config
from prediction_api.main import create_app

KEY, OTHER_KEY = "a-key-of-sufficient-length", "another-key-of-sufficient-length"


def settings_of(warehouse_url, store="/nowhere"):
    """Settings of a server of the example models."""
    return Settings(warehouse_url, store, models=("tests.example_models",))


class Server(uvicorn.Server):
    """A server that says when it listens, and on which port."""

    def __init__(self, app, config):
        options = server_options(config) | {"port": 0, "log_level": "warning"}
        super().__init__(uvicorn.Config(app, **options))
        self.listens = Event()
        self.thread = Thread(target=self.run)

    async def startup(self, sockets=None):
        """Listen, and say so."""
        await super().startup(sockets)
        self.listens.set()

    @property
    def url(self):
        """Where it listens."""
        port = self.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"


@contextmanager
def listening(app, config):
    """A server that listens on a port of its own, until the block is left."""
    server = Server(app, config)
    server.thread.start()
    try:
        assert server.listens.wait(600), "the server did not start"
        yield server
    finally:
        server.should_exit = True
        server.thread.join()


@contextmanager
def serving(settings, **config):
    """A client of a server, from its start to its end.

    A machine with other work to do comes upon no time-out of the server, unless a test sets it.
    """
    made = Config(settings=settings, **{"seconds": 600, "upload_seconds": 600, **config})
    with (
        listening(create_app(made), made) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
    ):
        client.server = server
        yield client


def bearer(key):
    """The header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def detail(answer, status):
    """What a problem tells, which has the form of RFC 9457."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == status
    assert told["title"]
    return told["detail"]


def ask(config, path, *, method="GET", headers=(), receive=None, server=("127.0.0.1", 8000)):
    """Status of what an app answers to a request that no client of ours can be made to send.

    Args:
        config: of the app.
        path: what is asked for.
        method: how.
        headers: pairs of bytes.
        receive: gives the messages of the body, as in ASGI.
        server: the address at which the request came in.
    """
    statuses = []

    async def send(message):
        statuses.append(message.get("status"))

    async def run():
        app = create_app(config)
        async with app.router.lifespan_context(app):
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": method,
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
                "scheme": "http",
                "headers": [(b"host", b"127.0.0.1"), *headers],
                "client": ("203.0.113.7", 1),
                "server": server,
            }
            await app(scope, receive, send)

    asyncio.run(run())
    return statuses[0]
