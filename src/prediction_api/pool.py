"""Connections to PostgreSQL that are kept, also behind a pooler of transactions.

Such a pooler gives each transaction another session. Then a statement has a transaction of its own,
which is told what the session would know, and none is prepared for the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import asyncpg

from batch_jobs.database.sessions import (
    ARRIVED,
    NO_TRANSACTIONS,
    POOLER,
    REFUSED_BY_POOLER,
    for_transaction,
    settings_in,
)
from batch_jobs.errors import ConfigurationError


class Pool:
    """Connections that know some settings; none is opened before a statement needs it.

    Args:
        dsn: where to.
        options: the settings, as libpq's parameter of that name has them.
        size: the most connections there may be.
        seconds: how long to wait for one.
    """

    def __init__(self, dsn: str, options: str, size: int, seconds: float) -> None:
        self._dsn, self._options, self._size, self._seconds = dsn, options, size, seconds
        self._pool: asyncpg.Pool | None = None
        self._told: str | None = None  # to each transaction, behind a pooler
        self._opening = asyncio.Lock()

    async def fetch(self, sql: str, arguments: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        """The rows of a statement, from one snapshot.

        Raises:
            ConfigurationError: a pooler gives each statement another session.
        """
        try:
            return await self._fetch(sql, arguments)
        except _PooledError:
            await self._begin_each()
            return await self._fetch(sql, arguments)
        except asyncpg.PostgresError as error:
            if NO_TRANSACTIONS in str(error):
                raise ConfigurationError(POOLER) from error
            raise

    async def _fetch(self, sql: str, arguments: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        pool = self._pool or await self._opened()
        async with pool.acquire() as connection:
            if self._told is None:
                rows: Sequence[Mapping[str, Any]] = await connection.fetch(sql, *arguments)
                return rows
            try:
                # One message, since each goes there and back.
                await connection.execute(f"BEGIN READ ONLY; {self._told}")
                rows = await connection.fetch(sql, *arguments)
            except BaseException:
                with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")
            return rows

    async def _begin_each(self) -> None:
        """From now on, tell each transaction what no session is told."""
        async with self._opening:
            if self._told is None:
                self._told = for_transaction(settings_in(self._options))
                await self.close()

    async def _opened(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                own: dict[str, Any] = {
                    "server_settings": {"options": self._options},
                    "init": _require_settings,
                }
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=0,
                    max_size=self._size,
                    timeout=self._seconds,
                    connect=_connect,
                    reset=_keep,
                    **(own if self._told is None else {"statement_cache_size": 0}),
                )
        return self._pool

    async def close(self) -> None:
        """Close the connections."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), self._seconds)
        except TimeoutError:
            pool.terminate()


class _PooledError(Exception):
    """A pooler does not pass on what a session is to be told."""


async def _connect(*arguments: Any, **options: Any) -> asyncpg.Connection:
    try:
        return await asyncpg.connect(*arguments, **options)
    except asyncpg.PostgresError as error:
        if REFUSED_BY_POOLER in str(error):
            raise _PooledError from error
        raise


async def _require_settings(connection: asyncpg.Connection) -> None:
    """Find out whether what keeps a connection from writing and from taking long has arrived."""
    async with connection.transaction():  # a pooler would have another session for its second half
        arrived = await connection.fetchval(ARRIVED)
    if not arrived:
        raise _PooledError


async def _keep(_: Any) -> None:
    """Nothing to reset: no connection is ever changed, and asking would double a look-up's time."""
