"""How Airflow is connected to its own SQLite file, on one machine.

Airflow creates the runs of a backfill in savepoints. Python's sqlite3 begins no transaction for
one, so that each became a transaction of its own, which reads before it writes: SQLite refuses
that at once (`database is locked`) if anybody has written in between, whatever the time-out, and
Airflow then deletes runs that its scheduler is busy with. A savepoint here takes its turn first.

https://docs.sqlalchemy.org/en/20/dialects/sqlite.html#pysqlite-serializable
"""

from __future__ import annotations

import sqlite3
import sys
from typing import Any, Self


class Cursor(sqlite3.Cursor):
    """Begins a transaction that may write before the first savepoint."""

    def execute(self, sql: str, parameters: Any = ()) -> Self:
        """Execute a statement."""
        if sql.startswith("SAVEPOINT") and not self.connection.in_transaction:
            super().execute("BEGIN IMMEDIATE")
        return super().execute(sql, parameters)


class Connection(sqlite3.Connection):
    """A connection whose savepoints are parts of a transaction, and which waits for its turn.

    A scheduler that is refused ends, so all wait a minute on a busy machine. The API server could
    wait for itself, for a request of a task that holds the lock in the event loop: 5 seconds.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        patience = 5.0 if "api-server" in sys.argv else 60.0
        super().__init__(*arguments, **{"timeout": patience, **keywords})

    def cursor(self, factory: Any = Cursor) -> Any:
        """A cursor."""
        return super().cursor(factory)


CONNECT_ARGS: dict[str, Any] = {"factory": Connection}
