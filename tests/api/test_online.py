"""Computing predictions over HTTP: by the champion, kept, once a key; on both databases."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings, strategies
from pydantic import ValidationError
from sqlalchemy import bindparam, text

from batch_jobs.catalog import load_model
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel, Category, Number
from batch_jobs.registry import promotion
from batch_jobs.registry.champions import champion
from batch_jobs.registry.deployment import Deployment
from batch_jobs.registry.store import ARTIFACT
from batch_jobs.runs import jobs
from batch_jobs.scoring.contract import check_features
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.training import train
from prediction_api.champions import MOST_ASKED, UNTRIED, Champion, Scored
from prediction_api.config import Config
from prediction_api.main import create_app
from prediction_api.online import WINNERS, Asked
from prediction_api.problems import UnavailableError
from prediction_api.schemas import features_of, request_of
from tests.conftest import TRAINED
from tests.support import api
from tests.support.api import KEY, OTHER_KEY, bearer, detail
from tests.support.attempts import ask, forget_promotions

ORDER = {"amount": 90.0, "country": "kr"}
HOUR = timedelta(hours=1)
CSV = {"Content-Type": "text/csv"}


@pytest.fixture
def client(shop):
    """A client of a server of the shop, whose default model is `orders`."""
    with api.serving(shop, model="orders") as made:
        yield made


def kept(shop):
    """How many answers are kept."""
    [(count,)] = ask(Warehouse(shop.warehouse), "SELECT count(*) FROM online_predictions")
    return count


def test_an_answer_is_what_a_run_would_have_published(shop, client):
    """The same score and label for the same features, of both models, and the version with it."""
    warehouse = Warehouse(shop.warehouse)
    day = Interval(TRAINED, TRAINED + HOUR)
    double = "CAST(s.{} AS DOUBLE PRECISION)"  # or PostgreSQL would round it for the eye
    columns = {"orders": f"{double.format('amount')}, s.country", "customers": "s.visits"}
    for name, features in columns.items():
        run = jobs.predict(shop, name, day)
        published = ask(
            warehouse,
            f"SELECT {features}, p.score, p.label FROM {name} AS s "
            f"JOIN current_predictions AS p ON p.entity_id = s.entity_id AND p.model = '{name}'",
        )
        assert published
        for *values, score, label in published[:8]:
            told = client.post(f"/models/{name}/predict", json={"features": values}).json()
            assert told["score"] == pytest.approx(score, rel=1e-12)
            assert told["result"] == (told["score"] if label is None else label)
            assert (told["model"], told["model_version"]) == (name, run.model_version)
            assert list(told["features"].values()) == values


def test_what_nobody_was_told_is_404(client):
    """Ids are not to be guessed, and have their bounds."""
    assert detail(client.get("/predict/1"), 404) == "there is no prediction of this id"
    assert detail(client.get("/models/unknown/predict/1"), 404)
    for odd in ("0", "-1", "x", str(2**53), str(2**63), "1.5", "1e3"):
        assert detail(client.get(f"/predict/{odd}"), 422)


def test_a_request_that_is_repeated_gets_the_first_answer(shop, client):
    """Also after another version was promoted, and in whatever form the features are given."""
    headers = {"Idempotency-Key": "order-1"}
    first = client.post("/predict", json={"features": ORDER}, headers=headers).json()
    train.train(shop, "orders", TRAINED + timedelta(hours=6))
    promotion.promote(shop, "orders", actor="tests", reason="newer")
    again = client.post("/predict", json={"features": [90, "kr"]}, headers=headers)
    assert again.json() == first
    assert kept(shop) == 1
    other = client.post("/predict", json={"features": [1, "us"]}, headers=headers)
    assert "used for another request" in detail(other, 409)
    elsewhere = client.post("/models/customers/predict", json={"features": [1]}, headers=headers)
    assert "used for another request" in detail(elsewhere, 409)


def test_a_key_that_comes_many_times_at_once_gets_one_answer(shop, client):
    """One row is kept, and everybody is told of it; others are answered meanwhile."""
    headers = {"Idempotency-Key": "order-1"}

    def post(number):
        body = {"features": ORDER if number % 2 else {"amount": number, "country": None}}
        return client.post("/predict", json=body, headers=headers if number % 2 else {}).json()

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(post, range(32)))
    assert len({one["id"] for one in told[1::2]}) == 1
    assert len({one["id"] for one in told[::2]}) == 16
    assert [one["features"]["amount"] for one in told[::2]] == list(range(0, 32, 2))
    assert kept(shop) == 17


def test_who_has_another_key_does_not_see_what_was_computed(shop):
    """As of a request of many rows: 404, as if there were none."""
    with api.serving(shop, model="orders", keys=(KEY, OTHER_KEY), hosts=("*",)) as client:
        told = client.post("/predict", json={"features": ORDER}, headers=bearer(KEY)).json()
        path = f"/predict/{told['id']}"
        assert client.get(path, headers=bearer(KEY)).json() == told
        assert "no prediction of this id" in detail(
            client.get(path, headers=bearer(OTHER_KEY)), 404
        )


def test_who_has_another_key_has_other_requests(shop):
    """An Idempotency-Key tells nobody what somebody else has asked."""
    headers = {"Idempotency-Key": "1"}
    with api.serving(shop, model="orders", keys=(KEY, OTHER_KEY), hosts=("*",)) as client:
        ids = {
            client.post("/predict", json={"features": ORDER}, headers=headers | bearer(key)).json()[
                "id"
            ]
            for key in (KEY, OTHER_KEY, KEY)
        }
        assert client.post("/predict", json={"features": ORDER}).status_code == 401
    assert len(ids) == 2


def test_a_promotion_is_followed_without_a_restart(shop, monkeypatch):
    """The next answers are the new version's, and the metrics say so."""
    monkeypatch.setattr("prediction_api.champions.FOLLOW_SECONDS", 0.01)
    followed = Event()
    with api.serving(shop, model="orders") as client:
        first = client.post("/predict", json={"features": ORDER}).json()["model_version"]
        later = train.train(shop, "orders", TRAINED + timedelta(hours=6)).version
        promotion.promote(shop, "orders", actor="tests", reason="newer")
        while f'version="{later}"' not in client.get("/metrics").text:
            assert not followed.wait(0.01)
        second = client.post("/predict", json={"features": ORDER}).json()["model_version"]
    assert (first != later, second) == (True, later)


EDITS = {
    "another order": lambda features: dict(reversed(features.items())),
    "a feature more": lambda features: features | {"voucher": Category()},
    "a feature less": lambda features: {"amount": features["amount"]},
    "other limits": lambda features: features | {"amount": Number(le=10)},
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_champion_is_asked_for_what_it_was_trained_on(shop, client, edit):
    """Whatever the file of its model says since: in each way to ask, and in the schema."""
    asked = {"features": list(ORDER.values())}
    before = client.post("/predict", json=asked).json()
    original = load_model("orders", shop.models)
    edited = original.model_copy(update={"features": edit(original.features)})
    settings = replace(shop, models=(edited, *shop.models))
    with api.serving(settings, model="orders") as other:
        told = other.post("/predict", json=asked).json()
        assert (told["score"], told["features"]) == (before["score"], ORDER)
        assert other.post("/predict", json={"features": ORDER}).json()["score"] == before["score"]
        assert other.get("/openapi.json").json() == client.get("/openapi.json").json()
        sent = [
            other.post("/requests", json={"rows": [ORDER]}),
            other.post("/requests", content="amount,country\n90,kr\n", headers=CSV),
        ]
        assert [one.status_code for one in sent] == [202, 202]
        assert other.post("/models/customers/predict", json={"features": [1]}).status_code == 200


def test_what_was_asked_of_another_contract_is_not_answered(shop):
    """A promotion came between; the same features may mean others by their place."""
    features = load_model("orders", shop.models).features
    asked = Asked("orders", ("kr", 90.0), dict(reversed(features.items())))

    async def ask_late():
        app = create_app(Config(settings=shop, model="orders"))
        async with app.router.lifespan_context(app):
            await app.state.shared.online.ask(asked)

    with pytest.raises(UnavailableError, match="was promoted just now"):
        asyncio.run(ask_late())


def test_a_promotion_to_other_features_is_followed(shop, monkeypatch):
    """Without a restart: what is asked, and the schema, are those of the champion."""
    monkeypatch.setattr("prediction_api.champions.FOLLOW_SECONDS", 0.01)
    original = load_model("orders", shop.models)
    turned = original.model_copy(update={"features": dict(reversed(original.features.items()))})
    settings = replace(shop, models=(turned, *shop.models))
    first, waiting = champion(Warehouse(shop.warehouse), "orders").version, Event()
    with api.serving(settings, model="orders") as client:
        assert client.post("/predict", json={"features": [90, "kr"]}).status_code == 200
        train.train(settings, "orders", TRAINED + timedelta(hours=6))
        promotion.promote(settings, "orders", actor="tests", reason="newer")
        while client.post("/predict", json={"features": ["kr", 90]}).status_code != 200:
            assert not waiting.wait(0.01)
        assert client.post("/predict", json={"features": [90, "kr"]}).status_code == 422
        promotion.rollback(settings, "orders", first, actor="tests", reason="older")
        while client.post("/predict", json={"features": [90, "kr"]}).status_code != 200:
            assert not waiting.wait(0.01)


def test_a_version_that_cannot_be_loaded_leaves_the_one_before(shop, caplog):
    """Its file was changed: nothing of it is loaded, and it is told once."""
    warehouse = Warehouse(shop.warehouse)
    first = champion(warehouse, "orders").version

    async def promote_a_damaged_one():
        app = create_app(Config(settings=shop, model="orders"))
        async with app.router.lifespan_context(app):
            champions = app.state.shared.champions
            later = train.train(shop, "orders", TRAINED + timedelta(hours=6)).version
            promotion.promote(shop, "orders", actor="tests", reason="newer")
            path = Path(shop.model_store, "orders", later, ARTIFACT)
            content = await asyncio.to_thread(_flip, path)
            await champions.refresh()
            await champions.refresh()
            assert champions.get("orders").version == first
            await asyncio.to_thread(path.write_bytes, content)
            await champions.refresh()
            return champions.get("orders").version == later

    assert asyncio.run(promote_a_damaged_one())
    assert caplog.text.count("orders cannot be loaded") == 1


def _flip(path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    return content


def test_an_answer_that_cannot_be_kept_is_none(shop):
    """503, and the next one is answered when the table is back; nothing is made up meanwhile."""
    warehouse = Warehouse(shop.warehouse)
    with api.serving(shop, model="orders") as client:
        for names, status in (("online_predictions TO x", 503), ("x TO online_predictions", 200)):
            with warehouse.write() as connection:
                connection.exec_driver_sql(f"ALTER TABLE {names.replace(' TO', ' RENAME TO')}")
            answer = client.post("/predict", json={"features": ORDER})
            assert answer.status_code == status
            assert ("retry-after" in answer.headers) == (status == 503)


def test_features_that_the_estimator_cannot_take_are_told_as_such(client):
    """Its own error is in the log; whoever asks at the same time is answered."""

    def post(number):
        value = None if number % 2 else number
        return client.post("/models/customers/predict", json={"features": [value]})

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(16)))
    for number, answer in enumerate(answers):
        if number % 2:
            assert detail(answer, 409) == "customers has no sound answer to these features"
        else:
            assert answer.json()["features"] == {"visits": number}


def test_a_model_without_a_champion_says_so(shop):
    """409, for nothing is wrong with the server; it starts all the same."""
    forget_promotions(Warehouse(shop.warehouse))
    with api.serving(shop, model="orders") as client:
        answer = client.post("/predict", json={"features": ORDER})
        assert detail(answer, 409) == "orders has no champion yet"


WORDS = strategies.text(alphabet="ab\u00e9\ud800\x00 ", max_size=3)
NUMBERS = strategies.one_of(
    strategies.floats(), strategies.integers(), strategies.just(10**400), strategies.just(0)
)
VALUES = strategies.one_of(strategies.none(), NUMBERS)
CONTRACT = BatchModel(
    description="Every kind of feature.",
    name="every_kind",
    features_query="SELECT :start, :end",
    labels_query="SELECT :start, :end",
    features={
        "number": Number(),
        "bounded": Number(ge=-1, le=1, nullable=False),
        "word": Category(nullable=False),
        "choice": Category(one_of=("a", "b")),
    },
    estimator=dict,
)
TYPED = request_of(CONTRACT)


@settings(max_examples=150, deadline=None)
@given(
    strategies.tuples(
        VALUES, VALUES, WORDS | strategies.none(), strategies.sampled_from(["a", "b", "c", None])
    )
)
def test_the_same_values_fit_a_request_and_a_run(values):
    """What a body's type lets pass, the check of a run lets pass, and no other value."""
    import pandas as pd

    frame = pd.DataFrame(
        {"entity_id": ["x"], "as_of": [TRAINED]}
        | {
            name: pd.Series([value], dtype="object")
            for name, value in zip(CONTRACT.features, values, strict=True)
        }
    )
    fits = not check_features(CONTRACT, frame, Interval(TRAINED, TRAINED + HOUR)).rejected
    try:
        taken = features_of(TYPED.model_validate({"features": list(values)}))
    except ValidationError:
        assert not fits
    else:
        assert fits
        # A whole number beyond 2^53 is the float next to it, as in a run.
        assert taken == tuple(float(one) if isinstance(one, int) else one for one in values)


def test_an_idempotency_key_is_looked_up_by_its_client(warehouse):
    """In the index, which begins with the client; without it all rows were read while writing."""
    explain = "EXPLAIN QUERY PLAN" if warehouse.database.name == "sqlite" else "EXPLAIN"
    asked = text(f"{explain} {WINNERS.text}").bindparams(bindparam("keys", expanding=True))
    with warehouse.write() as connection:
        if explain == "EXPLAIN":  # of an empty table, all rows are read at once
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        found = connection.execute(asked, {"client": "a", "keys": ["1", "2"]})
        plan = " ".join(map(str, found))
    assert "client" in plan.partition("Index Cond" if explain == "EXPLAIN" else "INDEX")[2]


@pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
@pytest.mark.parametrize("bad", [1, 2, 200])
def test_rows_that_the_estimator_refuses_cost_the_others_few_questions(shop, monkeypatch, bad):
    """They are found by halving; of very many at once, some have to be sent again."""
    version = champion(Warehouse(shop.warehouse), "orders").version
    fitted = Deployment(shop).predictor("orders", version).fitted
    answers, questions = Fitted.answers, []

    def refuse(self, inputs):
        questions.append(len(inputs))
        if (inputs["amount"] == 666).any():
            raise ValueError("Found unknown categories")
        return answers(self, inputs)

    monkeypatch.setattr(Fitted, "answers", refuse)
    rows = [(666.0 if place % (200 // bad) == 0 else 1.0, None) for place in range(200)]
    bad_places = {place for place, row in enumerate(rows) if row[0] == 666.0}
    found = Champion("orders", version, fitted).answer(rows)
    assert len(questions) <= MOST_ASKED
    assert not any(isinstance(found[place], Scored) for place in bad_places)
    if bad < 200:
        assert all(isinstance(one, Scored) for n, one in enumerate(found) if n not in bad_places)
        assert [found[place] for place in bad_places] == [None] * len(bad_places)
    else:
        assert UNTRIED in found
    assert Champion("orders", version, fitted).answer(rows[:1]) == [None]
