"""Connections: how many there may be, how long they may say nothing, and how long a head may be.

All of it comes before a request has been read, where no route can bound anything. What waits to be
asked gives way to what comes: a full server closes the connection that has waited longest, and so
nobody can lock others out by holding connections. See RFC 6585 on 431, and CWE-400.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from prediction_api.callers import Network, is_one_of
from prediction_api.problems import problem

if TYPE_CHECKING:
    from prediction_api.config import Config

HEAD_SECONDS = 10.0  # from the connection, or a head's first byte, to the head's last one
HEAD_BYTES = 32_768  # of a head; Apache and nginx take about as much
KEEP_ALIVE_SECONDS = 75.0  # longer than clients and proxies keep a connection: nginx has 60
ROOM_FOR_PROBES = 20  # connections from this machine beyond all others
LOOPBACK = ("127.0.0.1", "::1", "")  # the last one is a socket's file
TOO_LARGE = f"a head has at most {HEAD_BYTES:,} bytes"


class HeadTooLargeError(Exception):
    """A head has more bytes than are read."""


class Bounds:
    """How many connections a server has, and which of them wait to be asked.

    Args:
        most: how many there may be.
        most_of_one: how many an address may have.
        proxies: addresses that may have all.
    """

    def __init__(self, most: int, most_of_one: int, proxies: tuple[Network, ...] = ()) -> None:
        self._most, self._most_of_one, self._proxies = most, most_of_one, proxies
        self._of: Counter[str] = Counter()
        # In the order in which they began to wait, for a dict keeps it.
        self._waiting: dict[str, dict[BoundedProtocol, None]] = {}

    def admit(self, one: BoundedProtocol) -> bool:
        """Count a new connection, in whose place another one is closed if there are too many.

        Returns:
            False if all the others are being answered: then this one has no place.
        """
        address = one.address
        self._of[address] += 1
        few = self._of[address] <= self._most_of_one or is_one_of(address, self._proxies)
        within = few or self._close_one_of(address)
        if within and self._of.total() > self._most:
            within = self._close_one_of(self._of.most_common(1)[0][0]) or (
                address in LOOPBACK and self._of.total() <= self._most + ROOM_FOR_PROBES
            )
        return within

    def waits(self, one: BoundedProtocol) -> None:
        """Note that a connection waits to be asked."""
        self._waiting.setdefault(one.address, {})[one] = None

    def asks(self, one: BoundedProtocol) -> None:
        """Note that a connection is being answered."""
        self._waiting.get(one.address, {}).pop(one, None)

    def left(self, one: BoundedProtocol) -> None:
        """Count a connection no more; more than once is once."""
        if one.counted:
            one.counted = False
            self.asks(one)
            self._of[one.address] -= 1
            if not self._of[one.address]:
                del self._of[one.address]
                self._waiting.pop(one.address, None)

    def _close_one_of(self, address: str) -> bool:
        """Close what has waited longest of an address; false if nothing waits."""
        oldest = next(iter(self._waiting.get(address, ())), None)
        if oldest is None:
            return False
        self.left(oldest)
        oldest.transport.abort()
        return True


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is bounded in what comes before, between and after its requests.

    Attributes:
        bounds: what the connections of a server share; `protocol_of` sets it.
        address: whose connection it is.
        counted: whether it is one of those.
    """

    bounds: Bounds

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.address, self.counted = "", False
        self._late: asyncio.TimerHandle | None = None  # for a head, or what is in its place
        self._in_head = self._too_large = False
        self._ended_or_began = False  # whether a head did so among the bytes that just came
        self._beside = 0  # bytes of this message that are no body, but for those before
        self._body = self._part = 0  # bytes of its body, and those among what just came
        self._unsent: int | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Give it a place, or say that there is none."""
        super().connection_made(transport)
        self.address, self.counted = (self.client or ("",))[0], True
        if self.bounds.admit(self):
            self.bounds.waits(self)
            self._await_head()
            return
        self.bounds.left(self)
        self._refuse(
            503,
            "all connections are busy (PREDICTION_API_CONNECTIONS, "
            "PREDICTION_API_CONNECTIONS_OF_ONE); try again",
        )

    def connection_lost(self, exc: Exception | None) -> None:
        """Free its place."""
        self._cancel()
        self._unset_keepalive_if_required()
        self.bounds.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is of no use any more."""
        if self.transport.is_closing():
            return
        self._part, self._ended_or_began = 0, False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._beside = 0 if self._ended_or_began else self._beside + len(data) - self._part
        if self._beside > HEAD_BYTES + self._body // 4:  # for chunks have heads of their own
            self._refuse(431, TOO_LARGE)
        elif self._waits and not (self._late or self.timeout_keep_alive_task):
            self._await_head()  # as after line ends that begin nothing

    def send_400_response(self, msg: str) -> None:
        """Say what cannot be read, as any other problem."""
        self._refuse(*((431, TOO_LARGE) if self._too_large else (400, msg)))

    def on_message_begin(self) -> None:
        """Begin a head, which may follow another message in the same bytes."""
        super().on_message_begin()
        self._in_head = self._ended_or_began = True
        self._body = 0
        if self._late is None and self._waits:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Let it be answered.

        Raises:
            HeadTooLargeError: it is not to be; the parser then ends.
        """
        size = sum(len(name) + len(value) for name, value in self.headers) + len(self.url)
        if size > HEAD_BYTES:
            self._too_large = True
            raise HeadTooLargeError
        self._in_head, self._ended_or_began = False, True
        self._cancel()
        self.bounds.asks(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; what comes after the answer counts for nothing."""
        self._part += len(body)
        if not self.cycle.response_complete:
            self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a message; one that was answered before its end is followed by the next."""
        super().on_message_complete()
        if self.cycle.response_complete:
            self._cancel()
            self._keep_alive()

    def on_response_complete(self) -> None:
        """Wait for the next request; a body that nobody reads must end as soon as a head must."""
        unread = self.cycle.more_body
        super().on_response_complete()
        if self._waits and self.counted and not self.transport.is_closing():
            self.bounds.waits(self)
            if unread:
                self._await_head()

    def timeout_keep_alive_handler(self) -> None:
        """Close it; what its client does not fetch is not kept for it, unless it moves on."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent:
            super().timeout_keep_alive_handler()
        elif self._unsent is None or unsent < self._unsent:
            self._unsent = unsent
            self._keep_alive()
        else:
            self.transport.abort()

    @property
    def _waits(self) -> bool:
        """Whether nothing that was asked is left to be answered."""
        cycle: Any = self.cycle  # None before the first request
        return not self.pipeline and (cycle is None or cycle.response_complete)

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _await_head(self) -> None:
        self._cancel()
        self._late = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        self._late = None
        if self._in_head and not self.transport.is_closing():
            self._refuse(408, f"the head did not come within {HEAD_SECONDS:g} s")
        else:
            self.transport.abort()

    def _refuse(self, status: int, detail: str) -> None:
        """Tell of a problem, unless an answer is under way, and close."""
        if self._waits or not self.cycle.response_started:
            answer = problem(status, detail)
            lines = [b"%b: %b\r\n" % header for header in answer.raw_headers]
            head = b"".join([STATUS_LINE[status], *lines, b"connection: close\r\n\r\n"])
            self.transport.write(head + bytes(answer.body))
        self.transport.close()
        self._await_head()  # no longer, or it is cut off


def protocol_of(config: Config) -> type[asyncio.Protocol]:
    """The protocol of one server, whose connections share their bounds."""
    bounds = Bounds(config.connections, config.connections_of_one, config.proxies)
    return cast("type[asyncio.Protocol]", type("Protocol", (BoundedProtocol,), {"bounds": bounds}))
