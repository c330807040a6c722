"""What is copied in binary arrives in PostgreSQL as it was."""

import sys

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batch_jobs.database.copy import binary_rows

COLUMNS = "run_id bigint, entity_id text, part integer, score double precision, label text"
TYPES = {
    "run_id": pa.int64(),
    "entity_id": pa.string(),
    "part": pa.int32(),
    "score": pa.float64(),
    "label": pa.string(),
}
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)
ROW = st.tuples(
    st.integers(-(2**63), 2**63 - 1),
    TEXT,
    st.none() | st.integers(-(2**31), 2**31 - 1),
    st.none() | st.floats(allow_nan=False),
    st.none() | TEXT,
)


@pytest.fixture(scope="module")
def arrive(postgres):
    """Copy a table to the server and back."""
    postgres.create_database("binary_rows")
    url = postgres.url("binary_rows").replace("+psycopg", "")
    with psycopg.connect(url) as connection, connection.cursor() as cursor:

        def copied(rows):
            cursor.execute(f"CREATE TEMP TABLE arrived ({COLUMNS})")
            with cursor.copy("COPY arrived FROM STDIN (FORMAT binary)") as copy:
                for piece in binary_rows(rows):
                    copy.write(piece)
            found = cursor.execute("SELECT * FROM arrived").fetchall()
            connection.rollback()
            return found

        yield copied
    postgres.drop_database("binary_rows")


def _table(rows):
    return pa.table(
        {
            name: pa.array(column, kind)
            for column, (name, kind) in zip(zip(*rows, strict=True), TYPES.items(), strict=True)
        }
    )


def _sorted(rows):
    return sorted(map(tuple, rows), key=repr)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(ROW, min_size=1, max_size=12), st.data())
def test_any_rows_arrive_as_they_were(arrive, rows, data):
    """Whatever is in them, also if they are some of an array, or of several."""
    table = _table(rows)
    first = data.draw(st.integers(0, len(rows) - 1))
    assert _sorted(arrive(table.slice(first))) == _sorted(rows[first:])
    doubled = pa.concat_tables([table, table.slice(first)])
    assert _sorted(arrive(doubled)) == _sorted([*rows, *rows[first:]])


def test_a_chunk_of_keys_of_a_few_lengths_arrives(arrive):
    """As customers' numbers have them."""
    rows = [(7, str(n), 0, n / 7, "yes" if n % 3 else "no") for n in range(20_000)]
    assert _sorted(arrive(_table(rows))) == _sorted(rows)


def test_long_texts_arrive(arrive):
    """Of whatever length, each in its place."""
    rows = [(n, "é" * n**3, 0, 0.5, None if n % 2 else "x" * n) for n in range(100)]
    assert _sorted(arrive(_table(rows))) == _sorted(rows)


def test_rows_keep_their_order():
    """They are written as they are, after the header, and then the trailer."""
    rows = _table([(1, f"{n:0{1 + n % 7}}", 0, float(n), None) for n in range(1000)])
    written = b"".join(binary_rows(rows))
    assert written.startswith(b"PGCOPY\n\xff\r\n\0" + bytes(8))
    assert written.endswith(b"\xff\xff")
    places = [written.index(key.encode()) for key in rows["entity_id"].to_pylist()[-50:]]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "rows",
    [
        pa.table({"n": pa.array([1], pa.int16())}),
        pa.table({"n": pa.array([1.5], pa.float32())}),
        pa.table({"n": pa.array([b"x"], pa.binary())}),
    ],
    ids=["another width", "a short float", "bytes"],
)
def test_other_tables_are_left_to_text(rows):
    """None is what says so."""
    assert binary_rows(rows) is None


def test_without_the_encoder_rows_are_left_to_text(monkeypatch):
    """As on Linux on ARM, for which it has no wheel."""
    monkeypatch.setitem(sys.modules, "pgpq", None)
    assert binary_rows(_table([(1, "a", 0, 0.5, None)])) is None
