"""How both clients reach the API, and what is looked at before anything is sent."""

from __future__ import annotations

from typing import Any

import httpx

from prediction_api.client.errors import MisconfiguredError

TIMEOUT = httpx.Timeout(2.0, pool=20.0)
# Shorter than any server keeps an idle connection open: uvicorn's own is five seconds.
LIMITS = httpx.Limits(max_connections=10, max_keepalive_connections=10, keepalive_expiry=4.0)


def reaching(url: str, key: str | None, timeout: httpx.Timeout | float) -> dict[str, Any]:
    """The arguments of an httpx client for a URL.

    Raises:
        MisconfiguredError: the URL is none, or no header can carry the key.
    """
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise MisconfiguredError(f"the URL {url!r} is none: {error}") from error
    if found.scheme not in ("http", "https") or not found.host:
        raise MisconfiguredError(f"the URL {url!r} has no scheme; write http:// or https:// before")
    if found.query or found.fragment:
        raise MisconfiguredError(f"the URL {url!r} has more than a host and a path")
    if key is not None and not (key.isascii() and key.isprintable() and key == key.strip()):
        raise MisconfiguredError(
            "the key has what no header can carry, such as a newline at its end; strip it"
        )
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {"base_url": found, "headers": headers, "timeout": timeout, "limits": LIMITS}
