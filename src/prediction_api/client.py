"""A client of the API that says what it gives: what is fresh, the last good, or a default.

    policy = Policy(last_good_for=timedelta(hours=6), default=0.5)
    client = PredictionClient("http://127.0.0.1:8000", policy=policy)
    given = client.get("orders", "order-17")
    given.score, given.source, given.age

Nothing is given that the policy does not name: without one, only what is fresh.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx

REMEMBERED = 10_000
TIMEOUT = httpx.Timeout(2.0)
NEVER = timedelta(0)


class NoPredictionError(Exception):
    """There is nothing that the policy lets be given."""


@dataclass(frozen=True)
class Policy:
    """What may be given in place of what is fresh.

    Attributes:
        last_good_for: how old a prediction may be, since its `fresh_until`, and still be given
            where the model is stale or the API does not answer; by default not at all.
        default: the score to give where there is no prediction that may be; None raises.
    """

    last_good_for: timedelta = NEVER
    default: float | None = None


@dataclass(frozen=True)
class Given:
    """What a caller is given.

    Attributes:
        score: of the prediction, or the default.
        label: of the prediction; None with the default.
        source: `fresh`, `last_good` or `default`.
        age: time since every due interval was published; None with the default.
        prediction: all that the API tells of it; None with the default.
    """

    score: float
    label: str | None
    source: Literal["fresh", "last_good", "default"]
    age: timedelta | None
    prediction: Mapping[str, Any] | None


@dataclass(frozen=True)
class _Known:
    etag: str
    told: Mapping[str, Any]


class _Rules:
    """What both clients do between a request and an answer, without any I/O."""

    def __init__(self, key: str | None, policy: Policy) -> None:
        self._policy = policy
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def path(self, model: str, entity_id: str) -> str:
        """Where the prediction is."""
        return f"/models/{quote(model, safe='')}/predictions/{quote(entity_id, safe='')}"

    def headers(self, path: str) -> dict[str, str]:
        """The headers of the request."""
        known = self._known.get(path)
        return self._headers | ({"If-None-Match": known.etag} if known else {})

    def given(self, path: str, answer: httpx.Response) -> Given:
        """What the answer lets be given.

        Raises:
            NoPredictionError: nothing.
            httpx.HTTPStatusError: the request is wrong, such as one without its key.
        """
        if answer.status_code == httpx.codes.NOT_FOUND:
            self._known.pop(path, None)
            return self._instead(f"no prediction: {answer.json()['detail']}")
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or answer.is_server_error:
            return self.without(path, f"the API answers {answer.status_code}")
        if answer.status_code != httpx.codes.NOT_MODIFIED:
            answer.raise_for_status()
            self._remember(path, _Known(answer.headers["ETag"], answer.json()))
        told = self._known[path].told
        return self._last_good(told, "the model is stale") if told["stale"] else _as(told, "fresh")

    def without(self, path: str, why: str) -> Given:
        """What can be given though the API does not answer.

        Raises:
            NoPredictionError: nothing.
        """
        known = self._known.get(path)
        return self._instead(why) if known is None else self._last_good(known.told, why)

    def _last_good(self, told: Mapping[str, Any], why: str) -> Given:
        found = _as(told, "last_good")
        if found.age is not None and found.age <= self._policy.last_good_for:
            return found
        return self._instead(f"{why}, and the last good prediction is {found.age} old")

    def _instead(self, why: str) -> Given:
        if self._policy.default is None:
            raise NoPredictionError(why)
        return Given(self._policy.default, None, "default", None, None)

    def _remember(self, path: str, known: _Known) -> None:
        self._known[path] = known
        self._known.move_to_end(path)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)


def _as(told: Mapping[str, Any], source: Literal["fresh", "last_good"]) -> Given:
    age = max(NEVER, datetime.now(UTC) - datetime.fromisoformat(told["fresh_until"]))
    return Given(told["score"], told["label"], source, age, told)


class PredictionClient:
    """A client for code that waits; to be closed, or used in a `with`.

    Args:
        url: of the API.
        key: one of its keys, if it has any.
        policy: what may be given in place of what is fresh.
        timeout: how long to wait.
        transport: another way to the API.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        policy: Policy = Policy(),
        timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._rules = _Rules(key, policy)
        self._http = httpx.Client(base_url=url, timeout=timeout, transport=transport)

    def get(self, model: str, entity_id: str) -> Given:
        """The prediction of an entity, or what the policy gives in its place.

        Raises:
            NoPredictionError: it gives nothing.
            httpx.HTTPStatusError: the request is wrong, such as one without its key.
        """
        path = self._rules.path(model, entity_id)
        try:
            answer = self._http.get(path, headers=self._rules.headers(path))
        except httpx.TransportError as error:
            return self._rules.without(path, f"the API does not answer: {type(error).__name__}")
        return self._rules.given(path, answer)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncPredictionClient:
    """A client for code that awaits; to be closed, or used in an `async with`.

    Args:
        url: of the API.
        key: one of its keys, if it has any.
        policy: what may be given in place of what is fresh.
        timeout: how long to wait.
        transport: another way to the API.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        policy: Policy = Policy(),
        timeout: httpx.Timeout = TIMEOUT,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._rules = _Rules(key, policy)
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout, transport=transport)

    async def get(self, model: str, entity_id: str) -> Given:
        """The prediction of an entity, or what the policy gives in its place.

        Raises:
            NoPredictionError: it gives nothing.
            httpx.HTTPStatusError: the request is wrong, such as one without its key.
        """
        path = self._rules.path(model, entity_id)
        try:
            answer = await self._http.get(path, headers=self._rules.headers(path))
        except httpx.TransportError as error:
            return self._rules.without(path, f"the API does not answer: {type(error).__name__}")
        return self._rules.given(path, answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
