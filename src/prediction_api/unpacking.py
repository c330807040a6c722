"""Unpack a Parquet file in a process of its own, whose memory is bounded: `unpack`.

Footer, dictionaries and pages of a file say by themselves how much they hold, and may lie: a few
kilobytes can unpack to gigabytes in one step, before anybody can count. Here such a step fails, and
nothing else does; nobody else looks into a file.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow.parquet as pq

AT_ONCE = 25  # rows: what is unpacked is counted before there is much of it
ROOM = 2**26  # bytes beside what is unpacked
SECONDS = 60
TOO_LARGE, UNREADABLE, TOO_MANY, TOO_WIDE = 3, 4, 5, 6
MOST_COLUMNS = 1000
MOST_LISTED = 10_000  # entries of any list of a footer: columns, row groups
LEAST = 8  # bytes that a value takes, however little its column does
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
# The system's own allocator takes no more address space than it needs, and one thread less still.
SPARING = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}


class TooLargeError(Exception):
    """It has more than is allowed.

    Attributes:
        what: `bytes`, `rows` or `columns`.
    """

    def __init__(self, what: str = "bytes") -> None:
        super().__init__(what)
        self.what = what


BOUNDS = {TOO_LARGE: "bytes", TOO_MANY: "rows", TOO_WIDE: "columns"}


def unpack(file: bytes, most: int, rows: int) -> bytes:
    """A Parquet file as an Arrow stream, in which no column is a dictionary.

    A file with nested columns is told as such: its stream has them, and no rows.

    Args:
        file: all of it.
        most: how many bytes its rows may have.
        rows: how many there may be.

    Raises:
        TooLargeError: there are more, or more than `MOST_COLUMNS` columns.
        ValueError: it cannot be read, or not within a minute.
    """
    environ = {name: os.environ[name] for name in INHERITED if name in os.environ}
    command = [sys.executable, "-m", "prediction_api.unpacking", str(most), str(rows)]
    try:
        done = subprocess.run(
            command,
            input=file,
            capture_output=True,
            timeout=SECONDS,
            env=environ | SPARING,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError from None
    if done.returncode in BOUNDS:
        raise TooLargeError(BOUNDS[done.returncode])
    if done.returncode:
        raise ValueError
    return done.stdout


def _main(most: int, rows: int) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = sys.stdin.buffer.read()
    try:
        _bound(2 * most + ROOM)  # a page as it is unpacked, and as rows
        source = pq.ParquetFile(pa.BufferReader(file), thrift_container_size_limit=MOST_LISTED)
        if source.metadata.num_columns > MOST_COLUMNS:
            return TOO_WIDE
        return _write(source, most, rows)
    except MemoryError:
        return TOO_LARGE
    except (pa.ArrowException, OSError, OverflowError, ValueError):
        return UNREADABLE


def _write(source: pq.ParquetFile, most: int, rows: int) -> int:
    """Write the rows as they come, counting what they are when each has its own values."""
    import pyarrow as pa

    plain = pa.schema(
        field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field
        for field in source.schema_arrow
    )
    size = count = 0
    with pa.ipc.new_stream(sys.stdout.buffer, plain) as sink:
        if any(pa.types.is_nested(field.type) for field in plain):
            return 0
        for packed in source.iter_batches(AT_ONCE, use_threads=False):
            batch = pa.RecordBatch.from_arrays(
                [
                    one.dictionary_decode() if pa.types.is_dictionary(one.type) else one
                    for one in packed.columns
                ],
                schema=plain,
            )
            count += batch.num_rows
            size += max(batch.nbytes, LEAST * batch.num_rows * batch.num_columns)
            if count > rows:
                return TOO_MANY
            if size > most:
                return TOO_LARGE
            sink.write_batch(batch)
    return 0


def _bound(more: int) -> None:
    """Let this process have so many more bytes of memory, where the system can bound it."""
    with suppress(OSError, ValueError), open("/proc/self/statm") as statm:  # noqa: PTH123
        pages = int(statm.read().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), int(sys.argv[2])))
