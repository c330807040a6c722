"""The table that PostgreSQL gives to a run of many rows, from its making to its end.

It is filled and indexed out of sight, and attached to `served_predictions`, whose tables are those
that look-ups open. The pointer moves to it once every reader knows of it. Superseded, it moves to
`run_predictions` for the history; retired, it is dropped.

PostgreSQL does not attach as it writes rows: a transaction of READ COMMITTED that has looked before
may see a new pointer and still not the table that it leads to, in all its statements to come.
"""

from __future__ import annotations

import logging
from typing import Protocol

from sqlalchemy import Connection, Engine
from tenacity import Retrying, retry_if_exception, retry_if_result, stop_after_delay
from tenacity.wait import wait_exponential

from batch_jobs.database.connections import text
from batch_jobs.database.shared_rows import OWN_TABLE, SharedRows, own_table

log = logging.getLogger(__name__)

DETACH_TIMEOUT = "1s"
# Tables of large populations are attached to the one or the other.
SERVED, PAST = "served_predictions", "run_predictions"
PARENTS = f"to_regclass('{SERVED}'), to_regclass('{PAST}')"
DROP_SECONDS = 1.0
# Who looks up meanwhile waits for no longer than this, a few times within these seconds.
SET_ASIDE_TIMEOUT, SET_ASIDE_SECONDS, SET_ASIDE_AT_ONCE = "5ms", 0.2, 5
HALF_DETACHED = text(f"""
    SELECT inhparent::regclass::text, inhrelid::regclass::text FROM pg_inherits
    WHERE inhparent IN ({PARENTS}) AND inhdetachpending""")  # noqa: S608
# Tables whose run is superseded, or has its rows elsewhere. Everybody sees the oldest transaction
# that the snapshot of a user's session may not have seen the end of.
SUPERSEDED = f"""
    SELECT r.run_id, r.rows_table, c.relname AS own_table, EXISTS (
        SELECT FROM pg_stat_activity AS a
        WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
          AND a.usesysid IS NOT NULL
          AND age(a.backend_xmin) >= age(r.xmin)) AS in_use
    FROM pg_inherits AS i
    JOIN pg_class AS c ON c.oid = i.inhrelid
    JOIN prediction_runs AS r ON c.relname = '{OWN_TABLE}' || r.run_id
    WHERE i.inhparent = to_regclass('{SERVED}') AND NOT i.inhdetachpending
      AND (r.rows_table <> c.relname
           OR (r.superseded_at IS NOT NULL
               AND NOT EXISTS (SELECT FROM serving_heads AS h WHERE h.run_id = r.run_id)))
    ORDER BY r.run_id"""  # noqa: S608
# Sessions of other users, which readers and applications are.
OTHERS = """
    SELECT EXISTS (
      SELECT FROM pg_stat_activity AS a JOIN pg_roles AS r ON r.oid = a.usesysid
      WHERE a.datname = current_database() AND r.rolname <> session_user)"""
# Each takes two of the locks that a server has room for: 6,400, unless it is told otherwise.
MANY_KEPT = 1000
# How long a publication waits for transactions that have looked into the tables there were before.
READERS_SECONDS = 5
LOOKING = f"""
    SELECT l.virtualtransaction FROM pg_locks AS l
    JOIN pg_database AS d ON d.oid = l.database AND d.datname = current_database()
    WHERE l.relation = to_regclass('{SERVED}') AND l.mode = 'AccessShareLock' AND l.granted
      AND l.pid <> pg_backend_pid()"""  # noqa: S608


class _Database(Protocol):
    """What this asks of `PostgreSQL`, which makes it."""

    @property
    def schema(self) -> str: ...
    @property
    def writer(self) -> Engine: ...
    @property
    def is_pooled(self) -> bool: ...
    def is_passing(self, error: BaseException) -> bool: ...


class Partitions(SharedRows):
    """A table of its own for each run of many rows; the others share one.

    Args:
        database: where the tables are.
    """

    shared = "shared_predictions"

    def __init__(self, database: _Database) -> None:
        self._database, self._schema = database, database.schema

    def new_table(self, connection: Connection, run_id: int, *, large: bool) -> str:
        """The table that a new run's rows go to: a large population gets one of its own."""
        if not large:
            return self.shared
        table = own_table(run_id)
        # The check spares ATTACH PARTITION from reading the rows.
        connection.exec_driver_sql(
            f"CREATE TABLE {self._schema}.{table} "
            f"(LIKE {self._schema}.run_predictions INCLUDING ALL, CHECK (run_id = {run_id:d}))"
        )
        owner = connection.scalar(
            text("""
                SELECT quote_ident(pg_get_userbyid(relowner)) FROM pg_class
                WHERE oid = to_regclass('run_predictions')
                  AND pg_get_userbyid(relowner) <> current_user""")
        )
        if owner is not None:  # see roles.sql
            connection.exec_driver_sql(f"ALTER TABLE {self._schema}.{table} OWNER TO {owner}")
        return table

    def holds(self, table: str) -> bool:
        """Whether a table is one of those with the rows of runs."""
        return super().holds(table) or table.startswith(OWN_TABLE)

    def spare_others(self, connection: Connection, table: str) -> None:
        """Let one process read a run's own table in this transaction, if others are connected.

        Several would keep all processors of a small server busy, and look-ups would wait for up to
        a tenth of a second.
        """
        if table != self.shared and connection.scalar(text(OTHERS)):
            for processes in (
                "max_parallel_workers_per_gather",
                "max_parallel_maintenance_workers",
            ):
                connection.exec_driver_sql(f"SET LOCAL {processes} = 0")

    def seal(self, connection: Connection, table: str) -> None:
        """Make the keys of a filled table unique; the index is built at once, not row by row.

        Building it counts the rows for PostgreSQL's planner; autovacuum will find the rest out.

        Raises:
            sqlalchemy.exc.IntegrityError: a key is there twice.
        """
        if table == self.shared:
            return
        connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '256MB'")
        self.spare_others(connection, table)
        connection.exec_driver_sql(
            f"CREATE UNIQUE INDEX IF NOT EXISTS {table}_key ON {table} (entity_id)"
        )

    def attach(self, connection: Connection, run_id: int, table: str) -> None:
        """Let readers reach a filled table; one that they reach already is left."""
        if table != self.shared and not self._parent(connection, table):
            _attach(connection, SERVED, table, run_id)

    def is_reached_by_all(self) -> bool:
        """Whether every reader looks into the tables that are attached by now; waits for a while.

        A transaction that has looked before may go on with the tables it knew then, and would find
        none of the rows of a newer run.
        """
        before = self._looking()
        waiting = Retrying(
            retry=retry_if_result(bool),
            stop=stop_after_delay(READERS_SECONDS),
            wait=wait_exponential(multiplier=0.005, max=0.2),
            retry_error_callback=lambda _: before,
        )
        return not (before and waiting(lambda: before & self._looking()))

    def _looking(self) -> set[str]:
        """The transactions that hold the tables of current runs."""
        with self._database.writer.begin() as connection:
            return set(connection.scalars(text(LOOKING)))

    def share(self, connection: Connection, table: str) -> None:
        """Move the rows of a table to the one that every reader knows, row by row."""
        rows = f"SELECT run_id, entity_id, part, score, label FROM {table}"  # noqa: S608
        connection.exec_driver_sql(
            f"INSERT INTO {self.shared} (run_id, entity_id, part, score, label) {rows}"
        )
        connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608

    def set_aside(self) -> None:
        """Move the tables of superseded runs out of the way of look-ups.

        PostgreSQL opens every table that a look-up may have to look into, so only those of current
        runs shall be there. A table is moved when nobody holds it, and when no snapshot is left
        that is older than the publication that superseded its run: it would look for the rows
        there. What cannot be moved soon is left to the next publication.
        """
        Retrying(
            retry=retry_if_exception(self._database.is_passing) | retry_if_result(bool),
            stop=stop_after_delay(SET_ASIDE_SECONDS),
            wait=wait_exponential(multiplier=0.01),
            retry_error_callback=lambda _: log.info("a superseded table is in use; it moves later"),
        )(self._move_superseded)
        with self._database.writer.begin() as connection:
            kept = connection.scalar(
                text(f"SELECT count(*) FROM pg_inherits WHERE inhparent = to_regclass('{PAST}')")  # noqa: S608
            )
        if kept > MANY_KEPT:
            log.warning(
                "%d tables of past runs are kept, and whoever looks into prediction_history opens "
                "them all; let the models with large populations have a shorter `keep`",
                kept,
            )

    def _move_superseded(self) -> int:
        """Move some of them, in a short transaction; how many are left."""
        with self._database.writer.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{SET_ASIDE_TIMEOUT}'")
            # What a crash takes back is done again.
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
            self._lock_past(connection)  # as whoever drops a table has it
            found = connection.execute(text(SUPERSEDED)).all()
            unused = [run for run in found if not run.in_use][:SET_ASIDE_AT_ONCE]
            if unused:
                tables = ", ".join([f"ONLY {SERVED}", *(run.own_table for run in unused)])
                connection.exec_driver_sql(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            for run in unused:
                connection.exec_driver_sql(f"ALTER TABLE {SERVED} DETACH PARTITION {run.own_table}")
                if run.rows_table == run.own_table:
                    _attach(connection, PAST, run.own_table, run.run_id)
                else:
                    connection.exec_driver_sql(f"DROP TABLE {run.own_table}")
            return len(found) - len(unused)

    def _lock_past(self, connection: Connection) -> None:
        """Let one transaction at a time move tables to the past, or drop them from there."""
        # Readers may not. Not a row, for whose transaction FINALIZE would wait; rows go on.
        locks = f"{self._schema}.locks"
        connection.exec_driver_sql(f"LOCK TABLE {locks} IN SHARE UPDATE EXCLUSIVE MODE")

    def drop(self, table: str) -> bool:
        """Drop the table that a run has for itself; False if it shares one.

        No reader waits: one that still looks at the table makes this give up by a lock timeout,
        short since publications that attach a table wait meanwhile. The next try goes on from
        there: PostgreSQL then has the table as half detached, and lets no other one be detached.
        """
        if table == self.shared:
            return False
        if self._database.is_pooled:
            self._drop_briefly(table)
            return True
        autocommit = self._database.writer.execution_options(isolation_level="AUTOCOMMIT")
        with self._database.writer.begin() as locked, autocommit.connect() as connection:
            locked.exec_driver_sql(f"SET LOCAL lock_timeout = '{DETACH_TIMEOUT}'")
            self._lock_past(locked)
            connection.detach()  # from the pool: nobody else gets its settings
            connection.exec_driver_sql(f"SET lock_timeout = '{DETACH_TIMEOUT}'")
            _detach_wholly(connection)
            if parent := self._parent(connection, table):
                detach = f"ALTER TABLE {parent} DETACH PARTITION {table} CONCURRENTLY"
                connection.exec_driver_sql(detach)
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self._schema}.{table}")
        return True

    def _drop_briefly(self, table: str) -> None:
        """Drop a table in one transaction, since a pooler gives no session that lasts longer.

        Only a session can detach without a lock on the parent. This one takes it as
        `set_aside` does: tried for a while, it keeps readers waiting for milliseconds.
        """
        Retrying(
            retry=retry_if_exception(self._database.is_passing),
            stop=stop_after_delay(DROP_SECONDS),
            wait=wait_exponential(multiplier=0.01, max=0.2),
            reraise=True,
        )(self._drop_in_a_transaction, table)

    def _drop_in_a_transaction(self, table: str) -> None:
        with self._database.writer.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{SET_ASIDE_TIMEOUT}'")
            self._lock_past(connection)
            _detach_wholly(connection)
            if parent := self._parent(connection, table):
                lock = f"LOCK TABLE ONLY {parent}, {table} IN ACCESS EXCLUSIVE MODE"
                connection.exec_driver_sql(lock)
                connection.exec_driver_sql(f"ALTER TABLE {parent} DETACH PARTITION {table}")
            connection.exec_driver_sql(f"DROP TABLE IF EXISTS {self._schema}.{table}")

    def _parent(self, connection: Connection, table: str) -> str | None:
        """What a table is attached to, unless it is half detached."""
        parent: str | None = connection.scalar(
            text(f"""
                SELECT inhparent::regclass::text FROM pg_inherits
                WHERE inhrelid = to_regclass(:table)
                  AND inhparent IN ({PARENTS}) AND NOT inhdetachpending"""),  # noqa: S608
            {"table": f"{self._schema}.{table}"},
        )
        return parent


def _detach_wholly(connection: Connection) -> None:
    """Detach what is half detached."""
    for parent, pending in connection.execute(HALF_DETACHED).all():
        connection.exec_driver_sql(f"ALTER TABLE {parent} DETACH PARTITION {pending} FINALIZE")


def _attach(connection: Connection, parent: str, table: str, run_id: int) -> None:
    connection.exec_driver_sql(
        f"ALTER TABLE {parent} ATTACH PARTITION {table} FOR VALUES IN ({run_id:d})"
    )
