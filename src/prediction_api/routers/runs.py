"""Read a whole run page by page: every page is of the run that the first one was of.

A run's rows never change, so pages need no transaction between them. When the run is retired, the
next page says so with 410, and not with an end that looks like the last row.
"""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from batch_jobs.scoring.keys import MAX_KEY_LENGTH
from prediction_api.database import Statement
from prediction_api.etags import HAVE_IT, IfNoneMatch, conditional_headers, matches
from prediction_api.exports import MOST_ROWS, Export, encoding_of, make_page
from prediction_api.formats import FORMATS, Raw
from prediction_api.problems import ProblemError, documented
from prediction_api.published_runs import headers_of, published
from prediction_api.routing import GuardedRoute
from prediction_api.schemas import ModelName, RunId
from prediction_api.state import state_of

router = APIRouter(tags=["export"], route_class=GuardedRoute)

PAGE = Statement(
    """
    SELECT entity_id, score, label FROM predictions
    WHERE run_id = :run_id AND entity_id > :after ORDER BY entity_id LIMIT :limit"""
)

Format = Annotated[Literal["ndjson", "csv", "arrow"], Query(description="Form of the page.")]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows of the page.")]
After = Annotated[
    str, Query(max_length=MAX_KEY_LENGTH, description="The last entity_id of the page before.")
]


@router.get(
    "/models/{model}/runs/{run_id}/predictions",
    operation_id="run_page",
    response_class=Response,
    responses={
        200: {
            "description": "A page; the header Link has the next one, if there is one.",
            "content": {
                "application/x-ndjson": {},
                "text/csv": {},
                "application/vnd.apache.arrow.stream": {},
            },
        },
        304: HAVE_IT,
        **documented(404, 410),
    },
)
async def page(  # noqa: PLR0913, PLR0917 # as many as parameters there are
    request: Request,
    model: ModelName,
    run_id: RunId,
    format: Format = "ndjson",  # noqa: A002 # the name in the URL
    limit: Limit = 1000,
    after: After = "",
    raw: Raw = False,  # noqa: FBT002
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A page of a run, in the order of its keys; 410 once the run is retired."""
    state = state_of(request)
    if "\0" in after:
        raise ProblemError(422, "an entity_id has no NUL character")
    run = await published(state, model, run_id)
    headers = conditional_headers(run_id, format, limit, after, raw)
    headers["Vary"] = "Accept-Encoding"
    if matches(if_none_match, headers["ETag"]):
        return Response(None, 304, headers)
    values = {"run_id": run_id, "after": after, "limit": limit}
    whole = {"model": model, "run_id": run_id, **run}
    encoding = encoding_of(request.headers.get("accept-encoding", ""))
    export = Export(PAGE, values, format, whole, encoding, limit, raw)
    made = await make_page(state.database, state.config.settings.warehouse, export)
    if made.rows == limit and made.last:
        query = urlencode(dict(request.query_params) | {"after": made.last[0]})
        url = f"/v1/models/{model}/runs/{run_id}/predictions?{query}"
        headers["Link"] = f'<{url}>; rel="next"'
    else:
        await published(state, model, run_id)  # else it was retired meanwhile, and rows are missing
    headers |= made.headers
    headers["Content-Disposition"] = f'attachment; filename="{model}-{run_id}.{format}"'
    return Response(made.content, 200, {**headers, **headers_of(run)}, FORMATS[format][1])
