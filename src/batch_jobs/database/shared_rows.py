"""Where the rows of runs are stored: on SQLite in one table that all runs share."""

from __future__ import annotations

from sqlalchemy import Connection

OWN_TABLE = "predictions_r"


def own_table(run_id: int) -> str:
    """The table that a run of many rows has for itself."""
    return f"{OWN_TABLE}{run_id:d}"


class SharedRows:
    """One table for the rows of all runs, whose index readers use from the first row on.

    `partitions.Partitions` gives a table of its own to a run of many rows.

    Attributes:
        shared: the name of the table.
    """

    shared = "predictions"

    def new_table(self, connection: Connection, run_id: int, *, large: bool) -> str:  # noqa: ARG002
        """Make the table that a new run's rows go to; its name.

        Args:
            connection: inside a transaction that writes.
            run_id: of the run.
            large: whether to expect many rows.
        """
        return self.shared

    def holds(self, table: str) -> bool:
        """Whether a table is one of those with the rows of runs."""
        return table == self.shared

    def seal(self, connection: Connection, table: str) -> None:
        """Make the keys of a filled table unique.

        Raises:
            sqlalchemy.exc.IntegrityError: a key is there twice.
        """

    def spare_others(self, connection: Connection, table: str) -> None:
        """Let the audit of a table keep no look-up waiting."""

    def attach(self, connection: Connection, run_id: int, table: str) -> None:
        """Let readers reach a filled table."""

    def is_reached_by_all(self) -> bool:
        """Whether every reader looks into the tables that are attached by now."""
        return True

    def share(self, connection: Connection, table: str) -> None:
        """Move the rows of a table to the one that every reader knows."""

    def set_aside(self) -> None:
        """Move the tables of superseded runs out of the way of look-ups."""

    def drop(self, table: str) -> bool:  # noqa: ARG002
        """Drop the table that a run has for itself; False if it shares one."""
        return False
