"""Ask others, for so long and no longer: whoever hangs must not stall the watch.

A question is asked in a thread of its own, which is left behind when its time is over: sockets have
time-outs for each byte and not for an answer, and a name that is looked up has none at all.
"""

from __future__ import annotations

import http.client
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from threading import Thread
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

from batch_jobs.errors import UnavailableError
from batch_jobs.redaction import first_line

log = logging.getLogger(__name__)
Done = TypeVar("Done")

SECONDS = 10.0  # for one answer
LONGEST_ANSWER = 4_000_000  # bytes


class UnansweredError(UnavailableError):
    """Somebody who was asked did not answer, or not in time."""


class Answer(NamedTuple):
    """What somebody answered, whether or not it is what was asked for."""

    status: int
    text: str

    @property
    def is_success(self) -> bool:
        """Whether it is an answer to the question."""
        return 200 <= self.status < 300

    def json(self) -> Any:
        """Its JSON.

        Raises:
            UnansweredError: it is none, as of a proxy or of another program on that port.
        """
        try:
            return json.loads(self.text)
        except ValueError:
            raise UnansweredError(f"answered {self.status}, and no JSON") from None


class _Direct(urllib.request.HTTPRedirectHandler):
    """Follows nobody elsewhere: a login page is no answer."""

    def redirect_request(self, *_: Any) -> None:
        """Nowhere."""


def ask(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> Answer:
    """Ask an address; GET, or POST with JSON.

    Args:
        url: http or https.
        headers: such as the authorization.
        body: what to send, as JSON.
        seconds: how long all of it may take.

    Raises:
        UnansweredError: there was no answer in time; the message does not hold the address, which
            may be a secret, but its host.
    """
    data = None if body is None else json.dumps(body).encode()
    sent = {"User-Agent": "batch-jobs watch", **({} if body is None else _JSON), **(headers or {})}
    host = urlsplit(url).netloc.rpartition("@")[2]
    try:
        request = urllib.request.Request(url, data, sent)  # noqa: S310 - settings allow http only
        opener = urllib.request.build_opener(_Direct)
        return within(seconds, lambda: _answer(opener, request, seconds))
    except TimeoutError:
        raise UnansweredError(f"{host} did not answer within {seconds:g} s") from None
    except urllib.error.URLError as error:
        raise UnansweredError(f"{host}: {_why(error.reason)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnansweredError(f"{host}: {_why(error)}") from None


_JSON = {"Content-Type": "application/json"}


def _answer(
    opener: urllib.request.OpenerDirector, request: urllib.request.Request, seconds: float
) -> Answer:
    try:
        response = opener.open(request, timeout=seconds)
    except urllib.error.HTTPError as error:  # an answer, too
        response = error
    with response:
        return Answer(response.status or 0, response.read(LONGEST_ANSWER).decode(errors="replace"))


def _why(reason: object) -> str:
    """What the system said; what http.client says may hold the address."""
    said = getattr(reason, "strerror", None) or type(reason).__name__
    return first_line(str(said))


class Asked(Generic[Done]):
    """A function that runs in a thread of its own; see `begin`."""

    def __init__(self, act: Callable[[], Done]) -> None:
        self._done: list[Done] = []
        self._failed: list[Exception] = []
        self._act = act
        self._thread = Thread(target=self._run, name="asked by the watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._done.append(self._act())
        except Exception as error:  # noqa: BLE001 - raised or told where it is waited for
            self._failed.append(error)

    def wait(self, seconds: float) -> Done:
        """What the function answers, if it does so in time; else it goes on, unheard.

        Raises:
            TimeoutError: it did not.
            Exception: whatever the function raised.
        """
        self._thread.join(seconds)
        if self._failed:
            raise self._failed[0]
        if not self._done:
            raise TimeoutError(f"no answer within {seconds:g} s")
        return self._done[0]

    def result(self, seconds: float) -> Done | str:
        """What the function answers, or why it does not."""
        try:
            return self.wait(seconds)
        except Exception as error:  # noqa: BLE001 - told
            return str(error) if isinstance(error, TimeoutError) else first_line(error)


def begin(act: Callable[[], Done]) -> Asked[Done]:
    """Let a function run, and go on."""
    return Asked(act)


def within(seconds: float, act: Callable[[], Done]) -> Done:
    """What a function answers, if it does so in time; else it goes on by itself, unheard.

    Raises:
        TimeoutError: it did not.
        Exception: whatever the function raised.
    """
    return begin(act).wait(seconds)
