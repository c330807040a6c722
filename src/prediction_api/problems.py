"""What went wrong, as problem+json (RFC 9457), never with what was sent or where it went wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import fastapi
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from prediction_api.problem_types import url_of
from prediction_api.versioning import with_prefix

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS = 2
MOST_ERRORS = 20


class FieldProblem(BaseModel):
    """What is wrong with one value of a request."""

    where: str = Field(examples=["body.features.petal_width"])
    what: str = Field(examples=["Input should be greater than or equal to 0"])


class Problem(BaseModel):
    """An answer that is no success (RFC 9457)."""

    type: str = Field("about:blank", examples=["/problems/no-prediction"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["iris has no prediction for this entity"])
    errors: list[FieldProblem] | None = None


class ProblemError(fastapi.HTTPException):
    """A request that cannot be answered as it stands.

    Args:
        status: of the answer.
        detail: what is wrong, and the cure.
        headers: of the answer.
        kind: one of `TYPES`; by default the first there is for the status.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        headers: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.kind = kind


class UnavailableError(ProblemError):
    """What a request needs is not there at the moment; it will be."""

    def __init__(self, detail: str) -> None:
        super().__init__(503, detail, {"Retry-After": str(RETRY_AFTER_SECONDS)})


def problem(
    status: int,
    detail: str,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldProblem] | None = None,
    kind: str | None = None,
) -> Response:
    """The answer that tells of a problem."""
    told = Problem(
        type=url_of(status, kind),
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        errors=list(errors) if errors else None,
    )
    return JSONResponse(
        told.model_dump(exclude_none=True),
        status,
        headers=dict(headers or {}),
        media_type="application/problem+json",
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How OpenAPI tells of answers with these statuses, and of those that any route may give."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in sorted({*ALWAYS, *statuses})
    }


ALWAYS: Final = (400, 401, 403, 408, 422, 429, 503)


def add_handlers(app: FastAPI) -> None:
    """Let every error of an app be told as a problem, and OpenAPI tell what that is."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        told = with_prefix(described())
        schemas = models_json_schema(
            [(Problem, "serialization")], ref_template="#/components/schemas/{model}"
        )[1]["$defs"]
        parts = told.setdefault("components", {})
        parts.setdefault("schemas", {}).update(schemas)
        if app.state.shared.config.keys:
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            told["security"] = [{"key": []}]
        app.openapi_schema = told
        return told

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 # for the type checker
    detail, kind = str(error.detail), None
    if isinstance(error, ProblemError):
        kind = error.kind
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        error.headers = {"Allow": _allowed(request)}
        detail = f"this path is asked by {error.headers['Allow']}"
    elif error.status_code == HTTPStatus.NOT_FOUND:
        detail, kind = "there is no such path; /openapi.json has all there are", "no-route"
    return problem(error.status_code, detail, error.headers, kind=kind)


def _allowed(request: Request) -> str:
    """The methods of all routes of a path, of which the first one alone tells its own."""
    found: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(found | ({"HEAD"} if "GET" in found else set())))


def _invalid(_: Request, error: Exception) -> Response:
    """Without the value itself, which may be NaN or a secret, or megabytes."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 # for the type checker
    errors = [
        FieldProblem(where=_written(".".join(map(str, found["loc"]))), what=_written(found["msg"]))
        for found in error.errors()[:MOST_ERRORS]
    ]
    return problem(422, "the request does not fit; see errors", errors=errors)


def _written(text: str) -> str:
    """The beginning of a text, with a mark for what UTF-8 cannot write."""
    return text[:200].encode(errors="replace").decode()


def _unexpected(_: Request, error: Exception) -> Response:
    log.error("unexpected", exc_info=error)
    return problem(500, "an unexpected error, which is in the server's log")
