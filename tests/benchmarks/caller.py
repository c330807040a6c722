"""Who calls a server as fast as it answers, over kept connections, and takes the time of each."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """What callers saw.

    Attributes:
        seconds: for how long they called.
        latencies: of each request in milliseconds.
        failed: how many answers were no success.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def per_second(self) -> float:
        """Requests a second, of all callers together."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency that this share of the requests did not exceed."""
        ranked = sorted(self.latencies)
        return ranked[min(int(share * len(ranked)), len(ranked) - 1)]


class Caller(asyncio.Protocol):
    """One connection, on which a request follows each answer.

    Args:
        requests: of which one at random is sent each time.
        until: when to stop, of `time.perf_counter`.
        seen: where it is noted.
    """

    def __init__(self, requests: Sequence[bytes], until: float, seen: Seen) -> None:
        self._requests, self._until, self._seen = requests, until, seen
        self._buffer, self._began = b"", 0.0
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Send the first request."""
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(random.choice(self._requests))

    def data_received(self, data: bytes) -> None:
        """Take the time when the answer is whole, and send the next request."""
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return
        now = time.perf_counter()
        self._seen.latencies.append(1000 * (now - self._began))
        self._seen.failed += not head.startswith(b"HTTP/1.1 200")
        self._buffer = b""
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Say that this one is done."""
        self.ended.set_result(exc)


def _length(head: bytes) -> int:
    _, _, rest = head.lower().partition(b"content-length:")
    return int(rest.partition(b"\r\n")[0])


def call(port: int, requests: Sequence[str], connections: int, seconds: float) -> Seen:
    """What so many callers see of a server on this machine in so many seconds."""
    seen = Seen()

    async def run() -> None:
        loop, until = asyncio.get_running_loop(), time.perf_counter() + seconds
        encoded = [request.encode() for request in requests]
        callers = [
            (await loop.create_connection(lambda: Caller(encoded, until, seen), "127.0.0.1", port))[
                1
            ]
            for _ in range(connections)
        ]
        await asyncio.gather(*(caller.ended for caller in callers))

    import uvloop

    began = time.perf_counter()
    uvloop.run(run())
    seen.seconds = time.perf_counter() - began
    return seen
