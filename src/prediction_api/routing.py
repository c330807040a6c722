"""The kinds of routes: guarded by a key, with a strict body, and quick.

FastAPI's dependencies and its reading of parameters take longer than a look-up. So the key is
looked at by the route, and a quick one lets pydantic read all of its parameters at once.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any, NotRequired
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.types import Scope
from typing_extensions import TypedDict

from prediction_api.problems import ProblemError
from prediction_api.protection import key_in, known, name_of
from prediction_api.strict_json import strict_json

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class GuardedRoute(APIRoute):
    """A route for who has a key, or without keys for who is on this machine."""

    def get_route_handler(self) -> Handler:
        """The handler, behind the check."""
        handle = self.handler()
        names = {field.alias for field in self.dependant.query_params}

        async def handle_known(request: Request) -> Response:
            require_key(request, key_in(request.headers.get("authorization", "")))
            if request.scope["query_string"]:
                _require_known(request, names)
            return await handle(request)

        return handle_known

    def handler(self) -> Handler:
        """What is behind the check."""
        return super().get_route_handler()


class StrictRoute(GuardedRoute):
    """A route whose body is JSON and nothing like it."""

    def handler(self) -> Handler:
        """The handler, to which the body is read strictly."""
        handle = super().handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


class QuickRoute(GuardedRoute):
    """A route without a body that answers with a response: its function's signature says it all.

    FastAPI makes OpenAPI of the signature, and pydantic reads the parameters by the same types.
    """

    def handler(self) -> Handler:
        """The function, called with its parameters."""
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.dependant.call  # type: ignore[assignment]
        headers = {field.alias: field.name for field in self.dependant.header_params}
        places = dict.fromkeys((field.name for field in self.dependant.path_params), "path")
        places |= dict.fromkeys((field.name for field in self.dependant.query_params), "query")
        adapter = _adapter(endpoint)

        async def handle_quickly(request: Request) -> Response:
            given = dict(request.path_params)
            given |= {k: v for k, v in request.query_params.items() if places.get(k) == "query"}
            given |= {
                name: request.headers[alias]
                for alias, name in headers.items()
                if alias in request.headers
            }
            try:
                values = adapter.validate_python(given)
            except ValidationError as error:
                raise invalid(error, "header", places) from error
            return await endpoint(request, **values)

        return handle_quickly


def _adapter(endpoint: Callable[..., Any]) -> TypeAdapter[dict[str, Any]]:
    """What reads a function's parameters, but for the request itself."""
    parameters = inspect.signature(endpoint, eval_str=True).parameters.values()
    fields = {
        one.name: one.annotation if one.default is one.empty else NotRequired[one.annotation]
        for one in parameters
        if one.name != "request"
    }
    return TypeAdapter(TypedDict("Parameters", fields))  # type: ignore[operator]


def invalid(
    error: ValidationError, place: str, places: Mapping[str, str] = MappingProxyType({})
) -> RequestValidationError:
    """What is told of values that do not fit.

    Args:
        error: what pydantic says.
        place: where they stand.
        places: where those of some names stand.
    """
    return RequestValidationError(
        [
            {**found, "loc": (places.get(str((*found["loc"], "")[0]), place), *found["loc"])}
            for found in error.errors(include_input=False, include_url=False)
        ]
    )


def require_key(request: Request, key: str) -> None:
    """Let in who has a key, or without keys who is on this machine.

    Args:
        request: what is asked; its state tells from now on who asks.
        key: the one that came with it, if one did.

    Raises:
        ProblemError: neither.
    """
    keys: tuple[str, ...] = request.app.state.shared.config.keys
    if not keys:
        if not _is_local(request.scope):
            raise ProblemError(
                403, "only this machine is answered, while PREDICTION_API_KEYS names no keys"
            )
        return
    if not known(key, keys):
        raise ProblemError(
            401,
            "send a key: Authorization: Bearer …, with one of PREDICTION_API_KEYS",
            {"WWW-Authenticate": "Bearer"},
        )
    request.state.client = name_of(key)


def _require_known(request: Request, names: set[str]) -> None:
    """Refuse parameters that nobody reads: `as_off` would be answered with the present."""
    given = Counter(name for name, _ in request.query_params.multi_items())
    if unknown := sorted(set(given) - names):
        there = f"it has {', '.join(sorted(names))}" if names else "it has none"
        raise ProblemError(422, f"this path has no parameter {unknown[0]!r:.50}; {there}")
    if twice := sorted(name for name, count in given.items() if count > 1):
        raise ProblemError(422, f"{', '.join(twice)}: given twice")


def require_same_site(request: Request) -> None:
    """Refuse what a page of another site lets a browser send.

    Browsers tell where a request comes from, in headers that no page can change. Where one says
    that it is the same site, it need not match Host, which proxies may change.

    Raises:
        ProblemError: it comes from elsewhere.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if origin in request.app.state.shared.config.origins:
        return
    if site is not None:
        own = site in ("none", "same-origin")
    else:
        own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if not own:
        raise ProblemError(
            403,
            "a page of another site must not ask; if it is yours, let the proxy before the server "
            "pass the header Host on, or name its site in PREDICTION_API_ORIGINS",
        )


def _is_local(scope: Scope) -> bool:
    """Whether the request came in at an address that only this machine can reach."""
    host, port = scope.get("server") or ("", None)
    return port is None or host.startswith("127.") or host in ("::1", "localhost")


class StrictRequest(Request):
    """A request whose body is read strictly."""

    async def json(self) -> Any:
        """The body's JSON.

        Raises:
            ProblemError: it is none; NaN and Infinity are not JSON.
        """
        return strict_json(await self.body())
