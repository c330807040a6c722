"""All that is current of a model, page by page: each page is of the moment of the first one.

In replace mode that is a run, whose rows never change. In merge mode it is the moment of the newest
publication: rows that are current and were published by then, and rows that were left since.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from batch_jobs import clock
from batch_jobs.database.transactions import loaded_time, stored_time
from prediction_api.database import Row, Statement
from prediction_api.exports import TIMES
from prediction_api.problems import ProblemError

LIFE = timedelta(hours=1)  # what readers left is kept for longer than that
PIN = Statement(
    """
    SELECT s.run_id, r.mode, r.model_version, r.interval_start, r.interval_end, r.published_at,
           (SELECT max(published_at) FROM prediction_runs
            WHERE model = :model AND published_at IS NOT NULL) AS newest
    FROM serving_status AS s JOIN prediction_runs AS r ON r.run_id = s.run_id
    WHERE s.model = :model""",
    point=True,
)
_MERGED = (
    "entity_id, score, label, model_version, run_id, interval_start, interval_end, published_at"
)
_SORTED = {
    "entity_id": ("entity_id", "entity_id > :after"),
    "score": ("score, entity_id", "(score > :score OR (score = :score AND entity_id > :after))"),
    "-score": (
        "score DESC, entity_id",
        "(score < :score OR (score = :score AND entity_id > :after))",
    ),
}
_FILTERS = {
    "prefix": "entity_id >= :prefix AND entity_id < :below",
    "min_score": "score >= :min_score",
    "max_score": "score <= :max_score",
    "label": "label = :label",
    "model_version": "model_version = :model_version",
    "published_after": "published_at > :published_after",
}
_OF_ROWS = ("prefix", "min_score", "max_score", "label")  # the others are of a whole run


@dataclass(frozen=True)
class Filters:
    """Which rows are wanted; None wants all."""

    prefix: str | None = None
    min_score: float | None = None
    max_score: float | None = None
    label: str | None = None
    model_version: str | None = None
    published_after: datetime | None = None

    def given(self) -> dict[str, Any]:
        """Those that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Place:
    """Where an export is: what it is pinned to, and the last row of the page before.

    Attributes:
        began: when its first page was asked for.
        run_id: in replace mode, the run.
        as_of: in merge mode, the moment.
        after: the key of the last row; None at the beginning.
        score: the score of that row.
    """

    began: str
    run_id: int | None = None
    as_of: str | None = None
    after: str | None = None
    score: float = 0.0

    @classmethod
    def at_first(cls, pin: Row) -> Place:
        """The beginning of an export of what is published now."""
        began = stored_time(clock.now())
        if pin["mode"] == "replace":
            return cls(began, run_id=pin["run_id"])
        return cls(began, as_of=stored_time(loaded_time(pin["newest"])))

    @classmethod
    def from_cursor(cls, cursor: str, keep: timedelta) -> Place:
        """Where the page before has ended.

        Args:
            cursor: of the header Link.
            keep: how long the model keeps what readers left.

        Raises:
            ProblemError: it is none, or so old that rows may be gone.
        """
        try:
            told = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
            _require(told)
            place = cls(**told)
            began = loaded_time(place.began)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            raise ProblemError(404, "there is no page of this cursor; begin again") from None
        if place.as_of is not None and clock.now() - began > min(LIFE, keep):
            raise ProblemError(410, "this export was begun too long ago; begin again")
        return place

    def cursor(self, last: tuple[str, float]) -> str:
        """The cursor of the next page."""
        told = asdict(replace(self, after=last[0], score=last[1]))
        packed = json.dumps({name: value for name, value in told.items() if value is not None})
        return base64.urlsafe_b64encode(packed.encode()).decode().rstrip("=")


def _require(told: Mapping[str, Any]) -> None:
    """Let only what the server itself may have given pass; anybody can write a cursor."""
    run_id, as_of, score = told.get("run_id"), told.get("as_of"), told.get("score")
    after = told.get("after")
    pinned = (run_id is None) != (as_of is None)
    whole = run_id is None or (type(run_id) is int and 0 < run_id < 2**53)
    number = isinstance(score, int | float) and math.isfinite(float(score))
    if not (pinned and whole and number and isinstance(after, str) and "\0" not in after):
        raise ValueError
    after.encode()  # half a surrogate pair is a UnicodeEncodeError, which is a ValueError
    if as_of is not None:
        loaded_time(as_of)


def statement(place: Place, filters: Filters, sort: str) -> Statement:
    """What reads a page."""
    names = frozenset(filters.given())
    return _statement(place.run_id is not None, place.after is not None, names, sort)


@cache
def _statement(of_run: bool, later: bool, names: frozenset[str], sort: str) -> Statement:  # noqa: FBT001
    order, beyond = _SORTED[sort]
    wanted = [_FILTERS[name] for name in sorted(names) if not of_run or name in _OF_ROWS]
    wanted += [beyond] if later else []
    if of_run:
        where = " AND ".join(["run_id = :run_id", *wanted])
        return Statement(
            f"SELECT entity_id, score, label FROM predictions WHERE {where} "  # noqa: S608
            f"ORDER BY {order} LIMIT :limit"
        )
    seen = ["model = :model", "published_at <= :as_of", *wanted]
    left = [*seen, "left_at > :as_of", "superseded_at > :as_of"]
    return Statement(
        f"""
        SELECT {_MERGED} FROM (
          SELECT * FROM (
            SELECT {_MERGED} FROM merged_predictions WHERE {" AND ".join(seen)}
            ORDER BY {order} LIMIT :limit) AS now
          UNION ALL
          SELECT * FROM (
            SELECT {_MERGED} FROM left_predictions WHERE {" AND ".join(left)}
            ORDER BY {order} LIMIT :limit) AS since
        ) AS seen ORDER BY {order} LIMIT :limit"""  # noqa: S608
    )


def values_of(place: Place, filters: Filters, model: str, limit: int) -> dict[str, Any]:
    """The values of a statement's names."""
    given = filters.given()
    if filters.prefix is not None:
        given["below"] = _beyond(filters.prefix)
    known: dict[str, Any] = {"limit": limit, **given}
    if place.after is not None:
        known |= {"after": place.after, "score": float(place.score)}
    if place.run_id is not None:
        return known | {"run_id": place.run_id}
    return known | {"model": model, "as_of": loaded_time(str(place.as_of))}


def fits(filters: Filters, run: Mapping[str, Any]) -> bool:
    """Whether a run's rows can be wanted, by what they have in common."""
    version, after = filters.model_version, filters.published_after
    return version in (None, run["model_version"]) and (
        after is None or run["published_at"] > after
    )


def run_of(row: Row) -> Mapping[str, Any]:
    """What the rows of a run have in common."""
    return {
        "model_version": row["model_version"],
        **{name: loaded_time(row[name]) for name in TIMES},
    }


def _beyond(prefix: str) -> str:
    """The first text after all that begin with a prefix, by code points."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return chr(0x10FFFF) * 201
