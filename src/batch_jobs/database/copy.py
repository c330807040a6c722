"""Rows as PostgreSQL's binary COPY takes them, which costs both sides less than text.

Source: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from pgpq import ArrowToPostgresBinaryEncoder

TYPES = {pa.int32(), pa.int64(), pa.float64(), pa.string()}


def binary_rows(rows: pa.Table) -> Iterator[bytes] | None:
    """A table as the data of a binary COPY, in pieces.

    Args:
        rows: of integers of the target's very widths, floats of 64 bits, and text.

    Returns:
        None if a column is of another type, whose text PostgreSQL can read into more targets.
    """
    return _encoded(rows) if set(rows.schema.types) <= TYPES else None


def _encoded(rows: pa.Table) -> Iterator[bytes]:
    encoder = ArrowToPostgresBinaryEncoder(rows.schema)
    yield encoder.write_header()
    for batch in rows.to_batches():
        yield encoder.write_batch(batch)
    yield encoder.finish()
