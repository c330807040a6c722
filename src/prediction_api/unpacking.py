"""Unpack a Parquet file in a process of its own, whose memory is bounded: `unpack`.

The pages of a file say by themselves how much they hold, and may lie: a few kilobytes can unpack to
gigabytes in one step, before anybody can count. Here such a step fails, and nothing else does.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from contextlib import suppress

AT_ONCE = 25  # rows: what is unpacked is counted before there is much of it
ROOM = 2**26  # bytes beside what is unpacked
SECONDS = 60
TOO_LARGE, UNREADABLE = 3, 4
INHERITED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
# The system's own allocator takes no more address space than it needs, and one thread less still.
SPARING = {"ARROW_DEFAULT_MEMORY_POOL": "system", "OPENBLAS_NUM_THREADS": "1"}


class TooLargeError(Exception):
    """It would unpack to more than is allowed."""


def unpack(file: bytes, most: int) -> bytes:
    """A Parquet file as an Arrow stream.

    Args:
        file: all of it.
        most: how many bytes its columns may have.

    Raises:
        TooLargeError: they have more.
        ValueError: it cannot be read, or not within a minute.
    """
    environ = {name: os.environ[name] for name in INHERITED if name in os.environ}
    command = [sys.executable, "-m", "prediction_api.unpacking", str(most)]
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
    if done.returncode == TOO_LARGE:
        raise TooLargeError
    if done.returncode:
        raise ValueError
    return done.stdout


def _main(most: int) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = sys.stdin.buffer.read()
    try:
        _bound(2 * most + ROOM)  # a page as it is unpacked, and as rows
        source = pq.ParquetFile(pa.BufferReader(file))
        size = 0
        with pa.ipc.new_stream(sys.stdout.buffer, source.schema_arrow) as sink:
            for batch in source.iter_batches(AT_ONCE, use_threads=False):
                size += batch.nbytes
                if size > most:
                    return TOO_LARGE
                sink.write_batch(batch)
    except MemoryError:
        return TOO_LARGE
    except (pa.ArrowException, OSError, OverflowError, ValueError):
        return UNREADABLE
    return 0


def _bound(more: int) -> None:
    """Let this process have so many more bytes of memory, where the system can bound it."""
    with suppress(OSError, ValueError), open("/proc/self/statm") as statm:  # noqa: PTH123
        pages = int(statm.read().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1])))
