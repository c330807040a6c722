"""Whatever is put before training and promotion: one clear error, and the champion serves.

Each case ends with predictions of the version that served before, published as if nothing had been.
"""

import hashlib
import json
import pickle
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError, TrainingDataError
from batch_jobs.interval import Interval
from batch_jobs.registry import champions, promotion
from batch_jobs.runs import jobs
from batch_jobs.training import train
from tests.registry.test_signing import write_keys
from tests.support.artifacts import Hostile
from tests.support.attempts import ask

TRAINED = datetime(2024, 3, 1, tzinfo=UTC)
LATER = TRAINED + timedelta(hours=6)
HOUR = Interval(TRAINED, TRAINED + timedelta(hours=1))
SETTLED_LATE = """
    UPDATE orders SET settled_at = '2030-01-01T00:00:00.000000+00:00'
    WHERE placed_at >= '2024-02-26' AND entity_id NOT IN (
      SELECT entity_id FROM orders WHERE placed_at >= '2024-02-26' ORDER BY placed_at LIMIT {})"""
HOLDOUT = "placed_at >= '2024-02-26' AND placed_at < '2024-03-01'"


def _champion(settings):
    return champions.champion(Warehouse(settings.warehouse), "orders")


def _change(settings, sql, **values):
    with Warehouse(settings.warehouse).write() as connection:
        connection.execute(text(sql), values)


def _promotions(settings):
    return ask(
        Warehouse(settings.warehouse),
        "SELECT version, action FROM promotions WHERE model = 'orders' ORDER BY promotion_id",
    )


def _path(settings, version):
    return Path(settings.model_store) / version.model / version.version / "model.joblib"


@pytest.fixture
def serves(shop):
    """Check that the champion of the beginning still serves: `serves(settings)`."""
    before, promotions = _champion(shop), _promotions(shop)

    def check(settings=shop):
        assert (_champion(settings), _promotions(settings)) == (before, promotions)
        run = jobs.predict(settings, "orders", HOUR)
        assert (run.state, run.model_version, run.counts.scored) == (
            "published",
            before.version,
            6,
        )

    return check


@pytest.fixture
def challenger(shop):
    """A second version, that has served and could do so again."""
    version = train.train(shop, "orders", LATER)
    _let_have_served(shop, version)
    return version


def _let_have_served(settings, version):
    """Let a version be one to which a rollback may go."""
    before = _champion(settings).version
    promotion.promote(settings, "orders", version.version, actor="ann", reason="a trial")
    promotion.rollback(settings, "orders", before, actor="ann", reason="it was one")


def _retold(settings, version, **changed):
    """Change the manifest of a version in the warehouse, as somebody could who may write it."""
    _change(
        settings,
        "UPDATE model_versions SET manifest = :manifest WHERE version = :version",
        manifest=json.dumps({**version.manifest, **changed}),
        version=version.version,
    )


def _is_refused(settings, version, words):
    """Whether neither a promotion nor a rollback gets the version to serve."""
    for act in (promotion.promote, promotion.rollback):
        with pytest.raises(ArtifactError, match=words) as caught:
            act(settings, "orders", version.version, actor="eve", reason="mine")
        assert "\n" not in str(caught.value)
    return True


@pytest.mark.failure_mode(42)
def test_a_hostile_pickle_never_runs(shop, challenger, serves, tmp_path):
    """Its marker never appears."""
    marker = tmp_path / "marker"
    _path(shop, challenger).write_bytes(pickle.dumps(Hostile(str(marker))))
    assert _is_refused(shop, challenger, "has changed: sha256")
    serves()
    assert not marker.exists()


@pytest.mark.failure_mode(43)
def test_a_manifest_edited_with_its_hash_gets_nobody_in(shop, request, tmp_path):
    """Neither in the warehouse nor beside the file: the signature does not hold, nothing runs."""
    keys = write_keys(tmp_path, "ours")
    signed = replace(shop, signing_key=keys[0], verify_key=keys[1])
    version = train.train(signed, "orders", LATER)
    _let_have_served(shop, version)
    serves = request.getfixturevalue("serves")
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Hostile(str(marker)))
    digest = hashlib.sha256(hostile).hexdigest()
    path = _path(shop, version)
    path.write_bytes(hostile)
    manifest = {**version.manifest, "sha256": digest, "size_bytes": len(hostile)}
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    _retold(shop, version, sha256=digest, size_bytes=len(hostile))
    _change(
        shop,
        "UPDATE model_versions SET sha256 = :sha256 WHERE version = :version",
        sha256=digest,
        version=version.version,
    )
    assert _is_refused(signed, version, "was changed since it was signed")
    serves()
    assert not marker.exists()


@pytest.mark.parametrize("left", [0, 1, 1000])
@pytest.mark.failure_mode(41)
def test_a_truncated_artifact_is_refused(shop, challenger, serves, left):
    """Wherever it was cut off."""
    path = _path(shop, challenger)
    path.write_bytes(path.read_bytes()[:left])
    assert _is_refused(shop, challenger, "has changed: .* restore the file, or roll back")
    serves()


@pytest.mark.failure_mode(44)
def test_a_version_of_another_scikit_learn_is_refused(shop, challenger, serves):
    """The error names both versions and what to do."""
    _retold(shop, challenger, libraries={**challenger.manifest["libraries"], "scikit-learn": "1.0"})
    assert _is_refused(shop, challenger, r"with scikit-learn 1.0 \(here .*\); train again")
    serves()


@pytest.mark.parametrize(
    "features",
    [
        {"price": "number", "country": "category"},
        {"country": "category", "amount": "number"},
    ],
    ids=["renamed", "reordered"],
)
@pytest.mark.failure_mode(46)
def test_features_that_are_renamed_or_reordered_are_refused(shop, challenger, serves, features):
    """The error lists those of the version and those of the model file."""
    _retold(shop, challenger, features=features, contract=None)
    words = ", ".join(rf"{name} \({kind}\)" for name, kind in features.items())
    assert _is_refused(shop, challenger, f"{words}, but the model file now declares amount")
    serves()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE orders SET returned = 1", "rows to learn from have the label 1"),
        (f"UPDATE orders SET returned = 0 WHERE {HOLDOUT}", "rows to evaluate on have the label 0"),
        (
            "UPDATE orders SET settled_at = placed_at WHERE entity_id = 'order-00007'",
            r"1 of 2,8\d\d labels were known when .* order-00007: leave such rows out of feature",
        ),
        (
            "UPDATE orders SET settled_at = '2024-02-09T00:00:00.000000+00:00'",
            "2,880 of 2,880 labels were known",
        ),
        (
            SETTLED_LATE.format(19),
            "19 labelled rows to evaluate on, at least 20 are needed; nothing is promoted",
        ),
    ],
    ids=[
        "a constant label",
        "a constant label in the hold-out",
        "a label before as_of",
        "all labels before as_of",
        "a hold-out of 19 rows where 20 are needed",
    ],
)
@pytest.mark.failure_mode(48)
def test_labels_that_teach_nothing_are_refused(shop, serves, change, words):
    """Training says what is wrong with them, and registers nothing."""
    _change(shop, change)
    with pytest.raises(TrainingDataError, match=words) as caught:
        train.train(shop, "orders", TRAINED)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (2, False)
    assert ask(Warehouse(shop.warehouse), "SELECT count(*) FROM model_versions") == [(2,)]
    serves()


@pytest.mark.failure_mode(48)
def test_a_hold_out_of_twenty_rows_is_too_small_unless_the_model_says_otherwise(
    shop, serves, tmp_path, monkeypatch
):
    """Two hundred are needed by default."""
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "__init__.py").touch()
    (tmp_path / "usual" / "orders.py").write_text(
        "from batch_jobs import Gate\n"
        "from tests.example_models.orders import model as original\n"
        "model = original.model_copy(update={'gate': Gate()})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    _change(
        shop,
        SETTLED_LATE.format(20),
    )
    with pytest.raises(
        TrainingDataError, match="20 labelled rows to evaluate on, at least 200 are"
    ):
        train.train(replace(shop, models=("usual",)), "orders", TRAINED)
    serves()


@pytest.mark.failure_mode(45)
def test_a_rollback_to_a_version_whose_file_is_gone_is_refused(shop, challenger, serves):
    """The error says where it should be."""
    _path(shop, challenger).unlink()
    assert _is_refused(shop, challenger, r"cannot be read from .*model.joblib: No such file")
    serves()


@pytest.mark.parametrize("second", ["promote", "rollback"])
@pytest.mark.failure_mode(45)
def test_of_two_promotions_at_once_one_wins(shop, challenger, second, in_background, monkeypatch):
    """Both have looked, and then both write: the other is told who serves now."""
    other = train.train(shop, "orders", LATER + timedelta(hours=6))
    _let_have_served(shop, other)
    recorded = _promotions(shop)
    before, both = _champion(shop), threading.Barrier(2)
    promote = champions.promote

    def together(*arguments, **keywords):
        both.wait(60)
        return promote(*arguments, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(champions, "promote", together)
        one = in_background(
            promotion.promote, shop, "orders", challenger.version, actor="ann", reason="now"
        )
        act = {"promote": promotion.promote, "rollback": promotion.rollback}[second]
        two = in_background(act, shop, "orders", other.version, actor="bob", reason="mine")
        ended = [(challenger, one.exception(60)), (other, two.exception(60))]

    [winner] = [version for version, error in ended if error is None]
    [error] = [error for _, error in ended if error is not None]
    assert isinstance(error, ArtifactError)
    assert f"{before.version}, but {winner.version} serves now; " in str(error)
    assert _champion(shop) == winner
    assert [version for version, _ in _promotions(shop)[len(recorded) :]] == [winner.version]
    assert jobs.predict(shop, "orders", HOUR).model_version == winner.version
