"""What drives the calls of a client: it sends what they yield, and waits or awaits."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from prediction_api.client.connection import TIMEOUT, reaching
from prediction_api.client.exchange import Call, Pause
from prediction_api.client.listening import timeout_of
from prediction_api.client.lookups import STRICT, LookUps, Policy

T = TypeVar("T")


class BlockingDriver:
    """Drives the calls of a client for code that waits."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        policy: Policy = STRICT,
        timeout: httpx.Timeout | float = TIMEOUT,
        retries: int = 0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(**reaching(url, key, timeout), transport=transport)
        self._listening = timeout_of(self._http.timeout)
        self._look_ups, self._retries = LookUps(policy, retries), retries

    def _run(self, call: Call[T]) -> T:
        """Do what a call wants done."""
        step = next(call)
        while True:
            try:
                try:
                    done = self._do(step)
                except httpx.RequestError as error:
                    step = call.throw(error)
                else:
                    step = call.send(done)
            except StopIteration as ended:
                found: T = ended.value
                return found

    def _do(self, step: Any) -> httpx.Response | None:
        if isinstance(step, Pause):
            time.sleep(step.seconds)
            return None
        return self._http.request(
            step.method,
            step.path,
            params=step.params or None,
            headers=step.headers,
            content=step.content,
            **({} if step.seconds is None else {"timeout": step.seconds}),
        )

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


class AsyncDriver:
    """Drives the calls of a client for code that awaits."""

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
        self._listening = timeout_of(self._http.timeout)
        self._look_ups, self._retries = LookUps(policy, retries), retries

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
            **({} if step.seconds is None else {"timeout": step.seconds}),
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
