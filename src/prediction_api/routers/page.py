"""The page at `/`: look an entity up, see its history, send a file and watch what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse

from batch_jobs import clock
from batch_jobs.database.transactions import loaded_time
from batch_jobs.model import NAME_PATTERN
from batch_jobs.reports.templating import style
from batch_jobs.scoring.keys import MAX_KEY_LENGTH
from prediction_api.champions import NEWEST
from prediction_api.current_pages import PIN, Filters, Place, statement, values_of
from prediction_api.database import Database, Row, Statement
from prediction_api.distribution import Distribution
from prediction_api.etags import IfNoneMatch, conditional_headers, matches
from prediction_api.forms import form_of
from prediction_api.freshness import next_tick
from prediction_api.plot import Point, plot
from prediction_api.problems import ProblemError, UnavailableError
from prediction_api.protection import known
from prediction_api.rendering import (
    COOKIE,
    PageRoute,
    cookie_of,
    page,
    problem_page,
    told,
)
from prediction_api.routing import require_same_site
from prediction_api.schemas import ModelName, PredictionId, Status
from prediction_api.state import State, state_of
from prediction_api.status import statuses
from prediction_api.stored_requests import find, first_of, results_csv
from prediction_api.submission import sent_in, submit
from prediction_api.wording import Wording, plain_reason, wording_of

router = APIRouter(route_class=PageRoute, include_in_schema=False)
doors = APIRouter(include_in_schema=False)

POINTS = 200
SUGGESTED = 6
SHOWN = 20
MONTH = 30 * 86400
RETURN = re.compile(r"/(docs|uploads/\d{1,16})?")
HISTORY = Statement(
    """
    SELECT score, label, model_version, published_at, superseded_at FROM prediction_history
    WHERE model = :model AND entity_id = :entity_id
    ORDER BY published_at DESC, run_id DESC LIMIT :limit"""
)
Asked = Annotated[str, Query(max_length=MAX_KEY_LENGTH)]


@router.get("/")
async def home(request: Request, model: Asked = "", entity: Asked = "") -> Response:
    """How fresh a model is, the prediction of an entity, and a form to send a file."""
    state = state_of(request)
    return await _home(request, _chosen(state, model), entity if entity.strip() else "")


async def _home(
    request: Request, name: str | None, entity: str = "", status: int = 200, problem: str = ""
) -> Response:
    state = state_of(request)
    found = {one.model: one for one in await statuses(state)}
    names = sorted({*found, *state.models})
    name = name or next(iter(names), None)
    if name is None or name not in names:
        return page(request, "none.html", 200 if name is None else 404, name=name)
    champions = {row["model"]: row["version"] for row in await state.database.fetch(NEWEST)}
    status_of = found.get(name)
    shown = await _looked_up(state, name, entity, status_of) if entity and status_of else {}
    if entity and not shown and status == 200:
        status = 404
    near = [] if shown or not status_of else await _keys(state.database, name, entity)
    return page(
        request,
        "home.html",
        status,
        names=names,
        name=name,
        declared=state.models.get(name),
        words=_words(state, name),
        titles={one: _words(state, one).title for one in names},
        spread=await state.distributions.get(name) if status_of else None,
        bars=bars,
        due=_due(state, name, status_of.fresh_until) if status_of else None,
        champion=champions.get(name),
        status=status_of,
        entity=entity,
        shown=shown,
        near=near,
        problem=problem,
        longest=MAX_KEY_LENGTH,
        most=state.config.upload_bytes,
        most_rows=state.config.upload_rows,
    )


def _words(state: State, name: str) -> Wording:
    return wording_of(name, state.models.get(name), state.champions.get(name))


def _due(state: State, name: str, after: datetime) -> datetime | None:
    """When a run of a model is due next after a moment; None if its file is not known."""
    model = state.models.get(name)
    return next_tick(model.schedule, after) if model else None


def bars(spread: Distribution) -> list[float]:
    """The height of each bin beside the fullest one, in percent; what is not empty is seen."""
    fullest = max(spread.counts)
    return [max(2.0, 100 * count / fullest) if count else 0.0 for count in spread.counts]


def _chosen(state: State, model: str) -> str | None:
    if model:
        return model if NAME_PATTERN.fullmatch(model) else "?"
    return state.config.model if state.config.model in state.models else None


async def _looked_up(state: State, name: str, entity: str, status: Status) -> Mapping[str, Any]:
    """The prediction of an entity and its history; nothing if there is none."""
    if "\0" in entity:
        return {}
    row = await state.current.get(name, entity)
    if row is None or row["entity_id"] is None:
        return {}
    drawn = await _history(state.database, name, entity, row)
    times = {key: loaded_time(row[key]) for key in ("interval_start", "interval_end")}
    published = loaded_time(row["published_at"])
    return {**dict(row), **times, "published_at": published, "stale": status.stale, **drawn}


async def _history(database: Database, name: str, entity: str, current: Row) -> Mapping[str, Any]:
    values = {"model": name, "entity_id": entity, "limit": POINTS}
    try:
        rows = list(reversed(await database.fetch(HISTORY, **values))) or [current]
    except UnavailableError:  # it takes too long for so many runs; the prediction itself is there
        return {"points": [], "plot": None, "versions": []}
    points = [_point(row) for row in rows]
    return {
        "points": points,
        "plot": plot(points, clock.now()),
        "versions": _versions(points),
    }


def _point(row: Row) -> Point:
    ended = dict(row).get("superseded_at")
    return Point(
        score=row["score"],
        version=row["model_version"],
        since=loaded_time(row["published_at"]),
        until=None if ended is None else loaded_time(ended),
    )


def _versions(points: Sequence[Point]) -> list[Point]:
    """The first point of each version in turn, newest first."""
    firsts = [
        point
        for before, point in zip([None, *points], points, strict=False)
        if before is None or before.version != point.version
    ]
    return firsts[::-1]


async def _keys(database: Database, name: str, near: str) -> list[str]:
    """Some keys that exist, those first that begin as what was typed does."""
    near = near.replace("\0", "")
    found: list[str] = []
    try:
        [pin] = await database.fetch(PIN, model=name)
        place = Place.at_first(pin)
        for start in dict.fromkeys(
            (near, near[:-1], near[:-2], near[: len(near) // 2], near[:1], "")
        ):
            wanted = Filters(prefix=start or None)
            values = values_of(place, wanted, name, SUGGESTED)
            rows = await database.fetch(statement(place, wanted, "entity_id"), **values)
            found += [row["entity_id"] for row in rows if row["entity_id"] not in found]
            if len(found) >= SUGGESTED:
                break
    except UnavailableError:  # a help that takes too long is none
        pass
    return found[:SUGGESTED]


@router.post("/models/{model}/uploads")
async def upload(request: Request, model: ModelName) -> Response:
    """Take a file in, and show what becomes of it; what is wrong with it is told by its form."""
    require_same_site(request)
    state = state_of(request)
    reader = state.readers.get(model)
    if reader is None:
        raise ProblemError(404, f"there is no file of the model {model} here")
    try:
        accepted = await submit(request, reader, await sent_in(request))
    except (ProblemError, RequestValidationError) as error:
        status, detail = told(error)
        if isinstance(error, UnavailableError):
            raise
        return await _home(request, model, status=status, problem=detail)
    return RedirectResponse(f"/uploads/{accepted.id}", 303)


@router.get("/uploads/{id}")
async def uploaded(request: Request, id: PredictionId) -> Response:  # noqa: A002 # as in the URL
    """How far a request is, and what came of it."""
    state, found = state_of(request), await find(request, id)
    scored, rejected = await first_of(state.database, found, SHOWN)
    return page(
        request,
        "upload.html",
        found=found,
        answers=state.config.answer,
        results=scored,
        rejected=[row.model_copy(update={"reason": plain_reason(row.reason)}) for row in rejected],
        words=_words(state, found.model),
        due=_due(state, found.model, clock.now()),
        over=found.state in ("done", "failed", "cancelled"),
    )


@router.get("/uploads/{id}/results.csv")
async def results(request: Request, id: PredictionId) -> Response:  # noqa: A002 # as in the URL
    """All rows of a request that is done, as CSV."""
    return await results_csv(request, id)


@doors.get("/static/style.css")
async def style_sheet(if_none_match: IfNoneMatch = None) -> Response:
    """The style that the page shares with reports."""
    headers = conditional_headers(style())
    if matches(if_none_match, headers["ETag"]):
        return Response(None, 304, headers)
    return Response(style(), 200, headers, "text/css")


@doors.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Keep a key in a cookie that only pages of this server get, and no script."""
    state = state_of(request)
    try:
        require_same_site(request)
        async with form_of(request, files=0, fields=5) as form:
            key, to = str(form.get("key", "")), str(form.get("to", "/"))
    except ProblemError as error:
        return problem_page(request, error)
    to = to if RETURN.fullmatch(to) else "/"
    if not known(key, state.config.keys):
        return page(request, "sign_in.html", 401, to=to, problem="This is no key of this server.")
    answer = RedirectResponse(to, 303)
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))
    answer.set_cookie(
        COOKIE, cookie_of(key), max_age=MONTH, httponly=True, samesite="strict", secure=secure
    )
    return answer


@doors.post("/sign-out")
async def sign_out(request: Request) -> Response:
    """Forget the key."""
    try:
        require_same_site(request)
    except ProblemError as error:
        return problem_page(request, error)
    answer = RedirectResponse("/", 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
