"""A few rows computed at once: each is checked, answered and kept as one of `POST /predict` is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from batch_jobs.model import BatchModel
from prediction_api.online import Answered, Asked
from prediction_api.problems import MOST_ERRORS, ProblemError
from prediction_api.routing import invalid
from prediction_api.schemas import features_of, request_of
from prediction_api.state import State, state_of

MOST_ROWS = 100


async def compute(request: Request, name: str, rows: Sequence[Any]) -> list[Answered]:
    """Predictions of rows of features, by name or listed in declared order.

    Raises:
        ProblemError: there is no file of the model, or there are too many rows, or no answer.
        RequestValidationError: features do not fit; each is told with the number of its row.
        UnavailableError: the warehouse does not answer, or too many requests wait.
    """
    state = state_of(request)
    model = declared(state, name)
    require_few(len(rows))
    client = getattr(request.state, "client", "")
    asked = [Asked(name, values, model.features, client) for values in _values(model, rows)]
    return await asyncio.gather(*map(state.online.ask, asked))


def declared(state: State, name: str) -> BatchModel:
    """A model that computes.

    Raises:
        ProblemError: there is no file of it.
    """
    model = state.models.get(name)
    if model is None:
        raise ProblemError(404, f"there is no file of the model {name} here", kind="unknown-model")
    return model


def require_few(rows: int) -> None:
    """Let only as many rows be sent as are computed at once.

    Raises:
        ProblemError: there are more, or none.
    """
    if not 1 <= rows <= MOST_ROWS:
        raise ProblemError(
            413 if rows else 422,
            f"{rows:,} rows; send 1 to {MOST_ROWS}, or more to /v1/models/MODEL/requests",
        )


def by_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows of columns.

    Raises:
        ProblemError: the columns have not all as many values.
    """
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name[:50]} {length}" for name, length in list(lengths.items())[:5])
        raise ProblemError(422, f"the columns have not all as many values: {told}")
    require_few(next(iter(lengths.values()), 0))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _values(model: BatchModel, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    kind, found, wrong = request_of(model), [], []
    for number, row in enumerate(rows):
        try:
            found.append(features_of(kind.model_validate({"features": row})))
        except ValidationError as error:
            told = invalid(error, "body").errors()
            wrong += [{**one, "loc": ("body", "rows", number, *one["loc"][2:])} for one in told]
        if len(wrong) > MOST_ERRORS:
            break
    if wrong:
        raise RequestValidationError(wrong)
    return found
