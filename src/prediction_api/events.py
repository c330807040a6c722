"""Server-sent events: who listens is told when something is published, or a request is over.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import StreamingResponse

from prediction_api.problems import UnavailableError

T = TypeVar("T")

MOST_LISTENERS = 100
LOOK_SECONDS = 1.0
BEAT_SECONDS = 15.0  # less than proxies keep a silent connection
LONGEST_SECONDS = 540.0  # then who listens comes again, and misses nothing
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would keep them back


@dataclass(frozen=True)
class Event:
    """What somebody is told.

    Attributes:
        name: what kind of event it is.
        data: what is told, as JSON.
        id: what a listener comes again with; nothing if it need not.
        last: whether nothing comes after it.
    """

    name: str
    data: str
    id: str = ""
    last: bool = False

    def __bytes__(self) -> bytes:
        told = f"event: {self.name}\ndata: {self.data}\n"
        return f"{told}id: {self.id}\n\n".encode() if self.id else f"{told}\n".encode()


Look = Callable[[], Awaitable[Sequence[Event]]]


class Listeners:
    """Those who listen, of whom there are only so many."""

    def __init__(self) -> None:
        self._count = 0
        self._asked: dict[str, tuple[float, asyncio.Task[Any]]] = {}

    async def shared(self, name: str, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """An answer that is asked for once for all who ask within half a second.

        Raises:
            UnavailableError: the warehouse does not answer.
        """
        asked = self._asked.get(name)
        if asked is None or time.monotonic() - asked[0] > LOOK_SECONDS / 2:
            asked = self._asked[name] = time.monotonic(), asyncio.create_task(ask())
        found: T = await asyncio.shield(asked[1])
        return found

    def stream(self, look: Look, first: Sequence[Event] = ()) -> StreamingResponse:
        """What is told to one who listens, until there is no more or he comes again.

        Args:
            look: what is new since it was called last.
            first: what is told at once.

        Raises:
            UnavailableError: too many listen.
        """
        if self._count >= MOST_LISTENERS:
            raise UnavailableError(f"{self._count} listen already; ask for the status instead")
        return StreamingResponse(
            self._told(look, first), headers=HEADERS, media_type="text/event-stream"
        )

    async def _told(self, look: Look, first: Sequence[Event]) -> AsyncIterator[bytes]:
        async with self._counted():
            yield b"retry: 2000\n\n"
            began = beat = time.monotonic()
            events = first
            while True:
                for event in events:
                    yield bytes(event)
                    beat = time.monotonic()
                    if event.last:
                        return
                now = time.monotonic()
                if now - began > LONGEST_SECONDS:
                    return
                if now - beat > BEAT_SECONDS:
                    beat = now
                    yield b": still here\n\n"
                await asyncio.sleep(LOOK_SECONDS)
                try:
                    events = await look()
                except UnavailableError:  # who listens hears of it when it is over
                    events = ()

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


def as_json(told: Any) -> str:
    """What is told, on one line."""
    return json.dumps(told, ensure_ascii=False, separators=(",", ":"))
