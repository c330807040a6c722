"""Requests of many rows as the warehouse has them: how far each is, and what came of its rows."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from fastapi import Request, Response

from batch_jobs.database.transactions import loaded_time
from prediction_api.database import Database, Row, Statement
from prediction_api.formats import csv_of
from prediction_api.problems import ProblemError
from prediction_api.request_schemas import RowCounts, RowReject, RowResult
from prediction_api.state import state_of

MOST_ROWS = 10_000
COLUMNS = ("row", "entity_id", "score", "label", "rejected_because")
_REQUEST = """
    SELECT r.request_id, r.model, r.client, r.created_at, r.rows_read, r.rows_scored,
           r.rows_rejected, r.rows_skipped, r.model_version, r.finished_at, r.error,
           CASE WHEN c.request_id IS NOT NULL AND r.state NOT IN ('done', 'retired')
                THEN 'cancelled' ELSE r.state END AS state
    FROM requests AS r LEFT JOIN cancelled_requests AS c ON c.request_id = r.request_id"""
REQUEST = Statement(f"{_REQUEST} WHERE r.request_id = :request_id", point=True)
_MINE = Statement(
    f"{_REQUEST} WHERE r.client = :client AND r.state <> 'retired' "
    f"ORDER BY r.created_at DESC, r.request_id DESC LIMIT :limit"
)
_PAGE = """
    SELECT row_number AS "row", entity_id, {} FROM {}
    WHERE request_id = :request_id AND row_number > :after AND row_number <= :until
    ORDER BY row_number LIMIT :limit"""
RESULTS = Statement(_PAGE.format("score, label", "request_results"))
REJECTS = Statement(_PAGE.format("reason", "request_rejects"))


@dataclass(frozen=True)
class StoredRequest:
    """A request of many rows.

    Attributes:
        id: of the request.
        model: who is asked.
        state: waiting, scoring, done, failed or cancelled.
        model_version: who answers, once somebody does.
        created_at: when it was sent.
        finished_at: when it was done, or had failed.
        error: why it has failed.
        rows: how many were sent, and what became of them.
    """

    id: int
    model: str
    state: str
    model_version: str | None
    created_at: datetime
    finished_at: datetime | None
    error: str | None
    rows: RowCounts

    @property
    def progress(self) -> float:
        """The share of rows that was dealt with."""
        counts = self.rows
        return (counts.scored + counts.rejected + counts.skipped) / max(1, counts.read)

    def told(self) -> dict[str, Any]:
        """All of it by name."""
        return {**vars(self), "progress": self.progress}


async def find_row(database: Database, request_id: int) -> Row | None:
    """What is kept of a request, whoever sent it.

    Raises:
        UnavailableError: the warehouse does not answer.
    """
    rows = await database.fetch(REQUEST, request_id=request_id)
    return rows[0] if rows else None


async def find(request: Request, request_id: int) -> StoredRequest:
    """A request of who asks now.

    Raises:
        ProblemError: there is none of this id, or it is somebody else's, or its rows are gone.
    """
    client = getattr(request.state, "client", "")
    row = await find_row(state_of(request).database, request_id)
    if row is None or row["client"] != client:
        raise ProblemError(404, "there is no request of this id")
    if row["state"] == "retired":
        raise ProblemError(410, "this request is older than its model keeps what was answered")
    return _stored(row)


async def find_all(request: Request, limit: int) -> list[StoredRequest]:
    """The newest requests of who asks now, of which the rows are there.

    Args:
        request: of who asks.
        limit: most of them.

    Raises:
        UnavailableError: the warehouse does not answer.
    """
    client = getattr(request.state, "client", "")
    values = {"client": client, "limit": limit}
    return [_stored(row) for row in await state_of(request).database.fetch(_MINE, **values)]


def _stored(row: Row) -> StoredRequest:
    counts = {name: row[f"rows_{name}"] for name in ("read", "scored", "rejected", "skipped")}
    ended = row["finished_at"]
    return StoredRequest(
        id=row["request_id"],
        model=row["model"],
        state=row["state"],
        model_version=row["model_version"],
        created_at=loaded_time(row["created_at"]),
        finished_at=None if ended is None else loaded_time(ended),
        error=row["error"],
        rows=RowCounts(**counts),
    )


async def page_of(
    database: Database, found: StoredRequest, after: int, limit: int
) -> tuple[list[RowResult], list[RowReject]]:
    """Results and rejected rows among some rows of a request; none before it is done."""
    return await _among(database, found, after, after + limit, limit)


async def first_of(
    database: Database, found: StoredRequest, limit: int
) -> tuple[list[RowResult], list[RowReject]]:
    """The first results and the first rejected rows, wherever they stand."""
    return await _among(database, found, 0, found.rows.read, limit)


async def _among(
    database: Database, found: StoredRequest, after: int, until: int, limit: int
) -> tuple[list[RowResult], list[RowReject]]:
    if found.state != "done":
        return [], []
    values = {"request_id": found.id, "after": after, "until": until, "limit": limit}
    results = await database.fetch(RESULTS, **values)
    rejects = await database.fetch(REJECTS, **values)
    return [RowResult(**row) for row in results], [RowReject(**row) for row in rejects]


async def _everything(request: Request, request_id: int) -> list[Mapping[str, Any]]:
    """All rows of a request that is done, in order, with score or reason.

    Raises:
        ProblemError: it is not done, or its rows went while they were read.
    """
    database, found = state_of(request).database, await find(request, request_id)
    if found.state != "done":
        raise ProblemError(409, f"the request is not done: its state is {found.state}")
    rows: list[Mapping[str, Any]] = []
    for after in range(0, found.rows.read, MOST_ROWS):
        page = {"request_id": request_id, "after": after, "until": after + MOST_ROWS}
        for statement in (RESULTS, REJECTS):
            rows += map(dict, await database.fetch(statement, **page, limit=MOST_ROWS))
    await find(request, request_id)  # else it was retired meanwhile, and rows are missing
    return sorted(rows, key=lambda row: row["row"])


async def results_csv(request: Request, request_id: int, *, raw: bool = False) -> Response:
    """All rows of a request that is done, in the order in which they were sent, as CSV.

    Raises:
        ProblemError: it is not done, or its rows went while they were read.
    """
    rows = await _everything(request, request_id)
    made = await asyncio.to_thread(csv_of, COLUMNS, map(_cells, rows), raw=raw)
    headers = {
        "Content-Disposition": f'attachment; filename="request-{request_id}.csv"',
        "Cache-Control": "no-store",
        **made.headers,
    }
    return Response(made.content, 200, headers, "text/csv; charset=utf-8; header=present")


def _cells(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**dict.fromkeys(COLUMNS), **row, "rejected_because": row.get("reason")}
