"""What is sent and answered, as OpenAPI tells it. Times are UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired

from fastapi import Header, Path, Query
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    create_model,
    with_config,
)
from typing_extensions import TypedDict

from batch_jobs.database.columns import text_of
from batch_jobs.model import NAME_PATTERN, BatchModel, Feature, Number
from batch_jobs.requests.submit import LARGEST_ID
from batch_jobs.scoring.keys import MAX_KEY_LENGTH

LONGEST_TEXT = 10_000

ModelName = Annotated[
    str, Path(pattern=NAME_PATTERN.pattern, description="Name of the model's file.")
]
EntityId = Annotated[
    str,
    Path(min_length=1, max_length=MAX_KEY_LENGTH, description="The key of features_query."),
]
RunId = Annotated[int, Path(ge=1, le=LARGEST_ID)]
PredictionId = Annotated[int, Path(ge=1, le=LARGEST_ID)]
# Strict, or text of digits that is too long would be read as a number.
Value = (
    Annotated[str, Field(strict=True, max_length=LONGEST_TEXT)]
    | StrictInt
    | StrictFloat
    | StrictBool
    | None
)
AsOf = Annotated[
    str | None,
    Query(
        description="A moment, ISO 8601 with an offset: what the app saw then.",
        examples=["2026-11-22T15:00:00Z"],
        json_schema_extra={"format": "date-time"},
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        description="A request that is sent again with the same key gets the first answer again.",
    ),
]


class Answer(BaseModel):
    """What the server answers with."""

    model_config = ConfigDict(protected_namespaces=(), ser_json_inf_nan="null")


class Status(Answer):
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


class Model(Answer):
    """A model: what it says, what it is asked, and how fresh it is."""

    model: str
    description: str | None = None
    mode: str | None = None
    schedule: str | None = None
    features: dict[str, Any] | None = None
    champion: str | None = Field(default=None, description="The version that answers now.")
    status: Status | None = Field(default=None, description="Null before the first publication.")


class Models(Answer):
    """All models."""

    models: list[Model]


class Prediction(Answer):
    """A published prediction: a row of `current_predictions` or `prediction_history`."""

    model: str
    entity_id: str
    score: float
    label: str | None
    model_version: str
    run_id: int
    interval_start: datetime
    interval_end: datetime
    published_at: datetime = Field(
        description="When it was published: readers see it from then on, or up to some hundredths "
        "of a second later, as its transaction took to end."
    )


class CurrentPrediction(Prediction):
    """What readers see now."""

    fresh_until: datetime
    stale: bool | None
    age_seconds: int


class PastPrediction(Prediction):
    """What readers saw at `as_of`."""

    as_of: datetime
    superseded_at: datetime | None


class OnlinePrediction(Answer):
    """A prediction that was computed on request."""

    id: int = Field(ge=1, le=LARGEST_ID)
    result: str | float = Field(description="The predicted class, or the regression's value.")
    score: float
    model: str
    model_version: str
    features: dict[str, str | float | None]
    created_at: datetime


class PredictionRequest(BaseModel):
    """What a model is asked; `request_of` types it by the model's contract."""

    model_config = ConfigDict(extra="forbid")


def request_of(model: BatchModel) -> type[PredictionRequest]:
    """The type of what a model is asked: its features by name, or listed in declared order."""
    title = "".join(part.title() for part in model.name.split("_"))
    types = {name: _type(kind) for name, kind in model.features.items()}
    # A TypedDict, for a feature may have a name that no attribute can have.
    plain: Any = TypedDict(f"{title}Features", types)  # type: ignore[misc] # known at run time
    named: Any = with_config(ConfigDict(extra="forbid"))(plain)
    listed: Any = tuple.__class_getitem__(tuple(types.values()))
    features: Any = Annotated[
        Annotated[named, Tag("named")] | Annotated[listed, Tag("listed")],
        Discriminator(lambda given: "listed" if isinstance(given, list | tuple) else "named"),
    ]
    made: type[PredictionRequest] = create_model(
        f"{title}Request",
        __base__=PredictionRequest,
        features=(features, Field(description="By name, or listed in declared order.")),
    )
    return made


def features_of(body: PredictionRequest) -> tuple[Any, ...]:
    """The features that a request of `request_of` has, in declared order."""
    features: Any = body.features  # type: ignore[attr-defined] # of the types made above
    return features if isinstance(features, tuple) else tuple(features.values())


def _type(kind: Feature) -> Any:
    """A feature as JSON has it; the same values as `batch_jobs.scoring.contract` lets pass."""
    found: Any
    if isinstance(kind, Number):
        found = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=kind.ge, le=kind.le)]
    elif kind.one_of is not None:
        found = Annotated[Literal[kind.one_of], BeforeValidator(_text)]
    else:
        found = Annotated[str, Field(strict=True, max_length=LONGEST_TEXT), BeforeValidator(_text)]
    return found | None if kind.nullable else found


def _text(value: Any) -> Any:
    """A number or truth value as the text that the warehouse's would be."""
    return text_of(value) if isinstance(value, bool | int | float) else value


def row_of(model: BatchModel) -> Any:
    """The type of one row of many: all features by name, and perhaps a key.

    Their values are for the scorer to check.
    """
    title = "".join(part.title() for part in model.name.split("_"))
    key = Annotated[str, Field(max_length=MAX_KEY_LENGTH, pattern=r"^[^\x00]*$")]
    types = {name: Annotated[Value, _told(kind)] for name, kind in model.features.items()}
    fields: Any = {"entity_id": NotRequired[key | StrictInt | None], **types}
    plain: Any = TypedDict(f"{title}Row", fields)  # type: ignore[misc] # known at run time
    return with_config(ConfigDict(extra="forbid"))(plain)


def rows_of(model: BatchModel, row: Any) -> Any:
    """The type of a request of many rows: `{"rows": [row]}`."""
    title = "".join(part.title() for part in model.name.split("_"))
    rows: Any = Annotated[list[row], Field(min_length=1)]
    request: Any = TypedDict(f"{title}Rows", {"rows": rows})  # type: ignore[misc] # likewise
    return with_config(ConfigDict(extra="forbid"))(request)


def _told(kind: Feature) -> Any:
    limits = kind.model_dump(exclude_none=True)
    return Field(description=f"{type(kind).__name__}: {limits}; another value is rejected.")


class SignOfLife(Answer):
    """When the watch, which tells people what is overdue or has stopped, was heard of last."""

    host: str
    seen_at: datetime
    age_seconds: int
    silent: bool = Field(description="Whether it has missed several looks, so that it may be dead.")
    problems: int = Field(description="How many it found.")


class Readiness(Answer):
    """Whether the server can answer, how fresh that would be, and whether somebody watches."""

    ready: bool
    models: list[Status]
    watch: SignOfLife | None = Field(default=None, description="Null if none ever ran.")


class Health(Answer):
    """Whether the server runs."""

    ok: bool = True
