"""Files that no well-meaning client sends: each is refused with what is wrong, or row by row."""

import io
import json
import time
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.api.test_corpus import settings  # noqa: F401 # a fixture
from tests.api.test_requests import PARQUET, as_parquet, ended, post
from tests.conftest import OPENED
from tests.support.api import detail, serving

MOST = {"upload_bytes": 1_000_000, "upload_rows": 1000}


@pytest.fixture(scope="module")
def client(settings):  # noqa: F811 # the same
    """A client of one server, which has to bear all of it."""
    with serving(settings, model="orders", answer=True, **MOST) as made:
        yield made


HEADER = b"amount,country\n"
SHEETS = {
    "nothing": (b"", "missing: amount, country"),
    "no rows": (HEADER, "no rows"),
    "only a mark": (b"\xef\xbb\xbf", "missing: amount, country"),
    "other columns": (b"amount,land,amount,x\n1,kr,1,1\n", "there twice: amount"),
    "a semicolon": (b"amount;country\n1;kr\n", "not known: amount;country"),
    "a name of nothing": (b"amount,country,\n1,kr,\n", "not known: ''"),
    "a NUL in a name": (b"amount,country,\x00\n1,kr,1\n", "not known"),
    "UTF-16": ("amount,country\n1,kr\n".encode("utf-16"), "not UTF-8"),
    "Latin 1": (HEADER + b"1,k\xe9\n", "byte 18 is not UTF-8"),
    "half a surrogate pair": (HEADER + b"1,\xed\xa0\x80\n", "not UTF-8"),
    "too few cells": (HEADER + b"1,kr\n1\n", "line 3 has 1 cells"),
    "too many cells": (HEADER + b"1,kr,2\n", "line 2 has 3 cells"),
    "a quote that does not end": (HEADER + b'1,"kr\n', "no CSV"),
    "a quote within a cell": (HEADER + b'1,"k"r\n', "no CSV"),
    "a cell that is too long": (HEADER + b"1," + b"x" * 200_000 + b"\n", "field limit"),
    "too many rows": (HEADER + b"1,kr\n" * 1001, "at most 1,000 rows"),
    "too many columns": (b",".join(b"%d" % n for n in range(2000)), "at most 1,000 columns"),
    "a key that is too long": (b"entity_id," + HEADER + b"x" * 201 + b",1,kr\n", "200 characters"),
    "a NUL in a key": (b"entity_id," + HEADER + b"a\x00,1,kr\n", "in 1 rows: 1"),
}


@pytest.mark.parametrize(("sheet", "told"), SHEETS.values(), ids=SHEETS.keys())
def test_a_sheet_that_does_not_fit_says_what_is_wrong(client, sheet, told):
    """As CSV, and as a file of a form, with the same words."""
    answer = post(client, sheet, "text/csv")
    assert answer.status_code in (413, 422)
    assert told in detail(answer, answer.status_code)
    form = client.post("/requests", files={"file": sheet})
    assert form.json() == answer.json()


def test_all_that_is_wrong_with_the_columns_is_told_at_once(client):
    """Missing, unknown and doubled ones, and what would be right."""
    answer = post(client, b"amount,land,amount\n1,kr,1\n", "text/csv")
    assert detail(answer, 422) == (
        "columns missing: country; not known: land; there twice: amount. "
        "Right are: entity_id, amount, country, of which entity_id may be left out"
    )


ODD_CELLS = [
    "nan",
    "inf",
    "1e999",
    "1_0",
    "0x10",
    "\uff19",
    "-1",
    "many",
    "1,5",
    "",
    " ",
    "9" * 500,
]


def test_odd_values_reject_their_rows_and_no_other(client):
    """Quoted newlines are read; what is no number that fits is told row by row."""
    sheet = HEADER + b'"7","k\nr"\n'
    sheet += b"".join(b'"%s",kr\n' % cell.encode() for cell in ODD_CELLS)
    told = ended(client, post(client, sheet, "text/csv"))
    assert [row["row"] for row in told["results"]] == [1]
    assert len(told["rejected"]) == len(ODD_CELLS)
    assert all(row["reason"] for row in told["rejected"])


def lying(**columns):
    """A file that packs much into little."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd", use_dictionary=False)
    return sink.getvalue()


NUMBERS, TEXTS = [1.0], ["kr"]
FILES = {
    "nothing": (b"", "no Parquet file"),
    "its mark only": (b"PAR1PAR1", "no Parquet file"),
    "half of it": (as_parquet(amount=NUMBERS, country=TEXTS)[:-20], "no Parquet file"),
    "no rows": (as_parquet(amount=pa.array([], "f8"), country=pa.array([], "str")), "no rows"),
    "other columns": (as_parquet(amount=NUMBERS, land=TEXTS), "missing: country; not known: land"),
    "lists": (as_parquet(amount=[[1.0]], country=TEXTS), "'amount': columns hold numbers"),
    "structs": (as_parquet(amount=[{"a": 1}], country=TEXTS), "'amount': columns hold"),
    "times": (as_parquet(amount=[OPENED], country=TEXTS), "'amount': columns hold"),
    "keys that are floats": (
        as_parquet(entity_id=[101.0], amount=NUMBERS, country=TEXTS),
        "entity_id: keys are text or whole numbers",
    ),
    "keys that are truth values": (
        as_parquet(entity_id=[True], amount=NUMBERS, country=TEXTS),
        "entity_id: keys are text or whole numbers",
    ),
    "keys that are bytes": (
        as_parquet(entity_id=[b"\xff"], amount=NUMBERS, country=TEXTS),
        "columns of bytes hold text as UTF-8",
    ),
    "bytes that are no text": (
        as_parquet(amount=NUMBERS, country=[b"\xffk"]),
        "b'\\xffk': columns of bytes hold text as UTF-8",
    ),
    "too many rows": (as_parquet(amount=NUMBERS * 1001, country=TEXTS * 1001), "1,000 rows"),
    "a bomb of one text": (lying(amount=NUMBERS, country=["x" * 50_000_000]), "unpack to more"),
    "a bomb of one word": (
        as_parquet(amount=NUMBERS * 900, country=["x" * 200_000] * 900),
        "unpack to more",
    ),
    "a million columns": (lying(**{f"c{n}": NUMBERS for n in range(1001)}), "1,000 columns"),
}


@pytest.mark.parametrize(("file", "told"), FILES.values(), ids=FILES.keys())
def test_a_parquet_file_that_does_not_fit_says_what_is_wrong(client, file, told):
    """What would unfold to far more than was sent is not unfolded."""
    answer = post(client, file, PARQUET)
    assert answer.status_code in (413, 422)
    assert told in detail(answer, answer.status_code)


@pytest.mark.slow
def test_a_damaged_parquet_file_is_refused_wherever_it_is_damaged(client):
    """Or its rows are taken in as they then read; never 5xx."""
    whole = as_parquet(amount=NUMBERS * 20, country=TEXTS * 20)
    for place in range(4, len(whole), 23):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        assert post(client, damaged, PARQUET).status_code in (202, 413, 422)


def test_odd_numbers_of_a_parquet_file_reject_their_rows(client):
    """NaN is a missing value to frames; infinities are what they are, and the file is taken in."""
    odd = [1.0, float("nan"), float("inf"), None, -1.0]
    told = ended(client, post(client, as_parquet(amount=odd, country=TEXTS * 5), PARQUET))
    assert [row["row"] for row in told["results"]] == [1]
    assert [row["row"] for row in told["rejected"]] == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("amount", "country"),
    [
        (pa.array([Decimal("12.50")]), pa.array(["kr"])),
        (pa.array([Decimal(12)], pa.decimal256(40, 0)), pa.array(["kr"], pa.string_view())),
        (pa.array([12], pa.uint8()), pa.array([b"kr"])),
        (pa.array([12.5], pa.float32()), pa.array(["kr"]).dictionary_encode()),
        (pa.array([True]), pa.array(["kr"], pa.large_string())),
    ],
    ids=["decimal", "wide decimal and view", "bytes", "dictionary", "truth value"],
)
def test_a_parquet_file_is_taken_as_warehouses_write_it(client, amount, country):
    """Money as decimals, text as views or without its mark: what it means is what counts."""
    file = as_parquet(entity_id=pa.array([7]), amount=amount, country=country)
    told = ended(client, post(client, file, PARQUET))
    assert (told["rejected"], [row["entity_id"] for row in told["results"]]) == ([], ["7"])


ROW = {"amount": 1, "country": "kr"}
BODIES = {
    "no object": [ROW],
    "no rows": {"rows": []},
    "rows that are none": {"rows": {"0": ROW}},
    "a row that is none": {"rows": [1]},
    "one field more": {"rows": [ROW], "model": "x"},
    "a name that is not known": {"rows": [{**ROW, "\ud800": 1}]},
    "a feature that is missing": {"rows": [{"amount": 1}]},
    "a nested value": {"rows": [{**ROW, "amount": [1]}]},
    "half a surrogate pair": {"rows": [{**ROW, "country": "\ud800"}]},
    "a key that is a fraction": {"rows": [{**ROW, "entity_id": 1.5}]},
    "a key that is a truth value": {"rows": [{**ROW, "entity_id": True}]},
    "a key with a NUL": {"rows": [{**ROW, "entity_id": "a\0"}]},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_json_of_another_shape_is_refused(client, body):
    """With where it is wrong, which can always be written."""
    assert detail(client.post("/requests", content=json.dumps(body), headers=JSON), 422)


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"rows": [{"amount": NaN, "country": "kr"}]}',
        b'{"rows": [{"amount": %s, "country": "kr"}]}' % (b"9" * 5000),
        b'{"rows": ' + b"[" * 100_000,
        b'{"rows": [{"amount": 1, "country": "\xff"}]}',
    ],
)
def test_what_is_no_json_is_refused(client, raw):
    """As a body of `POST /predict` is."""
    assert detail(client.post("/requests", content=raw, headers=JSON), 400)


def test_odd_values_of_json_reject_their_rows(client):
    """Numbers beyond floats, text and truth for a number."""
    odd = ["1" + "0" * 400, -(2**70), '"1e5x"', "true", "null", "1e400", "-1e400"]
    sent = ", ".join(f'{{"amount": {value}, "country": "kr"}}' for value in odd)
    sent = f'{{"rows": [{sent}, {{"amount": 1, "country": "k\\u0000"}}, {json.dumps(ROW)}]}}'
    told = ended(client, client.post("/requests", content=sent, headers=JSON))
    assert 9 in [row["row"] for row in told["results"]]
    assert {1, 2, 3, 5, 6, 7} <= {row["row"] for row in told["rejected"]}


HEAPS = {
    "empty rows": (b"[{}" + b",{}" * 999 + b"]", 422),
    "more rows than there may be": (b"[{}" + b",{}" * 1000 + b"]", 413),
    "very many": (b"[{}" + b", { }" * 50_000 + b"]", 400),
    "lists": (b"[[]" + b",[]" * 50_000 + b"]", 400),
    "names": (b"[{%s}]" % b",".join(b'"%d":1' % n for n in range(20_000)), 422),
    "signs in a text": (b'[{"amount": 1, "country": "%s"}]' % (b"{" * 9000), 202),
}


@pytest.mark.parametrize(("rows", "status"), HEAPS.values(), ids=HEAPS.keys())
def test_heaps_of_json_are_counted_before_they_are_looked_at(client, rows, status):
    """Not each of what is wrong is worked out: the first hundred are enough."""
    began = time.process_time()
    answer = client.post("/requests", content=b'{"rows": %s}' % rows, headers=JSON)
    assert answer.status_code == status
    assert len(answer.content) < 10_000
    assert time.process_time() - began < 1  # each problem of each row took twenty times as long


def test_names_that_nobody_knows_are_counted_too(client):
    """In what is asked of one row, and beside it."""
    names = {f"x{n}": 1 for n in range(60_000)}
    for body in ({"features": names}, {"features": [1, "kr"], **names}, {"rows": [ROW], **names}):
        path = "/requests" if "rows" in body else "/predict"
        assert "60,00" in detail(client.post(path, json=body), 422)


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b"x", "headers": {"Content-Type": "text/plain"}},
        {"content": b"x", "headers": {}},
        {"content": b"amount=1", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    ],
)
def test_what_is_of_no_known_kind_is_415(client, request_):
    """The kinds that there are, are named."""
    assert "text/csv" in detail(client.post("/requests", **request_), 415)


FORMS = [
    {"files": {"other": b"x"}},
    {"files": [("file", b"x"), ("file", b"y")]},
    {"data": {"file": "x"}, "files": {"other": b""}},
    {"content": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    {"content": b"\xff", "headers": {"Content-Type": b"multipart/form-data; boundary=\xff"}},
]


@pytest.mark.parametrize("form", FORMS)
def test_a_form_without_its_one_file_is_refused(client, form):
    """However it is broken."""
    answer = client.post("/requests", **form)
    assert detail(answer, answer.status_code)
    assert answer.status_code in (400, 422)


CHARSETS = ["undefined", "unicode_escape", "utf-16", "idna", "'x", "x" * 5000, "\xff"]


@pytest.mark.parametrize("charset", CHARSETS)
@pytest.mark.parametrize("path", ["/requests", "/models/orders/uploads", "/sign-in"])
def test_no_sender_chooses_how_a_form_is_decoded(client, path, charset):
    """Python knows codecs that always fail, or make what no text has."""
    part = b'--x\r\nContent-Disposition: form-data; name="key"\r\n\r\n\\ud800\r\n--x--\r\n'
    for kind in ("multipart/form-data; boundary=x", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": f"{kind}; charset={charset}".encode("latin-1")}
        assert client.post(path, content=part, headers=headers).status_code in (415, 422)
    plain = {"Content-Type": "multipart/form-data; boundary=x; charset=UTF-8"}
    answer = client.post(path, content=part, headers=plain)
    assert answer.status_code == (401 if path == "/sign-in" else 422)


def test_what_is_too_large_is_cut_off(client):
    """Whatever it says of its length; many rows may be larger than one."""
    assert detail(post(client, iter([b"x" * 100_000] * 11), "text/csv"), 413)
    large = {"rows": [{**ROW, "country": "x" * 9000}] * 20}
    assert client.post("/requests", json=large).status_code == 202


def test_a_proxy_that_changes_the_host_keeps_no_page_from_asking(client):
    """As nginx does if nothing is said; the browser itself tells that the page is ours."""
    headers = {"Origin": "https://predictions.example", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/requests", json={"rows": [ROW]}, headers=headers).status_code == 202
    del headers["Sec-Fetch-Site"]  # as where a page is not encrypted
    told = detail(client.post("/requests", json={"rows": [ROW]}, headers=headers), 403)
    assert "pass the header Host on" in told


def test_no_page_of_another_site_can_send_rows(client):
    """A form needs no permission to be sent from anywhere; the browser says where it is from."""
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ):
        for path in ("/requests", "/models/orders/uploads", "/sign-in", "/sign-out"):
            answer = client.post(path, files={"file": HEADER + b"1,kr\n"}, headers=headers)
            assert answer.status_code == 403, (path, headers)


@pytest.mark.parametrize(
    "path",
    [
        *("/requests/0", "/requests/x", "/requests/9007199254740993", "/requests/1?limit=0"),
        *("/requests/1?limit=10001", "/requests/1?after=-1", f"/requests/1?after={2**63}"),
    ],
)
def test_a_path_that_does_not_fit_is_refused(client, path):
    """Out of bounds, or not storable."""
    assert detail(client.get(path), 422)
    assert detail(client.get("/requests/1"), 404)
