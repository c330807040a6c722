"""What each kind of problem means and what to do: the URLs that are the `type` of problems."""

from __future__ import annotations

from fastapi import APIRouter, Response

from prediction_api.problem_types import PATH, TYPES
from prediction_api.problems import ProblemError

router = APIRouter(include_in_schema=False)


@router.get(PATH + "/{kind}")
async def problem_page(kind: str) -> Response:
    """A kind of problem, in a few lines of text."""
    told = TYPES.get(kind)
    if told is None:
        raise ProblemError(404, f"there is no problem of this kind; there are {', '.join(TYPES)}")
    text = f"{kind} ({told.status})\n\n{told.meaning}\n\n{told.cure}\n"
    return Response(text, media_type="text/plain")
