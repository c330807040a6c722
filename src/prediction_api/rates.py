"""Rates: how many requests a client has, in one process or in all replicas together."""

from __future__ import annotations

import asyncio
import logging
import time

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.storage import storage_from_string

from batch_jobs.redaction import first_line

log = logging.getLogger(__name__)

STORE_SECONDS = 0.25  # that the store may take
REST_SECONDS = 5.0  # before it is asked again, once it did not answer


class Rate:
    """How many requests a client has.

    Args:
        rate: how many.
        store: URL of a Redis, in which replicas count together; None counts in this process. While
            it does not answer, each process counts for itself.
    """

    def __init__(self, rate: RateLimitItem, store: str | None = None) -> None:
        self._rate = rate
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._shared: FixedWindowRateLimiter | None = None
        self._rests_until = 0.0
        if store:
            made = storage_from_string(f"async+{store}", implementation="redispy")
            self._shared = FixedWindowRateLimiter(made)

    async def exceeded(self, client: str) -> int:
        """How many seconds the client has to wait; 0 if it may ask now."""
        if self._shared and time.monotonic() >= self._rests_until:
            try:
                async with asyncio.timeout(STORE_SECONDS):
                    return await self._asked(self._shared, client)
            except Exception as error:  # noqa: BLE001 - whatever ails it, requests are answered
                self._rests_until = time.monotonic() + REST_SECONDS
                told = first_line(error) or type(error).__name__
                log.warning("the store of rates does not answer, each process counts: %s", told)
        return await self._asked(self._own, client)

    async def _asked(self, limiter: FixedWindowRateLimiter, client: str) -> int:
        if await limiter.hit(self._rate, client):
            return 0
        window = await limiter.get_window_stats(self._rate, client)
        return max(1, round(window.reset_time - time.time()))

    def __str__(self) -> str:
        return str(self._rate)
