"""What is told of requests of many rows, as OpenAPI tells it."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from batch_jobs.requests.submit import LARGEST_ID
from prediction_api.schemas import Answer


class RowCounts(Answer):
    """How many rows a request has, and what became of them."""

    read: int
    scored: int
    rejected: int
    skipped: int


class RowResult(Answer):
    """A prediction; rows are numbered from 1, as they were sent."""

    row: int
    entity_id: str | None
    score: float
    label: str | None


class RowReject(Answer):
    """A row that has no prediction, and why."""

    row: int
    entity_id: str | None
    reason: str


class Accepted(Answer):
    """A request of many rows that will be answered."""

    id: int = Field(ge=1, le=LARGEST_ID)
    model: str
    state: str = Field(examples=["waiting"])
    rows: int
    url: str = Field(description="Where to ask for its state and its results.")


class RequestProgress(Answer):
    """A request of many rows, and how far it is."""

    id: int = Field(ge=1, le=LARGEST_ID)
    model: str
    state: Literal["waiting", "scoring", "done", "failed", "cancelled"]
    progress: float = Field(ge=0, le=1, description="The share of rows that was dealt with.")
    model_version: str | None
    created_at: datetime
    finished_at: datetime | None
    error: str | None
    rows: RowCounts


class Requests(Answer):
    """Requests of many rows, the newest first."""

    requests: list[RequestProgress]


class ManyRows(RequestProgress):
    """A request of many rows: how far it is, and a page of what came of it once it is done."""

    results: list[RowResult]
    rejected: list[RowReject]
