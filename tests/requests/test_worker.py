"""Requests of many rows are answered by the champion as a prediction run would, oldest first."""

import json
import logging
import subprocess
import sys
import threading
from contextlib import contextmanager
from queue import Queue

import pytest
from sqlalchemy import text

from batch_jobs.database.leases import new_token
from batch_jobs.database.warehouse import SCHEMA_VERSION, Warehouse
from batch_jobs.errors import ArtifactError
from batch_jobs.interval import Interval
from batch_jobs.registry import promotion
from batch_jobs.registry.champions import champion
from batch_jobs.requests import worker
from batch_jobs.requests.worker import answer
from batch_jobs.runs import jobs
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.training import train
from tests.conftest import TRAINED
from tests.example_models._tables import STEP
from tests.support.asking import rejects, results, state, submit
from tests.support.attempts import ask, forget_promotions
from tests.support.faults import PATIENCE, until

# What no database has a say in is tried with one.
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
GOOD = ("a", {"amount": 1.5, "country": "kr"})


def _answer(settings, **options):
    return answer(settings, "orders", new_token(), **options)


def test_a_request_is_answered_as_a_prediction_run_would(shop):
    """The same rows get the same scores, in more than one chunk; the answer names the version."""
    span = Interval(TRAINED, TRAINED + 20 * STEP)
    jobs.predict(shop, "orders", span)
    warehouse = Warehouse(shop.warehouse)
    sql = """SELECT o.entity_id, CAST(o.amount AS double precision), o.country, p.score
             FROM orders AS o
             JOIN current_predictions AS p ON p.entity_id = o.entity_id ORDER BY o.entity_id"""
    published = ask(warehouse, sql)
    asked = submit(
        shop, "orders", [(key, {"amount": a, "country": c}) for key, a, c, _ in published]
    )
    [answered] = _answer(shop)
    found = [(key, score) for _, key, score in results(shop, asked)]
    assert found == [(key, score) for key, *_, score in published]
    assert state(shop, asked) == ("done", 20, 20, 0)
    assert answered.model_version == champion(warehouse, "orders").version
    assert answered.as_dict()["rows_scored"] == 20
    assert _answer(shop) == []


HOSTILE = {
    "[]": "its features are not a JSON object",
    '"x"': "its features are not a JSON object",
    "null": "its features are not a JSON object",
    "{}": "amount is not given; country is not given",
    '{"amount": 1}': "country is not given",
    '{"amount": null, "country": null}': "amount fails not_nullable: nan",
    '{"amount": -1, "country": null}': "amount fails greater_than_or_equal_to(0.0): -1.0",
    '{"amount": "much", "country": null}': "amount is not a number: 'much'; amount fails",
    '{"amount": 1e999, "country": null}': "amount fails finite: inf",
    '{"amount": ' + "9" * 400 + ', "country": null}': "amount fails finite: inf",
    '{"amount": ' + "9" * 5000 + ', "country": null}': "its features cannot be read",
    '{"amount": [1], "country": null}': "amount is a list or an object",
    '{"amount": 1, "country": {"a": 1}}': "country is a list or an object",
    '{"amount": 1, "country": "\\ud800"}': "country is not text: '\\ud800'",
    '{"amount": 1, "country": 1e300}': "country is not text: 1e+300",
    '{"amount": 1, "country": "\\u0000"}': None,
    '{"amount": 1, "country": "kr", "more": [[1]]}': None,
    '{"amount": 1, "country": 5}': None,
    '{"amount": true, "country": false}': None,
    '{"amount": " 1.5 ", "country": ""}': None,
}


@pytest.mark.failure_mode(66)
def test_a_row_that_does_not_fit_is_rejected_with_its_reason(shop):
    """Whatever it holds; the rows around it are answered."""
    asked = submit(shop, "orders", [GOOD] * len(HOSTILE))
    with Warehouse(shop.warehouse).write() as connection:
        for number, features in enumerate(HOSTILE, start=1):
            connection.execute(
                text("UPDATE request_rows SET features = :features WHERE row_number = :number"),
                {"features": features, "number": number},
            )
    _answer(shop)
    bad = [reason for reason in HOSTILE.values() if reason]
    found = rejects(shop, asked)
    for number, reason in enumerate(HOSTILE.values(), start=1):
        assert found.get(number, "").startswith(reason or ""), number
        assert (number in found) == (reason is not None)
    assert state(shop, asked) == ("done", len(HOSTILE), len(HOSTILE) - len(bad), len(bad))
    assert [n for n, *_ in results(shop, asked)] == sorted(
        set(range(1, len(HOSTILE) + 1)) - set(found)
    )


@pytest.mark.failure_mode(66)
def test_an_entity_may_come_twice_or_not_be_named(shop):
    """A row is known by its number: what-if questions are asked about one entity."""
    rows = [("a", GOOD[1]), ("a", {"amount": 99, "country": None}), (None, GOOD[1])]
    asked = submit(shop, "orders", rows)
    _answer(shop)
    first, second, third = results(shop, asked)
    assert (first[:2], second[:2], third[:2]) == ((1, "a"), (2, "a"), (3, None))
    assert first[2] == third[2] != second[2]


def test_what_a_row_gets_does_not_depend_on_its_chunk(shop):
    """Nor on the other values of the column: numbers for text, text for numbers."""
    odd = [{"amount": "2.5", "country": 5}, {"amount": 3, "country": 1.5}, {"amount": True}]
    rows = [("x", {"country": None} | features) for features in odd]
    together = submit(shop, "orders", rows)
    apart = [submit(shop, "orders", [row]) for row in rows]
    _answer(shop)
    found = [score for request in apart for _, _, score in results(shop, request)]
    assert found == [score for _, _, score in results(shop, together)]


def test_an_empty_request_is_done(shop):
    """It has no row, and none is missing."""
    asked = submit(shop, "orders", [])
    _answer(shop)
    assert state(shop, asked) == ("done", 0, 0, 0)


@pytest.mark.failure_mode(67)
def test_without_a_champion_a_request_waits(shop):
    """And is answered once there is one; other models are not held up."""
    asked = submit(shop, "orders", [GOOD])
    other = submit(shop, "customers", [("c", {"visits": 1, "spent": 2})])
    warehouse = Warehouse(shop.warehouse)
    version = champion(warehouse, "orders").version
    forget_promotions(warehouse)
    promotion.promote(shop, "customers", actor="tests", reason="again")
    errors = []
    worker.answer_each(shop, told=lambda *told: errors.append(told))
    assert errors == []
    assert (state(shop, asked)[0], state(shop, other)[0]) == ("waiting", "done")
    promotion.promote(shop, "orders", version, actor="tests", reason="again")
    _answer(shop)
    assert state(shop, asked)[0] == "done"


def _change_sha256(settings, to):
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(
            text("UPDATE model_versions SET sha256 = :sha256 WHERE model = 'orders'"),
            {"sha256": to},
        )


@pytest.mark.failure_mode(67)
def test_a_champion_that_does_not_load_claims_nothing(shop):
    """The error is loud; the requests wait for a rollback, and other models are asked."""
    asked = submit(shop, "orders", [GOOD])
    other = submit(shop, "customers", [("c", {"visits": 1, "spent": 2})])
    _change_sha256(shop, "0" * 64)
    errors = []
    worker.answer_each(shop, told=lambda name, error: errors.append((name, type(error))))
    assert errors == [("orders", ArtifactError)]
    assert (state(shop, asked)[0], state(shop, other)[0]) == ("waiting", "done")


def _fail_on_poison(monkeypatch):
    """Let the model raise when it sees the amount 666, which tells a secret."""
    predict = Fitted.answers

    def answers(fitted, inputs):
        if (inputs["amount"] == 666).any():
            raise RuntimeError("password=hunter2\nand more")
        return predict(fitted, inputs)

    monkeypatch.setattr(Fitted, "answers", answers)


@pytest.mark.failure_mode(65)
def test_a_row_at_which_the_estimator_raises_is_rejected(shop, monkeypatch):
    """With the first line of the error, and no secret; the rows beside it are answered."""
    _fail_on_poison(monkeypatch)
    asked = submit(shop, "orders", [*[GOOD] * 7, ("b", {"amount": 666, "country": None})])
    other = submit(shop, "orders", [GOOD])
    one, done = _answer(shop)
    assert (one.state, state(shop, asked)) == ("done", ("done", 8, 7, 1))
    assert rejects(shop, asked) == {8: "the estimator raised RuntimeError: password=***"}
    assert (done.request_id, done.state) == (other, "done")
    assert _answer(shop) == []


@on_sqlite
@pytest.mark.parametrize("at_fault", ["sender", "model"])
def test_who_is_at_fault_is_told_apart(shop, monkeypatch, at_fault):
    """A model that answers its golden rows as ever is not: nobody is woken for what was sent."""
    predict, broken = Fitted.answers, []

    def answers(fitted, inputs):
        if broken or (inputs["amount"] == 666).any():
            broken.extend(["for good"] if at_fault == "model" else [])
            raise RuntimeError("of no use")
        return predict(fitted, inputs)

    monkeypatch.setattr(Fitted, "answers", answers)
    monkeypatch.setattr("batch_jobs.scoring.predict.FEW_REFUSED", 0)  # of chunks of seven rows
    submit(shop, "orders", [("b", {"amount": 666, "country": None})] * 7)
    [failed] = _answer(shop)
    assert (failed.state, failed.error) == ("failed", "RuntimeError: of no use")
    assert failed.of_sender == (at_fault == "sender")
    assert "of_sender" not in failed.as_dict()


@pytest.mark.failure_mode(66)
def test_an_answer_that_is_no_score_is_rejected(shop, monkeypatch):
    """As in a prediction run."""
    monkeypatch.setattr(Fitted, "scores_and_labels", lambda _, answer: _unsound(len(answer)))
    asked = submit(shop, "orders", [GOOD])
    _answer(shop)
    assert rejects(shop, asked) == {1: "the model answered nan"}


def _unsound(rows):
    import numpy as np
    import pyarrow as pa

    return np.full(rows, np.nan), pa.nulls(rows, pa.string())


@pytest.mark.failure_mode(68)
def test_what_is_not_answered_in_time_goes_on_where_it_stopped(shop):
    """With the version that has scored the rows before, whoever is the champion by then."""
    asked = submit(shop, "orders", [GOOD] * 20)
    told = []
    assert _answer(shop, stop=lambda: bool(told), progress=told.append) == []
    assert state(shop, asked) == ("waiting", 20, 7, 0)
    first = champion(Warehouse(shop.warehouse), "orders").version
    later = train.train(shop, "orders", TRAINED + STEP).version
    promotion.promote(shop, "orders", later, actor="tests", reason="newer")
    [answered] = _answer(shop, progress=told.append)
    assert (answered.model_version, answered.counts.scored, told) == (first, 20, [7, 7, 6])
    assert [number for number, *_ in results(shop, asked)] == [*range(1, 21)]
    fresh = submit(shop, "orders", [GOOD])
    [answered] = _answer(shop)
    assert (answered.request_id, answered.model_version) == (fresh, later)


@pytest.mark.failure_mode(65)
def test_a_request_without_all_of_its_rows_has_failed(shop):
    """Whoever added it did so by hand, and not in one transaction."""
    asked = submit(shop, "orders", [GOOD] * 9)
    with Warehouse(shop.warehouse).write() as connection:
        connection.execute(text("DELETE FROM request_rows WHERE row_number = 8"))
    [answered] = _answer(shop)
    assert answered.error == "it has fewer rows than the 9 it announced"
    assert state(shop, asked)[0] == "failed"


@pytest.mark.failure_mode(65)
def test_a_request_whose_results_the_database_refuses_has_failed(shop):
    """It would be refused again and again, and keep the next ones waiting for ever."""
    asked, other = (submit(shop, "orders", [GOOD]) for _ in range(2))
    with Warehouse(shop.warehouse).write() as connection:
        connection.execute(
            text("INSERT INTO request_results VALUES (:id, 1, 'x', 0.5, NULL)"), {"id": asked}
        )
    failed, done = _answer(shop)
    assert (failed.request_id, failed.state, done.request_id) == (asked, "failed", other)
    assert "unique" in failed.error.lower()


def test_no_more_requests_are_answered_than_asked_for(shop):
    """The oldest first."""
    asked = [submit(shop, "orders", [GOOD]) for _ in range(3)]
    answered = [_answer(shop, most=most) for most in (1, 2)]
    assert [[one.request_id for one in some] for some in answered] == [asked[:1], asked[1:]]


@on_sqlite
def test_where_nothing_waits_nothing_heavy_is_imported(shop):
    """A task that finds nothing to do costs a query."""
    code = f"""
import sys
from batch_jobs.requests import worker
from batch_jobs.settings import Settings
settings = Settings({shop.warehouse!r}, {shop.model_store!r}, {shop.models!r})
assert worker.answer(settings, "orders", "t") == []
print([name for name in ("pandas", "numpy", "sklearn", "pyarrow") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done.stderr


@contextmanager
def _following(settings, names=None):
    """What is told by a thread that answers as requests come; and how to wake it."""
    told, stop, wake = Queue(), threading.Event(), threading.Event()
    thread = threading.Thread(
        target=worker.follow, args=(settings, names, stop, wake), kwargs={"told": told.put}
    )
    thread.start()
    try:
        yield told, wake
    finally:
        stop.set()
        wake.set()
        thread.join(30)
        assert not thread.is_alive()


def test_requests_are_answered_as_they_come(shop):
    """Of every model; a stop ends it at once."""
    with _following(shop) as (told, wake):
        for model, features in (("orders", GOOD[1]), ("customers", {"visits": 1, "spent": 2})):
            asked = submit(shop, model, [("a", features)])
            wake.set()
            assert told.get(timeout=PATIENCE).request_id == asked


@on_sqlite
def test_what_fails_is_told_once_and_tried_again(shop, caplog):
    """While it answers as requests come; nothing else ends it."""
    known = champion(Warehouse(shop.warehouse), "orders").sha256
    asked = submit(shop, "orders", [GOOD])

    _change_sha256(shop, "0" * 64)
    with caplog.at_level(logging.ERROR), _following(shop) as (told, wake):
        for _ in range(2):
            other = submit(shop, "customers", [("c", {"visits": 1, "spent": 2})])
            wake.set()
            assert told.get(timeout=PATIENCE).request_id == other
        _change_sha256(shop, known)
        wake.set()
        assert told.get(timeout=PATIENCE).request_id == asked
    [told] = [record.message for record in caplog.records]
    assert told.startswith("requests of orders are not answered: ArtifactError")


def test_a_worker_touches_nothing_once_a_newer_release_has_changed_the_schema(shop, caplog):
    """It has answered before, and would go on for days; it goes on when it is of that release."""
    warehouse = Warehouse(shop.warehouse)
    with caplog.at_level(logging.ERROR), _following(shop, ["orders"]) as (told, wake):
        first = submit(shop, "orders", [GOOD])
        wake.set()
        assert told.get(timeout=PATIENCE).request_id == first
        _change_version(warehouse, SCHEMA_VERSION + 1)
        later = submit(shop, "orders", [GOOD])
        wake.set()
        until(lambda: "WarehouseVersionError" in caplog.text, "the worker to refuse")
        assert ask(warehouse, "SELECT request_id, state FROM requests ORDER BY created_at") == [
            (first, "done"),
            (later, "waiting"),
        ]
        _change_version(warehouse, SCHEMA_VERSION)
        wake.set()
        assert told.get(timeout=PATIENCE).request_id == later


def _change_version(warehouse, version):
    with warehouse.write() as connection:
        connection.execute(text("UPDATE schema_version SET version = :v"), {"v": version})


def test_an_answer_can_be_told_as_json(shop):
    """Plain values under the names of the table."""
    asked = submit(shop, "orders", [GOOD])
    [answered] = _answer(shop)
    told = json.loads(json.dumps(answered.as_dict()))
    assert (told["request_id"], told["state"], told["rows_read"]) == (asked, "done", 1)
    assert str(answered).endswith("1 rows scored, 0 rejected")
