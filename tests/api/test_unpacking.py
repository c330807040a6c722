"""What Parquet packs into little is unpacked in bounded memory, or not at all."""

import io
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prediction_api.unpacking import ROOM, TOO_LARGE, TooLargeError, unpack

MOST = 1_000_000
# The process tells on stderr how much memory it had at most, in kB.
TOLD = """
import atexit, sys
from prediction_api.unpacking import _main
status = lambda: open("/proc/self/status").read().partition("VmHWM:")[2].split()[0]
atexit.register(lambda: sys.stderr.write(status()))
sys.exit(_main(int(sys.argv[1])))"""


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
    rows = pa.ipc.open_stream(unpack(sink.getvalue(), MOST)).read_all()
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
        unpack(bomb, MOST)


def test_many_rows_of_much_are_counted_as_they_come():
    """It ends at the first that are too many."""
    with pytest.raises(TooLargeError):
        unpack(_packed(country=["x" * 1000] * 2000), MOST)


@pytest.mark.parametrize("file", [b"", b"PAR1PAR1", _packed(country=["kr"])[:-9]])
def test_what_cannot_be_read_is_no_file(file):
    """One error, whatever Arrow calls it."""
    with pytest.raises(ValueError, match=r"^$"):
        unpack(file, MOST)
