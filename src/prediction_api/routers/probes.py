"""Whether the server runs, whether it can answer, and its numbers."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response

from prediction_api.metrics import CONTENT_TYPE_LATEST
from prediction_api.problems import ProblemError, UnavailableError, documented
from prediction_api.protection import key_in
from prediction_api.routing import GuardedRoute, require_key
from prediction_api.schemas import Health, Readiness
from prediction_api.state import state_of
from prediction_api.status import lasting, statuses, watched

AT_ONCE_SECONDS = 1.0
OPEN: dict[str, Any] = {"security": []}  # who probes has no key
router = APIRouter(tags=["operations"])
guarded = APIRouter(tags=["operations"], route_class=GuardedRoute)


@router.get("/healthz", responses=documented(), openapi_extra=OPEN)
async def healthz() -> Health:
    """The server runs; nothing is asked of anybody else."""
    return Health()


@router.get("/readyz", responses=documented(), openapi_extra=OPEN)
async def readyz(request: Request) -> Readiness:
    """The warehouse answers. What is stale is told, and still served: it is the last good.

    Where there are keys, who has none is told no more than that it is ready.
    """
    state = state_of(request)
    found = await statuses(state)
    try:
        require_key(request, key_in(request.headers.get("authorization", "")))
    except ProblemError:
        return Readiness(ready=True, models=[])
    return Readiness(ready=True, models=found, watch=await watched(state))


@guarded.get("/metrics", response_class=Response, responses=documented())
async def metrics(request: Request) -> Response:
    """The server's numbers, for Prometheus; freshness as of now, if the warehouse answers at once.

    If it does not, `prediction_api_warehouse_up` is 0, and no figure of before is told.
    """
    state = state_of(request)
    try:
        async with asyncio.timeout(AT_ONCE_SECONDS):
            found = await statuses(state)
    except (UnavailableError, TimeoutError):
        state.metrics.freshness(None)
    else:
        state.metrics.freshness((one.model, one.age_seconds, one.stale) for one in found)
        state.metrics.incidents(await lasting(state))
    return Response(state.metrics.rendered(), media_type=CONTENT_TYPE_LATEST)
