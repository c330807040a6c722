"""How fresh the models are that have published, read from `serving_status`."""

from __future__ import annotations

from batch_jobs import clock
from batch_jobs.database.transactions import loaded_time
from prediction_api.database import Row, Statement
from prediction_api.freshness import freshness
from prediction_api.problems import ProblemError
from prediction_api.schemas import Status
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
