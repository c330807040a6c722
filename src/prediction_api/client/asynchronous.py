"""The client for code that awaits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from prediction_api.client.connection import TIMEOUT, reaching
from prediction_api.client.exchange import Call, Pause
from prediction_api.client.lookups import STRICT, Given, Key, LookedUp, LookUps, Policy
from prediction_api.client.records import PastPrediction, Status

T = TypeVar("T")


class AsyncPredictionClient:
    """A client for code that awaits, of one event loop. To be closed, or used in an `async with`.

    Args:
        url: of the API.
        key: one of its keys, if it has any.
        policy: what may be given in place of what is fresh.
        timeout: how long to wait, in seconds or as httpx has it.
        retries: how often a server that is away is asked again, after longer and longer pauses.
        transport: another way to the API.

    Raises:
        MisconfiguredError: the URL is none, or no header can carry the key.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        policy: Policy = STRICT,
        timeout: httpx.Timeout | float = TIMEOUT,
        retries: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(**reaching(url, key, timeout), transport=transport)
        self._look_ups = LookUps(policy, retries)

    async def get(self, model: str, entity_id: Key) -> Given:
        """The prediction of an entity, or what the policy gives in its place.

        Raises:
            NoPredictionError: it gives nothing.
            MisconfiguredError: the URL, the key or the model is wrong, whatever the policy.
            RefusedError: the server does not do it.
        """
        return await self._run(self._look_ups.one(model, entity_id))

    async def get_many(self, model: str, entity_ids: Iterable[Key]) -> LookedUp:
        """The predictions of many entities in one request a thousand, each of one moment.

        Raises:
            MisconfiguredError: the URL, the key or the model is wrong, whatever the policy.
            AwayError: the server is away, and the policy gives nothing.
            RefusedError: the server does not do it.
        """
        return await self._run(self._look_ups.many(model, entity_ids))

    async def get_past(self, model: str, entity_id: Key, as_of: datetime) -> PastPrediction:
        """What readers saw of an entity at a moment, which knows its offset.

        Raises:
            NoPredictionError: they saw nothing, or the model no longer keeps it.
            PredictionApiError: there is no answer.
        """
        return await self._run(self._look_ups.past(model, entity_id, as_of))

    async def status(self, model: str) -> Status:
        """How fresh a model is.

        Raises:
            NoPredictionError: it has published nothing yet.
            PredictionApiError: there is no answer.
        """
        return await self._run(self._look_ups.status(model))

    async def _run(self, call: Call[T]) -> T:
        """Do what a call wants done."""
        step = next(call)
        while True:
            try:
                try:
                    done = await self._do(step)
                except httpx.RequestError as error:
                    step = call.throw(error)
                else:
                    step = call.send(done)
            except StopIteration as ended:
                found: T = ended.value
                return found

    async def _do(self, step: Any) -> httpx.Response | None:
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
            return None
        return await self._http.request(
            step.method,
            step.path,
            params=step.params or None,
            headers=step.headers,
            content=step.content,
        )

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
