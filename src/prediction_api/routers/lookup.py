"""Look many entities up at once: `POST /models/{model}/predictions:lookup`.

Keys stand in the body, so that each that can be stored can be asked for, and none is in a log.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import to_json

from batch_jobs import clock
from batch_jobs.requests.submit import LARGEST_ID
from batch_jobs.scoring.keys import MAX_KEY_LENGTH
from prediction_api.freshness import freshness
from prediction_api.many_entities import MOST_KEYS, Found, ManyEntities
from prediction_api.moments import past_moment
from prediction_api.problems import ProblemError, documented
from prediction_api.routing import StrictRoute
from prediction_api.schemas import ModelName, Prediction
from prediction_api.state import State, state_of
from prediction_api.status import unpublished

router = APIRouter(tags=["reading"], route_class=StrictRoute)

Key = Annotated[
    str, Field(strict=True, min_length=1, max_length=MAX_KEY_LENGTH, pattern=r"^[^\x00]*$")
]


RunId = Annotated[
    int,
    Field(strict=True, ge=1, le=LARGEST_ID),
    # JSON has one kind of number, and Python two.
    BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v),
]


class LookUp(BaseModel):
    """Which entities are looked up: as readers see them now, saw them, or in a run."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"not": {"required": ["as_of", "run_id"]}}
    )

    entity_ids: list[Key] = Field(min_length=1, max_length=MOST_KEYS)
    as_of: str | None = Field(
        None,
        strict=True,
        description="A moment, ISO 8601 with an offset: what readers saw then.",
        json_schema_extra={"format": "date-time"},
    )
    run_id: RunId | None = Field(None, description="A published run: what it says.")


class FoundPrediction(Prediction):
    """A prediction; `superseded_at` stands where the past was asked for."""

    superseded_at: datetime | None = None


class LookedUp(BaseModel):
    """What came of each entity; all of it is of one published state."""

    model: str
    as_of: datetime | None = None
    run_id: int | None = None
    fresh_until: datetime | None = Field(None, description="Null for the past, and for a run.")
    stale: bool | None = None
    age_seconds: int | None = None
    predictions: list[FoundPrediction | None] = Field(
        description="In the order of entity_ids, null where there is none."
    )
    missing: list[str] = Field(description="The entity_ids that have none, each once.")


@router.post(
    "/models/{model}/predictions:lookup",
    response_model=LookedUp,
    responses=documented(404, 413),
    operation_id="look_up",
)
async def look_up(request: Request, model: ModelName, body: LookUp) -> Response:
    """The predictions of up to a thousand entities, from one published state, in their order."""
    state = state_of(request)
    if {"as_of", "run_id"} <= body.model_fields_set:
        raise ProblemError(422, "give as_of or run_id, and not both")
    found, told = await _found(state, model, body)
    keys = body.entity_ids
    answer = {
        "model": model,
        **dict.fromkeys(("as_of", "run_id", "fresh_until", "stale", "age_seconds")),
        **told,
        "predictions": [
            {"model": model, **row} if (row := found.rows.get(key)) else None for key in keys
        ],
        "missing": list(dict.fromkeys(key for key in keys if key not in found.rows)),
    }
    return Response(to_json(answer, inf_nan_mode="null"), media_type="application/json")


async def _found(state: State, model: str, body: LookUp) -> tuple[Found, dict[str, Any]]:
    """The rows, and what is to be told of them all."""
    many, keys = ManyEntities(state.database), list(dict.fromkeys(body.entity_ids))
    if body.run_id is not None:
        return await many.of_run(model, keys, body.run_id), {"run_id": body.run_id}
    if body.as_of is not None:
        moment = past_moment(body.as_of)
        return await many.past(model, keys, moment), {"as_of": moment}
    found = await many.current(model, keys)
    if found.fresh_until is None:
        raise unpublished(state, model)
    fresh = freshness(state.models.get(model), found.fresh_until, clock.now())
    return found, {
        "fresh_until": found.fresh_until,
        "stale": fresh.stale,
        "age_seconds": fresh.age_seconds,
    }
