"""Read JSON strictly, and no more of it than fits into a small multiple of its bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from prediction_api.problems import ProblemError
from prediction_api.unpacking import MOST_COLUMNS

# An empty list takes 28 times its two bytes once it is read, and an empty object more.
OPENERS = (b"{", b"[")
MOST_NESTED = 10_000  # where nobody says how many rows there may be
TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


def strict_json(body: bytes, most: int = MOST_NESTED) -> Any:
    """What JSON says, of which NaN and Infinity are no part.

    A body in single quotes, as curl sends it where a shell has eaten the double ones, is read as
    if it had these.

    Args:
        body: all of it.
        most: how many objects and lists there may be.

    Raises:
        ProblemError: it is no JSON, or has more, or more names than any model has features.
    """
    if _opened(body) > most and _opened(TEXT.sub(b"", body)) > most:
        raise ProblemError(400, f"a body has at most {most:,} objects and lists")
    try:
        text = body.decode()
        if '"' not in text:
            text = text.replace("'", '"')
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ProblemError(400, "the body is not JSON (RFC 8259) in UTF-8") from None
    for each in _objects(found):
        if len(each) > MOST_COLUMNS + 1:
            raise ProblemError(422, f"an object has {len(each):,} names, and none may have so many")
    return found


def _opened(body: bytes) -> int:
    return sum(body.count(sign) for sign in OPENERS)


def _objects(found: Any) -> Iterator[dict[str, Any]]:
    """The objects as deep as what is asked can have them: the request, and its features or rows."""
    if isinstance(found, dict):
        yield found
        for value in found.values():
            if isinstance(value, dict):
                yield value
            elif isinstance(value, list):
                yield from (one for one in value if isinstance(one, dict))


def _refuse(name: str) -> float:
    raise ValueError(name)
