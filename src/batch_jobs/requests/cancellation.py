"""Requests that who has sent them takes back: noted by the API, ended by whoever answers."""

from __future__ import annotations

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse

CANCELLED = "cancelled by who had sent it"


@repeatable
def cancel(warehouse: Warehouse, request_id: int) -> None:
    """Note that who has sent a request takes it back; whoever answers it stops before long."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO cancelled_requests (request_id, cancelled_at)
                VALUES (:request_id, :now) ON CONFLICT DO NOTHING"""),
            {"request_id": request_id, "now": stored_time(clock.now())},
        )


@repeatable
def end_cancelled(warehouse: Warehouse, model: str) -> None:
    """Fail the requests that were taken back, so that nobody answers them."""
    found = """
        FROM requests WHERE model = :model AND state IN ('waiting', 'scoring')
        AND request_id IN (SELECT request_id FROM cancelled_requests)"""
    values = {"model": model, "now": stored_time(clock.now()), "error": CANCELLED}
    with warehouse.read() as connection:
        if connection.scalar(text(f"SELECT 1 {found} LIMIT 1"), values) is None:
            return
    with warehouse.write() as connection:
        connection.execute(
            text(f"""
                UPDATE requests SET state = 'failed', finished_at = :now, error = :error
                WHERE request_id IN (SELECT request_id {found})"""),  # noqa: S608
            values,
        )
