"""Predictions that are computed: one or a few at once, many later; without any I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from prediction_api.client.exchange import Ask, Call, Pause, exchange, posting, told_by
from prediction_api.client.records import Computed, Progress, Result, Submitted

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
LARGEST_PAGE = 10_000
SECONDS = 60.0  # that it may take to send a file
Features = Mapping[str, Any] | Sequence[Any]
KINDS: Mapping[str, str] = {"csv": "text/csv", "parquet": "application/vnd.apache.parquet"}


def computed(model: str, features: Features, key: str | None, retries: int) -> Call[Computed]:
    """A prediction that is computed now; with a key of its own unless one is given."""
    listed = dict(features) if isinstance(features, Mapping) else list(features)
    headers = {"Idempotency-Key": key or uuid4().hex}
    ask = posting(f"{_of(model)}/predict", {"features": listed}, **headers)
    answer = yield from exchange(ask, retries)
    return Computed.from_json(told_by(answer))


def submitted(
    model: str,
    rows: Iterable[Mapping[str, Any]] | bytes,
    kind: str,
    key: str | None,
    retries: int,
) -> Call[Submitted]:
    """A request of many rows, which is answered later."""
    headers = {"Idempotency-Key": key or uuid4().hex}
    path = f"{_of(model)}/requests"
    if isinstance(rows, bytes):
        if kind not in KINDS:
            raise ValueError(f"the kind {kind!r} of a file is none of {', '.join(KINDS)}")
        headers["Content-Type"] = KINDS[kind]
        ask = Ask("POST", path, {}, headers, rows, SECONDS)
    else:
        ask = posting(path, {"rows": [dict(row) for row in rows]}, **headers)
    answer = yield from exchange(ask, retries)
    return Submitted.from_json(told_by(answer))


def progress(request_id: int, retries: int) -> Call[Progress]:
    """How far a request is."""
    ask = Ask("GET", f"/v1/requests/{request_id}", {"limit": "1"})
    answer = yield from exchange(ask, retries)
    return Progress.from_json(told_by(answer))


def waited(
    request_id: int, seconds: float, told: Callable[[Progress], None] | None, retries: int
) -> Call[Progress]:
    """What became of a request, once it is over."""
    deadline, pause = time.monotonic() + seconds, FIRST_PAUSE
    while True:
        found = yield from progress(request_id, retries)
        if told is not None:
            told(found)
        if found.over:
            return found
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError(
                f"request {request_id} is {found.state} after {seconds:g} s, {found.progress:.0%} "
                f"of its rows dealt with; wait on, or ask for it later"
            )
        yield Pause(min(pause, left))
        pause = min(LONGEST_PAUSE, pause * 1.5)


def results_page(request_id: int, after: int, retries: int) -> Call[tuple[list[Result], bool]]:
    """What came of the rows after a number, in their order, and whether there are more."""
    params = {"limit": str(LARGEST_PAGE), "after": str(after)}
    answer = yield from exchange(Ask("GET", f"/v1/requests/{request_id}", params), retries)
    told = told_by(answer)
    rows = [*told.get("results", ()), *told.get("rejected", ())]
    found = sorted(map(Result.from_json, rows), key=lambda row: row.row)
    return found, "next" in answer.links


def cancelled(request_id: int, retries: int) -> Call[Progress]:
    """A request that is taken back."""
    ask = Ask("DELETE", f"/v1/requests/{request_id}")
    answer = yield from exchange(ask, retries)
    return Progress.from_json(told_by(answer))


def mine(limit: int, retries: int) -> Call[list[Progress]]:
    """The requests of who asks, the newest first."""
    answer = yield from exchange(Ask("GET", "/v1/requests", {"limit": str(limit)}), retries)
    return [Progress.from_json(one) for one in told_by(answer)["requests"]]


def _of(model: str) -> str:
    return f"/v1/models/{quote(model, safe='')}"
