"""Many rows of a SQLite file are read by another process, as Python's driver would read them."""

import sqlite3
from contextlib import closing

import pyarrow as pa
import pytest

from batch_jobs.database import sqlite_reader
from batch_jobs.database.columns import texts
from batch_jobs.database.sqlite import ReadAgainError
from batch_jobs.database.sqlite_reader import UnsuitedError, batches
from batch_jobs.database.warehouse import Warehouse

QUERY = "SELECT k, v FROM source WHERE k >= :low ORDER BY k"


@pytest.fixture
def source(tmp_path):
    """Fill a table: `source(values)`; keys count from 0."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    warehouse.ensure_schema()

    def fill(values):
        with warehouse.write_source() as connection:
            connection.exec_driver_sql("CREATE TABLE source (k INTEGER PRIMARY KEY, v)")
            connection.exec_driver_sql("INSERT INTO source VALUES (?, ?)", list(enumerate(values)))
        return warehouse

    return fill


def read(warehouse, *, many, query=QUERY):
    """All rows, three at a time."""
    return list(warehouse.stream(query, {"low": 0}, 3, many=many))


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3, None, 5],
        [0.1 + 0.2, 1e-300, None, -5e15, 2.0],
        ["a", "", None, "ünï 'quoted'", "7"],
        [1, 2.5, 3, 2.0, 1],
        [None, None, None, None],
    ],
    ids=["whole", "real", "text", "whole and real", "null"],
)
def test_values_are_those_of_pythons_driver(source, values):
    """Numbers to the last digit, texts, and nothing where there is nothing."""
    warehouse = source(values)
    plain, apart = read(warehouse, many=False), read(warehouse, many=True)
    assert [len(frame) for frame in plain] == [len(frame) for frame in apart]
    for one, other in zip(plain, apart, strict=True):
        assert [*one.columns] == [*other.columns]
        assert texts(one["v"]).fillna("-").tolist() == texts(other["v"]).fillna("-").tolist()
        assert one["k"].tolist() == other["k"].tolist()
    assert warehouse.database.reads_apart(QUERY)


@pytest.mark.parametrize(
    "values",
    [
        [1.5, "a", "b"],
        ["a", 1.5, "b"],
        [b"\x01", "a"],
        ["a", b"\xff"],
        [2.5, 2**60],
        [1, "a", 1e99],
    ],
    ids=["real and text", "text and real", "bytes", "no UTF-8", "beyond 2^53", "all kinds"],
)
def test_what_would_differ_is_read_the_plain_way(source, values):
    """The driver writes 1.5 among texts as 1.500000e+00; sqlite3 gives the value itself."""
    warehouse = source(values)
    [plain], [apart] = read(warehouse, many=False), read(warehouse, many=True)
    assert plain["v"].tolist() == apart["v"].tolist()
    assert not warehouse.database.reads_apart(QUERY)


@pytest.mark.parametrize(
    "values",
    [[None] * 3 + ["a"], [1, 2, 3, 4.5], [1.5] * 3 + ["a"], ["a"] * 3 + [0.1 + 0.2]],
    ids=["null, then text", "whole, then real", "real, then text", "text, then real"],
)
def test_a_type_that_changes_after_the_first_chunk_is_read_again(source, values):
    """It is as if the file were busy: whoever asked begins anew, and then it is read plainly."""
    warehouse = source(values)
    with pytest.raises(ReadAgainError) as caught:
        read(warehouse, many=True)
    assert warehouse.database.is_passing(caught.value)
    plain, again = read(warehouse, many=False), read(warehouse, many=True)
    assert [f["v"].tolist() for f in plain[1:]] == [f["v"].tolist() for f in again[1:]]


def test_a_query_that_fails_is_told_in_the_words_of_pythons_driver(source):
    """Whatever happens in the other process, the plain way has the last word."""
    warehouse = source([1])
    with pytest.raises(Exception, match="no such column: wrong"):
        read(warehouse, many=True, query="SELECT wrong FROM source WHERE k >= :low")


def test_without_the_driver_rows_are_read_the_plain_way(source, monkeypatch):
    """It is slower, and else the same."""
    monkeypatch.setattr(sqlite_reader, "find_spec", lambda _: None)
    [frame] = read(source(["a", "b"]), many=True, query=f"{QUERY} -- no driver")
    assert frame["v"].tolist() == ["a", "b"]


def test_a_reader_that_is_killed_is_told(source, monkeypatch, tmp_path):
    """Its stream ends early, which is never taken for the end of the rows."""
    source(range(200_000))
    processes = []
    popen = sqlite_reader.subprocess.Popen
    monkeypatch.setattr(
        sqlite_reader.subprocess,
        "Popen",
        lambda *args, **kwargs: processes.append(popen(*args, **kwargs)) or processes[-1],
    )
    found = batches(f"file:{tmp_path}/warehouse.db?mode=ro", "SELECT k FROM source", [], 10)
    assert next(found).num_rows == 10
    processes[0].kill()
    with pytest.raises(UnsuitedError, match=r"ended|failed"):
        list(found)


def test_who_stops_reading_leaves_no_process(source, monkeypatch, tmp_path):
    """Nor one that waits for somebody to read on."""
    source(range(200_000))
    processes = []
    popen = sqlite_reader.subprocess.Popen
    monkeypatch.setattr(
        sqlite_reader.subprocess,
        "Popen",
        lambda *args, **kwargs: processes.append(popen(*args, **kwargs)) or processes[-1],
    )
    with closing(
        batches(f"file:{tmp_path}/warehouse.db?mode=ro", "SELECT k FROM source", [], 10)
    ) as found:
        assert isinstance(next(found), pa.RecordBatch)
    assert processes[0].returncode is not None


def test_the_other_process_cannot_write(source, tmp_path):
    """Nor does it need to: it opens the file to read only."""
    source([1])
    with pytest.raises(UnsuitedError):
        list(batches(f"file:{tmp_path}/warehouse.db?mode=ro", "DELETE FROM source", [], 10))
    with closing(sqlite3.connect(tmp_path / "warehouse.db")) as connection:
        assert connection.execute("SELECT count(*) FROM source").fetchone() == (1,)
