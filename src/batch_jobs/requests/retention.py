"""Remove requests that were finished long ago."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import REMOVED_AT_ONCE, repeatable
from batch_jobs.database.warehouse import Warehouse

REQUESTS_AT_ONCE = 100


def forget(warehouse: Warehouse, model: str, before: str) -> int:
    """Remove the requests that were finished before a moment, in small transactions; how many.

    They are retired first: what is left of one that is half removed nobody takes for the whole.
    """
    forgotten = 0
    while some := _retire(warehouse, model, before):
        for request in some:
            for last in range(REMOVED_AT_ONCE, request.rows_read, REMOVED_AT_ONCE):
                _forget(warehouse, request.request_id, last)
                warehouse.database.give_way()
            _forget(warehouse, request.request_id)
        warehouse.database.give_way()
        forgotten += len(some)
    return forgotten


@repeatable
def _retire(warehouse: Warehouse, model: str, before: str) -> Sequence[Row[Any]]:
    values = {"model": model, "before": before, "most": REQUESTS_AT_ONCE}
    with warehouse.read() as connection:
        found = connection.execute(
            text("""
                SELECT request_id, rows_read FROM requests
                WHERE model = :model AND finished_at < :before LIMIT :most"""),
            values,
        ).all()
    if found:
        retire = text("UPDATE requests SET state = 'retired' WHERE request_id = :request_id")
        with warehouse.write() as connection:
            connection.execute(retire, [{"request_id": row.request_id} for row in found])
    return found


@repeatable
def _forget(warehouse: Warehouse, request_id: int, last: int | None = None) -> None:
    """Remove the rows of a request up to the last of that number, or all and the request."""
    until = "" if last is None else "AND row_number <= :last"
    values = {"request_id": request_id, "last": last}
    with warehouse.write() as connection:
        for table in ("request_results", "request_rejects", "request_rows"):
            connection.execute(
                text(f"DELETE FROM {table} WHERE request_id = :request_id {until}"),  # noqa: S608
                values,
            )
        if last is None:
            connection.execute(text("DELETE FROM requests WHERE request_id = :request_id"), values)
