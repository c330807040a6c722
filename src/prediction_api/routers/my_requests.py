"""Requests of many rows of who asks: list them, and take one back."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.requests.cancellation import cancel
from prediction_api.database import unavailable
from prediction_api.problems import ProblemError, documented
from prediction_api.request_schemas import RequestProgress, Requests
from prediction_api.routing import GuardedRoute, require_same_site
from prediction_api.schemas import PredictionId
from prediction_api.state import state_of
from prediction_api.stored_requests import find, find_all

router = APIRouter(tags=["requests of many rows"], route_class=GuardedRoute)
MOST = 1000

Limit = Annotated[int, Query(ge=1, le=MOST, description="Most requests.")]


@router.get("/requests", responses=documented(), operation_id="my_requests")
async def my_requests(request: Request, limit: Limit = 100) -> Requests:
    """The requests of many rows of this key, the newest first."""
    found = await find_all(request, limit)
    return Requests(requests=[RequestProgress(**one.told()) for one in found])


@router.delete(
    "/requests/{id}",
    response_model=RequestProgress,
    responses=documented(404, 409, 410),
    operation_id="cancel_request",
)
async def cancel_request(request: Request, id: PredictionId) -> Response:  # noqa: A002
    """Take a request back that is not over yet; once more does no harm."""
    require_same_site(request)
    state, found = state_of(request), await find(request, id)
    if found.state in ("done", "failed"):
        raise ProblemError(409, f"the request is over: its state is {found.state}")
    try:
        await asyncio.to_thread(cancel, Warehouse(state.config.settings.warehouse), id)
    except (SQLAlchemyError, BatchJobsError, OSError) as error:
        raise unavailable(error) from error
    state.worker.wake()
    told = RequestProgress(**(await find(request, id)).told())
    return Response(told.model_dump_json(), media_type="application/json")
