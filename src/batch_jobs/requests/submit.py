"""Requests of many rows: added by whoever asks, with the rights to INSERT and SELECT alone.

A request and its rows are there together or not at all, and wait for an attempt to answer them. The
same entity may come in many rows, since a row is known by its number.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST_ID = 2**53 - 1  # that every reader of JSON keeps exact


@dataclass(frozen=True)
class Row:
    """One row to be scored.

    Attributes:
        entity_id: whose, as text that can be stored; None if that is nobody's business.
        features: `{name: value}` of JSON's values; numbers are finite.
    """

    entity_id: str | None
    features: Mapping[str, Any]


@dataclass(frozen=True)
class Submission:
    """What somebody asks of a model.

    Attributes:
        model: its name.
        rows: what is to be scored; they are numbered from 1 on.
        client: who asks.
        idempotency_key: a request with the same one is the same request; None if there is none.
        request_sha256: what tells this request from another one with the same key.
    """

    model: str
    rows: Sequence[Row]
    client: str = ""
    idempotency_key: str | None = None
    request_sha256: str = ""


@dataclass(frozen=True)
class Submitted:
    """What became of a submission.

    Attributes:
        request_id: of the request, or of the first one with the same idempotency key.
        first: whether the request was added now.
        model: what the request with that id asks.
        request_sha256: of the request with that id; another one than the submission's means that
            the key was used for another request.
    """

    request_id: int
    first: bool
    model: str
    request_sha256: str


def new_id() -> int:
    """An id of what somebody has asked, by which nobody can count up to another's."""
    return 1 + secrets.randbelow(LARGEST_ID)


def submit(warehouse: Warehouse, submission: Submission) -> Submitted:
    """Add a request and its rows in one transaction, or find the first one with its key.

    Raises:
        WarehouseUnavailableError: the database did not answer, and the request may be made again.
        ValueError: a feature is a number that is not finite, which JSON does not know.
        UnicodeError: an entity_id is no text that can be stored.
    """
    request_id = new_id()
    return _submit(warehouse, submission, request_id, _table(request_id, submission.rows))


@repeatable
def _submit(
    warehouse: Warehouse, submission: Submission, request_id: int, rows: pa.Table
) -> Submitted:
    values = {
        "request_id": request_id,
        "model": submission.model,
        "client": submission.client,
        "key": submission.idempotency_key,
        "sha256": submission.request_sha256,
        "now": stored_time(clock.now()),
        "rows": rows.num_rows,
    }
    with warehouse.write() as connection:
        added = connection.execute(
            text("""
                INSERT INTO requests (request_id, model, client, idempotency_key, request_sha256,
                  created_at, rows_read)
                VALUES (:request_id, :model, :client, :key, :sha256, :now, :rows)
                ON CONFLICT DO NOTHING"""),
            values,
        ).rowcount
        if added and rows.num_rows:
            warehouse.database.insert(connection, "request_rows", rows)
        # It may also be there because it was added by a COMMIT whose answer was lost.
        found = connection.execute(
            text("""
                SELECT request_id, model, request_sha256 FROM requests
                WHERE request_id = :request_id OR (client = :client AND idempotency_key = :key)"""),
            values,
        ).one()
    return Submitted(
        found.request_id, found.request_id == request_id, found.model, found.request_sha256
    )


def _table(request_id: int, rows: Sequence[Row]) -> pa.Table:
    import pyarrow as pa

    features = [json.dumps(dict(row.features), allow_nan=False) for row in rows]
    return pa.table(
        {
            "request_id": pa.repeat(pa.scalar(request_id, pa.int64()), len(rows)),
            "row_number": pa.array(range(1, len(rows) + 1), pa.int64()),
            "entity_id": pa.array([row.entity_id for row in rows], pa.string()),
            "features": pa.array(features, pa.string()),
        }
    )
