"""Read many rows of a SQLite file as Arrow, in a process of its own.

Python's sqlite3 makes an object of every value; ADBC's driver makes none and is four times as fast.
It brings a copy of SQLite, and two copies in one process lose each other's locks, until the file is
corrupt (https://sqlite.org/howtocorrupt.html, 2.2.1), so the driver works in a process that opens
the file by nothing else, and hands its rows over through a pipe.

It takes a column's type from the first rows. Where later ones do not fit, or what it makes of mixed
values is not what sqlite3 would give, `UnsuitedError` says so, and the rows are read the plain way.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Generator, Sequence
from importlib.util import find_spec
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

BUSY_TIMEOUT_MS = 30_000
EXACT = 2**53  # below which a float holds each whole number
# How the driver writes a float that stands among texts.
FLOAT_AS_TEXT = r"^-?(\d+\.\d+(e[+-]?\d+)?|Inf|NaN)$"


class UnsuitedError(Exception):
    """The driver is missing, has failed, or gives values that differ from those of sqlite3."""


def batches(
    database: str, query: str, values: Sequence[Any], rows: int
) -> Generator[pa.RecordBatch]:
    """The rows of a query, all of one snapshot, in batches of that many; none if there are none.

    Args:
        database: URI of the file.
        query: with `?` for each value.
        values: numbers and texts.
        rows: of a batch.

    Raises:
        UnsuitedError: see there; what was given before may be right all the same.
    """
    import pyarrow as pa

    if find_spec("adbc_driver_sqlite") is None:
        raise UnsuitedError("the package adbc-driver-sqlite is not installed")
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what is wrong with the query, the plain way tells
    )
    to, come = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
    try:
        request = {"database": database, "query": query, "values": list(values), "rows": rows}
        with to:
            to.write(json.dumps(request).encode())
        with pa.ipc.open_stream(come) as reader:
            for batch in reader:
                yield _required(batch)
        if process.wait() != 0:
            raise UnsuitedError("the process that reads has failed")
    except (pa.ArrowException, OSError) as error:
        raise UnsuitedError(f"the process that reads has ended: {error}") from error
    finally:
        process.kill()
        process.wait()
        come.close()


def _required(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if sqlite3 would have given the same values."""
    import pyarrow as pa

    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_binary(column.type):
            raise UnsuitedError(f"{name} holds bytes")
        if pa.types.is_string(column.type):
            _require_texts(name, column)
        if pa.types.is_floating(column.type):
            _require_exact(name, column)
    return batch


def _require_texts(name: str, column: pa.Array) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UnsuitedError(f"{name} holds what is no UTF-8") from error
    if pc.any(pc.match_substring_regex(column, FLOAT_AS_TEXT)).as_py():
        raise UnsuitedError(f"{name} holds numbers among texts")


def _require_exact(name: str, column: pa.Array) -> None:
    import pyarrow.compute as pc

    largest = pc.max(pc.abs(column)).as_py()
    if largest is not None and not largest < EXACT:
        raise UnsuitedError(f"{name} holds numbers that may have lost digits")


def main() -> None:
    """Read what standard input asks for, and write it to standard output as an Arrow stream."""
    import pyarrow as pa
    from adbc_driver_sqlite import dbapi

    request = json.load(sys.stdin)
    with dbapi.connect(request["database"]) as connection, connection.cursor() as cursor:
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(request["rows"])})
        cursor.execute(request["query"], request["values"] or None)
        found = cursor.fetch_record_batch()
        with pa.ipc.new_stream(sys.stdout.buffer, found.schema) as writer:
            for batch in found:
                writer.write_batch(batch)


if __name__ == "__main__":
    main()
