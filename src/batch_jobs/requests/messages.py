"""What messages of topics say: a request of many rows, and what became of it.

A request is what the prediction API takes as JSON, `{"rows": [{"entity_id": …, feature: …}]}`, and
is known for ever by where it lies: topic, partition and offset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.model import BatchModel
from batch_jobs.requests.queue import Answered
from batch_jobs.requests.submit import Row, Submission
from batch_jobs.scoring.counts import counts_of

# Of the rows of an answer; brokers take messages of a megabyte, unless they are told otherwise.
BYTES_A_MESSAGE = 700_000
MOST_TOLD = 3
LONGEST_KEY = 200


@dataclass(frozen=True)
class Place:
    """Where a message lies, by which its request is known."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"


def submission_of(model: BatchModel, place: Place, value: bytes, client: str) -> Submission:
    """The request in a message; the same message is the same request, however often it comes.

    Raises:
        ContractError: it is no request of the model, with all that is wrong of its first such row.
    """
    try:
        told = json.loads(value, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise ContractError("the message", [f"it is no JSON: {error}"]) from None
    rows = told.get("rows") if isinstance(told, dict) and set(told) == {"rows"} else None
    if not isinstance(rows, list) or not rows:
        raise ContractError("the message", ['it must be {"rows": [{…}, …]}, with a row at least'])
    return Submission(
        model=model.name,
        rows=[_row(model, number, row) for number, row in enumerate(rows, 1)],
        client=client,
        idempotency_key=str(place),
        request_sha256=hashlib.sha256(value).hexdigest(),
    )


def _row(model: BatchModel, number: int, row: Any) -> Row:
    if not isinstance(row, dict):
        raise ContractError("the message", [f"row {number} is no object"])
    given = set(row) - {"entity_id"}
    problems = [
        f"row {number} {words}: {', '.join(sorted(names)[:MOST_TOLD])}"
        for words, names in (
            ("lacks", set(model.features) - given),
            (f"has what {model.name} does not know", given - set(model.features)),
        )
        if names
    ]
    key = row.get("entity_id")
    if key is not None and not _is_key(key):
        problems.append(f"row {number} has an entity_id that is no text of 1 to {LONGEST_KEY}")
    if problems:
        raise ContractError("the message", problems)
    return Row(key, {name: row[name] for name in model.features})


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and 0 < len(key) <= LONGEST_KEY and key.isprintable()


def _refused(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


@repeatable
def finished(warehouse: Warehouse, request_ids: list[int]) -> dict[int, Answered]:
    """What became of those requests that are over, by their ids."""
    with warehouse.read() as connection:
        rows = connection.execute(
            text(f"""
                SELECT * FROM requests WHERE state IN ('done', 'failed', 'retired')
                AND request_id IN ({", ".join(str(int(one)) for one in request_ids) or "NULL"})""")  # noqa: S608
        ).all()
    return {
        row.request_id: Answered(
            row.request_id, row.model, row.state, row.model_version, counts_of(row), row.error
        )
        for row in rows
    }


def refusal(model: str, place: Place, error: str) -> bytes:
    """The answer to a message that is no request."""
    told = {"id": str(place), "request_id": None, "model": model, "state": "failed"}
    return json.dumps({**told, "error": error, "part": 1, "parts": 1}).encode()


def answers(warehouse: Warehouse, place: Place, answered: Answered) -> Iterator[bytes]:
    """The messages that tell what became of a request, in the order of its rows."""
    told = answered.as_dict() | {"id": str(place)}
    if answered.state == "retired":
        told |= {"state": "failed", "error": "it was over long ago, and retention has removed it"}
    parts: list[dict[str, Any]] = [{}]
    if answered.state == "done":
        parts = list(_parts(_rows_of(warehouse, answered.request_id)))
    for part, rows in enumerate(parts, 1):
        yield json.dumps({**told, "part": part, "parts": len(parts), **rows}).encode()


def _parts(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Rows that share a message, as many as fit; one without any if there is none."""
    part: dict[str, Any] = {"results": [], "rejected": []}
    size = 0
    for kind, row in rows:
        length = len(json.dumps(row))
        if size and size + length > BYTES_A_MESSAGE:
            yield part
            part, size = {"results": [], "rejected": []}, 0
        part[kind].append(row)
        size += length
    yield part


@repeatable
def _rows_of(warehouse: Warehouse, request_id: int) -> list[tuple[str, dict[str, Any]]]:
    """What became of each row; a request is no larger than the message that it came in."""
    asked = {
        "results": "row_number, entity_id, score, label FROM request_results",
        "rejected": "row_number, entity_id, reason FROM request_rejects",
    }
    with warehouse.read() as connection:
        rows = [
            (kind, dict(row._mapping))  # noqa: SLF001 - SQLAlchemy's own, in spite of its name
            for kind, columns in asked.items()
            for row in connection.execute(
                text(f"SELECT {columns} WHERE request_id = :id"), {"id": request_id}
            )
        ]
    return sorted(rows, key=lambda each: int(each[1]["row_number"]))
