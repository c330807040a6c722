"""Compute predictions on request and keep them: what waits together is answered together.

One row costs an estimator nearly as much as a hundred, and one transaction as much as one row. So
while a batch is being answered in a thread, requests queue, and the queue is the next batch: nobody
waits for a batch to fill.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from typing import Any

from sqlalchemy import bindparam, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from batch_jobs import clock
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.model import Feature
from batch_jobs.requests.submit import new_id
from prediction_api.champions import Champion, Champions, Scored, Values, same_features
from prediction_api.database import Row, Statement, unavailable
from prediction_api.problems import ProblemError, UnavailableError

MOST_WAITING = 1000
MOST_AT_ONCE = 200
COLUMNS = (
    *("prediction_id", "model", "model_version", "features", "score", "label", "created_at"),
    *("client", "idempotency_key", "request_sha256"),
)
_LIST = ", ".join(COLUMNS)
BY_ID = Statement(
    f"SELECT {_LIST} FROM online_predictions WHERE prediction_id = :prediction_id",  # noqa: S608
    point=True,
)
BY_KEY = Statement(
    f"SELECT {_LIST} FROM online_predictions "  # noqa: S608
    "WHERE client = :client AND idempotency_key = :idempotency_key",
    point=True,
)
_INSERT = text(
    f"INSERT INTO online_predictions ({_LIST}) "  # noqa: S608
    f"VALUES ({', '.join(f':{name}' for name in COLUMNS)}) "
    "ON CONFLICT (client, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING"
)
# With the client, which the index begins with.
WINNERS = text(
    f"SELECT {_LIST} FROM online_predictions "  # noqa: S608
    "WHERE client = :client AND idempotency_key IN :keys"
).bindparams(bindparam("keys", expanding=True))


@dataclass(frozen=True)
class Asked:
    """What somebody asked of a model.

    Attributes:
        model: its name.
        values: the features, in declared order.
        contract: the features, by name.
        client: who asks.
        key: a request with the same one is the same request; None if there is none.
    """

    model: str
    values: Values
    contract: Mapping[str, Feature]
    client: str = ""
    key: str | None = None

    @cached_property
    def features(self) -> str:
        """The features as JSON."""
        return json.dumps(dict(zip(self.contract, self.values, strict=True)))

    @cached_property
    def digest(self) -> str:
        """What tells this request from another one with the same key."""
        return sha256(f"{self.model} {self.features}".encode()).hexdigest()


@dataclass(frozen=True)
class Answered:
    """A prediction that was computed on request, as it is kept."""

    id: int
    model: str
    model_version: str
    features: Mapping[str, Any]
    score: float
    label: str | None
    created_at: datetime
    digest: str

    @classmethod
    def from_row(cls, row: Row) -> Answered:
        """What is kept in a row of `online_predictions`."""
        features = row["features"]
        return cls(
            id=row["prediction_id"],
            model=row["model"],
            model_version=row["model_version"],
            features=json.loads(features) if isinstance(features, str) else features,
            score=row["score"],
            label=row["label"],
            created_at=loaded_time(row["created_at"]),
            digest=row["request_sha256"],
        )


Waiting = tuple[Asked, asyncio.Future[Answered]]


class Online:
    """Answers what is asked of the champions, and keeps each answer.

    Args:
        champions: who answers.
        warehouse: where answers are kept.
    """

    def __init__(self, champions: Champions, warehouse: Warehouse) -> None:
        self._champions, self._warehouse = champions, warehouse
        self._queues: dict[str, asyncio.Queue[Waiting]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._thread = ThreadPoolExecutor(1, "predict")

    async def ask(self, asked: Asked) -> Answered:
        """The answer to a request, which is kept.

        Raises:
            ProblemError: the model has no champion, or no sound answer; or the key was used for
                another request.
            UnavailableError: the warehouse does not answer, or too many requests wait.
        """
        queue = self._queues.get(asked.model) or self._open(asked.model)
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        try:
            queue.put_nowait((asked, future))
        except asyncio.QueueFull:
            raise UnavailableError(f"too many requests wait for {asked.model}") from None
        return await future

    def _open(self, model: str) -> asyncio.Queue[Waiting]:
        queue = self._queues[model] = asyncio.Queue(MOST_WAITING)
        self._tasks.append(asyncio.create_task(self._work(model, queue)))
        return queue

    async def _work(self, model: str, queue: asyncio.Queue[Waiting]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await queue.get()]
            while not queue.empty() and len(batch) < MOST_AT_ONCE:
                batch.append(queue.get_nowait())
            batch = [one for one in batch if not one[1].done()]  # the others gave up
            asked = [one for one, _ in batch]
            try:
                answers: Sequence[Answered | ProblemError] = await loop.run_in_executor(
                    self._thread, self._answer, model, asked
                )
            except Exception as error:  # noqa: BLE001 - each of them is told, and the next are served
                answers = [_told(error)] * len(batch)
            for (_, future), answer in zip(batch, answers, strict=True):
                _settle(future, answer)

    def _answer(self, model: str, asked: Sequence[Asked]) -> list[Answered | ProblemError]:
        champion = self._champions.get(model)
        if champion is None:
            raise ProblemError(409, f"{model} has no champion yet")
        if not all(same_features(one.contract, champion.fitted.features) for one in asked):
            raise UnavailableError(f"{model} was promoted just now, to be asked for other features")
        scored = champion.answer([one.values for one in asked])
        rows = [
            _row(champion, one, answer)
            for one, answer in zip(asked, scored, strict=True)
            if isinstance(answer, Scored)
        ]
        kept = iter(_keep(self._warehouse, rows) if rows else [])
        unsound = ProblemError(409, f"{model} has no sound answer to these features")
        untried = UnavailableError(f"{model} was asked too much at once that it refuses")
        return [
            same(one, Answered.from_row(next(kept)))
            if isinstance(answer, Scored)
            else (unsound if answer is None else untried)
            for one, answer in zip(asked, scored, strict=True)
        ]

    def close(self) -> None:
        """Answer nothing more."""
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)


def same(asked: Asked, answered: Answered) -> Answered | ProblemError:
    """The answer, if it is one to this request and not to another one with the same key."""
    if answered.digest != asked.digest:
        return ProblemError(409, "this Idempotency-Key was used for another request")
    return answered


def _row(champion: Champion, asked: Asked, scored: Scored) -> dict[str, Any]:
    return {
        "prediction_id": new_id(),
        "model": asked.model,
        "model_version": champion.version,
        "features": asked.features,
        "score": scored.score,
        "label": scored.label,
        "created_at": stored_time(clock.now()),
        "client": asked.client,
        "idempotency_key": asked.key,
        "request_sha256": asked.digest,
    }


def _keep(warehouse: Warehouse, rows: Sequence[dict[str, Any]]) -> list[Row]:
    """Keep answers in one transaction; where a key is known already, the first answer counts."""
    keys: dict[str, set[str]] = {}
    for row in rows:
        if row["idempotency_key"] is not None:
            keys.setdefault(row["client"], set()).add(row["idempotency_key"])
    found: list[Any] = []
    with warehouse.write() as connection:
        connection.execute(_INSERT, list(rows))
        for client, of_client in keys.items():
            values = {"client": client, "keys": sorted(of_client)}
            found += connection.execute(WINNERS, values).mappings()
    first = {(row["client"], row["idempotency_key"]): row for row in found}
    return [first.get((row["client"], row["idempotency_key"]), row) for row in rows]


def _told(error: Exception) -> ProblemError:
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, DBAPIError | SQLAlchemyError | BatchJobsError | OSError):
        return unavailable(error)
    raise error


def _settle(future: asyncio.Future[Answered], answer: Answered | ProblemError) -> None:
    if future.done():
        return
    if isinstance(answer, ProblemError):
        future.set_exception(answer)
    else:
        future.set_result(answer)
