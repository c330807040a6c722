"""Look entities up: on PostgreSQL, those that wait together are asked for by one statement.

To ask costs PostgreSQL and us more than to find a row. So while one statement is under way, what is
asked queues, and the queue is the next statement: nobody waits for it to fill. On SQLite a look-up
takes less than to queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from prediction_api.database import Database, PostgreSQLDatabase, Row, Statement

MOST_AT_ONCE = 100
# One statement sees one published state. No row: the model has published nothing; a row without
# entity_id: it has no prediction of the entity.
_COLUMNS = """
    p.entity_id, p.score, p.label, p.model_version, p.run_id, p.interval_start, p.interval_end,
    p.published_at, s.fresh_until"""
CURRENT = Statement(
    f"""
    SELECT {_COLUMNS} FROM serving_status AS s
    LEFT JOIN current_predictions AS p ON p.model = :model AND p.entity_id = :entity_id
    WHERE s.model = :model""",  # noqa: S608
    point=True,
)
_CURRENT_OF_MANY = Statement(
    f"""
    SELECT {_COLUMNS} FROM serving_status AS s
    LEFT JOIN current_predictions AS p
      ON p.model = :model AND p.entity_id = ANY (CAST(:entity_ids AS text[]))
    WHERE s.model = :model"""  # noqa: S608
)
_NONE: Row = {"entity_id": None}
Waiting = tuple[str, asyncio.Future[Row | None]]


class CurrentPredictions:
    """What readers see now of entities.

    Args:
        database: the warehouse, to read.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._together = isinstance(database, PostgreSQLDatabase)
        self._waiting: dict[str, list[Waiting]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def get(self, model: str, entity_id: str) -> Row | None:
        """The row of an entity, whose `entity_id` is None if it has none.

        Returns:
            None before the model's first publication.

        Raises:
            UnavailableError: the warehouse does not answer.
        """
        if not self._together:
            rows = await self._database.fetch(CURRENT, model=model, entity_id=entity_id)
            return rows[0] if rows else None
        future: asyncio.Future[Row | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(model, []).append((entity_id, future))
        if model not in self._tasks:
            self._tasks[model] = asyncio.create_task(self._work(model))
        return await future

    async def _work(self, model: str) -> None:
        """Ask until nobody waits."""
        waiting = self._waiting[model]
        while waiting:
            batch, waiting[:MOST_AT_ONCE] = waiting[:MOST_AT_ONCE], []
            try:
                await self._answer(model, batch)
            except Exception as error:  # noqa: BLE001 - each of them is told
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
        del self._tasks[model], self._waiting[model]

    async def _answer(self, model: str, batch: Sequence[Waiting]) -> None:
        entity_ids = list({entity_id for entity_id, _ in batch})
        rows = await self._database.fetch(_CURRENT_OF_MANY, model=model, entity_ids=entity_ids)
        found = {row["entity_id"]: row for row in rows}
        for entity_id, future in batch:
            if not future.done():
                future.set_result(found.get(entity_id, _NONE) if rows else None)
