"""Who asks, and from where: names of the server, sites of pages, addresses behind proxies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from prediction_api.problems import problem

Network = IPv4Network | IPv6Network
_PORT = re.compile(r":\d{1,5}\Z")


class Hosts:
    """Answers those who ask by one of its names, so that no page has a browser ask for it.

    Args:
        app: that answers.
        names: such as `api.example.com` or `*.example.com`; `*` is any.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or say by which names there are answers."""
        if scope["type"] == "http" and not self._is_known(Headers(scope=scope).get("host", "")):
            refusal = problem(
                400,
                f"the header Host names none of {', '.join(self._names)}; name it in "
                f"PREDICTION_API_HOSTS, or let the proxy before the server send one of these",
                kind="unknown-host",
            )
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        host = _PORT.sub("", host).lower()
        return any(
            name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))
            for name in self._names
        )


class Sites(CORSMiddleware):
    """Lets pages of named sites ask, and tells the others why they may not."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """What a browser is told before its page may ask."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < HTTPStatus.BAD_REQUEST:
            return answer
        detail = "a page of this site may not ask so; sites are named in PREDICTION_API_ORIGINS"
        return problem(403, detail, {"Vary": answer.headers.get("vary", "Origin")})


def address_of(scope: Scope, proxies: Sequence[Network]) -> str:
    """The address that asks: of X-Forwarded-For the last one that is no proxy of ours.

    Args:
        scope: of the request.
        proxies: whose word is taken; what others write there, anybody may have written.
    """
    address = str((scope.get("client") or ("local",))[0])
    if not proxies:
        return address
    lines = Headers(scope=scope).getlist("x-forwarded-for")
    hops = [hop for line in lines for hop in line.split(",")]
    while hops and is_one_of(address, tuple(proxies)):
        told = _plain(hops.pop())
        if not told:
            break
        address = told
    return address


@lru_cache(maxsize=10_000)
def is_one_of(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether an address lies in one of these networks."""
    plain = _plain(address)
    return bool(plain) and any(ip_address(plain) in network for network in networks)


def _plain(told: str) -> str:
    """An address without port and brackets, and IPv4 as such; nothing if it is none."""
    told = told.strip()
    if told.startswith("[") or told.count(":") == 1:
        told = _PORT.sub("", told).strip("[]")
    try:
        found = ip_address(told)
    except ValueError:
        return ""
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return str(mapped or found)
