"""Requests of many rows over topics: a message is one request, answered once in the warehouse."""

import json
from threading import Event
from uuid import uuid4

import pytest

from batch_jobs import failpoints
from batch_jobs.catalog import load_model
from batch_jobs.database.leases import new_token
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError
from batch_jobs.requests import messages, topics, worker
from batch_jobs.settings import KafkaSettings
from tests.support.attempts import ask
from tests.support.kafka_cluster import Cluster

on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
SENT = "SELECT idempotency_key, state FROM requests ORDER BY created_at"


@pytest.fixture(scope="module")
def cluster():
    """One for all tests of this file, each of which has topics of its own."""
    return Cluster()


@pytest.fixture
def going(shop, cluster, tmp_path):
    """Exchange until so many answers are sent, while a worker answers: `going(answers, …)`."""
    kafka = KafkaSettings(str(cluster.properties(tmp_path)))
    model = load_model("orders", shop.models)
    name = uuid4().hex
    between = topics.Topics(model, f"{name}-requests", f"{name}-answers", f"{name}-group")

    def go(answers, scoring=True):
        stop, lines = Event(), []

        def told(line):
            lines.append(line)
            if len(lines) >= answers:
                stop.set()

        def turn():
            if scoring:
                worker.answer(shop, "orders", new_token())

        topics.exchange(Warehouse(shop.warehouse), kafka, between, stop, told=told, alive=turn)
        return lines

    go.topics = between
    yield go
    failpoints.arm(None)


def _request(*rows):
    return json.dumps(
        {"rows": [dict(zip(("amount", "country"), row, strict=True)) for row in rows]}
    )


class Crash(BaseException):
    """The process is gone."""


def _crash_at(name):
    def act(reached):
        if reached == name:
            failpoints.arm(None)
            raise Crash

    failpoints.arm(act)


def test_what_comes_is_answered_in_its_order_by_the_champion(shop, cluster, going):
    """Scored, rejected or no request at all; an answer has the key and the place of its request."""
    between = going.topics
    cluster.send(
        between.requests, _request((1, "DE"), (-1, None)), "{", _request((2, None)), key="k"
    )
    lines = going(3)
    places = [f"{between.requests}:0:{offset}" for offset in range(3)]
    first, second, third = cluster.read(between.answers, 3)
    assert [line.rpartition(": ")[0].split(": ")[0] for line in lines] == places
    assert [(key, headers) for key, headers, _ in (first, second, third)] == [
        (b"k", {"request": place.encode()}) for place in places
    ]
    told = first[2]
    assert (told["id"], told["model"], told["state"], told["part"]) == (
        places[0],
        "orders",
        "done",
        1,
    )
    assert (told["rows_read"], told["rows_scored"], told["rows_rejected"]) == (2, 1, 1)
    assert [row["row_number"] for row in told["results"]] == [1]
    assert [row["row_number"] for row in told["rejected"]] == [2]
    assert second[2]["error"].startswith("the message: it is no JSON")
    assert (third[2]["state"], third[2]["model_version"]) == ("done", told["model_version"])
    assert cluster.committed(between.requests, between.group) == 3


@pytest.mark.failure_mode(86)
@on_sqlite
@pytest.mark.parametrize(("place", "answers"), [("exchange.submitted", 1), ("exchange.sent", 2)])
def test_a_message_that_comes_again_is_the_same_request(shop, cluster, going, place, answers):
    """After a crash between queue and answer, and one between answer and commit.

    Nothing is scored twice; an answer that is sent twice is the same one.
    """
    between = going.topics
    cluster.send(between.requests, _request((1, "DE")))
    _crash_at(place)
    with pytest.raises(Crash):
        going(1)
    assert cluster.committed(between.requests, between.group) < 0
    going(1)
    sent = cluster.read(between.answers, answers)
    assert cluster.count(between.answers) == answers
    assert all(one == sent[0] for one in sent)
    wanted = [(f"{between.requests}:0:0", "done")]
    assert ask(Warehouse(shop.warehouse), SENT) == wanted
    assert ask(Warehouse(shop.warehouse), "SELECT count(*) FROM request_results") == [(1,)]
    assert cluster.committed(between.requests, between.group) == 1


@on_sqlite
def test_an_offset_that_was_another_request_before_is_told(shop, cluster, going):
    """The topic was made anew under the same name: its answers would be those of another one."""
    between = going.topics
    place = messages.Place(between.requests, 0, 0)
    before = messages.submission_of(
        between.model, place, _request((7, None)).encode(), f"kafka {between.group}"
    )
    topics.submit(Warehouse(shop.warehouse), before)
    cluster.send(between.requests, _request((1, "DE")))
    going(1)
    ((_, _, told),) = cluster.read(between.answers, 1)
    assert told["state"] == "failed"
    assert "was another request before, so the topic was made anew" in told["error"]


@on_sqlite
def test_an_answer_of_many_rows_comes_in_parts(shop, cluster, going, monkeypatch):
    """No message is larger than brokers take."""
    monkeypatch.setattr(messages, "BYTES_A_MESSAGE", 170)
    cluster.send(going.topics.requests, _request(*[(number, None) for number in range(5)]))
    going(1)
    parts = [told for _, _, told in cluster.read(going.topics.answers, 3)]
    assert [(told["part"], told["parts"]) for told in parts] == [(1, 3), (2, 3), (3, 3)]
    numbers = [row["row_number"] for told in parts for row in told["results"]]
    assert numbers == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('{"rows": [{"amount": NaN, "country": null}]}', "NaN is no number of JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("[]", 'it must be {"rows": '),
        ('{"rows": []}', "with a row at least"),
        ('{"rows": [{}], "model": "orders"}', 'it must be {"rows": '),
        ('{"rows": [7]}', "row 1 is no object"),
        ('{"rows": [{"amount": 1, "colour": 2}]}', "row 1 lacks: country; row 1 has what orders"),
        ('{"rows": [{"amount": 1, "country": null, "entity_id": 7}]}', "entity_id that is no text"),
        ('{"rows": [{"amount": 1, "country": null, "entity_id": "a\\u0000"}]}', "that is no text"),
        ('{"rows": [{"amount": 1, "country": null, "entity_id": "\\ud800"}]}', "that is no text"),
    ],
    ids=range(10),
)
def test_what_is_no_request_is_told(value, words):
    """In one line, with the row."""
    model = load_model("orders", ("tests.example_models",))
    with pytest.raises(messages.ContractError) as caught:
        messages.submission_of(model, messages.Place("t", 0, 0), value.encode(), "c")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_how_kafka_is_reached_is_told_by_one_variable(tmp_path):
    """Addresses, or a file; what is wrong with it is told without what it holds."""
    with pytest.raises(ConfigurationError, match="not set: BATCH_JOBS_KAFKA"):
        KafkaSettings.from_environ({})
    given = KafkaSettings.from_environ({"BATCH_JOBS_KAFKA": "a:9092,b:9092"})
    assert given.properties() == {"bootstrap.servers": "a:9092,b:9092"}
    with pytest.raises(ConfigurationError, match="kafka cannot be read: No such file"):
        KafkaSettings(f"{tmp_path}/kafka").properties()
    (tmp_path / "kafka").write_text("# a\nsasl.password=a=b\nhunter2\n")
    with pytest.raises(ConfigurationError, match=r"line 3 of .*/kafka is no name=value") as caught:
        KafkaSettings(f"{tmp_path}/kafka").properties()
    assert "hunter2" not in str(caught.value)


@on_sqlite
def test_a_property_that_is_none_is_one_clear_error(shop, tmp_path):
    """Before anything is asked."""
    (tmp_path / "kafka").write_text("bootstrap.servers=a:1\ncolour=red\n")
    between = topics.Topics(load_model("orders", shop.models), "a", "b", "c")
    with pytest.raises(ConfigurationError, match=r"BATCH_JOBS_KAFKA: .*colour"):
        topics.exchange(
            Warehouse(shop.warehouse), KafkaSettings(f"{tmp_path}/kafka"), between, Event()
        )
