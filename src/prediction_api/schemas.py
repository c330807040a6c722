"""What is sent and answered, as OpenAPI tells it. Times are UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field

from batch_jobs.contract import MAX_KEY_LENGTH
from batch_jobs.model import NAME_PATTERN

LARGEST_ID = 2**53 - 1  # that every reader of JSON keeps exact
STORABLE = r"^[^\x00\ud800-\udfff]*$"  # no database has a place for the others

ModelName = Annotated[
    str, Path(pattern=NAME_PATTERN.pattern, description="Name of the model's file.")
]
EntityId = Annotated[
    str,
    Path(min_length=1, max_length=MAX_KEY_LENGTH, description="The key of features_query."),
]
RunId = Annotated[int, Path(ge=1, le=LARGEST_ID)]
PredictionId = Annotated[int, Path(ge=1, le=LARGEST_ID)]
AsOf = Annotated[
    str | None,
    Query(
        description="A moment, ISO 8601 with an offset: what the app saw then.",
        examples=["2026-11-22T15:00:00Z"],
        max_length=40,
    ),
]


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), ser_json_inf_nan="null")


class Status(_Answer):
    """What `serving_status` says of a model, and whether it keeps its promise."""

    model: str
    run_id: int
    model_version: str
    interval_start: datetime
    interval_end: datetime
    published_at: datetime
    row_count: int
    fresh_until: datetime = Field(description="Every due interval up to here is published.")
    stale: bool | None = Field(description="Whether a due interval is late; null if not known.")
    age_seconds: int = Field(description="Time since fresh_until.")


class Model(_Answer):
    """A model: what it says, what it is asked, and how fresh it is."""

    model: str
    description: str | None = None
    mode: str | None = None
    schedule: str | None = None
    features: dict[str, Any] | None = None
    champion: str | None = Field(default=None, description="The version that answers now.")
    status: Status | None = Field(default=None, description="Null before the first publication.")


class Models(_Answer):
    """All models."""

    models: list[Model]


class Prediction(_Answer):
    """A published prediction: a row of `current_predictions` or `prediction_history`."""

    model: str
    entity_id: str
    score: float
    label: str | None
    model_version: str
    run_id: int
    interval_start: datetime
    interval_end: datetime
    published_at: datetime


class CurrentPrediction(Prediction):
    """What readers see now."""

    fresh_until: datetime
    stale: bool | None
    age_seconds: int


class PastPrediction(Prediction):
    """What readers saw at `as_of`."""

    as_of: datetime
    superseded_at: datetime | None


class Readiness(_Answer):
    """Whether the server can answer, and how fresh that would be."""

    ready: bool
    models: list[Status]


class Health(_Answer):
    """Whether the server runs."""

    ok: bool = True
