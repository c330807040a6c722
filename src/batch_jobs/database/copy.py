"""Rows as PostgreSQL's binary COPY takes them, which costs both sides less than text.

In rows whose texts are of the same lengths, each value has its place, so numpy writes them column
by column. Keys have few lengths as a rule; a table of many is left to others.

Source: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)  # no flags, nothing between header and rows
TRAILER = b"\xff\xff"
MOST_GROUPS = 40  # of rows whose texts are of the same lengths
NUMBERS = {pa.int32(): ">i4", pa.int64(): ">i8", pa.float64(): ">f8"}
NULL = -1  # in the place of a length


def binary_rows(rows: pa.Table) -> list[bytes | memoryview] | None:
    """A table as the data of a binary COPY, in pieces; the order of its rows is not kept.

    Args:
        rows: one or more, of integers of the target's very widths, floats of 64 bits, and text.

    Returns:
        None if texts have too many different lengths, or a column is of another type or has a null
        that is no text.
    """
    columns = [column.combine_chunks() for column in rows.columns]
    texts = [column for column in columns if column.type == pa.string()]
    numbers = [column for column in columns if column.type != pa.string()]
    if any(column.type not in NUMBERS or column.null_count for column in numbers):
        return None
    lengths = [pc.fill_null(pc.binary_length(text), NULL).to_numpy() for text in texts]
    groups = _groups(lengths, rows.num_rows)
    if len(groups) > MOST_GROUPS:
        return None
    if len(groups) == 1:
        return [HEADER, _alike(columns), TRAILER]
    alike = [_alike([column.take(places) for column in columns]) for places in groups]
    return [HEADER, *alike, TRAILER]


def _groups(lengths: list[NDArray[np.int32]], rows: int) -> list[NDArray[np.intp]]:
    """The places of rows whose lengths are the same."""
    if all((of_one == of_one[0]).all() for of_one in lengths):
        return [np.arange(rows)]
    group = np.zeros(rows, "int64")
    for of_one in lengths:
        group = np.unique(group * (int(of_one.max()) + 2) + of_one + 1, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _alike(columns: list[pa.Array]) -> memoryview:
    """Rows of texts that are of the same lengths."""
    fields: list[tuple[str, str]] = [("fields", ">i2")]
    values: list[Any] = [len(columns)]
    for place, column in enumerate(columns):
        size, value, kind = _text(column) if column.type == pa.string() else _number(column)
        fields.append((f"size{place}", ">i4"))
        values.append(size)
        if value is not None:
            fields.append((f"value{place}", kind))
            values.append(value)
    records = np.empty(len(columns[0]), fields)
    for (name, _), value in zip(fields, values, strict=True):
        records[name] = value
    return records.view(np.uint8).data


def _number(column: pa.Array) -> tuple[int, NDArray[Any], str]:
    value = column.to_numpy()
    return value.itemsize, value, NUMBERS[column.type]


def _text(column: pa.Array) -> tuple[int, NDArray[Any] | None, str]:
    """How many bytes each has, and these, if there are any."""
    if column.null_count:
        return NULL, None, ""
    _, offsets, data = column.buffers()
    first, second = np.frombuffer(offsets, "int32")[column.offset : column.offset + 2]
    size = int(second - first)
    if not size:
        return 0, None, ""
    return size, np.frombuffer(data, f"V{size}", len(column), int(first)), f"V{size}"
