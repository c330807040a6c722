"""One question and its answer, without I/O: whoever drives a call sends what it yields.

A call is a generator: it yields an `Ask`, and is sent the answer, or what kept it from coming is
thrown into it; or it yields a `Pause`. So the client that waits and the one that awaits are one.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import httpx

from prediction_api.client.errors import (
    AwayError,
    MisconfiguredError,
    NoPredictionError,
    PredictionApiError,
    RefusedError,
)

AWAY = (502, 503, 504)
# A connection was dropped: by a server that was about to close what was idle, most of the time.
DROPPED = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
NO_SUCH_HOST = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0


@dataclass(frozen=True)
class Ask:
    """A request; sending it twice does what sending it once does.

    `seconds` is how long it may take where that is longer than usual.
    """

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Pause:
    """Wait for so many seconds."""

    seconds: float


T = TypeVar("T")
Call = Generator[Ask | Pause, Any, T]


def posting(path: str, body: Any, **headers: str) -> Ask:
    """A request with a body of JSON.

    Raises:
        ValueError: NaN and infinity are no JSON.
    """
    content = json.dumps(body, allow_nan=False).encode()
    return Ask("POST", path, {}, {"Content-Type": "application/json", **headers}, content)


def exchange(ask: Ask, retries: int = 0) -> Call[httpx.Response]:
    """The answer to a request, if it is a success or 304.

    What was dropped is sent once more, and what a server that is away did not answer as often as
    `retries` says, after longer and longer pauses.

    Raises:
        PredictionApiError: there is none; the class says what to do.
    """
    pause, again = FIRST_PAUSE, True
    while True:
        try:
            answer: httpx.Response = yield ask
            require_success(answer)
            return answer
        except httpx.RequestError as error:
            if again and isinstance(error, DROPPED):
                again = False
                continue
            found = failure(error)
            if not isinstance(found, AwayError) or not retries:
                raise found from error
            wanted = None
        except AwayError as error:
            if not retries:
                raise
            wanted = error.retry_after
        retries -= 1
        yield Pause(min(LONGEST_PAUSE, wanted or pause * random.uniform(0.5, 1)))  # noqa: S311
        pause *= 2


def told_by(answer: httpx.Response) -> Any:
    """The JSON of an answer.

    Raises:
        MisconfiguredError: it has none, as the page of a gateway.
    """
    try:
        if "json" in answer.headers.get("content-type", ""):
            return answer.json()
    except ValueError:
        pass
    raise no_api(answer)


def failure(error: httpx.RequestError) -> PredictionApiError:
    """What it means that no answer came."""
    kind, causes = type(error).__name__, list(_causes(error))
    unsafe = next((one for one in causes if isinstance(one, ssl.SSLError)), None)
    if unsafe is not None:
        return MisconfiguredError(
            f"TLS fails: {unsafe}; is the scheme of the URL right, and the certificate trusted?"
        )
    if any(isinstance(one, socket.gaierror) and one.errno in NO_SUCH_HOST for one in causes):
        return MisconfiguredError(f"there is no host of the URL's name: {error}")
    away = isinstance(error, httpx.TimeoutException | httpx.NetworkError)
    dropped = isinstance(error, httpx.RemoteProtocolError) and any(
        word in str(error) for word in ("closed", "disconnected")
    )
    if away or dropped:
        return AwayError(f"the API does not answer: {kind}")
    return MisconfiguredError(f"what answers is no HTTP, or the URL is wrong: {kind}: {error}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def require_success(answer: httpx.Response) -> None:
    """Go on with a success, or with what has not changed.

    Raises:
        PredictionApiError: it is neither.
    """
    status = answer.status_code
    if answer.is_success or status == httpx.codes.NOT_MODIFIED:
        return
    if status in AWAY:
        raise AwayError(f"the API answers {status}", _retry_after(answer))
    _refuse(answer, _problem(answer))


def _refuse(answer: httpx.Response, problem: Mapping[str, Any]) -> NoReturn:
    status, detail = answer.status_code, str(problem.get("detail", ""))
    kind = str(problem.get("type", "")).rpartition("/")[2]
    if kind in ("no-prediction", "unpublished"):
        raise NoPredictionError(f"no prediction: {detail}")
    if kind == "unknown-model":
        raise MisconfiguredError(f"{detail}; see GET /v1/models for those there are")
    if status in (401, 403):
        cure = "give the client a key of the server" if status == 401 else "see its settings"
        raise MisconfiguredError(f"the API answers {status}: {detail or 'no'}; {cure}")
    known = problem and kind != "no-route"
    if not known and status not in (408, 413, 429) and not answer.is_server_error:
        raise no_api(answer)
    errors = "; ".join(
        f"{one['where']}: {one['what']}" for one in problem.get("errors", ()) if len(one) > 1
    )
    told = errors or detail or answer.reason_phrase
    raise RefusedError(status, told, _retry_after(answer))


def _problem(answer: httpx.Response) -> Mapping[str, Any]:
    """The problem (RFC 9457) that an answer tells; empty if it tells none."""
    if "json" not in answer.headers.get("content-type", ""):
        return {}
    try:
        told = answer.json()
    except ValueError:
        return {}
    return told if isinstance(told, dict) and "type" in told else {}


def no_api(answer: httpx.Response) -> MisconfiguredError:
    """What is there is something else: a gateway's page, a sign-in, another path."""
    kind = answer.headers.get("content-type", "no type").partition(";")[0]
    to = f" to {answer.headers['location']}" if "location" in answer.headers else ""
    return MisconfiguredError(
        f"{answer.url.copy_with(query=None)} answers {answer.status_code}{to} ({kind}), and not as "
        f"the prediction API; is the URL's path right, or does a gateway or a sign-in stand before?"
    )


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        return max(0.0, float(answer.headers.get("retry-after", "")))
    except ValueError:
        return None
