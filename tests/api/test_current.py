"""All that is current: of one moment, in both modes, filtered and sorted; on both databases."""

import gzip
import io
import json
import random
from datetime import timedelta

import pyarrow as pa
import pytest

from batch_jobs import clock
from batch_jobs.database.transactions import stored_time
from tests.api.test_reading import api, follow, rows_of  # noqa: F401 # a fixture
from tests.support.api import detail
from tests.support.attempts import publish, seen, tick
from tests.support.history import latest

PATH = "/v1/models/orders/predictions"
SCORES = {f"o{number:02}": number / 100 for number in range(40)}


def all_of(api, **params):  # noqa: F811
    """Each row of all pages."""
    return [row for page in follow(api, api.get(PATH, params=params)) for row in rows_of(page)]


def test_a_merge_model_is_exported_with_all_its_runs(api):  # noqa: F811
    """And not its newest one; in the form of each page, with the columns of the view."""
    for number in range(4):
        publish(api.warehouse, tick(number), {f"k{number}": number / 10, "k": number / 10})
    expected = {"k": 0.3, "k0": 0.0, "k1": 0.1, "k2": 0.2, "k3": 0.3}
    assert dict(all_of(api, limit=2)) == seen(api.warehouse) == expected
    table = pa.ipc.open_stream(api.get(PATH, params={"format": "arrow"}).content).read_all()
    assert {row["entity_id"]: row["score"] for row in table.to_pylist()} == expected
    with api.warehouse.read() as connection:
        view = connection.exec_driver_sql("SELECT * FROM current_predictions").keys()
    assert table.column_names == list(view)
    assert len(set(table.column("run_id").to_pylist())) == 4
    assert api.get(PATH, params={"format": "csv"}).text.count("\n") == 6


def test_pages_are_of_the_moment_of_the_first_one(api):  # noqa: F811
    """Whatever is merged, published again or expires meanwhile; tried on histories by chance."""
    chance = random.Random(7)

    def change(number):
        some = chance.sample(sorted(SCORES), 9)
        interval = tick(chance.randrange(number) if chance.random() < 0.5 else number)
        publish(api.warehouse, interval, dict.fromkeys(some, number / 1000))

    publish(api.warehouse, tick(0), SCORES)
    for number in range(1, 9):
        change(number)
        expected, found = seen(api.warehouse), []
        for page in follow(api, api.get(PATH, params={"limit": 11})):
            change(20 + number)
            found += rows_of(page)
        assert found == sorted(expected.items())
        assert page.headers["x-as-of"]


def test_rows_are_filtered(api):  # noqa: F811
    """By score, beginning of the key, version and publication, also together and page by page."""
    publish(api.warehouse, tick(0), SCORES)
    then = stored_time(latest(api.warehouse))
    publish(api.warehouse, tick(1), {"o01": 0.9, "p": 0.9, "o%": 0.9, "ключ": 0.9})
    expected = seen(api.warehouse)

    def keys(**params):
        return {key for key, _ in all_of(api, limit=7, **params)}

    assert keys(min_score=0.3) == {key for key, score in expected.items() if score >= 0.3}
    assert keys(min_score=0.1, max_score=0.2, prefix="o1") == {f"o{n}" for n in range(10, 20)}
    assert keys(prefix="o") == {key for key in expected if key[0] == "o"}
    assert keys(prefix="o%") == {"o%"}
    assert keys(prefix="клю") == {"ключ"}
    assert keys(published_after=then) == {"o01", "p", "o%", "ключ"}
    assert keys(model_version="v1") == set(expected)
    assert keys(model_version="v2") == keys(label="x") == keys(prefix="\U0010ffff") == set()


@pytest.mark.parametrize(("model", "mode"), [("orders", "merge"), ("customers", "replace")])
def test_rows_are_sorted_by_score(api, model, mode):  # noqa: F811
    """The highest first, or the lowest; equal ones by key, over all pages."""
    rows = {f"k{number}": number % 5 / 10 for number in range(23)}
    publish(api.warehouse, tick(0), rows, mode=mode, model=model)
    path = f"/v1/models/{model}/predictions"
    for sort, sign in (("score", 1), ("-score", -1)):
        params = {"sort": sort, "limit": 4}
        found = [row for page in follow(api, api.get(path, params=params)) for row in rows_of(page)]
        assert found == sorted(rows.items(), key=lambda row: (sign * row[1], row[0]))
    top = rows_of(api.get(path, params={"sort": "-score", "limit": 2}))
    assert top == [("k14", 0.4), ("k19", 0.4)]


def test_a_replaced_population_is_filtered_too(api):  # noqa: F811
    """By what its rows have in common as well."""
    for number in range(2):
        rows = {"a": number / 4, "b": 0.5}
        publish(api.warehouse, tick(number), rows, mode="replace", model="customers")
    path, then = "/v1/models/customers/predictions", stored_time(latest(api.warehouse, "customers"))
    assert rows_of(api.get(path, params={"max_score": 0.3})) == [("a", 0.25)]
    assert rows_of(api.get(path, params={"published_after": then})) == []
    assert rows_of(api.get(path, params={"model_version": "v2"})) == []
    assert len(rows_of(api.get(path, params={"model_version": "v1"}))) == 2


def test_a_page_of_many_rows_is_made_elsewhere(api):  # noqa: F811
    """By a process of its own, with the same rows; 503 where it is told of a lost warehouse."""
    publish(api.warehouse, tick(0), SCORES)
    few, many = (api.get(PATH, params={"limit": limit}) for limit in (1000, 10_000))
    assert rows_of(few) == rows_of(many) == sorted(SCORES.items())
    assert few.headers["x-as-of"] == many.headers["x-as-of"]


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity"])
def test_pages_are_compressed_where_the_client_takes_it(api, encoding):  # noqa: F811
    """Large ones, and never against its will."""
    publish(api.warehouse, tick(0), SCORES)
    with api.get.__self__.stream("GET", PATH, headers={"Accept-Encoding": encoding}) as answer:
        raw = b"".join(answer.iter_raw())
    assert answer.headers.get("content-encoding", "identity") == encoding
    assert answer.headers["vary"] == "Accept-Encoding"
    if encoding == "gzip":
        raw = gzip.decompress(raw)
    elif encoding == "zstd":
        raw = pa.input_stream(io.BytesIO(raw), compression="zstd").read()
    assert len(raw.splitlines()) == 40
    assert json.loads(raw.splitlines()[0])["entity_id"] == "o00"


def test_a_page_that_is_known_is_not_sent_again(api):  # noqa: F811
    """Until something is published; other filters are another page."""
    publish(api.warehouse, tick(0), SCORES)
    tag = {"If-None-Match": api.get(PATH).headers["etag"]}
    assert api.get(PATH, headers=tag).status_code == 304
    assert api.get(PATH, params={"prefix": "o1"}, headers=tag).status_code == 200
    publish(api.warehouse, tick(1), {"new": 0.1})
    assert api.get(PATH, headers=tag).status_code == 200


def test_a_cursor_is_taken_for_an_hour(api):  # noqa: F811
    """After that rows may be gone; what is no cursor of the server is told as such."""
    publish(api.warehouse, tick(0), SCORES)
    url = api.get(PATH, params={"limit": 5}).links["next"]["url"]
    with clock.set_to(clock.now() + timedelta(hours=2)):
        assert "begin again" in detail(api.get(url), 410)
    for wrong in ("x", "", "bnVsbA", "eyJhIjoxfQ", "eyJiZWdhbiI6IDF9"):
        assert "begin again" in detail(api.get(PATH, params={"cursor": wrong}), 404)
    for params in ({"sort": "label"}, {"limit": 0}, {"min_score": "nan"}, {"prefix": "\0"}):
        assert detail(api.get(PATH, params=params), 422)
    assert detail(api.get(PATH, params={"published_after": "now"}), 422)
