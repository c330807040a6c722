"""Forms of a browser, whose text is UTF-8 whatever a sender says: no codec of his choice is run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData

from prediction_api.problems import ProblemError

FORM = "multipart/form-data"
UTF_8 = (b"utf-8", b"utf8", b"us-ascii")


@asynccontextmanager
async def form_of(request: Request, *, files: int, fields: int) -> AsyncIterator[FormData]:
    """The fields of a form, at most so many, and its files.

    Raises:
        ProblemError: it says that it is written in anything else than UTF-8.
        HTTPException: it cannot be read, or has more.
    """
    _, options = parse_options_header(request.headers.get("content-type", ""))
    # Python's codecs, which would be run otherwise, include `undefined` and `unicode_escape`.
    if options.get(b"charset", UTF_8[0]).lower() not in UTF_8:
        raise ProblemError(415, "a form is written in UTF-8; send no other charset")
    limits = {"max_files": files, "max_fields": fields, "max_part_size": 10_000}
    async with request.form(**limits) as form:
        yield form
