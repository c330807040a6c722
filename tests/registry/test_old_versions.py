"""The artifacts of versions that nobody goes back to leave the store; their rows stay."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from batch_jobs import clock
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError
from batch_jobs.registry import champions, old_versions, promotion, versions
from batch_jobs.registry.store import ModelStore
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.runs import claims, jobs
from batch_jobs.training import train
from tests.conftest import TRAINED
from tests.support.artifacts import GOOD, version_of
from tests.support.attempts import EVERYTHING, MIDNIGHT, ask, tick

DAY = timedelta(days=1)
NAMES = [f"v{number}" for number in range(8)]
on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


@pytest.fixture
def store(tmp_path):
    """An empty model store."""
    return ModelStore(str(tmp_path / "models"))


@pytest.fixture
def history(warehouse, store):
    """Eight versions, one a day; the first four served, each from its day on."""
    for day, name in enumerate(NAMES):
        with clock.set_to(MIDNIGHT + day * DAY):
            store.write("orders", name, GOOD, {})
            versions.register(warehouse, _version(name, MIDNIGHT + day * DAY))
            if day < 4:
                _promote(warehouse, name, NAMES[day - 1] if day else None)
    return warehouse


def _version(name, as_of):
    digest = hashlib.sha256(GOOD).hexdigest()
    return ModelVersion("orders", name, stored_time(as_of), digest, {"size_bytes": 1}, {}, {})


def _promote(warehouse, name, expected, action="promote"):
    version = versions.find_version(warehouse, "orders", name)
    champions.promote(
        warehouse, version, expected=expected, action=action, actor="tests", reason="a test"
    )


def _remove(warehouse, store, day=30, keep=DAY, newest=2):
    with clock.set_to(MIDNIGHT + day * DAY):
        return old_versions.remove(warehouse, store, "orders", keep, newest)


def _left(tmp_path):
    return sorted(path.parent.name for path in tmp_path.rglob("model.joblib"))


@pytest.mark.parametrize(
    ("day", "newest", "left"),
    [
        (30, 2, ["v2", "v3", "v6", "v7"]),  # those that served last, and the newest
        (30, 3, ["v1", "v2", "v3", "v5", "v6", "v7"]),
        (30, 10, NAMES),
        (3, 2, ["v1", "v2", "v3", "v6", "v7"]),  # the second served until a day ago
    ],
)
@pytest.mark.failure_mode("old-artifacts")
def test_what_nobody_goes_back_to_is_removed(history, store, tmp_path, day, newest, left):
    """However often; the versions themselves, and who promoted them when, are known for ever."""
    removed = len(NAMES) - len(left)
    assert _remove(history, store, day, newest=newest) == removed
    assert _remove(history, store, day, newest=newest) == 0
    assert _left(tmp_path) == left
    assert ask(history, "SELECT count(*) FROM model_versions") == [(len(NAMES),)]
    assert ask(history, "SELECT count(*) FROM promotions") == [(4,)]


def test_what_scores_or_has_scored_lately_stays(history, store, tmp_path):
    """Rows that come late are scored by the version of their interval."""
    wanted = claims.Claim("orders", tick(0), "t", "v4", "merge", EVERYTHING)
    claims.claim(history, wanted)
    _remove(history, store)
    assert _left(tmp_path) == ["v2", "v3", "v4", "v6", "v7"]


def test_the_newest_is_the_one_that_has_seen_the_newest(history, store, tmp_path):
    """As well as the one that was trained last, which may have been as of a moment long ago."""
    with clock.set_to(MIDNIGHT + 9 * DAY):
        for number in range(2):
            store.write("orders", f"back-{number}", GOOD, {})
            versions.register(history, _version(f"back-{number}", MIDNIGHT))
    _remove(history, store)
    assert _left(tmp_path) == ["back-0", "back-1", "v2", "v3", "v6", "v7"]


@pytest.mark.failure_mode("old-artifacts")
def test_a_removed_artifact_is_refused_with_the_day_on_which_it_went(history, store):
    """By whoever loads it, or would let it serve, also if its files are there still."""
    _remove(history, store)
    removed = versions.find_version(history, "orders", "v0")
    words = "artifact of orders v0 was removed by retention on 2024-03-31"
    store.write("orders", "v0", GOOD, {})
    with pytest.raises(ArtifactError, match=words):
        store.read(removed)
    with pytest.raises(ArtifactError, match=words):
        _promote(history, "v0", "v3", "rollback")


@pytest.mark.failure_mode("old-artifacts")
def test_a_removal_that_was_interrupted_is_completed_by_the_next(
    history, store, tmp_path, monkeypatch
):
    """Meanwhile nobody loads what is half gone, for the registry says so first."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(Path, "rename", _interrupt)
        _remove(history, store)
    assert versions.find_version(history, "orders", "v0").removed_at is not None
    (tmp_path / "models/orders/.old-v1").mkdir()
    assert _remove(history, store) == 4
    assert _left(tmp_path) == ["v2", "v3", "v6", "v7"]
    assert sorted(path.name for path in (tmp_path / "models/orders").iterdir()) == _left(tmp_path)


def _interrupt(*_):
    raise KeyboardInterrupt


def test_a_store_that_lets_nothing_go_is_asked_again(history, store, tmp_path, monkeypatch, caplog):
    """The rest of a prune has been done, and nothing is wrong with what is served."""
    with monkeypatch.context() as patch:
        patch.setattr(ModelStore, "remove", _refuse)
        assert _remove(history, store) == 0
    assert "orders v0 stays for now: not allowed" in caplog.text
    assert _left(tmp_path) == NAMES
    assert _remove(history, store) == 4


def _refuse(*_):
    raise PermissionError("not allowed")


def test_a_version_that_is_trained_again_to_the_byte_is_there_again(history, store):
    """Its files were written before it is registered."""
    _remove(history, store)
    store.write("orders", "v0", GOOD, {})
    again = versions.register(history, _version("v0", MIDNIGHT))
    assert again.removed_at is None
    assert store.read(replace(version_of(name="v0"), removed_at=again.removed_at)) == GOOD


@on_sqlite
def test_prune_removes_what_a_model_does_not_keep(shop):
    """By the command, and so by the task after each publication; a rollback to it says so."""
    first = champions.champion(Warehouse(shop.warehouse), "orders").version
    for hour in (1, 2, 3):
        version = train.train(shop, "orders", TRAINED + timedelta(hours=hour))
        promotion.promote(shop, "orders", version.version, actor="tests", reason="newer")
    with clock.set_to(clock.now() + timedelta(days=400)):
        few = replace(shop, models=(_keeping_two(shop), *shop.models))
        (pruned,) = jobs.prune(few, "orders")
    assert (pruned.artifacts, str(pruned)) == (2, "2 artifacts are removed")
    with pytest.raises(ArtifactError, match=f"{first} was removed by retention"):
        promotion.rollback(shop, "orders", first, actor="tests", reason="back")


def _keeping_two(shop):
    from batch_jobs.catalog import load_model

    return load_model("orders", shop.models).model_copy(update={"keep_versions": 2})
