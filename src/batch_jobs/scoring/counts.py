"""What became of rows: how many were read, and where they went."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Row


@dataclass(frozen=True)
class Counts:
    """Where the rows that were read went; `read = scored + rejected + skipped`."""

    read: int = 0
    scored: int = 0
    rejected: int = 0
    skipped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def counts_of(row: Row[Any]) -> Counts:
    """The counts in a row that has the four `rows_…` columns."""
    return Counts(row.rows_read, row.rows_scored, row.rows_rejected, row.rows_skipped)


Reject = tuple[str, str, Mapping[Hashable, Any]]


Progress = Callable[[int], None]
