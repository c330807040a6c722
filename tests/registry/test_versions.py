"""Versions and promotions are recorded for ever; the newest promotion names the champion."""

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, IntegrityError

from batch_jobs.errors import ArtifactError
from batch_jobs.registry import champions
from batch_jobs.registry import versions as registry
from batch_jobs.registry.versions import ModelVersion
from tests.support.attempts import ask

AS_OF = "2024-02-29T00:00:00+00:00"


def _version(name, digest="0" * 64, **gate):
    return ModelVersion("orders", name, AS_OF, digest, {"size_bytes": 3}, {"rmse": 1.0}, gate)


def _promote(warehouse, name, expected, action="promote"):
    champions.promote(
        warehouse, _version(name), expected=expected, action=action, actor="ann", reason="better"
    )


@pytest.fixture
def versions(warehouse):
    """The warehouse, with the versions v1, v2 and v3 of `orders`."""
    for name in ("v1", "v2", "v3"):
        registry.register(warehouse, _version(name, promote=True))
    return warehouse


def test_a_version_is_found_as_it_was_registered(versions):
    """With manifest, metrics and the gate's report."""
    assert registry.find_version(versions, "orders", "v2") == _version("v2", promote=True)


def test_registering_other_bytes_under_a_name_keeps_the_first(versions):
    """A promoted version cannot be swapped under its name."""
    again = registry.register(versions, _version("v2", digest="f" * 64, promote=False))
    assert again == _version("v2", promote=True)


def test_training_the_same_bytes_again_takes_the_new_evaluation(versions):
    """The champion may have changed since, and with it the verdict."""
    again = registry.register(versions, _version("v2", promote=False))
    assert again == _version("v2", promote=False)
    assert registry.newest_version(versions, "orders") == again


def test_an_unknown_version_is_told(versions):
    """By its name, quoted."""
    with pytest.raises(ArtifactError, match=r"orders has no version '../v1'"):
        registry.find_version(versions, "orders", "../v1")


def test_the_newest_version_is_the_one_registered_last(versions):
    """Promoted or not; a model without any has none."""
    assert registry.newest_version(versions, "orders").version == "v3"
    assert registry.newest_version(versions, "customers") is None


def test_the_champion_is_the_version_promoted_last(versions):
    """Also if that was a step back; before the first promotion there is none."""
    assert champions.champion(versions, "orders") is None
    _promote(versions, "v1", None)
    _promote(versions, "v3", "v1")
    _promote(versions, "v1", "v3", action="rollback")
    assert champions.champion(versions, "orders").version == "v1"
    rows = ask(versions, "SELECT version, previous_version, action, actor FROM promotions")
    assert rows == [
        ("v1", None, "promote", "ann"),
        ("v3", "v1", "promote", "ann"),
        ("v1", "v3", "rollback", "ann"),
    ]


@pytest.mark.parametrize("expected", [None, "v1"])
def test_of_two_promotions_with_one_expectation_the_second_is_refused(versions, expected):
    """The challenger was evaluated against somebody who does not serve any more."""
    if expected:
        _promote(versions, expected, None)
    _promote(versions, "v2", expected)
    with pytest.raises(
        ArtifactError, match=r"v3 was evaluated against .* but v2 serves now; train"
    ):
        _promote(versions, "v3", expected)
    assert champions.champion(versions, "orders").version == "v2"


@pytest.mark.parametrize("sql", ["UPDATE promotions SET actor = 'bob'", "DELETE FROM promotions"])
def test_promotions_are_never_changed(versions, sql):
    """The database itself refuses."""
    _promote(versions, "v1", None)
    with (
        pytest.raises(DatabaseError, match="promotions is append-only"),
        versions.write() as connection,
    ):
        connection.execute(text(sql))
    assert ask(versions, "SELECT actor FROM promotions") == [("ann",)]


def test_a_version_that_is_not_registered_cannot_be_promoted(versions):
    """The ledger would name a champion that nobody can load."""
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        _promote(versions, "v9", None)
