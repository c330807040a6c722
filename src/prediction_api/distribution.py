"""How the scores of all current predictions are spread, and which are the highest.

To know it, all rows are read: so it is kept until something is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prediction_api.current_pages import PIN, Filters, Place, statement, values_of
from prediction_api.database import Database, Row, Statement
from prediction_api.problems import UnavailableError

BINS = 10
HIGHEST = 6
_FROM = {
    True: "predictions WHERE run_id = :run_id",
    False: "merged_predictions WHERE model = :model",
}


def _bounds(of_run: bool) -> Statement:  # noqa: FBT001
    return Statement(
        f"SELECT count(*) AS rows, min(score) AS low, max(score) AS high FROM {_FROM[of_run]}"  # noqa: S608
    )


def _counts(of_run: bool) -> Statement:  # noqa: FBT001
    sums = ", ".join(
        f"sum(CASE WHEN score < :edge{place} THEN 1 ELSE 0 END) AS below{place}"
        for place in range(1, BINS)
    )
    return Statement(f"SELECT {sums} FROM {_FROM[of_run]}")  # noqa: S608


BOUNDS = {of_run: _bounds(of_run) for of_run in (True, False)}
COUNTS = {of_run: _counts(of_run) for of_run in (True, False)}


@dataclass(frozen=True)
class Distribution:
    """The scores of a model.

    Attributes:
        rows: how many predictions are current.
        low: where the first bin begins.
        high: where the last one ends.
        counts: how many predictions lie in each bin.
        highest: the entities with the highest scores.
    """

    rows: int
    low: float
    high: float
    counts: tuple[int, ...]
    highest: tuple[Row, ...]


class Distributions:
    """The distributions of models, each as of the newest publication.

    Args:
        database: the warehouse, to read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, tuple[Any, Distribution | None]] = {}

    async def get(self, model: str) -> Distribution | None:
        """That of a model; None if it has no current prediction, or to tell takes too long."""
        rows = await self._database.fetch(PIN, model=model)
        if not rows:
            return None
        seen = (rows[0]["run_id"], rows[0]["newest"])
        if self._kept.get(model, (None,))[0] != seen:
            try:
                self._kept[model] = (seen, await self._looked_at(model, Place.at_first(rows[0])))
            except UnavailableError:  # there are too many: they are not looked at each time
                self._kept[model] = (seen, None)
        return self._kept[model][1]

    async def _looked_at(self, model: str, place: Place) -> Distribution | None:
        of_run = place.run_id is not None
        values = {"run_id": place.run_id} if of_run else {"model": model}
        [whole] = await self._database.fetch(BOUNDS[of_run], **values)
        if not whole["rows"]:
            return None
        low, high = whole["low"], whole["high"]
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        edges = [low + (high - low) * (number / BINS) for number in range(BINS + 1)]
        given = {f"edge{place}": edge for place, edge in enumerate(edges[1:-1], 1)}
        [below] = await self._database.fetch(COUNTS[of_run], **values, **given)
        reached = [0, *(below[f"below{place}"] for place in range(1, BINS)), whole["rows"]]
        counts = tuple(after - before for before, after in pairwise(reached))
        top = await self._database.fetch(
            statement(place, Filters(), "-score"), **values_of(place, Filters(), model, HIGHEST)
        )
        return Distribution(whole["rows"], low, high, counts, tuple(map(dict, top)))
