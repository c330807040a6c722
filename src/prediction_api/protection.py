"""What stands before every route: a rate, a size, a time limit, and who may ask at all.

These are plain ASGI, because they count what streams through.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import NamedTuple

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prediction_api.callers import address_of
from prediction_api.config import Config
from prediction_api.metrics import Metrics
from prediction_api.problems import ProblemError, problem
from prediction_api.rates import Rate

UPLOADS = ("/requests", "/uploads")  # how the paths end to which many rows are sent
EVENTS = "/events"  # and those on which somebody listens
LISTENING_SECONDS = 600.0


class Limits(NamedTuple):
    """How large a body may be and how long a request may take, and the settings that say so."""

    bytes: int
    seconds: float
    bytes_by: str
    seconds_by: str


class Limited:
    """Counts and measures requests, and ends those that are too many, too large or too slow."""

    def __init__(self, app: ASGIApp, config: Config, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._rate = Rate(config.rate, config.rate_store)
        self._keys, self._proxies = config.keys, config.proxies
        self._limits = Limits(
            config.body_bytes,
            config.seconds,
            "PREDICTION_API_BODY_BYTES",
            "PREDICTION_API_SECONDS",
        )
        self._limits_of_uploads = Limits(
            config.upload_bytes,
            config.upload_seconds,
            "PREDICTION_API_UPLOAD_BYTES",
            "PREDICTION_API_UPLOAD_SECONDS",
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answer = time.perf_counter(), Answer(send)
        try:
            if wait := await self._rate.exceeded(self._client(scope)):
                detail = f"more than {self._rate} (PREDICTION_API_RATE); wait {wait} s"
                limited = problem(429, detail, {"Retry-After": str(wait)})
                await limited(scope, receive, answer)
                return
            await self._bounded(scope, receive, answer)
        finally:
            self._metrics.saw(scope, answer.status, time.perf_counter() - began)

    async def _bounded(self, scope: Scope, receive: Receive, answer: Answer) -> None:
        upload = scope["method"] == "POST" and scope["path"].endswith(UPLOADS)
        limits = self._limits_of_uploads if upload else self._limits
        seconds = limits.seconds
        if scope["method"] == "GET" and scope["path"].endswith(EVENTS):
            seconds = LISTENING_SECONDS
        body = Body(receive, limits.bytes, limits.bytes_by)
        try:
            async with asyncio.timeout(seconds):
                await self._app(scope, body, answer)
        except TimeoutError:
            if answer.status:
                raise
            within = f"within {seconds:g} s ({limits.seconds_by})"
            late = (
                problem(408, f"the body did not come {within}")
                if body.awaited
                else problem(503, f"no answer {within}", {"Retry-After": "2"})
            )
            await late(scope, receive, answer)

    def _client(self, scope: Scope) -> str:
        key = key_in(Headers(scope=scope).get("authorization", ""))
        if key and known(key, self._keys):
            return name_of(key)
        return address_of(scope, self._proxies)


class Body:
    """Receives a body, counting its bytes as they come, whatever Content-Length says."""

    def __init__(self, receive: Receive, most: int, setting: str) -> None:
        self._receive, self._left, self._most, self._setting = receive, most, most, setting
        self.awaited = False

    async def __call__(self) -> Message:
        """Receive the next part of a body.

        Raises:
            ProblemError: the body is too large.
        """
        self.awaited = True
        message = await self._receive()
        self.awaited = bool(message.get("more_body"))
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            raise ProblemError(413, f"a body has at most {self._most:,} bytes ({self._setting})")
        return message


class Answer:
    """Sends an answer, and knows its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        """Send the next part of an answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
        await self._send(message)


def known(key: str, keys: tuple[str, ...]) -> bool:
    """Whether a key is one of those; all are compared, in constant time."""
    given = key.encode(errors="surrogatepass")  # half a pair is no key, and no error of ours
    return sum(hmac.compare_digest(given, one.encode()) for one in keys) > 0


def name_of(key: str) -> str:
    """A name for who has a key, from which the key cannot be told."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def key_in(authorization: str) -> str:
    """The key that a header Authorization carries; nothing if it is of another kind."""
    scheme, _, key = authorization.partition(" ")
    return key if scheme.lower() == "bearer" else ""
