"""A version stands on its own: it is scored as it was trained, whatever its model file says now."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from batch_jobs import Category, Number
from batch_jobs.catalog import load_model
from batch_jobs.database.leases import new_token
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError
from batch_jobs.interval import Interval
from batch_jobs.registry import champions, promotion, versions
from batch_jobs.registry.loading import as_trained, load_version
from batch_jobs.requests.worker import answer
from batch_jobs.runs import backfills, jobs
from batch_jobs.training import train
from tests.support.asking import results, submit
from tests.support.attempts import ask

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)
LATER = TRAINED + timedelta(hours=12)
HOUR = Interval(TRAINED, TRAINED + timedelta(hours=1))
ORDERS = load_model("orders", ("tests.example_models",))
# What no database has a say in is tried with one.
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
QUERY = ORDERS.features_query


def of_amounts():
    """An estimator that looks at nothing else."""
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    return make_pipeline(make_column_transformer(("passthrough", ["amount"])), LogisticRegression())


EDITS = {
    "another unit": {"features_query": QUERY.replace("amount,", "amount / 100 AS amount,")},
    "a feature more": {
        "features_query": QUERY.replace("country", "country, colour"),
        "features": {**ORDERS.features, "colour": Category()},
    },
    "a feature less": {
        "features_query": QUERY.replace(", country", ""),
        "estimator": of_amounts,
        "features": {"amount": ORDERS.features["amount"]},
    },
    "another name": {
        "features_query": QUERY.replace("country", "country AS land"),
        "estimator": of_amounts,
        "features": {"amount": ORDERS.features["amount"], "land": Category()},
    },
    "another order": {"features": dict(reversed(ORDERS.features.items()))},
    "other limits": {"features": {**ORDERS.features, "amount": Number(ge=90)}},
    "another mode": {"mode": "replace"},
    "a query that is none": {"features_query": "SELECT * FROM nowhere"},
}


def _edited(settings, **fields):
    """The deployment, whose model file says something else by now."""
    return replace(settings, models=(ORDERS.model_copy(update=fields), *settings.models))


def _scores(settings):
    query = "SELECT entity_id, score FROM current_predictions ORDER BY entity_id"
    return ask(Warehouse(settings.warehouse), query)


def _champion(settings):
    return champions.champion(Warehouse(settings.warehouse), "orders")


def _change(settings, sql):
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(text(sql))


@pytest.mark.parametrize("edit", EDITS)
def test_a_champion_is_scored_by_its_own_query_and_contract(shop, edit):
    """Cut into parts, as one, and again: the same rows and scores as before the edit."""
    edited = _edited(shop, **EDITS[edit])
    jobs.predict(shop, "orders", HOUR)
    before = _scores(shop)
    assert len(before) == 6
    for parts in (1, 3):
        run = jobs.predict(edited, "orders", HOUR, parts=parts, force=True)
        assert (run.state, run.model_version) == ("published", _champion(shop).version)
        assert _scores(shop) == before


@on_sqlite
@pytest.mark.parametrize("edit", EDITS)
def test_a_backfill_and_late_rows_are_scored_as_the_champion_was_trained(shop, edit):
    """An order that comes late is found by the champion's query, too."""
    edited = _edited(shop, **EDITS[edit])
    _change(shop, "CREATE TABLE late AS SELECT * FROM orders WHERE entity_id = 'order-02883'")
    _change(shop, "DELETE FROM orders WHERE entity_id = 'order-02883'")
    assert {run.state for run in backfills.backfill(edited, "orders", HOUR)} == {"published"}
    _change(shop, "INSERT INTO orders SELECT * FROM late")
    backfills.backfill(edited, "orders", HOUR)
    assert "order-02883" in dict(_scores(shop))
    found = dict(_scores(shop))
    backfills.backfill(shop, "orders", HOUR, force=True)
    assert dict(_scores(shop)) == found


@on_sqlite
@pytest.mark.parametrize("edit", ["another name", "a feature more"])
def test_requests_are_answered_as_the_champion_was_trained(shop, edit):
    """Whoever asks gives the features that the champion knows."""
    request = submit(shop, "orders", [("a", {"amount": 50, "country": "kr"})])
    [done] = answer(_edited(shop, **EDITS[edit]), "orders", new_token())
    assert (done.state, done.counts.scored, len(results(shop, request))) == ("done", 1, 1)


@pytest.mark.parametrize("edit", ["another unit", "a feature less", "another name"])
def test_challenger_and_champion_are_compared_each_with_its_own_features(shop, edit):
    """On the same entities: the champion is as good as it was before the edit."""
    usual = train.train(shop, "orders", LATER).gate
    edited = train.train(_edited(shop, **EDITS[edit]), "orders", LATER).gate
    assert edited["metrics"]["champion"] == pytest.approx(usual["metrics"]["champion"])
    assert edited["champion"] == _champion(shop).version
    assert not edited["undecided"]


@on_sqlite
def test_a_promoted_version_is_scored_by_what_the_file_said_when_it_was_trained(shop):
    """From its promotion on; the one before it is rolled back to with its own query."""
    edited, first = _edited(shop, **EDITS["another unit"]), _champion(shop)
    jobs.predict(shop, "orders", HOUR)
    before = dict(_scores(shop))
    version = train.train(edited, "orders", LATER)
    promotion.promote(edited, "orders", version.version, actor="ann", reason="new unit")
    jobs.predict(edited, "orders", HOUR, force=True)
    assert dict(_scores(shop)) != before
    backfills.rollback(edited, "orders", first.version, actor="ann", reason="old unit")
    assert dict(_scores(shop)) == before


def test_a_champion_whose_columns_are_gone_is_not_replaced_unheard(shop):
    """The gate tells what is gone; a name and a reason promote, and nothing else does."""
    _change(shop, "ALTER TABLE orders RENAME COLUMN country TO land")
    query = QUERY.replace("country", "land")
    edited = _edited(shop, **{**EDITS["another name"], "features_query": query})
    champion, challenger = _champion(shop), train.train(edited, "orders", LATER)
    [reason] = challenger.gate["reasons"]
    assert reason.startswith(f"it cannot be compared with the champion {champion.version}: ")
    assert "country" in reason
    answer = promotion.promote(edited, "orders", actor="dag")
    assert (answer.outcome, answer.champion) == ("kept", champion.version)
    assert f"`batch-jobs promote orders {challenger.version} --reason …`" in answer.reason
    why = "the column was renamed"
    promotion.promote(edited, "orders", challenger.version, actor="ann", reason=why)
    assert _champion(shop) == challenger


@on_sqlite
def test_what_the_gate_cannot_decide_a_person_approves(shop):
    """The approval is recorded with what nobody could compare."""
    _change(shop, "ALTER TABLE orders RENAME COLUMN country TO land")
    edited = _edited(shop, **EDITS["a feature less"])
    challenger = train.train(edited, "orders", LATER)
    assert promotion.candidate(edited, "orders") == (challenger, True)
    answer = promotion.promote(edited, "orders", challenger.version, actor="dag", approved_by="ann")
    assert (answer.outcome, answer.reason[:16]) == ("promoted", "approved by ann;")


@on_sqlite
@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({}, None),
        (EDITS["another unit"], "differs from that of {} in features_query; {} goes on"),
        (EDITS["a feature more"], "in features_query, features (colour); "),
        (EDITS["another order"], "in features (their order); "),
        ({"positive": "0"}, "in positive; "),
        ({"schedule": "0 * * * *"}, None),
    ],
)
def test_it_is_told_how_the_file_differs_from_the_champions(shop, edit, told):
    """How a model is served may change at any time; what it is trained for is named."""
    champion, model = _champion(shop), ORDERS.model_copy(update={**edit, "file": ""})
    found = versions.file_differs(model, champion)
    if told is None:
        assert found is None
    else:
        assert told.format(champion.version, champion.version) in found


@on_sqlite
def test_an_estimator_that_was_edited_is_told_by_the_files_hash(shop, tmp_path, monkeypatch):
    """Neither a query nor a feature has changed; since when, the file itself tells."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_package").mkdir()
    (tmp_path / "edited_package" / "__init__.py").touch()
    file = tmp_path / "edited_package" / "orders.py"
    file.write_text("from tests.example_models.orders import model")
    settings = replace(shop, models=("edited_package",))
    model, version = (
        load_model("orders", settings.models),
        train.train(settings, "orders", LATER),
    )
    assert versions.file_differs(model, version) is None
    file.write_text("from tests.example_models.orders import model  # and more")
    told = versions.file_differs(model, version)
    assert f"from that of {version.version}, though in no query and no feature, since 20" in told


@on_sqlite
def test_the_manifest_tells_what_the_estimator_has_learnt(shop):
    """Its categories and classes, and which class the score is the probability of."""
    manifest = _champion(shop).manifest
    assert manifest["categories"] == {"country": ["kr", "us"]}
    assert (manifest["classes"], manifest["positive"]) == (["0", "1"], "1")
    fitted = load_version(shop, ORDERS, _champion(shop))
    assert (fitted.classes, fitted.positive) == (("0", "1"), "1")


@on_sqlite
@pytest.mark.parametrize(
    "contract", [{}, {"features": 7}, {"features": {"amount": {"kind": "colour"}}}]
)
def test_a_contract_that_cannot_be_read_is_named(shop, contract):
    """Nothing is guessed of it."""
    champion = _champion(shop)
    odd = replace(champion, manifest={**champion.manifest, "contract": contract})
    with pytest.raises(ArtifactError, match="has no readable contract; roll back to another"):
        as_trained(shop, ORDERS, odd)
