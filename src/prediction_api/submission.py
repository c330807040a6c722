"""Take requests of many rows in: what was sent is read, and kept for whoever answers requests."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from hashlib import sha256

from fastapi import Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import UploadFile

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.requests.submit import Row, Submission, Submitted
from batch_jobs.requests.submit import submit as store
from prediction_api.database import unavailable
from prediction_api.forms import FORM, form_of
from prediction_api.problems import ProblemError
from prediction_api.request_schemas import Accepted
from prediction_api.state import State, state_of
from prediction_api.stored_requests import find_row
from prediction_api.uploads import CSV, JSON, PARQUET, Reader


@dataclass(frozen=True)
class Sent:
    """What somebody has sent: the bytes, and what they are said to be."""

    kind: str
    content: bytes


async def sent_in(request: Request) -> Sent:
    """What a request carries: its body, or the one file of its form.

    Raises:
        ProblemError: it is of another kind, or the form has no file.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in (JSON, CSV, PARQUET):
        return Sent(kind, await request.body())
    if kind != FORM:
        raise ProblemError(415, f"send {JSON}, {CSV}, {PARQUET} or {FORM}")
    async with form_of(request, files=1, fields=1) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ProblemError(422, "the form has no file of the name 'file'")
        content = await file.read()
    # Neither the name nor the type that a browser gives a file says what is in it.
    return Sent(PARQUET if content.startswith(b"PAR1") else CSV, content)


async def submit(request: Request, reader: Reader, sent: Sent, key: str | None = None) -> Accepted:
    """Keep a request, which is answered later.

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
    state.worker.wake()
    url = f"/v1/requests/{found.request_id}"
    return Accepted(
        id=found.request_id, model=reader.model.name, state="waiting", rows=rows, url=url
    )


def _submit(
    state: State, reader: Reader, sent: Sent, client: str, key: str | None
) -> tuple[Submitted, int]:
    rows = reader.read(sent.kind, sent.content)
    digest = _digest(reader.model.name, rows)
    submission = Submission(reader.model.name, rows, client, key, digest)
    found = store(Warehouse(state.config.settings.warehouse), submission)
    if found.request_sha256 != digest:
        raise ProblemError(409, "this Idempotency-Key was used for another request")
    return found, len(rows)


def _digest(model: str, rows: list[Row]) -> str:
    """What tells a request from another one with the same key; in whatever form it is sent."""
    digest = sha256(model.encode())
    for row in rows:
        digest.update(json.dumps([row.entity_id, row.features], sort_keys=True).encode())
    return digest.hexdigest()
