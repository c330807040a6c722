"""What the tries of a task failed with, kept until the alert that tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from batch_jobs.alerts.outbox import KEEP
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import FormError
from batch_jobs.redaction import first_line


@dataclass(frozen=True)
class TaskTry:
    """One try of one task of one DAG run."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int


def remember_error(warehouse: Warehouse, task: TaskTry, error: str, now: datetime) -> None:
    """Keep why a task failed, for the DAG-level callback, which is not told."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO task_errors
                VALUES (:dag_id, :run_id, :task_id, :map_index, :try_number, :error, :now)
                ON CONFLICT (dag_id, run_id, task_id, map_index) DO UPDATE
                SET try_number = excluded.try_number, error = excluded.error,
                    recorded_at = excluded.recorded_at
            """),
            {**vars(task), "error": first_line(error), "now": stored_time(now)},
        )
        connection.execute(
            text("DELETE FROM task_errors WHERE recorded_at < :old"),
            {"old": stored_time(now - KEEP)},
        )


def recall_error(warehouse: Warehouse, task: TaskTry) -> str | None:
    """Why this very try of the task failed; None if it left no exception."""
    with warehouse.read() as connection:
        found = connection.scalar(
            text("""
                SELECT error FROM task_errors
                WHERE dag_id = :dag_id AND run_id = :run_id AND task_id = :task_id
                AND map_index = :map_index AND try_number = :try_number
            """),
            vars(task),
        )
    return None if found is None else str(found)


def first_failed(warehouse: Warehouse, task: TaskTry, since: datetime | None) -> TaskTry | None:
    """The task of the same run that failed first, of those that left an exception.

    What was a person's own mistake comes last, as it is nobody else's business.

    Args:
        warehouse: where the errors are kept.
        task: a task of the run.
        since: when the run started, anew if it was cleared.
    """
    with warehouse.read() as connection:
        row = connection.execute(
            text("""
                SELECT dag_id, run_id, task_id, map_index, try_number FROM task_errors
                WHERE dag_id = :dag_id AND run_id = :run_id AND recorded_at >= :since
                ORDER BY CASE WHEN error LIKE :own THEN 1 ELSE 0 END, recorded_at LIMIT 1
            """),
            {
                **vars(task),
                "since": stored_time(since or datetime.min.replace(tzinfo=UTC)),
                "own": f"{FormError.__name__}: %",
            },
        ).one_or_none()
    return None if row is None else TaskTry(*row)
