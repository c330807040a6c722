"""Ask for predictions of many rows: `POST /requests` answers at once, `GET /requests/{id}` later.

What is sent is kept as it is, and scored by whoever answers requests: a thread of this process,
`batch-jobs answer`, or the model's DAG.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from prediction_api.formats import Raw
from prediction_api.forms import FORM
from prediction_api.problems import documented
from prediction_api.request_schemas import Accepted, ManyRows
from prediction_api.routing import GuardedRoute, require_same_site
from prediction_api.schemas import IdempotencyKey, PredictionId
from prediction_api.state import State, state_of
from prediction_api.stored_requests import MOST_ROWS, find, page_of, results_csv
from prediction_api.submission import sent_in, submit
from prediction_api.uploads import CSV, JSON, PARQUET, Reader

Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows of the page.")]
After = Annotated[int, Query(ge=0, le=2**31, description="The last row of the page before.")]
FILE = {"type": "string", "format": "binary"}


def router_for(state: State) -> APIRouter:
    """The routes of each model there is a file for, and `POST /requests` of the configured one."""
    router = APIRouter(tags=["requests of many rows"], route_class=GuardedRoute)
    for path, name in state.paths("requests"):
        _add(router, path, state.readers[name])
    router.add_api_route(
        "/requests/{id}",
        progress,
        operation_id="request_progress",
        response_model=ManyRows,
        responses=documented(404, 410),
    )
    router.add_api_route(
        "/requests/{id}/results.csv",
        results,
        operation_id="request_results",
        response_class=Response,
        responses={200: {"content": {CSV: {}}}, **documented(404, 409, 410)},
    )
    return router


def _add(router: APIRouter, path: str, reader: Reader) -> None:
    model = reader.model

    async def request_rows(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        require_same_site(request)
        accepted = await submit(request, reader, await sent_in(request), idempotency_key)
        headers = {"Location": accepted.url, "Retry-After": "1"}
        return Response(accepted.model_dump_json(), 202, headers, JSON)

    router.add_api_route(
        path,
        request_rows,
        methods=["POST"],
        operation_id=f"request_{model.name}" if path != "/requests" else "request",
        summary=f"Ask {model.name} for predictions of many rows.",
        description=f"{model.description} Rows as JSON, CSV or Parquet, which are scored later.",
        status_code=202,
        response_model=Accepted,
        responses=documented(409, 413, 415),
        openapi_extra={"requestBody": {"required": True, "content": _contents(reader)}},
    )


def _contents(reader: Reader) -> dict[str, Any]:
    form = {
        "type": "object",
        "properties": {"file": FILE},
        "required": ["file"],
        "additionalProperties": False,
    }
    return {
        JSON: {"schema": _inlined(reader.schema)},
        CSV: {"schema": {"type": "string"}},
        PARQUET: {"schema": FILE},
        FORM: {"schema": form},
    }


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, which OpenAPI would look for elsewhere."""
    [row] = schema.pop("$defs").values()
    schema["properties"]["rows"]["items"] = row
    return schema


async def progress(
    request: Request,
    id: PredictionId,  # noqa: A002 # as in the URL
    limit: Limit = 1000,
    after: After = 0,
) -> Response:
    """How far a request is; once it is done, its results and rejected rows, page by page."""
    state, found = state_of(request), await find(request, id)
    results, rejected = await page_of(state.database, found, after, limit)
    headers = {"Cache-Control": "no-store"}
    if found.state in ("waiting", "scoring"):
        headers["Retry-After"] = "1"
    if found.state == "done" and after + limit < found.rows.read:
        url = f"/v1/requests/{id}?limit={limit}&after={after + limit}"
        headers["Link"] = f'<{url}>; rel="next"'
    told = ManyRows(**found.told(), results=results, rejected=rejected)
    return Response(told.model_dump_json(), 200, headers, JSON)


async def results(
    request: Request,
    id: PredictionId,  # noqa: A002 # as in the URL
    raw: Raw = False,  # noqa: FBT002
) -> Response:
    """All rows of a request that is done, in the order in which they were sent, as CSV."""
    return await results_csv(request, id, raw=raw)
