"""What the API tells, typed; times are in UTC and know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from types import MappingProxyType
from typing import Any, Self

from prediction_api.client.errors import MisconfiguredError

KINDS: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "datetime": (str,),
    "Mapping[str, Any]": (dict,),
    "Sequence[Any]": (list,),
    "Any": (object,),
}


@dataclass(frozen=True)
class _Told:
    @classmethod
    def from_json(cls, told: Any, shared: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """What an object of JSON tells; what is not known here is left out.

        Args:
            told: the object.
            shared: what it has in common with others.

        Raises:
            MisconfiguredError: it is no such object.
        """
        if not isinstance(told, dict):
            raise _other(cls.__name__, "no object")
        told = {**told, **shared}
        found: dict[str, Any] = {}
        for one in fields(cls):
            if one.name not in told and one.default is not MISSING:
                continue
            found[one.name] = _value(cls.__name__, one.name, str(one.type), told.get(one.name))
        return cls(**found)


def _value(record: str, name: str, kind: str, value: Any) -> Any:
    kind, _, nothing = kind.partition(" | ")
    if value is None and nothing:
        return None
    if not _fits(value, kind):
        raise _other(record, f"{name} is {value!r}"[:100])
    if kind == "datetime":
        try:
            return datetime.fromisoformat(value)
        except ValueError:
            raise _other(record, f"{name} is {value!r}"[:100]) from None
    return float(value) if kind == "float" else value


def _fits(value: Any, kind: str) -> bool:
    return isinstance(value, KINDS[kind])


def _other(record: str, why: str) -> MisconfiguredError:
    return MisconfiguredError(
        f"the answer is JSON, but no {record} ({why}); does the URL lead to the prediction API?"
    )


@dataclass(frozen=True)
class Prediction(_Told):
    """A published prediction: the columns of `current_predictions`."""

    model: str
    entity_id: str
    score: float
    label: str | None
    model_version: str
    run_id: int
    interval_start: datetime
    interval_end: datetime
    published_at: datetime


@dataclass(frozen=True)
class CurrentPrediction(Prediction):
    """What readers see now, and whether the model keeps its promise."""

    fresh_until: datetime
    stale: bool | None


@dataclass(frozen=True)
class Many(_Told):
    """What is told of many entities: a prediction or null for each, and how fresh they are."""

    fresh_until: datetime
    stale: bool | None
    predictions: Sequence[Any]


@dataclass(frozen=True)
class PastPrediction(Prediction):
    """What readers saw at `as_of`, and until when; None while they do."""

    as_of: datetime
    superseded_at: datetime | None


@dataclass(frozen=True)
class Status(_Told):
    """How fresh a model is: every due interval up to `fresh_until` is published."""

    model: str
    run_id: int
    model_version: str
    interval_start: datetime
    interval_end: datetime
    published_at: datetime
    row_count: int
    fresh_until: datetime
    stale: bool | None
    age_seconds: int


@dataclass(frozen=True)
class Computed(_Told):
    """A prediction that was computed on request, and is kept under `id`.

    `result` is the predicted class, or the regression's value.
    """

    id: int
    result: Any
    score: float
    model: str
    model_version: str
    features: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True)
class Submitted(_Told):
    """A request of many rows that was taken in."""

    id: int
    model: str
    state: str
    rows: int
    url: str


@dataclass(frozen=True)
class Progress(_Told):
    """How far a request of many rows is: waiting, scoring, done, failed or cancelled.

    `progress` is the share of rows that was dealt with, from 0 to 1.
    """

    id: int
    model: str
    state: str
    progress: float
    model_version: str | None
    created_at: datetime
    finished_at: datetime | None
    error: str | None

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state not in ("waiting", "scoring")


@dataclass(frozen=True)
class Result(_Told):
    """What came of one row of a request; `reason` says why it has no score."""

    row: int
    entity_id: str | None
    score: float | None = None
    label: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Publication(_Told):
    """A run that was published."""

    model: str
    run_id: int
    model_version: str
    interval_start: datetime
    interval_end: datetime
    published_at: datetime
    row_count: int
