"""Look many entities up in one statement, and so in one published state: now, then, or of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from typing import Any

from batch_jobs.database.transactions import loaded_time
from prediction_api.database import Database, PostgreSQLDatabase, Row, Statement

MOST_KEYS = 1000
COLUMNS = (
    *("entity_id", "score", "label", "model_version", "run_id"),
    *("interval_start", "interval_end", "published_at"),
)
_LIST = ", ".join(f"p.{name}" for name in COLUMNS)
LIST = "= ANY (CAST(:keys AS text[]))"
SIZES = (10, 100, MOST_KEYS)  # of SQLite's lists, so that there are few statements to prepare


@cache
def _statements(among: str) -> Mapping[str, Statement]:
    return {
        # A row without entity_id: the model has published, but nothing for any of the keys.
        "now": Statement(
            f"""
            SELECT {_LIST}, s.fresh_until FROM serving_status AS s
            LEFT JOIN current_predictions AS p ON p.model = :model AND p.entity_id {among}
            WHERE s.model = :model"""  # noqa: S608
        ),
        "then": Statement(
            f"""
            SELECT {_LIST}, p.superseded_at FROM prediction_history AS p
            WHERE p.model = :model AND p.entity_id {among} AND p.published_at <= :as_of
              AND (p.superseded_at IS NULL OR p.superseded_at > :as_of)
            ORDER BY p.published_at, p.run_id"""  # noqa: S608
        ),
        "run": Statement(
            f"""
            SELECT {_LIST} FROM prediction_history AS p
            WHERE p.model = :model AND p.run_id = :run_id AND p.entity_id {among}"""  # noqa: S608
        ),
    }


@dataclass(frozen=True)
class Found:
    """What came of many keys.

    Attributes:
        rows: of those that have a prediction, by key.
        fresh_until: of the model, if its current predictions were asked for; None before it has
            published anything.
    """

    rows: Mapping[str, Mapping[str, Any]]
    fresh_until: datetime | None = None


class ManyEntities:
    """Looks entities up together.

    Args:
        database: the warehouse, to read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lists = isinstance(database, PostgreSQLDatabase)

    async def current(self, model: str, keys: Sequence[str]) -> Found:
        """What readers see now.

        Raises:
            UnavailableError: the warehouse does not answer; likewise below.
        """
        rows = await self._fetch("now", keys, model=model)
        if not rows:
            return Found({})
        return Found(_by_key(rows, ("fresh_until",)), loaded_time(rows[0]["fresh_until"]))

    async def past(self, model: str, keys: Sequence[str], as_of: datetime) -> Found:
        """What readers saw at a moment."""
        return Found(_by_key(await self._fetch("then", keys, model=model, as_of=as_of)))

    async def of_run(self, model: str, keys: Sequence[str], run_id: int) -> Found:
        """What a run that is, or was, published says."""
        return Found(_by_key(await self._fetch("run", keys, model=model, run_id=run_id)))

    async def _fetch(self, name: str, keys: Sequence[str], **values: Any) -> Sequence[Row]:
        # In their order: keys that lie together are found together.
        given = sorted(keys)
        if self._lists:
            return await self._database.fetch(_statements(LIST)[name], keys=given, **values)
        # SQLite takes no list; of one in JSON it would read the model's every row.
        size = next(size for size in SIZES if size >= len(given))
        among = f"IN ({', '.join(f':key{place}' for place in range(size))})"
        places = {f"key{place}": given[min(place, len(given) - 1)] for place in range(size)}
        return await self._database.fetch(_statements(among)[name], **places, **values)


def _by_key(rows: Sequence[Row], without: tuple[str, ...] = ()) -> Mapping[str, Mapping[str, Any]]:
    """The rows by key, the last of each; times are times."""
    found = {}
    for row in rows:
        told = dict(row)
        if told["entity_id"] is None:
            continue
        for name in without:
            del told[name]
        for name in ("interval_start", "interval_end", "published_at"):
            told[name] = _time(told[name])
        if told.get("superseded_at") is not None:
            told["superseded_at"] = _time(told["superseded_at"])
        found[told["entity_id"]] = told
    return found


@lru_cache(maxsize=1024)
def _time(stored: Any) -> datetime:
    """A time as the database gives it; rows of a run share theirs."""
    return loaded_time(stored)
