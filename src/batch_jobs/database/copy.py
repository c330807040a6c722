"""Rows as PostgreSQL's binary COPY takes them, which costs both sides less than text.

Source: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from pgpq import ArrowToPostgresBinaryEncoder

TYPES = {pa.int32(), pa.int64(), pa.float64(), pa.string()}


def binary_rows(rows: pa.Table) -> Iterator[bytes] | None:
    """A table as the data of a binary COPY, in pieces.

    Args:
        rows: of integers of the target's very widths, floats of 64 bits, and text.

    Returns:
        None if a column is of another type, whose text PostgreSQL can read into more targets; or
        where pgpq has no wheel.
    """
    try:
        from pgpq import ArrowToPostgresBinaryEncoder
    except ImportError:
        return None
    if not set(rows.schema.types) <= TYPES:
        return None
    return _encoded(ArrowToPostgresBinaryEncoder(rows.schema), rows)


def _encoded(encoder: ArrowToPostgresBinaryEncoder, rows: pa.Table) -> Iterator[bytes]:
    yield encoder.write_header()
    for batch in rows.to_batches():
        yield encoder.write_batch(batch)
    yield encoder.finish()
