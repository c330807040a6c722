"""What the tries of a task failed with, kept until the alert that tells of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from batch_jobs.alerts.outbox_messages import KEEP
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.redaction import first_line

LENGTH = 2_000


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
            {**vars(task), "error": first_line(error, length=LENGTH), "now": stored_time(now)},
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


def errors_of(
    warehouse: Warehouse, dag_id: str, run_id: str, since: datetime | None
) -> list[tuple[TaskTry, str]]:
    """What the tasks of a run failed with, those that failed first before the others.

    Args:
        warehouse: where the errors are kept.
        dag_id: of the run.
        run_id: of the run.
        since: when the run started, anew if it was cleared.
    """
    with warehouse.read() as connection:
        rows = connection.execute(
            text("""
                SELECT dag_id, run_id, task_id, map_index, try_number, error FROM task_errors
                WHERE dag_id = :dag_id AND run_id = :run_id AND recorded_at >= :since
                ORDER BY recorded_at"""),
            {
                "dag_id": dag_id,
                "run_id": run_id,
                "since": stored_time(since or datetime.min.replace(tzinfo=UTC)),
            },
        ).all()
    return [(TaskTry(*row[:5]), str(row[5])) for row in rows]
