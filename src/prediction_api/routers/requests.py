"""Ask for predictions of many rows: `POST /requests` answers at once, `GET /requests/{id}` later.

What is sent is kept as it is, and scored by whoever answers requests: a thread of this process,
`batch-jobs answer`, or the model's DAG.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import UploadFile

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.requests import submit
from batch_jobs.requests.submit import Row, Submission, Submitted
from prediction_api.database import unavailable
from prediction_api.problems import ProblemError, documented
from prediction_api.routers.predict import IdempotencyKey
from prediction_api.routers.runs import csv_of
from prediction_api.routing import GuardedRoute, require_same_site
from prediction_api.schemas import Accepted, ManyRows, PredictionId
from prediction_api.state import State, state_of
from prediction_api.stored_requests import MOST_ROWS, everything, find, find_row, page_of
from prediction_api.uploads import CSV, JSON, PARQUET, Reader

FORM = "multipart/form-data"
COLUMNS = ("row", "entity_id", "score", "label", "rejected_because")
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="Most rows of the page.")]
After = Annotated[int, Query(ge=0, le=2**31, description="The last row of the page before.")]
FILE = {"type": "string", "format": "binary"}


@dataclass(frozen=True)
class Sent:
    """What somebody has sent: the bytes, and what they are said to be."""

    kind: str
    content: bytes


def asking_router(state: State) -> APIRouter:
    """The routes of each model there is a file for, and `POST /requests` of the configured one."""
    router = APIRouter(tags=["requests of many rows"], route_class=GuardedRoute)
    for path, name in state.paths("requests"):
        _add(router, path, state.readers[name])
    router.add_api_route(
        "/requests/{id}", requested, response_model=ManyRows, responses=documented(404, 410)
    )
    router.add_api_route(
        "/requests/{id}/results.csv",
        results,
        response_class=Response,
        responses={200: {"content": {CSV: {}}}, **documented(404, 409, 410)},
    )
    return router


def _add(router: APIRouter, path: str, reader: Reader) -> None:
    model = reader.model

    async def ask(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        require_same_site(request)
        accepted = await take(request, reader, await sent(request), idempotency_key)
        headers = {"Location": accepted.url}
        return Response(accepted.model_dump_json(), 202, headers, JSON)

    router.add_api_route(
        path,
        ask,
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


async def sent(request: Request) -> Sent:
    """What a request carries: its body, or the one file of its form.

    Raises:
        ProblemError: it is of another kind, or the form has no file.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in (JSON, CSV, PARQUET):
        return Sent(kind, await request.body())
    if kind != FORM:
        raise ProblemError(415, f"send {JSON}, {CSV}, {PARQUET} or {FORM}")
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ProblemError(422, "the form has no file of the name 'file'")
        content = await file.read()
    # Neither the name nor the type that a browser gives a file says what is in it.
    return Sent(PARQUET if content.startswith(b"PAR1") else CSV, content)


async def take(request: Request, reader: Reader, sent: Sent, key: str | None = None) -> Accepted:
    """Take a request in.

    Raises:
        ProblemError: the rows are not such as the model is asked, or the key was used before.
        UnavailableError: the warehouse does not take it.
    """
    state = state_of(request)
    client = getattr(request.state, "client", "")
    await find_row(state.database, 0)  # or to write would make the file of a warehouse that is lost
    try:
        found, rows = await asyncio.to_thread(_submit, state, reader, sent, client, key)
    except (SQLAlchemyError, BatchJobsError, OSError) as error:
        raise unavailable(error) from error
    state.answering.wake()
    url = f"/requests/{found.request_id}"
    return Accepted(
        id=found.request_id, model=reader.model.name, state="waiting", rows=rows, url=url
    )


def _submit(
    state: State, reader: Reader, sent: Sent, client: str, key: str | None
) -> tuple[Submitted, int]:
    rows = reader.read(sent.kind, sent.content)
    digest = _digest(reader.model.name, rows)
    submission = Submission(reader.model.name, rows, client, key, digest)
    found = submit.submit(Warehouse(state.config.settings.warehouse), submission)
    if found.request_sha256 != digest:
        raise ProblemError(409, "this Idempotency-Key was used for another request")
    return found, len(rows)


def _digest(model: str, rows: list[Row]) -> str:
    """What tells a request from another one with the same key; in whatever form it is sent."""
    digest = sha256(model.encode())
    for row in rows:
        digest.update(json.dumps([row.entity_id, row.features], sort_keys=True).encode())
    return digest.hexdigest()


async def requested(
    request: Request,
    id: PredictionId,  # noqa: A002 # as in the URL
    limit: Limit = 1000,
    after: After = 0,
) -> Response:
    """How far a request is; once it is done, its results and rejected rows, page by page."""
    state, found = state_of(request), await find(request, id)
    results, rejected = await page_of(state.database, found, after, limit)
    headers = {"Cache-Control": "no-store"}
    if found.state == "done" and after + limit < found.rows.read:
        url = f"/requests/{id}?limit={limit}&after={after + limit}"
        headers["Link"] = f'<{url}>; rel="next"'
    told = ManyRows(**found.told(), results=results, rejected=rejected)
    return Response(told.model_dump_json(), 200, headers, JSON)


async def results(
    request: Request,
    id: PredictionId,  # noqa: A002 # as in the URL
) -> Response:
    """All rows of a request that is done, in the order in which they were sent, as CSV."""
    rows = await everything(request, id)
    content = await asyncio.to_thread(csv_of, COLUMNS, map(_cells, rows))
    headers = {
        "Content-Disposition": f'attachment; filename="request-{id}.csv"',
        "Cache-Control": "no-store",
    }
    return Response(content, 200, headers, f"{CSV}; charset=utf-8; header=present")


def _cells(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**dict.fromkeys(COLUMNS), **row, "rejected_because": row.get("reason")}
