"""How fresh the models are that have published, read from `serving_status`."""

from __future__ import annotations

from contextlib import suppress

from batch_jobs import clock
from batch_jobs.database.transactions import loaded_time
from prediction_api.database import Row, Statement
from prediction_api.freshness import freshness
from prediction_api.problems import ProblemError, UnavailableError
from prediction_api.schemas import SignOfLife, Status
from prediction_api.state import State

STATUS = Statement(
    """
    SELECT model, run_id, model_version, interval_start, interval_end, published_at, row_count,
           fresh_until
    FROM serving_status ORDER BY model"""
)
STATUS_OF = Statement(
    """
    SELECT model, run_id, model_version, interval_start, interval_end, published_at, row_count,
           fresh_until
    FROM serving_status WHERE model = :model""",
    point=True,
)


WATCH = Statement(
    """
    SELECT host, seen_at, every_seconds, problems FROM signs_of_life
    WHERE name = 'watch' ORDER BY seen_at DESC LIMIT 1""",
    point=True,
)
INCIDENTS = Statement(
    """
    SELECT model, severity, count(*) AS incidents FROM incidents
    WHERE resolved_at IS NULL GROUP BY model, severity"""
)
MISSED_LOOKS = 3
BY_CRON_SECONDS = 300  # between two looks, where the watch does not know it


async def watched(state: State) -> SignOfLife | None:
    """When the watch was heard of last; None if it never was, or an older warehouse cannot tell."""
    with suppress(UnavailableError):
        for row in await state.database.fetch(WATCH):
            seen_at = loaded_time(row["seen_at"])
            age = max(0, int((clock.now() - seen_at).total_seconds()))
            silent = age > MISSED_LOOKS * (row["every_seconds"] or BY_CRON_SECONDS) + 60
            return SignOfLife(
                host=row["host"],
                seen_at=seen_at,
                age_seconds=age,
                silent=silent,
                problems=row["problems"],
            )
    return None


async def lasting(state: State) -> list[tuple[str | None, str, int]]:
    """How many incidents last, by model and severity; none if an older warehouse cannot tell."""
    with suppress(UnavailableError):
        rows = await state.database.fetch(INCIDENTS)
        return [(row["model"], row["severity"], row["incidents"]) for row in rows]
    return []


async def statuses(state: State) -> list[Status]:
    """How fresh each model is that has published."""
    return [status_in(state, row) for row in await state.database.fetch(STATUS)]


def status_in(state: State, row: Row) -> Status:
    """The status that a row of `serving_status` tells."""
    fresh_until = loaded_time(row["fresh_until"])
    fresh = freshness(state.models.get(row["model"]), fresh_until, clock.now())
    return Status(**row, stale=fresh.stale, age_seconds=fresh.age_seconds)


def unpublished(state: State, model: str) -> ProblemError:
    """What there is to say of a model of which nothing is published."""
    if model in state.models:
        return ProblemError(404, f"{model} has not published anything yet", kind="unpublished")
    return ProblemError(404, f"there is no model {model}", kind="unknown-model")
