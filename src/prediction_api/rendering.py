"""Pages: the templates, how they write numbers and times, and what a browser may do with them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from jinja2 import Environment
from starlette.staticfiles import StaticFiles

from batch_jobs import clock
from batch_jobs.reports.templating import environment
from prediction_api.routing import GuardedRoute, Handler, require_key
from prediction_api.state import state_of

COOKIE = "prediction_api_key"
STATIC = StaticFiles(packages=[("prediction_api", "static")])
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
SPANS = (("day", 86400), ("hour", 3600), ("minute", 60))


class PageRoute(GuardedRoute):
    """A route of a page: the key comes in a cookie, and what goes wrong is a page, too."""

    def get_route_handler(self) -> Handler:
        """The handler, behind the check."""
        handle = self.handler()

        async def handle_shown(request: Request) -> Response:
            try:
                require_key(request, key_of(request.cookies.get(COOKIE, "")))
                return await handle(request)
            except (HTTPException, RequestValidationError) as error:
                return problem_page(request, error)

        return handle_shown


def problem_page(request: Request, error: HTTPException | RequestValidationError) -> Response:
    """What went wrong; who has no key is asked for one."""
    status, detail = told(error)
    if status == HTTPStatus.UNAUTHORIZED:
        return page(request, "sign_in.html", status, to=request.url.path, problem=None)
    shown = page(request, "problem.html", status, title=HTTPStatus(status).phrase, detail=detail)
    if isinstance(error, HTTPException):
        shown.headers.update(error.headers or {})
    return shown


def told(error: HTTPException | RequestValidationError) -> tuple[int, str]:
    """The status of an error, and what there is to say."""
    if isinstance(error, HTTPException):
        return error.status_code, str(error.detail)
    return 422, "; ".join(f"{found['loc'][-1]}: {found['msg']}" for found in error.errors()[:5])


def page(request: Request, template: str, code: int = 200, /, **values: Any) -> Response:
    """A page, made of a template."""
    state = state_of(request)
    shared = {"secret": bool(state.config.keys), "signing_in": template == "sign_in.html"}
    content = _environment().get_template(template).render(**shared, **values)
    return HTMLResponse(content, code, HEADERS)


def cookie_of(key: str) -> str:
    """A key as a cookie can carry it."""
    return base64.urlsafe_b64encode(key.encode()).decode()


def key_of(cookie: str) -> str:
    """The key that a cookie carries; nothing if it carries none."""
    try:
        return base64.urlsafe_b64decode(cookie.encode()).decode()
    except (UnicodeError, binascii.Error):
        return ""


@cache
def _environment() -> Environment:
    made = environment("prediction_api")
    made.filters |= {"moment": _moment, "ago": _ago, "number": _number, "listed": _listed}
    made.globals["now"] = clock.now
    return made


def _moment(time: datetime) -> str:
    return f"{time:%-d %b %Y, %H:%M} UTC"


def _ago(seconds: float) -> str:
    for name, length in SPANS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count:,} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def _number(value: float) -> str:
    """A number with four digits that matter, and none of them made up."""
    return f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
