"""What comes of a request of many rows: an attempt claims it, stores its results, and finishes it.

A request belongs to the attempt whose token it holds; whoever else comes to store or to finish
changes nothing. An attempt that is not heard of for `LEASE` has lost its claim to the next one with
a higher token, which goes on where it stopped, with the version that scored the rows before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.leases import LEASE
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import FencedError
from batch_jobs.requests.cancellation import CANCELLED
from batch_jobs.scoring.counts import Counts, counts_of

if TYPE_CHECKING:
    import pyarrow as pa

# A request that so many attempts in a row were not heard of again with may be what kills them.
MOST_ATTEMPTS = 3
_ABANDONED = "state = 'scoring' AND claimed_at < :abandoned AND token < :token"


@dataclass(frozen=True)
class Claimed:
    """A request that an attempt may answer.

    Attributes:
        request_id: which.
        model: whose champion is asked.
        token: of the attempt.
        model_version: which version answers.
        counts: how many rows it has, and what became of those before now.
    """

    request_id: int
    model: str
    token: str
    model_version: str
    counts: Counts

    @property
    def stored(self) -> int:
        """How many rows have been dealt with, counted from the first."""
        return self.counts.scored + self.counts.rejected + self.counts.skipped


@dataclass(frozen=True)
class Answered:
    """How a request ended: `done`, or `failed` with the error.

    Attributes:
        of_sender: whether what was sent is at fault, and neither the model nor the warehouse.
    """

    request_id: int
    model: str
    state: str
    model_version: str | None
    counts: Counts
    error: str | None
    of_sender: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain values under the names of the table `requests`."""
        plain = dict(vars(self))
        del plain["counts"], plain["of_sender"]
        return plain | {f"rows_{name}": count for name, count in asdict(self.counts).items()}

    def __str__(self) -> str:
        told = f"request {self.request_id} of {self.model} {self.model_version}: "
        if self.error is not None:
            return f"{told}failed: {self.error}"
        counts = self.counts
        return f"{told}{counts.scored:,} rows scored, {counts.rejected:,} rejected"


@repeatable
def waits(warehouse: Warehouse, model: str, token: str) -> bool:
    """Whether a request of the model waits, or was left by an attempt that is not heard of."""
    with warehouse.read() as connection:
        found = connection.scalar(
            text(f"""
                SELECT 1 FROM requests WHERE model = :model
                AND (state = 'waiting' OR (state = 'scoring' AND token = :token) OR {_ABANDONED})
                LIMIT 1"""),  # noqa: S608
            _values(model, token),
        )
        return found is not None


@repeatable
def give_up(warehouse: Warehouse, model: str, token: str) -> list[Answered]:
    """Fail the requests with which too many attempts in a row were not heard of again."""
    with warehouse.write() as connection:
        rows = connection.execute(
            text(f"""
                UPDATE requests SET state = 'failed', finished_at = :now, error = :error
                WHERE request_id IN (
                  SELECT request_id FROM requests
                  WHERE model = :model AND attempts >= :most AND {_ABANDONED}
                  {warehouse.database.free_for_update})
                RETURNING *"""),  # noqa: S608
            {
                **_values(model, token),
                "most": MOST_ATTEMPTS,
                "error": f"{MOST_ATTEMPTS} attempts to answer it stopped without an error",
            },
        ).all()
        return [_answered(row) for row in rows]


@repeatable
def claim(warehouse: Warehouse, model: str, version: str, token: str) -> Claimed | None:
    """Claim the oldest request that nobody answers; None if there is none.

    Claiming again with the same token gives the request that it holds, if it holds one.

    Args:
        warehouse: where the requests are.
        model: whose.
        version: which answers, unless another one has already answered a part.
        token: of the attempt.
    """
    values = {**_values(model, token), "version": version, "most": MOST_ATTEMPTS}
    with warehouse.write() as connection:
        row = connection.execute(
            text("""
                SELECT * FROM requests
                WHERE model = :model AND state = 'scoring' AND token = :token"""),
            values,
        ).first()
        if row is None:
            row = connection.execute(
                text(f"""
                    UPDATE requests SET state = 'scoring', token = :token, claimed_at = :now,
                      attempts = attempts + 1,
                      model_version = CASE WHEN rows_scored + rows_rejected + rows_skipped = 0
                                      THEN :version ELSE model_version END
                    WHERE request_id = (
                      SELECT request_id FROM requests
                      WHERE model = :model
                        AND (state = 'waiting' OR (attempts < :most AND {_ABANDONED}))
                      ORDER BY created_at, request_id LIMIT 1
                      {warehouse.database.free_for_update})
                    RETURNING *"""),  # noqa: S608
                values,
            ).first()
    if row is None:
        return None
    return Claimed(row.request_id, model, token, row.model_version, counts_of(row))


@repeatable
def rows_of(warehouse: Warehouse, request_id: int, after: int, until: int) -> Sequence[Row[Any]]:
    """`row_number`, `entity_id`, `features` (text) of the rows after a number up to another one."""
    with warehouse.read() as connection:
        return connection.execute(
            text("""
                SELECT row_number, entity_id, CAST(features AS text) AS features
                FROM request_rows
                WHERE request_id = :request_id AND row_number > :after AND row_number <= :until
                ORDER BY row_number"""),
            {"request_id": request_id, "after": after, "until": until},
        ).all()


@repeatable
def store(
    warehouse: Warehouse, claimed: Claimed, after: int, results: pa.Table, rejects: pa.Table
) -> None:
    """Store what became of the rows after a number; rows that are stored already are left.

    Args:
        warehouse: where to.
        claimed: the request as it was claimed.
        after: how many rows come before these.
        results: `row_number`, `entity_id`, `score`, `label`.
        rejects: `row_number`, `entity_id`, `reason`.

    Raises:
        FencedError: the request is another attempt's now.
    """
    with warehouse.write() as connection:
        row = _owned(warehouse, connection, claimed)
        stored = row.rows_scored + row.rows_rejected + row.rows_skipped
        if stored >= after + results.num_rows + rejects.num_rows:
            return  # by a COMMIT whose answer was lost
        if row.state != "scoring" or stored != after:
            raise FencedError(
                f"request {claimed.request_id}: the same attempt was started twice, and the other "
                f"one has come elsewhere"
            )
        for table, rows in (("request_results", results), ("request_rejects", rejects)):
            if rows.num_rows:
                warehouse.database.insert(connection, table, _of_request(rows, claimed.request_id))
        connection.execute(
            text("""
                UPDATE requests SET claimed_at = :now, attempts = 1,
                  rows_scored = rows_scored + :scored, rows_rejected = rows_rejected + :rejected
                WHERE request_id = :request_id"""),
            {
                "now": stored_time(clock.now()),
                "scored": results.num_rows,
                "rejected": rejects.num_rows,
                "request_id": claimed.request_id,
            },
        )


def _of_request(rows: pa.Table, request_id: int) -> pa.Table:
    import pyarrow as pa

    ids = pa.repeat(pa.scalar(request_id, pa.int64()), rows.num_rows)
    return rows.append_column("request_id", ids)


@repeatable
def finish(warehouse: Warehouse, claimed: Claimed, error: str | None = None) -> Answered:
    """End a request: as done, its rows all accounted for, or as failed.

    Args:
        warehouse: where it is.
        claimed: the request as it was claimed.
        error: why it failed; None if it is done.

    Raises:
        FencedError: the request is another attempt's now.
    """
    with warehouse.write() as connection:
        row = _owned(warehouse, connection, claimed)
        if row.state == "scoring":
            row = connection.execute(
                text("""
                    UPDATE requests SET state = :state, finished_at = :now, error = :error
                    WHERE request_id = :request_id RETURNING *"""),
                {
                    "state": "done" if error is None else "failed",
                    "now": stored_time(clock.now()),
                    "error": error,
                    "request_id": claimed.request_id,
                },
            ).one()
        return _answered(row)


def release(warehouse: Warehouse, claimed: Claimed) -> None:
    """Let the request wait for another attempt, unless it is one's already; tried once."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                UPDATE requests SET state = 'waiting', token = NULL, attempts = attempts - 1
                WHERE request_id = :request_id AND state = 'scoring' AND token = :token"""),
            {"request_id": claimed.request_id, "token": claimed.token},
        )


def _owned(warehouse: Warehouse, connection: Connection, claimed: Claimed) -> Row[Any]:
    """The request, which nobody else takes over before the transaction ends."""
    row = connection.execute(
        text(f"""
            SELECT *, EXISTS (SELECT 1 FROM cancelled_requests AS c
                              WHERE c.request_id = requests.request_id) AS cancelled
            FROM requests WHERE request_id = :request_id
            {warehouse.database.for_update}"""),  # noqa: S608
        {"request_id": claimed.request_id},
    ).first()
    if row is None or row.token != claimed.token:
        raise FencedError(f"request {claimed.request_id}: another attempt answers it now")
    if row.cancelled and row.state == "scoring":
        raise FencedError(f"request {claimed.request_id}: {CANCELLED}")
    return row


def _answered(row: Row[Any]) -> Answered:
    return Answered(
        row.request_id, row.model, row.state, row.model_version, counts_of(row), row.error
    )


def _values(model: str, token: str) -> dict[str, Any]:
    now = clock.now()
    return {
        "model": model,
        "token": token,
        "now": stored_time(now),
        "abandoned": stored_time(now - LEASE),
    }
