"""Listen to the publications of a model, and to a request of many rows until it is over."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.errors import IntervalError
from batch_jobs.interval import parse_time
from prediction_api.database import Row, Statement
from prediction_api.events import Event, as_json
from prediction_api.exports import TIMES
from prediction_api.problems import ProblemError, documented
from prediction_api.request_schemas import RequestProgress
from prediction_api.routing import GuardedRoute
from prediction_api.schemas import ModelName, PredictionId
from prediction_api.state import State, state_of
from prediction_api.status import STATUS_OF, unpublished
from prediction_api.stored_requests import StoredRequest, find

router = APIRouter(tags=["events"], route_class=GuardedRoute)

MOST = 100  # publications told at once; the others come with the next look
NEWEST = Statement(
    """
    SELECT max(published_at) AS published_at FROM prediction_runs
    WHERE model = :model AND published_at IS NOT NULL""",
    point=True,
)
SINCE = Statement(
    f"""
    SELECT model, run_id, model_version, interval_start, interval_end, published_at,
           rows_scored AS row_count
    FROM prediction_runs
    WHERE model = :model AND published_at > :since AND published_at IS NOT NULL
    ORDER BY published_at LIMIT {MOST}""",  # noqa: S608
    point=True,
)
STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events; after some minutes the stream ends, to be asked for "
        "again with the id of the last one.",
        "content": {"text/event-stream": {}},
    }
}
LastEventId = Annotated[
    str | None, Header(max_length=50, description="The id of the last event that was heard.")
]


@router.get(
    "/models/{model}/events",
    response_class=Response,
    responses={**STREAM, **documented(404)},
    operation_id="publications",
)
async def publications(
    request: Request, model: ModelName, last_event_id: LastEventId = None
) -> Response:
    """Each publication of a model from now on, or from the last one that was heard of."""
    state = state_of(request)
    if model not in state.models and not await state.database.fetch(STATUS_OF, model=model):
        raise unpublished(state, model)
    since = _moment(last_event_id) or await _newest(state, model)

    async def look() -> Sequence[Event]:
        nonlocal since
        if await state.listeners.shared(model, lambda: _newest(state, model)) <= since:
            return []
        rows = await state.database.fetch(SINCE, model=model, since=since)
        if rows:
            since = loaded_time(rows[-1]["published_at"])
        return [_published(row) for row in rows]

    first = await look() if last_event_id else ()
    return state.listeners.stream(look, first)


@router.get(
    "/requests/{id}/events",
    response_class=Response,
    responses={**STREAM, **documented(404, 410)},
    operation_id="request_events",
)
async def request_events(request: Request, id: PredictionId) -> Response:  # noqa: A002
    """How far a request of many rows is whenever that changes, until it is over."""
    found = await find(request, id)

    async def look() -> Sequence[Event]:
        nonlocal found
        before, found = found, await find(request, id)
        return [_progress(found)] if found != before else []

    return state_of(request).listeners.stream(look, [_progress(found)])


async def _newest(state: State, model: str) -> datetime:
    rows = await state.database.fetch(NEWEST, model=model)
    newest = rows[0]["published_at"] if rows else None
    return loaded_time(newest or "1970-01-01T00:00:00+00:00")


def _moment(text: str | None) -> datetime | None:
    try:
        return None if text is None else parse_time(text)
    except IntervalError:
        raise ProblemError(404, "there is no event of this id; begin without one") from None


def _published(row: Row) -> Event:
    told = dict(row) | {name: stored_time(loaded_time(row[name])) for name in TIMES}
    return Event("publication", as_json(told), told["published_at"])


def _progress(found: StoredRequest) -> Event:
    told = RequestProgress(**found.told()).model_dump_json()
    over = found.state not in ("waiting", "scoring")
    return Event("over" if over else "progress", told, last=over)
