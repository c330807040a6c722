"""What Parquet packs into little is unpacked in bounded memory, or not at all."""

import io
import struct
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prediction_api.unpacking import ROOM, TOO_LARGE, UNREADABLE, TooLargeError, unpack

MOST, ROWS = 1_000_000, 100_000
# The process tells on stderr how much memory it had at most, in kB.
TOLD = """
import atexit, sys
from prediction_api.unpacking import _main
status = lambda: open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
atexit.register(lambda: sys.stderr.write(status()))
sys.exit(_main(int(sys.argv[1]), 1_000_000))"""


def _packed(**columns):
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd", use_dictionary=False)
    return sink.getvalue()


def _peak(file, most):
    """How the process ended, and how many bytes of memory it had at most."""
    done = subprocess.run(
        [sys.executable, "-c", TOLD, str(most)], input=file, capture_output=True, check=False
    )
    return done.returncode, 1024 * int(done.stderr)


def test_rows_come_as_they_were():
    """Numbers, text, dictionaries and nulls."""
    words = pa.array(["kr", None, "us"] * 50).dictionary_encode()
    table = pa.table({"amount": [1.5, None, float("nan")] * 50, "country": words})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    rows = pa.ipc.open_stream(unpack(sink.getvalue(), MOST, ROWS)).read_all()
    assert repr(rows.to_pylist()) == repr(table.to_pylist())


@pytest.mark.slow
def test_a_page_that_holds_far_more_than_it_takes_is_not_unpacked():
    """Whatever the file says of itself; the memory of the process stays within its bound."""
    _, idle = _peak(_packed(country=["kr"]), MOST)
    bomb = _packed(country=["x" * 150_000_000])
    assert len(bomb) < 20_000
    code, peak = _peak(bomb, MOST)
    assert code == TOO_LARGE
    assert peak < idle + 2 * MOST + ROOM
    with pytest.raises(TooLargeError):
        unpack(bomb, MOST, ROWS)


def test_a_dictionary_is_counted_by_what_it_is_unpacked_to():
    """A few kilobytes are much if each of many rows says the same long word."""
    word = pa.array(["x" * 9000]).dictionary_encode().take(pa.array([0] * 100_000))
    sink = io.BytesIO()
    pq.write_table(pa.table({"country": word}), sink, compression="zstd")
    assert len(sink.getvalue()) < 10_000
    code, peak = _peak(sink.getvalue(), MOST)
    assert code == TOO_LARGE
    assert peak < _peak(_packed(country=["kr"]), MOST)[1] + 2 * MOST + ROOM


def _number(value):
    """A number as thrift's compact protocol writes it, without its sign."""
    parts = [value >> shift & 127 for shift in range(0, max(1, value.bit_length()), 7)]
    return bytes([*(part | 128 for part in parts[:-1]), parts[-1]])


def _wide(columns):
    """A file without rows that says that it has so many columns."""
    column = b"\x35\x02\x18\x01a\x00"  # optional, of the name `a`
    root = b"\x48\x01r\x15" + _number(2 * columns) + b"\x00"
    schema = b"\x19\xfc" + _number(columns + 1) + root + column * columns
    footer = b"\x15\x02" + schema + b"\x16\x00\x19\x0c\x00"
    return b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1"


def test_a_footer_of_very_many_columns_is_not_read():
    """It takes a hundred times its size; a real one has a thousand."""
    bomb = _wide(300_000)
    code, peak = _peak(bomb, MOST)
    assert code == UNREADABLE
    assert peak < _peak(_packed(country=["kr"]), MOST)[1] + 5 * len(bomb)
    with pytest.raises(TooLargeError, match="columns"):
        unpack(_packed(**{f"c{n}": [1] for n in range(1001)}), MOST, ROWS)
    with pytest.raises(TooLargeError, match="rows"):
        unpack(_packed(country=["kr"] * 10), MOST, 9)


def test_many_rows_of_much_are_counted_as_they_come():
    """It ends at the first that are too many."""
    with pytest.raises(TooLargeError):
        unpack(_packed(country=["x" * 1000] * 2000), MOST, ROWS)


@pytest.mark.parametrize("file", [b"", b"PAR1PAR1", _packed(country=["kr"])[:-9]])
def test_what_cannot_be_read_is_no_file(file):
    """One error, whatever Arrow calls it."""
    with pytest.raises(ValueError, match=r"^$"):
        unpack(file, MOST, ROWS)
