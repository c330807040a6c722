"""Copies of artifacts on this machine are the artifact itself or nothing, and their owner's."""

import errno
import hashlib
import os
import stat

import pytest

from batch_jobs.errors import ConfigurationError, StoreUnavailableError
from batch_jobs.registry.cache import COPIES, ArtifactCache
from batch_jobs.registry.local_folder import LocalFolder
from batch_jobs.registry.store import ModelStore
from tests.support.artifacts import GOOD, version_of

CHANGED = GOOD[:-1] + bytes([GOOD[-1] ^ 1])


@pytest.fixture
def store(tmp_path):
    """A store in a folder that keeps copies, with one version that was read."""
    made = ModelStore(str(tmp_path / "models"), str(tmp_path / "copies"))
    made.write("orders", "v1", GOOD, {})
    made.read(version_of(GOOD))
    return made


@pytest.fixture
def copy(store, tmp_path):
    """The copy of it."""
    return tmp_path / "copies" / version_of(GOOD).sha256


@pytest.fixture
def away(monkeypatch):
    """Let the store be a network file system whose server has gone: `away()`."""

    def lost(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    return lambda: monkeypatch.setattr(LocalFolder, "require", lost)


def test_what_was_verified_is_copied_for_its_owner_only(copy):
    """Nobody else can read or write it."""
    assert copy.read_bytes() == GOOD
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (copy, copy.parent)]
    assert modes == [0o600, 0o700]
    assert len(list(copy.parent.iterdir())) == 1


@pytest.mark.failure_mode(59)
def test_a_copy_serves_while_a_network_folder_is_away(store, copy, away, caplog):
    """A warning says so."""
    away()
    assert store.read(version_of(GOOD)) == GOOD
    assert "Stale file handle; the artifact of orders v1 is loaded from its verified copy" in (
        caplog.text
    )


@pytest.mark.parametrize(
    "content",
    [CHANGED, b"", GOOD[:50], GOOD + b"\0"],
    ids=["a bit", "empty", "cut off", "longer"],
)
def test_a_copy_that_was_changed_is_replaced_from_the_store(store, copy, caplog, content):
    """It is never given to anybody."""
    copy.write_bytes(content)
    assert store.read(version_of(GOOD)) == GOOD
    assert copy.read_bytes() == GOOD
    assert "had changed and is removed" in caplog.text


@pytest.mark.failure_mode(59)
def test_a_copy_that_was_changed_does_not_stand_in(store, copy, away):
    """Then there is no copy, and one error."""
    copy.write_bytes(CHANGED)
    away()
    with pytest.raises(StoreUnavailableError, match="no copy of it: Stale file handle"):
        store.read(version_of(GOOD))


def test_copies_are_bounded_and_those_used_last_stay(tmp_path):
    """What a killed process left half-written goes with the oldest."""
    copies = ArtifactCache(str(tmp_path))
    contents = {hashlib.sha256(bytes([n])).hexdigest(): bytes([n]) for n in range(COPIES + 1)}
    *names, newer, newest = contents
    (tmp_path / ".new-killed").touch()
    for name in names:
        copies.keep(name, contents[name])
    for age, path in enumerate([tmp_path / ".new-killed", *(tmp_path / name for name in names)]):
        os.utime(path, (age, age))
    assert copies.find(names[0], 1000) == contents[names[0]]
    for name in (newer, newest):
        copies.keep(name, contents[name])
    assert {path.name for path in tmp_path.iterdir()} == {names[0], *names[2:], newer, newest}


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702, 0o1777, 0o2770])
@pytest.mark.failure_mode(60)
def test_a_folder_of_copies_that_others_may_write_is_refused(store, copy, mode):
    """The error names it and the command that mends it; nothing is read from it."""
    copy.parent.chmod(mode)
    with pytest.raises(ConfigurationError, match=rf"others may .* `chmod go-w {copy.parent}`"):
        store.read(version_of(GOOD))
    with pytest.raises(ConfigurationError, match="others may write"):
        ArtifactCache(str(copy.parent)).keep("f" * 64, b"")


def test_a_folder_of_copies_of_another_user_is_refused(store, copy, monkeypatch):
    """Whoever owns it can change what is in it."""
    owner = copy.parent.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(ConfigurationError, match=f"copies belongs to another user .number {owner}"):
        store.read(version_of(GOOD))


def test_copies_that_cannot_be_kept_stop_nobody(tmp_path, caplog):
    """The store itself is there; a warning says that it is all there is."""
    (tmp_path / "file").touch()
    store = ModelStore(str(tmp_path / "models"), str(tmp_path / "file" / "copies"))
    store.write("orders", "v1", GOOD, {})
    assert store.read(version_of(GOOD)) == GOOD
    assert "no copy of the artifact is kept in" in caplog.text
    assert "(BATCH_JOBS_MODEL_CACHE): Not a directory" in caplog.text
