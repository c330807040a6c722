"""No byte of a stored model is deserialised before its hash holds; no half file has a name."""

import hashlib
import json
import os
import pickle
import random
import stat
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batch_jobs.errors import ArtifactError, ConfigurationError
from batch_jobs.registry.store import (
    PAGE,
    ModelStore,
    deserialize,
    libraries,
    name_version,
    serialize,
)
from tests.support.artifacts import GOOD, Hostile, version_of


@pytest.fixture
def store(tmp_path):
    """An empty model store."""
    return ModelStore(str(tmp_path / "models"))


def _kept(store, tmp_path, content):
    """Write a good version, then put other bytes in its place."""
    store.write("orders", "v1", GOOD, {})
    (tmp_path / "models/orders/v1/model.joblib").write_bytes(content)


def _files(tmp_path):
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())


def test_what_is_written_is_read_and_predicts(store):
    """The round trip of an estimator."""
    store.write("orders", "v1", GOOD, {"model": "orders"})
    loaded = deserialize(store.read(version_of()), version_of())
    assert loaded.predict([[3.0]]) == pytest.approx([6.0])


@pytest.mark.failure_mode(41)
def test_every_flipped_byte_is_found(store, tmp_path):
    """One changed bit in a tree can change predictions silently, so none is let through."""
    for place in sorted(random.Random(0).sample(range(len(GOOD)), 60)):
        _kept(store, tmp_path, GOOD[:place] + bytes([GOOD[place] ^ 1]) + GOOD[place + 1 :])
        with pytest.raises(ArtifactError, match="has changed: sha256"):
            store.read(version_of())


@pytest.mark.parametrize(
    "content", [b"", GOOD[:-1], GOOD[: len(GOOD) // 2], GOOD + b"\0", b"<html>502</html>"]
)
@pytest.mark.failure_mode(41)
def test_other_bytes_than_those_recorded_are_refused(store, tmp_path, content):
    """Truncated, empty, longer, or what a proxy sent instead; the error says what to do."""
    _kept(store, tmp_path, content)
    with pytest.raises(ArtifactError, match="restore the file, or roll back") as caught:
        store.read(version_of())
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["a pipe", "a file of nothing", "a folder", "a device"])
@pytest.mark.failure_mode(41)
def test_what_is_no_file_of_that_size_is_not_read(store, tmp_path, kind):
    """A pipe would be waited for for ever, and 100 GB of nothing be read into memory."""
    store.write("orders", "v1", GOOD, {})
    path = tmp_path / "models/orders/v1/model.joblib"
    path.unlink()
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a file of nothing":
        path.touch()
        os.truncate(path, 10**11)
    elif kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(ArtifactError):
        store.read(replace(version_of(), manifest={"size_bytes": len(GOOD)}))


@pytest.mark.failure_mode(42)
def test_a_hostile_file_is_never_unpickled(store, tmp_path):
    """Its code would leave a marker; the same bytes with the right hash show that it would run."""
    marker = tmp_path / "marker"
    hostile = pickle.dumps(Hostile(str(marker)))
    _kept(store, tmp_path, hostile)
    with pytest.raises(ArtifactError, match="has changed"):
        deserialize(store.read(version_of()), version_of())
    assert not marker.exists()
    deserialize(hostile, version_of(hostile)).close()
    assert marker.exists()


def test_a_file_that_is_missing_is_told_with_its_path(store):
    """And in the words of the operating system."""
    with pytest.raises(ArtifactError, match=r"models/orders/v1/model.joblib: No such file"):
        store.read(version_of())


@pytest.mark.parametrize("library", ["scikit-learn", "numpy"])
@pytest.mark.parametrize("trained", ["0.0.1", None])
@pytest.mark.failure_mode(44)
def test_a_model_of_another_library_version_is_not_loaded(library, trained):
    """Loading it is unsupported and may predict something else; nothing is unpickled."""
    version = version_of(libraries=libraries() | {library: trained})
    with pytest.raises(ArtifactError, match=f"was trained with {library} {trained} .here .*train"):
        deserialize(b"not even a pickle", version)


def test_bytes_that_hold_no_estimator_any_more_are_an_error_of_the_artifact():
    """The class of a user's own transformer may have moved since."""
    gone = b"cno_such_module\nThing\n."
    with pytest.raises(ArtifactError, match="cannot be loaded: ModuleNotFoundError"):
        deserialize(gone, version_of(gone))


def test_the_same_version_twice_keeps_the_first(store, tmp_path):
    """A version never changes once it has its name."""
    store.write("orders", "v1", GOOD, version_of().manifest | {"sha256": version_of().sha256})
    before = _files(tmp_path), (tmp_path / "models/orders/v1/manifest.json").read_bytes()
    store.write("orders", "v1", b"other", {"first": False})
    after = _files(tmp_path), (tmp_path / "models/orders/v1/manifest.json").read_bytes()
    assert before == after
    assert store.read(version_of()) == GOOD


def test_what_lies_beside_a_version_is_written_anew(store, tmp_path):
    """A later evaluation is drawn in the place of the earlier one; the artifact stays."""
    manifest = {"sha256": version_of().sha256}
    store.write("orders", "v1", GOOD, manifest)
    assert store.page("orders", "v1") is None
    for page in (b"first", b"second"):
        store.write("orders", "v1", b"other", manifest, {PAGE: page})
        assert Path(store.page("orders", "v1")).read_bytes() == page
    assert store.read(version_of()) == GOOD


def test_training_a_version_again_mends_its_damaged_file(store, tmp_path):
    """The same data give the same bytes, so the version can come back."""
    manifest = {"sha256": version_of().sha256}
    store.write("orders", "v1", GOOD, manifest)
    (tmp_path / "models/orders/v1/model.joblib").write_bytes(GOOD[:-1])
    store.write("orders", "v1", GOOD, manifest)
    assert store.read(version_of()) == GOOD


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_write_that_fails_leaves_no_file_under_any_name(store, tmp_path, monkeypatch, step):
    """A full disk half-way: nothing to tidy up, and nothing half to load."""

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename" if step == "rename" else "os.fsync", full)
        with pytest.raises(ConfigurationError, match="cannot be written: No space left on device"):
            store.write("orders", "v1", GOOD, {})
    assert _files(tmp_path) == []
    store.write("orders", "v1", GOOD, {})
    assert store.read(version_of()) == GOOD


def test_what_a_killed_training_has_left_is_removed_by_a_later_one(store, tmp_path):
    """Not by one beside which it may still be writing."""
    store.write("orders", "v1", GOOD, {})
    left, beside = (tmp_path / f"models/orders/.new-{name}" for name in ("left", "beside"))
    for folder in (left, beside):
        folder.mkdir()
        (folder / "model.joblib").write_bytes(GOOD[:5])
    os.utime(left, (0, 0))
    store.write("orders", "v2", GOOD, {})
    assert (left.exists(), beside.exists()) == (False, True)


def test_a_store_that_cannot_be_written_is_found_out_beforehand(tmp_path):
    """Training for an hour and then losing the result helps nobody; exit 2."""
    (tmp_path / "file").touch()
    store = ModelStore(str(tmp_path / "file" / "models"))
    with pytest.raises(ConfigurationError, match="file/models cannot be written: Not a directory"):
        store.require_writable()
    with pytest.raises(ConfigurationError, match="cannot be written: Not a directory"):
        store.write("orders", "v1", GOOD, {})


def test_finding_out_leaves_nothing_behind(store, tmp_path):
    """But the folder, which is made."""
    store.require_writable()
    store.require_writable()
    assert [path.name for path in tmp_path.rglob("*")] == ["models"]


@pytest.mark.parametrize(
    "name",
    ["../v1", "..", ".", "", "/etc/passwd", "a/b", "a\\b", ".hidden", "v1\n", "v\0", "x" * 65],
)
@pytest.mark.failure_mode(60)
def test_a_version_name_cannot_lead_out_of_the_store(store, tmp_path, name):
    """Neither to read nor to write."""
    with pytest.raises(ArtifactError, match="is not a model version"):
        store.read(version_of(name=name))
    with pytest.raises(ArtifactError, match="is not a model version"):
        store.write("orders", name, GOOD, {})
    assert _files(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["../orders", "..", "", "/etc", "a/b", "Orders", "orders\n", ".git"]
)
@pytest.mark.failure_mode(60)
def test_a_models_name_cannot_lead_out_of_the_store(store, tmp_path, name):
    """Whoever calls."""
    with pytest.raises(ArtifactError, match="is not a model's name"):
        store.read(replace(version_of(), model=name))
    with pytest.raises(ArtifactError, match="is not a model's name"):
        store.write(name, "v1", GOOD, {})
    assert _files(tmp_path) == []


@pytest.mark.parametrize("sha256", ["../../secret", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_hash_that_is_none_is_refused(store, sha256):
    """It comes from the warehouse, and is the name of a copy."""
    store.write("orders", "v1", GOOD, {})
    with pytest.raises(ArtifactError, match="has no sha256 in the warehouse"):
        store.read(replace(version_of(), sha256=sha256))


@pytest.mark.parametrize("place", ["orders", "orders/v1", "orders/v1/model.joblib"])
@pytest.mark.failure_mode(60)
def test_a_symbolic_link_cannot_lead_out_of_the_store(store, tmp_path, place):
    """Neither to read nor to write, though the bytes behind it be right."""
    store.write("orders", "v1", GOOD, {})
    path = tmp_path / "models" / place
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    before = _files(tmp_path)
    with pytest.raises(ArtifactError, match=f"a symbolic link leads from .* to {tmp_path}/elsewhe"):
        store.read(version_of())
    with pytest.raises(ArtifactError, match="put the files themselves there"):
        store.write("orders", "v1", GOOD, {})
    assert _files(tmp_path) == before


def test_the_store_itself_may_be_a_symbolic_link(store, tmp_path):
    """Whoever set its path has meant it."""
    store.write("orders", "v1", GOOD, {})
    (tmp_path / "link").symlink_to(tmp_path / "models")
    assert ModelStore(str(tmp_path / "link")).read(version_of()) == GOOD


@pytest.mark.parametrize("place", ["", "orders", "orders/v1"])
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o757, "everybody and its group may write .* `chmod go-w {}`"),
        (0o1777, "everybody and its group may write .* `chmod go-w {}`"),
        (0o2757, "everybody may write .* `chmod o-w {}`"),
        (0o770, "the group of .* `chmod g-w {0}`, or `chmod g[+]s {0}` if that is meant"),
    ],
)
@pytest.mark.failure_mode(60)
def test_a_store_that_others_may_write_is_refused(store, tmp_path, place, mode, words):
    """The error names the folder and the command that mends it."""
    store.write("orders", "v1", GOOD, {})
    folder = (tmp_path / "models" / place).absolute()
    folder.chmod(mode)
    with pytest.raises(ConfigurationError, match=words.format(folder)):
        store.read(version_of())
    with pytest.raises(ConfigurationError, match=words.format(folder)):
        store.write("orders", "v1", b"other", {})


def test_a_store_that_others_may_write_is_found_out_before_training(store, tmp_path):
    """And before a probe is written."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models").chmod(0o777)
    with pytest.raises(ConfigurationError, match="chmod go-w"):
        store.require_writable()


def test_a_group_that_is_meant_to_may_write_everything(store, tmp_path):
    """The bit that says so is the set-group-ID bit of the folder; others still may nothing."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models").chmod(0o2775)
    store.write("orders", "v1", GOOD, {})
    assert store.read(version_of()) == GOOD
    found = {
        path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("models/*/**/*")
    }
    assert found == {"v1": 0o2770, "model.joblib": 0o660, "manifest.json": 0o660}


def test_what_lies_beside_an_artifact_is_of_the_last_training(store, tmp_path):
    """The artifact and its manifest are kept as they were first written."""
    manifest = {"sha256": version_of().sha256}
    for turn in (b"1", b"2"):
        store.write("orders", "v1", GOOD, manifest | {"turn": turn.decode()}, {"gate.html": turn})
    folder = tmp_path / "models/orders/v1"
    assert (folder / "gate.html").read_bytes() == b"2"
    assert json.loads((folder / "manifest.json").read_text())["turn"] == "1"
    assert len(_files(tmp_path)) == 3


def test_the_bytes_that_are_verified_are_those_that_are_loaded(store, tmp_path, monkeypatch):
    """A file that is exchanged after it was hashed is not read again, so its code never runs."""
    store.write("orders", "v1", GOOD, {})
    path, marker = tmp_path / "models/orders/v1/model.joblib", tmp_path / "marker"
    version, sha256 = version_of(), hashlib.sha256

    def exchange(content):
        digest = sha256(content)
        path.write_bytes(pickle.dumps(Hostile(str(marker))))
        return digest

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", exchange)
        loaded = deserialize(store.read(version), version)
    assert loaded.predict([[3.0]]) == pytest.approx([6.0])
    assert path.read_bytes() != GOOD
    assert not marker.exists()


@pytest.mark.parametrize("manifest", [b"[]", b"null", b"7", b"{", b"\xff"])
def test_a_manifest_that_is_none_is_written_again(store, tmp_path, manifest):
    """It says nothing about the artifact beside it."""
    store.write("orders", "v1", GOOD, {"sha256": version_of().sha256})
    path = tmp_path / "models/orders/v1/manifest.json"
    path.write_bytes(manifest)
    store.write("orders", "v1", GOOD, {"sha256": version_of().sha256})
    assert json.loads(path.read_text()) == {"sha256": version_of().sha256}


def test_what_is_stored_does_not_hang_on_what_is_imported():
    """Such as dill, which Airflow imports: it would store a function by value."""
    code = (
        "import dill, joblib, hashlib\n"
        "from batch_jobs.registry.store import serialize\n"
        "print(hashlib.sha256(serialize({'by': len, 'of': [1.0]})).hexdigest(), flush=True)\n"
        "serialize(lambda rows: rows)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    here = hashlib.sha256(serialize({"by": len, "of": [1.0]})).hexdigest()
    assert done.stdout.strip() == here, done.stderr
    assert "PicklingError: Can't pickle <function <lambda>" in done.stderr


def test_a_version_is_named_by_its_moment_its_bytes_and_what_it_is_asked():
    """So that two trainings of one minute differ if their results or their queries do."""
    moment = datetime(2024, 2, 29, 3, 5, tzinfo=UTC)
    assert name_version(moment, GOOD, {}).startswith("20240229T0305-")
    assert name_version(moment, GOOD, {}) == name_version(moment, GOOD, {})
    assert name_version(moment, GOOD, {}) != name_version(moment, GOOD + b"\0", {})
    assert name_version(moment, GOOD, {}) != name_version(moment, GOOD, {"mode": "merge"})


def test_the_files_are_not_for_everybody(store, tmp_path):
    """Owner and group may read; others may not."""
    store.write("orders", "v1", GOOD, {})
    folder = tmp_path / "models/orders/v1"
    modes = [path.stat().st_mode & 0o007 for path in (folder, *folder.iterdir())]
    assert modes == [0, 0, 0]


@pytest.mark.failure_mode(43)
def test_a_changed_manifest_does_not_change_what_is_checked(store, tmp_path):
    """The hash in the warehouse counts, not the one beside the file."""
    _kept(store, tmp_path, b"other")
    (tmp_path / "models/orders/v1/manifest.json").write_text(
        f'{{"sha256": "{hashlib.sha256(b"other").hexdigest()}"}}'
    )
    with pytest.raises(ArtifactError, match="has changed"):
        store.read(replace(version_of(), manifest={}))
