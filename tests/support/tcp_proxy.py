"""A stretch of bad network between a client and the PostgreSQL of the tests."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from tests.support.postgres_server import free_port

SECONDS = 300.0
CHUNK = 65536
# The untyped messages that a client may send before its first, each answered by one byte.
NEGOTIATIONS = {80877103, 80877104}
# The typed messages of a server that ask for, or announce, the bytes of a COPY.
COPY = {b"G", b"H", b"W"}

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class _Mode:
    latency: float = 0.0
    bandwidth: int = 0
    slice: int = 0
    accepts: bool = True
    resets: bool = False
    swallows: bool = False


@dataclass
class _Drop:
    marker: bytes
    left: int
    forwarded: bool


class TcpProxy:
    """Carries connections to a server, as well or as badly as it is told to.

    Each mode replaces the one before, for live connections too. The two cuts are armed on top of a
    mode and happen once.

    Attributes:
        port: where it listens on 127.0.0.1.
        connections: how many it has accepted.
        writes: how many pieces it has sent on, in both directions.
        swallowed: set when a black hole has swallowed something.
        cut: set when an armed cut has happened: the server has ended its session by then.
        answer: what the server said to a message that `drop_after` cut, such as `COMMIT`, or
            `ERROR`.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        self.port = free_port()
        self.connections = 0
        self.writes = 0
        self.swallowed = threading.Event()
        self.cut = threading.Event()
        self.answer: str | None = None
        self._target = (target_host, target_port)
        self._mode = _Mode()
        self._drop: _Drop | None = None
        self._live: dict[_Connection, asyncio.Task[None]] = {}
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._switch(_Mode()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pass_all(self) -> None:
        """Carry everything as it comes. Connections that have lost bytes are reset."""
        self._do(self._switch(_Mode()))

    def latency(self, milliseconds: float) -> None:
        """Deliver all bytes so much later, in each direction."""
        self._do(self._switch(_Mode(latency=milliseconds / 1000)))

    def bandwidth(self, bytes_per_second: int) -> None:
        """Deliver so many bytes in a second, in each direction of each connection."""
        self._do(self._switch(_Mode(bandwidth=bytes_per_second)))

    def slicer(self, size: int) -> None:
        """Deliver in pieces of so many bytes."""
        self._do(self._switch(_Mode(slice=size)))

    def reset_peer(self) -> None:
        """Reset (RST) all connections, and each new one."""
        self._do(self._switch(_Mode(resets=True)))

    def refuse(self) -> None:
        """Reset all connections, and listen no more."""
        self._do(self._switch(_Mode(resets=True, accepts=False)))

    def blackhole(self) -> None:
        """Accept connections and bytes, deliver nothing, and tell neither side."""
        self.swallowed.clear()
        self._do(self._switch(_Mode(swallows=True)))

    def drop_before(self, marker: bytes, count: int = 1) -> None:
        r"""Cut both sides at the count-th message with these bytes; the server never gets it.

        What counts is each statement that is run and has the bytes in its SQL: a simple query, or
        the execution of a prepared one. SQL ends with a zero byte, so `b"COMMIT\0"` does not
        find `ON COMMIT DROP`.
        """
        self._arm(_Drop(marker, count, forwarded=False))

    def drop_after(self, marker: bytes, count: int = 1) -> None:
        """Cut the client when the server has obeyed that message, before it hears of it."""
        self._arm(_Drop(marker, count, forwarded=True))

    def close(self) -> None:
        """Reset all connections and listen no more."""
        self._do(self._switch(_Mode(resets=True, accepts=False)))
        self._do(self._gather())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def _arm(self, drop: _Drop) -> None:
        async def arm() -> None:
            self._drop = drop
            self.answer = None
            self.cut.clear()

        self._do(arm())

    async def _switch(self, mode: _Mode) -> None:
        self._mode = mode
        self._changed.set()  # wakes who waits for the mode before
        self._changed = asyncio.Event()
        if not mode.accepts and self._listener:
            self._listener.close()
            self._listener = None
        ended = [
            task
            for connection, task in self._live.items()
            if mode.resets or (connection.lossy and not mode.swallows)
        ]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended)
        if mode.accepts and not self._listener:
            self._listener = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, reuse_address=True
            )

    async def _gather(self) -> None:
        await asyncio.gather(*self._live.values())

    async def _accept(self, *client: Any) -> None:
        self.connections += 1
        connection = _Connection(self, client)
        task = asyncio.current_task()
        assert task is not None
        self._live[connection] = task
        try:
            await connection.run()
        except asyncio.CancelledError:
            connection.reset()
        finally:
            del self._live[connection]


@dataclass(eq=False)
class _Connection:
    """One client, its connection to the server, and the messages between them."""

    proxy: TcpProxy
    client: Streams
    server: Streams | None = None
    lossy: bool = False
    up: asyncio.Queue[tuple[float, bytes]] = field(default_factory=lambda: asyncio.Queue(64))
    down: asyncio.Queue[tuple[float, bytes]] = field(default_factory=lambda: asyncio.Queue(64))
    _from_client: bytearray = field(default_factory=bytearray)
    _from_server: bytearray = field(default_factory=bytearray)
    _started: bool = False
    _negotiations: int = 0
    _statements: dict[bytes, bytes] = field(default_factory=dict)
    _dropping: bool = False  # the client hears nothing any more
    _forwards: bool = False  # the message at which it was cut off
    _ended: bool = False  # the server hears nothing any more either

    async def run(self) -> None:
        """Carry until both sides have ended, or one is lost."""
        if self.proxy._mode.resets:
            self.reset()
            return
        if self.proxy._mode.swallows:
            await self._swallow()
        try:
            self.server = await asyncio.open_connection(*self.proxy._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_client(self.client[0]))
                group.create_task(self._read_server(self.server[0]))
                group.create_task(self._deliver(self.up, self.server[1]))
                group.create_task(self._deliver(self.down, self.client[1]))
        except* OSError:
            self.reset()
        for _, writer in filter(None, (self.client, self.server)):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def reset(self) -> None:
        """Let both sides know by RST."""
        for streams in filter(None, (self.client, self.server)):
            _reset(streams[1])

    async def _swallow(self) -> None:
        self.lossy = True
        self.proxy.swallowed.set()
        with contextlib.suppress(OSError):
            while await self.client[0].read(CHUNK):
                pass
        await asyncio.Event().wait()  # until it is cancelled

    async def _read_client(self, reader: asyncio.StreamReader) -> None:
        while not self._ended and (data := await reader.read(CHUNK)):
            await self._pass(self.up, b"".join(self._obeyed(data)))
        await self._pass(self.up, b"", end=True)

    async def _read_server(self, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(CHUNK):
                was_ended = self._ended
                await self._pass(self.down, b"".join(self._answers(data)))
                if self._ended and not was_ended:
                    await self._pass(self.up, b"", end=True)
        finally:
            if self._dropping:
                _reset(self.client[1])
                self.proxy.cut.set()
        await self._pass(self.down, b"", end=True)

    async def _pass(self, queue: asyncio.Queue, data: bytes, *, end: bool = False) -> None:
        if data or end:
            await queue.put((self.proxy._loop.time(), data))

    async def _deliver(self, queue: asyncio.Queue, writer: asyncio.StreamWriter) -> None:
        while True:
            arrived, data = await queue.get()
            while (late := arrived + self.proxy._mode.latency - self.proxy._loop.time()) > 0:
                await self._pause(late)
            sent = 0
            while not self.proxy._mode.swallows and sent < len(data):
                mode = self.proxy._mode
                piece = data[sent : sent + (mode.slice or mode.bandwidth // 10 + 1)]
                if not mode.slice and not mode.bandwidth:
                    piece = data[sent:]
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
                self.proxy.writes += 1
                await self._pause(len(piece) / mode.bandwidth if mode.bandwidth else 0)
            if self.proxy._mode.swallows:
                self.lossy = True
                self.proxy.swallowed.set()
            elif not data:
                writer.write_eof()
                return

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than the mode lasts."""
        with contextlib.suppress(TimeoutError):
            if seconds:
                await asyncio.wait_for(self.proxy._changed.wait(), seconds)

    def _obeyed(self, data: bytes) -> Iterator[bytes]:
        """Take the client's bytes; the whole messages that the server is to have."""
        self._from_client += data
        while not self._ended:
            kind, message = _take(self._from_client, typed=self._started)
            if not message:
                return
            if not self._started and int.from_bytes(message[4:8]) in NEGOTIATIONS:
                self._negotiations += 1
            elif not self._started:
                self._started = True
            elif self._is_marked(kind, message):
                self._dropping = True
                self._ended = not self._forwards
            if not self._ended:
                yield message

    def _is_marked(self, kind: bytes, message: bytes) -> bool:
        """Whether this message is the one to cut at."""
        if kind == b"P":
            name, sql, _ = message[5:].split(b"\0", 2)
            self._statements[name] = sql + b"\0"
        sql = b""
        if kind == b"Q":
            sql = message[5:]
        elif kind == b"B":
            sql = self._statements.get(message[5:].split(b"\0", 2)[1], b"")
        drop = self.proxy._drop
        if drop is None or drop.marker not in sql:
            return False
        drop.left -= 1
        if drop.left:
            return False
        self.proxy._drop = None
        self._forwards = drop.forwarded
        return True

    def _answers(self, data: bytes) -> Iterator[bytes]:
        """Take the server's bytes; the whole messages that the client is to have."""
        self._from_server += data
        while self._from_server:
            if self._negotiations:
                self._negotiations -= 1
                yield bytes([self._from_server.pop(0)])
                continue
            kind, message = _take(self._from_server, typed=True)
            if not message:
                return
            if not self._dropping or kind in COPY:
                yield message
            elif kind == b"C":
                self.proxy.answer = message[5:-1].decode()
            elif kind == b"E":
                self.proxy.answer = "ERROR"
            elif kind == b"Z":
                self._ended = True


def _take(buffer: bytearray, *, typed: bool) -> tuple[bytes, bytes]:
    """Take the first message out of the buffer, if it is whole; its kind and all its bytes."""
    head = 1 if typed else 0
    if len(buffer) < head + 4:
        return b"", b""
    size = head + int.from_bytes(buffer[head : head + 4])
    if len(buffer) < size:
        return b"", b""
    message = bytes(buffer[:size])
    del buffer[:size]
    return message[:head], message


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
    writer.transport.abort()
