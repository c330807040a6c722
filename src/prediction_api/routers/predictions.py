"""Read what is published: only views and tables of the read contract, with a reader's rights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from batch_jobs import clock
from batch_jobs.database.transactions import loaded_time
from batch_jobs.errors import IntervalError
from batch_jobs.interval import parse_time
from batch_jobs.model import BatchModel
from prediction_api.champions import NEWEST
from prediction_api.database import Row, Statement
from prediction_api.freshness import freshness
from prediction_api.problems import ProblemError, documented
from prediction_api.routing import GuardedRoute, QuickRoute
from prediction_api.schemas import (
    AsOf,
    CurrentPrediction,
    EntityId,
    Model,
    ModelName,
    Models,
    PastPrediction,
    Status,
)
from prediction_api.state import State, state_of

router = APIRouter(tags=["reading"], route_class=QuickRoute)
listing = APIRouter(tags=["reading"], route_class=GuardedRoute)

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
PAST = Statement(
    """
    SELECT entity_id, score, label, model_version, run_id, interval_start, interval_end,
           published_at, superseded_at
    FROM prediction_history
    WHERE model = :model AND entity_id = :entity_id AND published_at <= :as_of
      AND (superseded_at IS NULL OR superseded_at > :as_of)
    ORDER BY published_at DESC, run_id DESC LIMIT 1"""
)
HAVE_IT = {"description": "You have it."}
IfNoneMatch = Annotated[str | None, Header(description="The ETag of an answer you have.")]


@listing.get("/models", responses=documented())
async def models(request: Request) -> Models:
    """All models, with what their files declare and how fresh they are."""
    state = state_of(request)
    found = {status.model: status for status in await statuses(state)}
    champions = {row["model"]: row["version"] for row in await state.database.fetch(NEWEST)}
    return Models(
        models=[
            Model(
                model=name,
                champion=champions.get(name),
                status=found.get(name),
                **_declared(state.models.get(name)),
            )
            for name in sorted({*found, *state.models})
        ]
    )


async def statuses(state: State) -> list[Status]:
    """How fresh each model is that has published."""
    return [_status(state, row) for row in await state.database.fetch(STATUS)]


@router.get(
    "/models/{model}/status", response_model=Status, responses={304: HAVE_IT, **documented(404)}
)
async def status(request: Request, model: ModelName, if_none_match: IfNoneMatch = None) -> Response:
    """How fresh a model is, and of which version and interval."""
    state = state_of(request)
    rows = await state.database.fetch(STATUS_OF, model=model)
    if not rows:
        raise unpublished(state, model)
    found = _status(state, rows[0])
    return conditional(found, if_none_match, found.run_id, found.fresh_until, found.stale)


@router.get(
    "/models/{model}/predictions/{entity_id:path}",
    response_model=CurrentPrediction | PastPrediction,
    responses={304: HAVE_IT, **documented(404)},
)
async def prediction(
    request: Request,
    model: ModelName,
    entity_id: EntityId,
    as_of: AsOf = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The prediction of an entity: what readers see now, or saw at a moment."""
    state = state_of(request)
    if "\0" in entity_id:
        raise ProblemError(422, "an entity_id has no NUL character")
    if as_of is not None:
        return await _past(state, model, entity_id, _moment(as_of), if_none_match)
    row = await state.look_ups.get(model, entity_id)
    if row is None:
        raise unpublished(state, model)
    if row["entity_id"] is None:
        raise ProblemError(404, f"{model} has no prediction for this entity")
    fresh_until = loaded_time(row["fresh_until"])
    fresh = freshness(state.models.get(model), fresh_until, clock.now())
    found = CurrentPrediction(model=model, **row, stale=fresh.stale, age_seconds=fresh.age_seconds)
    return conditional(found, if_none_match, found.run_id, fresh_until, fresh.stale)


async def _past(
    state: State, model: str, entity_id: str, as_of: datetime, if_none_match: str | None
) -> Response:
    rows = await state.database.fetch(PAST, model=model, entity_id=entity_id, as_of=as_of)
    if not rows:
        raise ProblemError(
            404,
            f"nothing is known of what {model} said of this entity then: nothing was published, or "
            f"it is older than the model keeps",
        )
    found = PastPrediction(model=model, as_of=as_of, **rows[0])
    return conditional(found, if_none_match, found.run_id, as_of, found.superseded_at)


def conditional(answer: Any, if_none_match: str | None, *what: object) -> Response:
    """The answer with its ETag, or 304 if the client has it; the age alone makes no other one."""
    headers = conditional_headers(*what)
    if matches(if_none_match, headers["ETag"]):
        return Response(None, 304, headers)
    return Response(answer.model_dump_json(), 200, headers, "application/json")


def conditional_headers(*what: object) -> dict[str, str]:
    """The headers of an answer that is known by what it was made of."""
    digest = hashlib.blake2b(repr(what).encode(), digest_size=12).hexdigest()
    return {"ETag": f'W/"{digest}"', "Cache-Control": "no-cache"}


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether a header If-None-Match names an ETag; weak or strong makes no difference here."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag.removeprefix("W/") in tags or "*" in tags


def _status(state: State, row: Row) -> Status:
    fresh_until = loaded_time(row["fresh_until"])
    fresh = freshness(state.models.get(row["model"]), fresh_until, clock.now())
    return Status(**row, stale=fresh.stale, age_seconds=fresh.age_seconds)


def _declared(model: BatchModel | None) -> Mapping[str, Any]:
    if model is None:
        return {}
    features = {name: kind.model_dump(exclude_none=True) for name, kind in model.features.items()}
    return {
        "description": model.description,
        "mode": model.mode,
        "schedule": model.schedule,
        "features": features,
    }


def unpublished(state: State, model: str) -> ProblemError:
    """What there is to say of a model of which nothing is published."""
    if model in state.models:
        return ProblemError(404, f"{model} has not published anything yet")
    return ProblemError(404, f"there is no model {model}")


def _moment(text: str) -> datetime:
    try:
        return parse_time(text)
    except IntervalError:
        raise ProblemError(
            422, "as_of is no ISO 8601 time with an offset, such as 2026-11-22T15:00:00Z"
        ) from None
