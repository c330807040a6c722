"""Requests of many rows are added whole, once a key, and wait."""

import pytest
from sqlalchemy.exc import DBAPIError

from batch_jobs.requests import submit
from batch_jobs.requests.submit import Row, Submission
from tests.support.attempts import ask, loaded_json

ROWS = [Row("a", {"x": 1, "y": None}), Row(None, {"x": "ü\0\ud800"}), Row("a", {})]


def test_a_request_and_its_rows_are_kept_as_they_came(warehouse):
    """In their order; an entity may come twice, or not be named at all."""
    told = submit.submit(warehouse, Submission("orders", ROWS, "me", None, "sha"))
    assert (told.first, told.model, told.request_sha256) == (True, "orders", "sha")
    assert 1 <= told.request_id <= submit.LARGEST_ID
    kept = ask(warehouse, "SELECT * FROM request_rows ORDER BY row_number")
    assert [(number, entity) for _, number, entity, _ in kept] == [(1, "a"), (2, None), (3, "a")]
    features = ask(warehouse, "SELECT CAST(features AS text) FROM request_rows ORDER BY row_number")
    assert [loaded_json(told) for (told,) in features] == [row.features for row in ROWS]
    states = "SELECT state, client, rows_read, rows_scored, token FROM requests"
    assert ask(warehouse, states) == [("waiting", "me", 3, 0, None)]


@pytest.mark.failure_mode(69)
def test_a_key_that_is_known_gives_the_first_request(warehouse):
    """Of the same client only; nothing is added, and the digest tells whether it is the same."""
    first = submit.submit(warehouse, Submission("orders", ROWS, "me", "key", "sha"))
    again = submit.submit(warehouse, Submission("orders", ROWS[:1], "me", "key", "another"))
    other = submit.submit(warehouse, Submission("orders", [], "you", "key", "sha"))
    assert (again.request_id, again.first) == (first.request_id, False)
    assert (again.model, again.request_sha256) == ("orders", "sha")
    assert other.first
    assert ask(warehouse, "SELECT count(*) FROM request_rows") == [(3,)]


@pytest.mark.failure_mode(69)
def test_a_submission_whose_commit_was_not_heard_of_is_made_once(warehouse):
    """The same transaction again finds what it had added."""
    asked = Submission("orders", ROWS)
    table = submit._table(7, ROWS)
    told = [submit._submit(warehouse, asked, 7, table) for _ in range(2)]
    assert told[0] == told[1]
    assert (told[0].request_id, told[0].first) == (7, True)
    assert ask(warehouse, "SELECT count(*) FROM request_rows") == [(3,)]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([Row("a", {"x": float("nan")})], ValueError),
        ([Row("\ud800", {})], UnicodeError),
    ],
)
def test_a_request_is_there_whole_or_not_at_all(warehouse, rows, error):
    """What cannot be stored leaves nothing behind."""
    with pytest.raises(error):
        submit.submit(warehouse, Submission("orders", rows))
    assert ask(warehouse, "SELECT * FROM requests") == []


def test_a_request_has_no_row_without_itself(warehouse):
    """Nor can there be results of a request that nobody made."""
    for table, values in (
        ("request_rows", "1, 1, 'a', '{}'"),
        ("request_results", "1, 1, 'a', 0.5, NULL"),
        ("request_rejects", "1, 1, 'a', 'a reason'"),
    ):
        with pytest.raises(DBAPIError), warehouse.write() as connection:
            connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({values})")
