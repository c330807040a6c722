"""Requests of many rows over HTTP: taken in at once, scored later, told row by row; on both."""

import csv
import io
from threading import Event

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.requests import submit, worker
from batch_jobs.requests.submit import Row, Submission
from tests.support import api
from tests.support.api import KEY, OTHER_KEY, bearer, detail
from tests.support.attempts import ask

ORDERS = [
    {"entity_id": "a", "amount": 90.0, "country": "kr"},
    {"entity_id": "=b", "amount": -1, "country": None},
    {"amount": 20, "country": "us"},
    {"entity_id": "a", "amount": "many", "country": "us"},
]
COLUMNS = {
    "entity_id": ["a", "=b", None, "a"],
    "amount": ["90.0", "-1", "20", "many"],
    "country": ["kr", None, "us", "us"],
}


@pytest.fixture
def client(shop):
    """A client of a server of the shop, whose default model is `orders`, and which answers."""
    with api.serving(shop, model="orders", answer=True) as made:
        yield made


def as_csv():
    """The orders as CSV, as Excel saves it."""
    out = io.StringIO()
    csv.writer(out).writerows([COLUMNS, *zip(*COLUMNS.values(), strict=True)])
    return out.getvalue().encode("utf-8-sig")


def as_parquet(**columns):
    """Columns as Parquet."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns or COLUMNS), sink)
    return sink.getvalue()


def post(client, content, kind, path="/requests", **headers):
    """What the server says to a body of a kind."""
    return client.post(path, content=content, headers={"Content-Type": kind, **headers})


def ended(client, answer, headers=()):
    """What is told of a request once it is over."""
    assert answer.status_code == 202, answer.text
    while (told := client.get(answer.json()["url"], headers=dict(headers)).json())["state"] in (
        *("waiting", "scoring"),
    ):
        Event().wait(0.02)
    return told


PARQUET = "application/vnd.apache.parquet"
FORMS = {
    "JSON": lambda client: client.post("/requests", json={"rows": ORDERS}),
    "CSV": lambda client: post(client, as_csv(), "text/csv; charset=utf-8"),
    "Parquet": lambda client: post(client, as_parquet(), PARQUET),
    "a form with CSV": lambda client: client.post(
        "/models/orders/requests", files={"file": ("../../etc/passwd", as_csv(), "image/png")}
    ),
    "a form with Parquet": lambda client: client.post("/requests", files={"file": as_parquet()}),
}


@pytest.mark.parametrize("send", FORMS.values(), ids=FORMS.keys())
def test_rows_are_scored_or_rejected_with_a_reason(client, send):
    """As one prediction would be; in the order in which they were sent, whatever their form."""
    answer = send(client)
    assert answer.headers["location"] == answer.json()["url"]
    told = ended(client, answer)
    assert (told["state"], told["progress"], told["error"]) == ("done", 1.0, None)
    assert told["rows"] == {"read": 4, "scored": 2, "rejected": 2, "skipped": 0}
    assert [(row["row"], row["entity_id"]) for row in told["results"]] == [(1, "a"), (3, None)]
    features = {"amount": 90.0, "country": "kr"}
    one = client.post("/predict", json={"features": features}).json()
    assert told["results"][0]["score"] == pytest.approx(one["score"], rel=1e-12)
    assert told["model_version"] == one["model_version"]
    assert [(row["row"], row["entity_id"]) for row in told["rejected"]] == [(2, "=b"), (4, "a")]
    assert all("amount" in row["reason"] for row in told["rejected"])


def test_all_rows_come_as_csv_without_formulas(client):
    """Scored and rejected ones in order; what a spreadsheet would compute is text."""
    answer = FORMS["JSON"](client)
    ended(client, answer)
    sheet = client.get(f"{answer.json()['url']}/results.csv")
    assert sheet.headers["content-disposition"].startswith("attachment")
    rows = list(csv.DictReader(io.StringIO(sheet.text)))
    assert [row["row"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["entity_id"] for row in rows] == ["a", "'=b", "", "a"]
    assert sheet.headers["x-changed-cells"] == "1"
    raw = client.get(f"{answer.json()['url']}/results.csv", params={"raw": True})
    whole = list(csv.DictReader(io.StringIO(raw.text)))
    assert [row["entity_id"] for row in whole] == ["a", "=b", "", "a"]
    assert [bool(row["score"]) for row in rows] == [True, False, True, False]
    assert [bool(row["rejected_because"]) for row in rows] == [False, True, False, True]


def test_pages_hold_every_row_once(client):
    """The header Link leads through them; each holds the rows of so many numbers."""
    answer = client.post("/requests", json={"rows": ORDERS * 5})
    ended(client, answer)
    path, seen = f"{answer.json()['url']}?limit=7", []
    while path:
        page = client.get(path)
        told = page.json()
        seen += sorted(row["row"] for row in told["results"] + told["rejected"])
        path = page.links.get("next", {}).get("url")
    assert seen == list(range(1, 21))


def test_a_request_that_is_repeated_is_one(shop, client):
    """By its key, in another form too; with other rows the key is refused."""
    key = {"Idempotency-Key": "1"}
    answers = [
        client.post("/requests", json={"rows": ORDERS[:1]}, headers=key),
        post(
            client, b"country,amount,entity_id\nkr,90,a\n", "text/csv", **{"Idempotency-Key": "1"}
        ),
    ]
    assert len({answer.json()["id"] for answer in answers}) == 1
    other = client.post("/requests", json={"rows": ORDERS}, headers=key)
    assert "used for another request" in detail(other, 409)
    assert ask(Warehouse(shop.warehouse), "SELECT count(*) FROM requests") == [(1,)]


def test_only_who_sent_it_sees_it(shop):
    """Others are told what is told of a request that was never made."""
    keys = {"keys": (KEY, OTHER_KEY), "hosts": ("*",)}
    with api.serving(shop, model="orders", answer=True, **keys) as client:
        assert client.post("/requests", json={"rows": ORDERS}).status_code == 401
        answer = client.post("/requests", json={"rows": ORDERS}, headers=bearer(KEY))
        ended(client, answer, bearer(KEY))
        for path in (answer.json()["url"], f"{answer.json()['url']}/results.csv"):
            told = detail(client.get(path, headers=bearer(OTHER_KEY)), 404)
            assert told == "there is no request of this id"
            assert client.get(path, headers=bearer(KEY)).status_code == 200


def test_what_nobody_answers_waits(shop):
    """For `batch-jobs answer`, where the server is not to write; and is told as waiting."""
    with api.serving(shop, model="orders") as client:
        answer = client.post("/requests", json={"rows": ORDERS})
        url = answer.json()["url"]
        told = client.get(url).json()
        assert (told["state"], told["progress"], told["results"]) == ("waiting", 0.0, [])
        assert "not done" in detail(client.get(f"{url}/results.csv"), 409)
        worker.answer(shop, "orders", "token")
        assert client.get(url).json()["state"] == "done"


def test_a_server_that_ends_leaves_what_waits_to_the_next(shop):
    """Its thread ends with it, and another server goes on."""
    rows = [Row(str(number), {"amount": 1.0, "country": "kr"}) for number in range(200)]
    with api.serving(shop, model="orders", answer=True):
        sent = submit.submit(Warehouse(shop.warehouse), Submission("orders", rows))
    with api.serving(shop, model="orders", answer=True) as client:
        while client.get(f"/requests/{sent.request_id}").json()["state"] != "done":
            Event().wait(0.02)
        assert client.get(f"/requests/{sent.request_id}").json()["rows"]["scored"] == 200


def test_how_a_request_ended_is_told(shop):
    """The error of one that has failed; 410 once its rows are gone."""
    warehouse = Warehouse(shop.warehouse)
    with api.serving(shop, model="orders") as client:
        url = client.post("/requests", json={"rows": ORDERS}).json()["url"]
        for state in ("failed", "retired"):
            with warehouse.write() as connection:
                connection.exec_driver_sql(
                    f"UPDATE requests SET state = '{state}', error = 'no <b>luck</b>', "
                    f"finished_at = created_at"
                )
            for path in (url, url.replace("/v1/requests", "/uploads")):
                answer = client.get(path)
                assert answer.status_code == (200 if state == "failed" else 410)
                assert state == "retired" or "no &lt;b&gt;luck" in answer.text or path == url
        assert client.get(f"{url}/results.csv").status_code == 410


def test_a_warehouse_that_is_not_there_is_503(shop):
    """With a time to try again; nothing is taken in that could be lost."""
    with api.serving(shop, model="orders") as client:
        with Warehouse(shop.warehouse).write() as connection:
            connection.exec_driver_sql("ALTER TABLE requests RENAME TO elsewhere")
        answers = (client.post("/requests", json={"rows": ORDERS}), client.get("/requests/1"))
        for answer in answers:
            assert detail(answer, 503)
            assert answer.headers["retry-after"]
