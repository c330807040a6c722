"""The stable prefix `/v1`: what is asked below it is what is asked without it.

Links and OpenAPI name `/v1`; the paths without it are older, and stay. What operations ask for and
the page have no version.
"""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX = "/v1"
_BEGINNINGS = tuple(f"{PREFIX}/{name}" for name in ("models", "predict", "requests"))


class Versioned:
    """Lets the routes of an app be asked for below the prefix, too."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; routes do not see the prefix, which ASGI calls the root of the app."""
        if scope["type"] == "http" and scope["path"].startswith(_BEGINNINGS):
            scope["root_path"] = scope.get("root_path", "") + PREFIX
        await self._app(scope, receive, send)


def versioned(path: str) -> str:
    """Where a route is asked for."""
    return f"{PREFIX}{path}" if f"{PREFIX}{path}".startswith(_BEGINNINGS) else path


def with_prefix(openapi: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI whose paths have the prefix."""
    openapi["paths"] = {versioned(path): told for path, told in openapi["paths"].items()}
    return openapi
