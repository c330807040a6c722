"""The models: what their files declare, and how fresh their predictions are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from batch_jobs.model import BatchModel
from prediction_api.champions import NEWEST
from prediction_api.etags import HAVE_IT, IfNoneMatch, conditional
from prediction_api.problems import documented
from prediction_api.routing import GuardedRoute, QuickRoute
from prediction_api.schemas import Model, ModelName, Models, Status
from prediction_api.state import state_of
from prediction_api.status import STATUS_OF, status_in, statuses, unpublished

router = APIRouter(tags=["reading"], route_class=QuickRoute)
listing = APIRouter(tags=["reading"], route_class=GuardedRoute)


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


@router.get(
    "/models/{model}/status", response_model=Status, responses={304: HAVE_IT, **documented(404)}
)
async def status(request: Request, model: ModelName, if_none_match: IfNoneMatch = None) -> Response:
    """How fresh a model is, and of which version and interval."""
    state = state_of(request)
    rows = await state.database.fetch(STATUS_OF, model=model)
    if not rows:
        raise unpublished(state, model)
    found = status_in(state, rows[0])
    return conditional(found, if_none_match, found.run_id, found.fresh_until, found.stale)


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
