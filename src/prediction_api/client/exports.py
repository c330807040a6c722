"""All that is current, page by page, without I/O; as Arrow or pandas where those are installed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypedDict

from prediction_api.client.errors import MisconfiguredError
from prediction_api.client.exchange import Ask, Call, exchange
from prediction_api.client.lookups import predictions_of
from prediction_api.client.records import Prediction

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LARGEST_PAGE = 10_000
SECONDS = 60.0  # that a page may take
Form = Literal["ndjson", "csv", "arrow"]
TYPES: Mapping[Form, str] = {
    "ndjson": "application/x-ndjson",
    "csv": "text/csv",
    "arrow": "application/vnd.apache.arrow.stream",
}


class Wanted(TypedDict, total=False):
    """Which rows are wanted, and in which order; all of them by key, if nothing is said.

    Attributes:
        prefix: how their keys begin.
        min_score: the lowest score.
        max_score: the highest score.
        label: their label.
        model_version: which version scored them.
        published_after: the moment after which they were published.
        sort: by `entity_id`, `score`, or `-score`: the highest first.
        top: how many rows, the first ones; up to 10,000.
    """

    prefix: str
    min_score: float
    max_score: float
    label: str
    model_version: str
    published_after: datetime
    sort: Literal["entity_id", "score", "-score"]
    top: int


@dataclass(frozen=True)
class Page:
    """A page, and what asks for the next one; None after the last."""

    content: bytes
    following: Ask | None


def first_page(model: str, form: Form, wanted: Wanted) -> Ask:
    """What asks for the first page.

    Raises:
        ValueError: a moment has no offset, or `top` is more than a page has.
    """
    top = wanted.get("top")
    if top is not None and not 1 <= top <= LARGEST_PAGE:
        raise ValueError(f"top is {top:,}; it may be 1 to {LARGEST_PAGE:,}")
    params = {"format": form, "limit": str(LARGEST_PAGE if top is None else top)}
    for name, value in wanted.items():
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValueError(f"{name} {value} has no offset; write it with one, such as UTC")
            params[name] = value.isoformat()
        elif value is not None and name != "top":
            params[name] = str(value)
    return Ask("GET", predictions_of(model), params, seconds=SECONDS)


def page(ask: Ask, retries: int) -> Call[Page]:
    """A page."""
    answer = yield from exchange(ask, retries)
    kind = answer.headers.get("content-type", "").partition(";")[0]
    if kind not in TYPES.values():
        raise MisconfiguredError(
            f"{answer.url.copy_with(query=None)} answers with {kind or 'no type'}, and not with "
            f"an export; does the URL lead to the prediction API?"
        )
    following = answer.links.get("next", {}).get("url")
    return Page(answer.content, Ask("GET", following, seconds=SECONDS) if following else None)


def rows_in(content: bytes) -> Iterable[Prediction]:
    """The rows of a page of NDJSON."""
    return [Prediction.from_json(json.loads(line)) for line in content.splitlines()]


def as_arrow(pages: Iterable[bytes]) -> pa.Table:
    """Pages of Arrow as one table.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    import pyarrow as pa

    return pa.concat_tables([pa.ipc.open_stream(content).read_all() for content in pages])


def as_pandas(pages: Iterable[bytes]) -> pd.DataFrame:
    """Pages of Arrow as a frame.

    Raises:
        ModuleNotFoundError: pyarrow or pandas is not installed.
    """
    frame: pd.DataFrame = as_arrow(pages).to_pandas()
    return frame
