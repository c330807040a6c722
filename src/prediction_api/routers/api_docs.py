"""What can be asked, as OpenAPI and as a page that needs no script and nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from prediction_api.protection import key_in
from prediction_api.rendering import COOKIE, PageRoute, key_of, page
from prediction_api.routing import GuardedRoute, Handler, require_key

METHODS = ("get", "post", "put", "patch", "delete")
REFERENCE = "#/components/schemas/"


class EitherRoute(GuardedRoute):
    """A route for who has a key, in the header of a program or in the cookie of the page."""

    def get_route_handler(self) -> Handler:
        """The handler, behind the check."""
        handle = self.handler()

        async def handle_known(request: Request) -> Response:
            key = key_in(request.headers.get("authorization", ""))
            require_key(request, key or key_of(request.cookies.get(COOKIE, "")))
            return await handle(request)

        return handle_known


router = APIRouter(route_class=PageRoute, include_in_schema=False)
document = APIRouter(route_class=EitherRoute, include_in_schema=False)


class Operation(NamedTuple):
    """What can be asked of one path by one method, in words."""

    method: str
    path: str
    summary: str
    description: str
    parameters: list[dict[str, Any]]
    bodies: dict[str, str]
    answers: dict[str, str]


@document.get("/openapi.json")
async def openapi(request: Request) -> Response:
    """The OpenAPI document."""
    return JSONResponse(request.app.openapi())


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Every operation with its parameters, bodies and answers."""
    told = request.app.openapi()
    schemas = {
        name: json.dumps(schema, indent=2, ensure_ascii=False)
        for name, schema in sorted(told["components"]["schemas"].items())
    }
    groups: dict[str, list[Operation]] = {}
    for tag, operation in _operations(told):
        groups.setdefault(tag, []).append(operation)
    return page(request, "docs.html", groups=groups, schemas=schemas)


def _operations(told: dict[str, Any]) -> Iterator[tuple[str, Operation]]:
    """Every operation with the group it belongs to."""
    for path, methods in told["paths"].items():
        for method in METHODS:
            if (one := methods.get(method)) is not None:
                bodies = one.get("requestBody", {}).get("content", {})
                yield (
                    next(iter(one.get("tags", ["other"]))),
                    Operation(
                        method=method.upper(),
                        path=path,
                        summary=one.get("summary", ""),
                        description=one.get("description", ""),
                        parameters=one.get("parameters", []),
                        bodies={
                            kind: _shown(body.get("schema", {})) for kind, body in bodies.items()
                        },
                        answers={
                            status: answer.get("description", "")
                            for status, answer in one.get("responses", {}).items()
                        },
                    ),
                )


def _shown(schema: dict[str, Any]) -> str:
    """A schema by its name if it has one, or written out."""
    name = str(schema.get("$ref", ""))
    if name.startswith(REFERENCE):
        return name.removeprefix(REFERENCE)
    return json.dumps(schema, indent=2, ensure_ascii=False)
