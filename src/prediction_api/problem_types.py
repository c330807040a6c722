"""The kinds of problems, each with a page of its own at the URL that its `type` is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class ProblemType(NamedTuple):
    """A kind of problem: its status, what it means, and what to do."""

    status: int
    meaning: str
    cure: str


PATH = "/problems"
TYPES: Mapping[str, ProblemType] = {
    "not-json": ProblemType(
        400,
        "The body is no JSON in UTF-8, or the request no HTTP.",
        "Send JSON (RFC 8259), without NaN and infinity.",
    ),
    "unknown-host": ProblemType(
        400,
        "The server does not answer by the name that the header Host has.",
        "Name it in PREDICTION_API_HOSTS, or let the proxy before the server send a name in it.",
    ),
    "no-key": ProblemType(
        401,
        "The server answers those who have one of its keys.",
        "Send `Authorization: Bearer KEY` with one of PREDICTION_API_KEYS.",
    ),
    "forbidden": ProblemType(
        403,
        "The server does not answer whoever asks from there.",
        "Ask from this machine, set PREDICTION_API_KEYS, or name the page's site in "
        "PREDICTION_API_ORIGINS.",
    ),
    "not-found": ProblemType(
        404, "There is nothing of this id, or it is somebody else's.", "Look at the id and the key."
    ),
    "no-route": ProblemType(
        404,
        "The server has no such path.",
        "Look at the prefix and the path; all there are stand in /openapi.json.",
    ),
    "unknown-model": ProblemType(
        404, "There is no model of this name.", "`GET /v1/models` tells those there are."
    ),
    "unpublished": ProblemType(
        404,
        "The model has not published anything yet.",
        "Wait for its first prediction run; `batch-jobs status MODEL` tells what is to be done.",
    ),
    "no-prediction": ProblemType(
        404,
        "The model has, or had, no prediction for this entity.",
        "Look at the key; a new entity has none before the next run.",
    ),
    "no-method": ProblemType(
        405, "The path is not asked this way.", "The header Allow names the methods there are."
    ),
    "too-slow": ProblemType(
        408, "The body did not come in time.", "Send less at once, or over a better line."
    ),
    "conflict": ProblemType(
        409, "It cannot be done in the state that things are in.", "The detail names the state."
    ),
    "gone": ProblemType(
        410, "It was there, and is older than is kept.", "Begin again at the first page."
    ),
    "too-large": ProblemType(
        413,
        "The body is larger, or has more rows, than the server takes.",
        "Send less at once; PREDICTION_API_BODY_BYTES and PREDICTION_API_UPLOAD_BYTES allow more.",
    ),
    "unsupported-kind": ProblemType(
        415, "The body is of a kind that the server does not read.", "The detail names the kinds."
    ),
    "does-not-fit": ProblemType(
        422, "A value does not fit what is asked for.", "`errors` names each value and its limits."
    ),
    "too-many": ProblemType(
        429,
        "The client asks more often than the server lets it.",
        "Wait as long as Retry-After says, look up in bulk, or raise PREDICTION_API_RATE.",
    ),
    "head-too-large": ProblemType(
        431, "The head of the request is too large.", "Send less in its headers and its path."
    ),
    "unexpected": ProblemType(
        500, "A fault of the server.", "Its log has the reason; please tell whoever runs it."
    ),
    "unavailable": ProblemType(
        503,
        "The warehouse does not answer, or too much waits.",
        "Ask again after as many seconds as Retry-After says.",
    ),
}
_OF_STATUS = {told.status: name for name, told in reversed(list(TYPES.items()))}


def url_of(status: int, kind: str | None = None) -> str:
    """The URL of a kind of problem, by default of the first there is for a status."""
    kind = kind or _OF_STATUS.get(status)
    return f"{PATH}/{kind}" if kind else "about:blank"
