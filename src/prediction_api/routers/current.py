"""Export all that is current of a model: filtered, sorted, page by page, of one moment."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response

from batch_jobs.errors import IntervalError
from batch_jobs.interval import parse_time
from batch_jobs.scoring.keys import MAX_KEY_LENGTH
from prediction_api.current_pages import (
    PIN,
    Filters,
    Place,
    fits,
    run_of,
    statement,
    values_of,
)
from prediction_api.etags import HAVE_IT, IfNoneMatch, conditional_headers, matches
from prediction_api.exports import MOST_ROWS, Export, encoding_of, make_page, written
from prediction_api.formats import FORMATS, Raw, text_of
from prediction_api.problems import ProblemError, documented
from prediction_api.published_runs import headers_of, published
from prediction_api.routing import QuickRoute
from prediction_api.schemas import ModelName
from prediction_api.state import State, state_of
from prediction_api.status import unpublished

router = APIRouter(tags=["export"], route_class=QuickRoute)

Text = Annotated[str | None, Query(max_length=MAX_KEY_LENGTH, pattern=r"^[^\x00]*$")]
Score = Annotated[float | None, Query(allow_inf_nan=False)]
Format = Annotated[Literal["ndjson", "csv", "arrow"], Query(description="Form of the page.")]
Sort = Annotated[
    Literal["entity_id", "score", "-score"],
    Query(description="By key, or by score; `-score&limit=100` gives the highest hundred."),
]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows of the page.")]
Cursor = Annotated[
    str | None, Query(max_length=2000, description="Of the header Link of the page before.")
]
After = Annotated[
    str | None,
    Query(
        description="Rows that were published later than this moment, ISO 8601 with an offset.",
        json_schema_extra={"format": "date-time"},
    ),
]


@router.get(
    "/models/{model}/predictions",
    operation_id="current_predictions",
    response_class=Response,
    responses={
        200: {
            "description": "A page; the header Link has the next one, if there is one.",
            "content": {media_type.partition(";")[0]: {} for _, media_type in FORMATS.values()},
        },
        304: HAVE_IT,
        **documented(404, 410),
    },
)
async def current(  # noqa: PLR0913, PLR0917 # as many as filters there are
    request: Request,
    model: ModelName,
    format: Format = "ndjson",  # noqa: A002 # the name in the URL
    limit: Limit = 1000,
    sort: Sort = "entity_id",
    prefix: Text = None,
    min_score: Score = None,
    max_score: Score = None,
    label: Text = None,
    model_version: Text = None,
    published_after: After = None,
    raw: Raw = False,  # noqa: FBT002
    cursor: Cursor = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """All that is current, in the order of keys or scores; each page is of one moment."""
    state, after = state_of(request), _moment(published_after)
    filters = Filters(prefix or None, min_score, max_score, label, model_version, after)
    place, whole = await _pinned(state, model, cursor)
    asked = (format, limit, sort, raw, *vars(filters).values())
    headers = conditional_headers(place.run_id, place.as_of, place.after, *asked)
    headers["Vary"] = "Accept-Encoding"
    if matches(if_none_match, headers["ETag"]):
        return Response(None, 304, headers)
    scans = sort != "entity_id" or bool(set(filters.given()) - {"prefix"})
    values = values_of(place, filters, model, limit)
    encoding = encoding_of(request.headers.get("accept-encoding", ""))
    rows = statement(place, filters, sort)
    export = Export(rows, values, format, whole, encoding, limit, raw, scans)
    if place.run_id is not None and not fits(filters, whole):
        page = written([], export)
    else:
        page = await make_page(state.database, state.config.settings.warehouse, export)
    if place.run_id is not None:
        await published(state, model, place.run_id)  # else it was retired, and rows are missing
    if page.rows == limit and page.last:
        query = dict(request.query_params) | {"cursor": place.cursor(page.last)}
        headers["Link"] = f'</v1/models/{model}/predictions?{urlencode(query)}>; rel="next"'
    headers |= page.headers
    headers |= headers_of(whole) if place.run_id is not None else {"X-As-Of": text_of(place.as_of)}
    headers["Content-Disposition"] = f'attachment; filename="{model}.{format}"'
    return Response(page.content, 200, headers, FORMATS[format][1])


async def _pinned(state: State, model: str, cursor: str | None) -> tuple[Place, dict[str, Any]]:
    """Where the export is, and what all its rows have in common."""
    if cursor is not None:
        declared = state.models.get(model)
        place = Place.from_cursor(cursor, declared.keep if declared else timedelta.max)
    else:
        rows = await state.database.fetch(PIN, model=model)
        if not rows:
            raise unpublished(state, model)
        place = Place.at_first(rows[0])
        if place.run_id is not None:
            return place, {"model": model, "run_id": place.run_id, **run_of(rows[0])}
    if place.run_id is not None:
        told = await published(state, model, place.run_id)
        return place, {"model": model, "run_id": place.run_id, **told}
    return place, {"model": model}


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else parse_time(text)
    except IntervalError:
        raise ProblemError(
            422, "published_after is no ISO 8601 time with an offset, such as 2026-11-22T15:00:00Z"
        ) from None
