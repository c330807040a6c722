"""ETags: a client that has an answer already is told so, and is not sent it again."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

from fastapi import Header, Response

HAVE_IT = {"description": "You have it."}
IfNoneMatch = Annotated[str | None, Header(description="The ETag of an answer you have.")]


def conditional(answer: Any, if_none_match: str | None, *what: object) -> Response:
    """The answer with its ETag, or 304 if the client has it; the age alone makes no other one."""
    headers = conditional_headers(*what)
    if matches(if_none_match, headers["ETag"]):
        return Response(None, 304, headers)
    return Response(answer.model_dump_json(), 200, headers, "application/json")


def conditional_headers(*what: object) -> dict[str, str]:
    """The headers of an answer that is known by what it was made of."""
    digest = hashlib.blake2b(repr(what).encode(), digest_size=12).hexdigest()
    return {"ETag": f'W/"{digest}"', "Cache-Control": "no-cache"}


def matches(if_none_match: str | None, etag: str) -> bool:
    """Whether a header If-None-Match names an ETag; weak or strong makes no difference here."""
    if if_none_match is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return etag.removeprefix("W/") in tags or "*" in tags
