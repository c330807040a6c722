"""A version is trained, evaluated and promoted; whatever fails, the champion goes on serving."""

import hashlib
import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from batch_jobs import Number
from batch_jobs.catalog import load_model
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import (
    ArtifactError,
    ConfigurationError,
    ContractError,
    IntervalError,
    NoChampionError,
    TrainingDataError,
    UnknownModelError,
)
from batch_jobs.registry import champions, promotion, versions
from batch_jobs.registry.loading import load_version
from batch_jobs.registry.store import ModelStore, serialize
from batch_jobs.registry.versions import whole_manifest
from batch_jobs.training import train
from tests.support.attempts import ask, forget_promotions

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)
LATER = TRAINED + timedelta(hours=6)
EARLIER = TRAINED - timedelta(hours=6)
# What no database has a say in is tried with one.
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


def _change(settings, sql):
    with Warehouse(settings.warehouse).write() as connection:
        return connection.execute(text(sql))


def _champion(settings, name="orders"):
    return champions.champion(Warehouse(settings.warehouse), name)


def _artifact(settings, version):
    return Path(settings.model_store) / version.model / version.version / "model.joblib"


def _recorded(settings):
    return ask(
        Warehouse(settings.warehouse),
        "SELECT version, action, reason FROM promotions "
        "WHERE model = 'orders' ORDER BY promotion_id",
    )[1:]


@pytest.fixture
def challenger(shop):
    """A second version of `orders`, trained on six hours more, and not promoted."""
    return train.train(shop, "orders", LATER)


@pytest.fixture
def refused(shop):
    """A version that learnt from turned labels, so that the gate keeps it out."""
    _change(shop, "UPDATE orders SET returned = 1 - returned WHERE placed_at < '2024-02-26'")
    return train.train(shop, "orders", LATER)


def test_training_registers_a_version_and_promotes_nobody(shop, challenger):
    """The manifest says what it was made of and from."""
    assert _champion(shop).version != challenger.version
    manifest = json.loads((_artifact(shop, challenger).parent / "manifest.json").read_text())
    assert manifest == _whole(shop, challenger)
    assert manifest["features"] == {"amount": "number", "country": "category"}
    assert (manifest["as_of"], manifest["cut"]) == (
        "2024-03-01T06:00:00+00:00",
        "2024-02-26T06:00:00+00:00",
    )


def test_a_challenger_is_evaluated_against_the_champion_on_the_same_rows(shop, challenger):
    """The report names the champion and has the metrics of all three."""
    assert challenger.gate["champion"] == _champion(shop).version
    assert set(challenger.gate["metrics"]) == {"challenger", "champion", "baseline"}
    assert challenger.gate["rows"] == challenger.manifest["rows_judged"]


@on_sqlite
def test_a_candidate_is_what_the_gate_lets_take_over(shop):
    """Neither the champion itself nor what the gate refuses."""
    assert promotion.candidate(shop, "orders") == (_champion(shop), False)
    challenger = train.train(shop, "orders", LATER)
    assert promotion.candidate(shop, "orders") == (challenger, True)


@on_sqlite
def test_what_the_gate_refuses_is_no_candidate(shop, refused):
    """It is named all the same, for the reason to be told."""
    version, may_serve = promotion.candidate(shop, "orders")
    assert (version.version, may_serve) == (refused.version, False)


@on_sqlite
def test_a_model_is_fresh_by_what_its_newest_version_knew(shop):
    """And not by when the machine happened to train it; exactly as old is not newer."""
    champion = _champion(shop)
    before = TRAINED - timedelta(seconds=1)
    assert promotion.trained_since(shop, "orders", before) == champion
    assert promotion.trained_since(shop, "orders", TRAINED) is None


@on_sqlite
def test_the_gates_report_is_drawn_beside_the_artifact(drawn, shop, challenger):
    """Judging the same bytes again draws the new evaluation."""
    page = _artifact(shop, challenger).with_name("gate.html")
    assert page.read_text("utf-8").count("<svg") == 3
    assert "<path" in page.read_text("utf-8")
    assert f"May replace {challenger.gate['champion']}." in page.read_text("utf-8")
    forget_promotions(Warehouse(shop.warehouse))
    assert train.train(shop, "orders", LATER).version == challenger.version
    assert "May serve: it would be the first to do so." in page.read_text("utf-8")


@on_sqlite
def test_a_report_that_cannot_be_drawn_loses_no_training(shop, monkeypatch, caplog):
    """The verdict is what counts; the log says what ails the drawing."""
    monkeypatch.setattr("batch_jobs.reports.gate.page", lambda *_: 1 / 0)
    version = train.train(shop, "orders", EARLIER)
    assert version.gate["promote"]
    assert not _artifact(shop, version).with_name("gate.html").exists()
    assert "the gate's report is not drawn: ZeroDivisionError" in caplog.text


def test_training_as_of_the_same_moment_gives_the_same_version(shop):
    """What happened since changes nothing: neither new rows nor labels that ripened."""
    champion = _champion(shop)
    _change(shop, "UPDATE orders SET returned = 1 - returned WHERE settled_at > '2024-03-01T00'")
    assert train.train(shop, "orders", TRAINED).version == champion.version


@on_sqlite
@pytest.mark.parametrize(
    ("as_of", "error"),
    [
        (datetime.now(UTC) + timedelta(hours=1), "that is in the future"),
        (datetime(2024, 3, 1), "has no UTC offset"),
    ],
)
def test_training_as_of_the_future_or_of_no_certain_time_is_refused(shop, as_of, error):
    """Nobody knows yet what will be known then."""
    with pytest.raises(IntervalError, match=error):
        train.train(shop, "orders", as_of)


@on_sqlite
def test_an_unknown_model_is_told_the_known_ones(shop):
    """Before anything else is looked at."""
    with pytest.raises(UnknownModelError, match="known models: customers, orders"):
        train.train(shop, "order", TRAINED)


@pytest.mark.parametrize(
    ("sql", "as_of", "error", "words"),
    [
        ("SELECT 1", datetime(2023, 1, 1, tzinfo=UTC), TrainingDataError, "0 labelled rows"),
        ("UPDATE orders SET returned = 1", TRAINED, TrainingDataError, "needs two classes"),
        (
            "DROP TABLE orders",
            TRAINED,
            ContractError,
            r"no such table: orders|relation \"orders\" does not exist",
        ),
        ("UPDATE orders SET entity_id = 'x'", TRAINED, ContractError, "is duplicated in 2,880 of"),
        ("UPDATE orders SET settled_at = NULL", TRAINED, ContractError, "known_at is null"),
    ],
)
@pytest.mark.failure_mode(48)
def test_a_training_that_fails_registers_nothing(shop, sql, as_of, error, words):
    """Neither in the ledger nor in the store; the champion stays."""
    champion, files = _champion(shop), sorted(Path(shop.model_store).rglob("*"))
    _change(shop, sql)
    with pytest.raises(error, match=words):
        train.train(shop, "orders", as_of)
    assert (_champion(shop), sorted(Path(shop.model_store).rglob("*"))) == (champion, files)


@on_sqlite
@pytest.mark.failure_mode(34)
def test_an_unwritable_store_is_found_out_before_training(shop, tmp_path):
    """Even before it is found out that there is nothing to learn from."""
    (tmp_path / "file").touch()
    settings = replace(shop, model_store=str(tmp_path / "file" / "models"))
    with pytest.raises(ConfigurationError, match=r"model store .* cannot be written: Not a dir"):
        train.train(settings, "orders", datetime(2023, 1, 1, tzinfo=UTC))


def test_rows_that_do_not_fit_are_left_out_and_told(shop, caplog):
    """A few bad rows of weeks do not stop the training."""
    _change(shop, "UPDATE orders SET amount = -1 WHERE entity_id IN ('order-00007', 'order-00008')")
    train.train(shop, "orders", TRAINED)
    assert (
        "2 rows do not fit the contract and are left out, e.g. order-00007: amount" in caplog.text
    )


@on_sqlite
@pytest.mark.parametrize("harm", ["flip", "remove", "not an estimator"])
def test_a_champion_that_cannot_be_evaluated_does_not_stop_training(shop, harm):
    """The report says so, and leaves to a person what nobody can compare."""
    champion = _champion(shop)
    path = _artifact(shop, champion)
    if harm == "remove":
        path.unlink()
    elif harm == "flip":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    else:
        _become_champion(shop, serialize("not an estimator"))
    gate = train.train(shop, "orders", LATER).gate
    [reason] = gate["reasons"]
    assert reason.startswith(f"it cannot be compared with the champion {_champion(shop).version}: ")
    assert (gate["promote"], gate["undecided"]) == (False, True)


def _become_champion(settings, artifact):
    """Register and promote bytes as they are."""
    before = _champion(settings)
    odd = replace(before, version="odd", sha256=hashlib.sha256(artifact).hexdigest())
    ModelStore(settings.model_store).write("orders", "odd", artifact, {})
    warehouse = Warehouse(settings.warehouse)
    versions.register(warehouse, odd)
    champions.promote(
        warehouse, odd, expected=before.version, action="promote", actor="tests", reason="odd"
    )


def test_the_newest_version_is_promoted_if_its_gate_says_so(shop, challenger):
    """With the gate's reason as the reason, and the one before it kept on record."""
    answer = promotion.promote(shop, "orders", actor="ann")
    assert (answer.outcome, answer.champion) == ("promoted", challenger.version)
    assert _champion(shop) == challenger
    assert _recorded(shop) == [(challenger.version, "promote", answer.reason)]


def test_promoting_the_champion_changes_nothing(shop):
    """A repeated task writes no second row."""
    answer = promotion.promote(shop, "orders", _champion(shop).version, actor="ann")
    assert (answer.outcome, _recorded(shop)) == ("unchanged", [])


def test_a_challenger_that_the_gate_refuses_is_kept_out(shop, refused):
    """The answer tells all its reasons, and who goes on serving."""
    champion = _champion(shop)
    answer = promotion.promote(shop, "orders", actor="ann")
    assert (answer.outcome, answer.champion) == ("kept", champion.version)
    assert "shown to be worse" in answer.reason
    assert (_champion(shop), _recorded(shop)) == (champion, [])


def test_a_reason_overrules_the_gate_and_is_recorded(shop, refused):
    """Somebody answers for it by name; without its name nobody means it."""
    reason = "the labels were turned"
    assert promotion.promote(shop, "orders", actor="ann", reason=reason).outcome == "kept"
    promotion.promote(shop, "orders", refused.version, actor="ann", reason=reason)
    assert _champion(shop) == refused
    assert _recorded(shop) == [(refused.version, "promote", "the labels were turned")]


def test_a_challenger_evaluated_against_somebody_else_is_not_promoted(shop, challenger):
    """Of two challengers of one champion, the second must be evaluated again."""
    second = train.train(shop, "orders", LATER + timedelta(hours=6))
    promotion.promote(shop, "orders", challenger.version, actor="ann")
    with pytest.raises(ArtifactError, match=f"but {challenger.version} serves now; train again"):
        promotion.promote(shop, "orders", second.version, actor="bob")
    assert _champion(shop) == challenger


def test_a_model_without_a_version_has_nothing_to_promote(shop):
    """The error says what to run."""
    forget_promotions(Warehouse(shop.warehouse))
    _change(shop, "DELETE FROM model_versions")
    with pytest.raises(
        ArtifactError, match="no trained version yet; run `batch-jobs train orders --as-of"
    ):
        promotion.promote(shop, "orders", actor="ann")
    with pytest.raises(NoChampionError, match="train orders --as-of TIME"):
        promotion.require_champion(Warehouse(shop.warehouse), "orders")


def test_a_rollback_makes_an_earlier_version_serve_again(shop, challenger):
    """It is recorded as what it is; doing it twice changes nothing."""
    first = _champion(shop)
    promotion.promote(shop, "orders", actor="ann")
    for outcome in ("promoted", "unchanged"):
        answer = promotion.rollback(shop, "orders", first.version, actor="bob", reason="too eager")
        assert answer.outcome == outcome
    assert _champion(shop) == first
    assert _recorded(shop)[1:] == [(first.version, "rollback", "too eager")]


@on_sqlite
@pytest.mark.parametrize("act", [promotion.promote, promotion.rollback])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: path.write_bytes(b"<html>"), "has changed"),
        (lambda path: shutil.rmtree(path.parent), "cannot be read"),
    ],
    ids=["changed", "missing"],
)
def test_a_version_that_does_not_load_never_becomes_the_champion(
    shop, challenger, act, harm, words
):
    """It is loaded to prove it, before anything is written."""
    champion = _champion(shop)
    if act is promotion.rollback:  # to what has served
        promotion.promote(shop, "orders", actor="ann")
        promotion.rollback(shop, "orders", champion.version, actor="ann", reason="too eager")
    recorded = _recorded(shop)
    harm(_artifact(shop, challenger))
    with pytest.raises(ArtifactError, match=words):
        act(shop, "orders", challenger.version, actor="ann", reason="hope")
    assert (_champion(shop), _recorded(shop)) == (champion, recorded)


@on_sqlite
@pytest.mark.parametrize("version", ["20990101T0000-00000000", "../orders/v1", ""])
def test_an_unknown_version_is_refused(shop, version):
    """Whatever it looks like."""
    with pytest.raises(ArtifactError, match="orders has no version"):
        promotion.rollback(shop, "orders", version, actor="ann", reason="typo")


@on_sqlite
@pytest.mark.parametrize(
    "change",
    [
        lambda features: {"amount": features["amount"]},
        lambda features: {**features, "country": Number()},
        lambda features: dict(reversed(features.items())),
    ],
    ids=["fewer", "another kind", "another order"],
)
@pytest.mark.failure_mode(46)
def test_a_version_without_a_contract_needs_the_features_it_was_trained_with(shop, change):
    """As an older release has trained it: the error lists both and says to train."""
    model = load_model("orders", shop.models)
    changed = model.model_copy(update={"features": change(model.features)})
    old = _retold(shop, lambda manifest: manifest.pop("contract"))
    assert load_version(shop, model, old).classes == ("0", "1")
    with pytest.raises(
        ArtifactError, match=r"the features amount \(number\), country .* now declares .* train"
    ):
        load_version(shop, changed, old)


def _whole(settings, version):
    return whole_manifest(Warehouse(settings.warehouse), version)


def _retold(settings, change):
    """The champion, with another manifest."""
    champion = _champion(settings)
    manifest = json.loads(json.dumps(_whole(settings, champion)))
    change(manifest)
    return replace(champion, manifest=manifest)


def test_the_manifest_says_what_a_version_was_made_of(shop):
    """Its rows, its code, its metrics, and twenty golden rows with their answers."""
    version = train.train(replace(shop, commit="abc123"), "orders", EARLIER)
    manifest = _whole(shop, version)
    assert (manifest["commit"], manifest["metrics"]) == ("abc123", version.metrics)
    golden = manifest["golden"]
    assert list(golden["inputs"]) == ["amount", "country"]
    assert {len(values) for values in (*golden["inputs"].values(), golden["answers"])} == {20}
    assert all(sum(answer) == pytest.approx(1) for answer in golden["answers"])
    _change(shop, "UPDATE orders SET amount = amount + 0.001 WHERE entity_id = 'order-00500'")
    assert train.train(shop, "orders", EARLIER).manifest["data_digest"] != (manifest["data_digest"])


@on_sqlite
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda golden: golden["answers"][7].__setitem__(0, 0.5), r"row 8 of 20 is answered \["),
        (lambda golden: golden["inputs"]["amount"].__setitem__(3, 1e9), r"row 4 of 20"),
        (lambda golden: [row.append(0.0) for row in golden["answers"]], "it gives 2 numbers a row"),
        (lambda golden: golden["inputs"].pop("country"), "KeyError: 'country'"),
    ],
    ids=["answer", "input", "shape", "feature"],
)
def test_a_version_that_answers_its_golden_rows_otherwise_does_not_load(shop, change, words):
    """Whatever has changed: the file, a library, or what the manifest remembers."""
    odd = _retold(shop, lambda manifest: change(manifest["golden"]))
    with pytest.raises(ArtifactError, match=f"does not answer its golden rows.*{words}"):
        load_version(shop, load_model("orders", shop.models), odd)


@on_sqlite
def test_other_libraries_are_refused_or_left_to_the_golden_rows(shop):
    """As the deployment has decided."""
    model = load_model("orders", shop.models)
    old = _retold(shop, lambda manifest: manifest["libraries"].update(numpy="1.0"))
    with pytest.raises(ArtifactError, match="was trained with numpy 1"):
        load_version(shop, model, old)
    lenient = replace(shop, libraries="golden")
    assert load_version(lenient, model, old) is not None
    odd = _retold(shop, lambda manifest: manifest["golden"]["answers"][0].reverse())
    with pytest.raises(ArtifactError, match="golden rows"):
        load_version(lenient, model, odd)


def test_a_population_is_trained_on_snapshots_spread_over_its_history(shop):
    """Each of the eight has all fifty customers; half of them evaluate."""
    manifest = _champion(shop, "customers").manifest
    assert (manifest["rows_fit"], manifest["rows_judged"]) == (200, 200)


def test_the_newest_version_is_the_one_that_has_seen_the_newest_data(shop, challenger):
    """A back-dated training, though it came last, is no candidate."""
    train.train(shop, "orders", EARLIER)
    assert promotion.candidate(shop, "orders") == (challenger, True)
    assert promotion.promote(shop, "orders", actor="dag").version == challenger


def test_the_version_of_one_training_is_found_by_its_moment(shop, challenger):
    """A DAG run promotes what it has trained itself, and nothing else."""
    older = train.train(shop, "orders", EARLIER)
    assert promotion.candidate(shop, "orders", EARLIER) == (older, False)
    answer = promotion.promote(shop, "orders", actor="dag", as_of=EARLIER)
    assert (answer.version, answer.outcome) == (older, "kept")
    shown = f"it has seen data up to {older.as_of}, and {_champion(shop).version}, which serves, "
    assert answer.reason.startswith(shown)
    with pytest.raises(ArtifactError, match=r"orders has no version as of 2024-02-29 12:00"):
        promotion.promote(shop, "orders", actor="dag", as_of=EARLIER - timedelta(hours=6))


def test_a_version_that_was_rolled_back_comes_back_by_name_and_with_a_reason_only(shop, challenger):
    """Whoever rolled it back had a reason, which the answer tells."""
    first = _champion(shop)
    promotion.promote(shop, "orders", actor="dag")
    promotion.rollback(shop, "orders", first.version, actor="ann", reason="it is wrong on Mondays")
    for version in (None, challenger.version):
        answer = promotion.promote(shop, "orders", version, actor="dag")
        assert (answer.outcome, answer.champion) == ("kept", first.version)
        assert answer.reason.startswith("it was rolled back (it is wrong on Mondays); to promote")
    assert promotion.candidate(shop, "orders") == (challenger, False)
    promotion.promote(shop, "orders", challenger.version, actor="ann", reason="mended")
    assert _champion(shop) == challenger


def test_a_rollback_goes_to_versions_that_have_served(shop, challenger):
    """The error names them; what the gate refused never serves by a rollback."""
    first = _champion(shop)
    _change(shop, "UPDATE orders SET returned = 1 - returned WHERE placed_at < '2024-02-26'")
    refused = train.train(shop, "orders", LATER + timedelta(hours=6)).version
    with pytest.raises(ArtifactError, match=r"never served; roll back .*\(there is none\), or"):
        promotion.rollback(shop, "orders", refused, actor="ann", reason="oh")
    promotion.promote(shop, "orders", challenger.version, actor="ann", reason="now")
    with pytest.raises(ArtifactError, match=rf"a version that did \({first.version}\), or"):
        promotion.rollback(shop, "orders", refused, actor="ann", reason="oh")
    assert _champion(shop) == challenger
