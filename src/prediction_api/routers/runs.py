"""Read a whole run page by page: every page is of the run that the first one was of.

A run's rows never change, so pages need no transaction between them. When the run is retired, the
next page says so with 410, and not with an end that looks like the last row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from batch_jobs.database.transactions import loaded_time
from batch_jobs.scoring.keys import MAX_KEY_LENGTH
from prediction_api.database import Statement
from prediction_api.etags import HAVE_IT, IfNoneMatch, conditional_headers, matches
from prediction_api.formats import FORMATS, text_of
from prediction_api.problems import ProblemError, documented
from prediction_api.routing import GuardedRoute
from prediction_api.schemas import ModelName, RunId
from prediction_api.state import State, state_of
from prediction_api.status import STATUS_OF, unpublished

router = APIRouter(tags=["export"], route_class=GuardedRoute)

MOST_ROWS = 10_000
RUN = Statement(
    """
    SELECT state, model_version, interval_start, interval_end, published_at
    FROM prediction_runs WHERE run_id = :run_id AND model = :model""",
    point=True,
)
PAGE = Statement(
    """
    SELECT entity_id, score, label FROM prediction_history
    WHERE run_id = :run_id AND entity_id > :after ORDER BY entity_id LIMIT :limit"""
)
SHOWN, GONE = ("published", "superseded"), "retired"

Format = Annotated[Literal["ndjson", "csv", "arrow"], Query(description="Form of the page.")]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows of the page.")]
After = Annotated[
    str, Query(max_length=MAX_KEY_LENGTH, description="The last entity_id of the page before.")
]


@router.get(
    "/models/{model}/predictions",
    status_code=307,
    response_class=RedirectResponse,
    responses=documented(404),
)
async def newest_run(request: Request, model: ModelName) -> Response:
    """The way to the newest run's first page; what is asked for goes along."""
    rows = await state_of(request).database.fetch(STATUS_OF, model=model)
    if not rows:
        raise unpublished(state_of(request), model)
    query = f"?{request.url.query}" if request.url.query else ""
    return RedirectResponse(f"/v1/models/{model}/runs/{rows[0]['run_id']}/predictions{query}", 307)


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
async def page(
    request: Request,
    model: ModelName,
    run_id: RunId,
    format: Format = "ndjson",  # noqa: A002 # the name in the URL
    limit: Limit = 1000,
    after: After = "",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """A page of a run, in the order of its keys; 410 once the run is retired."""
    state = state_of(request)
    if "\0" in after:
        raise ProblemError(422, "an entity_id has no NUL character")
    run = await _run(state, model, run_id)
    headers = conditional_headers(run_id, format, limit, after)
    if matches(if_none_match, headers["ETag"]):
        return Response(None, 304, headers)
    rows = await state.database.fetch(PAGE, run_id=run_id, after=after, limit=limit)
    if len(rows) < limit:
        await _run(state, model, run_id)  # else it was retired meanwhile, and rows are missing
    else:
        query = f"format={format}&limit={limit}&after={quote(rows[-1]['entity_id'], safe='')}"
        url = f"/v1/models/{model}/runs/{run_id}/predictions?{query}"
        headers["Link"] = f'<{url}>; rel="next"'
    write, media_type = FORMATS[format]
    whole = {"model": model, "run_id": run_id, **run}
    loop = asyncio.get_running_loop()
    content = await loop.run_in_executor(None, write, rows, whole)
    headers["Content-Disposition"] = f'attachment; filename="{model}-{run_id}.{format}"'
    return Response(content, 200, {**headers, **_told(run)}, media_type)


async def _run(state: State, model: str, run_id: int) -> Mapping[str, Any]:
    rows = await state.database.fetch(RUN, model=model, run_id=run_id)
    if rows and rows[0]["state"] == GONE:
        raise ProblemError(
            410, f"run {run_id} of {model} is retired; begin again at /models/{model}/predictions"
        )
    if not rows or rows[0]["state"] not in SHOWN:
        raise ProblemError(404, f"{model} has published no run {run_id}")
    times = ("interval_start", "interval_end", "published_at")
    return {
        "model_version": rows[0]["model_version"],
        **{name: loaded_time(rows[0][name]) for name in times},
    }


def _told(run: Mapping[str, Any]) -> dict[str, str]:
    """Version, interval and publication, for those who only look at the headers."""
    return {f"X-{name.replace('_', '-').title()}": text_of(value) for name, value in run.items()}
