"""Transactions: repeated when they failed for a passing reason; and times as they are stored."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from tenacity import RetryCallState, Retrying, retry_if_exception
from tenacity.wait import wait_random_exponential

from batch_jobs.errors import ConfigurationError, WarehouseUnavailableError
from batch_jobs.interval import Interval
from batch_jobs.redaction import first_line

log = logging.getLogger(__name__)
P = ParamSpec("P")
Answer = TypeVar("Answer")

# How long a transaction is repeated that fails for a passing reason, from its first failure on.
PATIENCE_SECONDS = 45
# Rows that one transaction removes, so that no other writer waits for long.
REMOVED_AT_ONCE = 20_000


class _Database(Protocol):
    def is_passing(self, error: BaseException) -> bool: ...
    def is_misconfigured(self, error: BaseException) -> bool: ...


class _Warehouse(Protocol):
    @property
    def database(self) -> _Database: ...


Asked = TypeVar("Asked", bound=_Warehouse)


def repeatable(
    act: Callable[Concatenate[Asked, P], Answer],
) -> Callable[Concatenate[Asked, P], Answer]:
    """Repeat a function as a whole while it fails for a passing reason, then give one clear error.

    For functions that are one transaction and change nothing more when they are repeated: then a
    lost connection does no harm, nor an answer to COMMIT that was lost on the way. Patience begins
    with the first failure, for what worked long before it was worth waiting for. Waits are random
    and grow (https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter).

    Raises:
        WarehouseUnavailableError: it failed until patience was lost.
        ConfigurationError: the database refuses what it will refuse again.
    """

    @functools.wraps(act)
    def repeated(warehouse: Asked, *args: P.args, **kwargs: P.kwargs) -> Answer:
        failed: list[float] = []  # when
        is_passing = warehouse.database.is_passing

        def may_pass(error: BaseException) -> bool:
            failed.append(monotonic())
            return is_passing(error)

        attempts = Retrying(
            retry=retry_if_exception(may_pass),
            stop=lambda _: failed[-1] - failed[0] >= PATIENCE_SECONDS,
            wait=wait_random_exponential(multiplier=0.2, max=5),
            before_sleep=_tell,
            reraise=True,
        )
        try:
            return attempts(act, warehouse, *args, **kwargs)
        except Exception as error:
            if is_passing(error):
                spent = f"{len(failed)} times within {failed[-1] - failed[0]:.0f} s"
                raise WarehouseUnavailableError(
                    f"the warehouse {warehouse} did not answer, or did not let {act.__name__} "
                    f"through, {'once' if len(failed) == 1 else spent}: {first_words(error)}"
                ) from error
            if warehouse.database.is_misconfigured(error):
                raise ConfigurationError(
                    f"the warehouse {warehouse} refuses: {first_words(error)}"
                ) from error
            raise

    return repeated  # type: ignore[return-value] # wraps() forgets that the first has no name


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    if error is not None:
        log.warning("%s; trying again", first_words(error))


def first_words(error: BaseException) -> str:
    """What the database said, without the statement and its values."""
    if isinstance(error, SQLAlchemyError):
        error = getattr(error, "orig", None) or error
    return first_line(str(error))


def stored_time(time: datetime) -> str:
    """The text under which a UTC time is stored; it sorts as time."""
    return time.astimezone(UTC).isoformat()


def loaded_time(stored: str | datetime) -> datetime:
    """The time that was stored: SQLite gives it as text, PostgreSQL as a time."""
    time = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return time.astimezone(UTC)


def bounds(interval: Interval) -> Mapping[str, Any]:
    """The values of `:start` and `:end` for a query on this interval."""
    return {"start": stored_time(interval.start), "end": stored_time(interval.end)}
