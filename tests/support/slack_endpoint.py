"""A stand-in for Slack on 127.0.0.1 that can be told to misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import pytest

Mode = Literal["ok", "slow", "429", "500", "400", "403", "404", "hang", "close"]
CANARY = "T0CANARY0/B0CANARY0/s3cr3tCanaryToken"
BODIES = {
    429: "rate_limited",
    500: "server_error",
    400: "invalid_blocks",
    403: "action_prohibited",
    404: "no_service",
}


class SlackEndpoint:
    """What a webhook received, and how it answers.

    Attributes:
        mode: how the next requests are answered; `hang` waits until `release` is called, `slow`
            takes the message and answers after `delay` seconds, `400` refuses blocks alone.
        delay: see there.
        retry_after: seconds to wait that an answer 429 asks for.
        payloads: the JSON of every message that was accepted.
        requests: the path of every request, accepted or not.
    """

    def __init__(self) -> None:
        self.mode: Mode = "ok"
        self.delay = 4.0
        self.retry_after: str | None = "0"
        self.payloads: list[dict[str, Any]] = []
        self.requests: list[str] = []
        self._released = threading.Event()
        self._arrived = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self.base = f"http://127.0.0.1:{self.port}/services"
        self.url = f"{self.base}/{CANARY}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def texts(self) -> list[str]:
        """The texts of the messages that were accepted."""
        return [payload["text"] for payload in self.payloads]

    def connection(self, **extra: Any) -> str:
        """The value of `AIRFLOW_CONN_SLACK_WEBHOOK` that leads here."""
        fields = {"conn_type": "slackwebhook", "password": self.url}
        return json.dumps({**fields, **extra})

    def wait_for(self, count: int, seconds: float) -> bool:
        """Wait until this many messages were accepted."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.payloads) >= count, seconds)

    def release(self) -> None:
        """Let the requests go that hang."""
        self._released.set()

    def close(self) -> None:
        """Stop listening."""
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                endpoint.requests.append(self.path)
                mode = endpoint.mode
                if mode == "hang":
                    endpoint._released.wait(60)
                if mode in {"hang", "close"}:
                    self.close_connection = True
                    return
                status = 200 if mode in {"ok", "slow"} else int(mode)
                if status == 400 and "blocks" not in json.loads(body):
                    status = 200
                if status == 200:
                    with endpoint._arrived:
                        endpoint.payloads.append(json.loads(body))
                        endpoint._arrived.notify_all()
                if mode == "slow":
                    endpoint._released.wait(endpoint.delay)
                answer = BODIES.get(status, "ok").encode()
                self.send_response(status)
                if status == 429 and endpoint.retry_after is not None:
                    self.send_header("Retry-After", endpoint.retry_after)
                self.send_header("Content-Length", str(len(answer)))
                with suppress(ConnectionError):  # whoever asked did not wait for it
                    self.end_headers()
                    self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                """Say nothing: the path is a secret."""

        return Handler


@contextmanager
def listening() -> Iterator[SlackEndpoint]:
    """A stand-in for Slack for the time of a block."""
    endpoint = SlackEndpoint()
    try:
        yield endpoint
    finally:
        endpoint.close()


@pytest.fixture
def slack_endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlackEndpoint]:
    """A stand-in for Slack for one test, to which no proxy leads."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with listening() as endpoint:
        yield endpoint
