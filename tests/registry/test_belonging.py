"""One schema is one deployment's: another one with another model store is refused, and told why."""

import shutil
from dataclasses import replace
from datetime import timedelta

import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError
from batch_jobs.registry import belonging
from batch_jobs.registry.store import ModelStore
from batch_jobs.training import train
from tests.conftest import TRAINED
from tests.support.attempts import ask

on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)


@pytest.fixture
def stores(tmp_path):
    """Two empty stores."""
    found = [ModelStore(str(tmp_path / name)) for name in ("ours", "theirs")]
    for store in found:
        store.require_writable()
    return found


@pytest.mark.failure_mode(87)
def test_a_second_deployment_with_another_store_is_refused(warehouse, stores):
    """With both addresses and what to do; the first goes on as if nothing had been."""
    ours, theirs = stores
    belonging.claim(warehouse, ours)
    told = rf"belongs to the model store {ours} of .*{theirs} is another one: .*--store-moved"
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=told):
            belonging.claim(warehouse, theirs)
    belonging.claim(warehouse, ours)
    belonging.require(warehouse, ours)
    assert belonging.id_of(theirs) is None  # nothing was written


def test_a_store_that_moves_with_its_files_stays_the_one_that_it_is(warehouse, stores, tmp_path):
    """So does one that another machine mounts elsewhere; and it is written once."""
    belonging.claim(warehouse, stores[0])
    known = belonging.id_of(stores[0])
    shutil.move(str(stores[0]), tmp_path / "moved")
    moved = ModelStore(str(tmp_path / "moved"))
    belonging.claim(warehouse, moved)
    moved.files.put(belonging.IDENTITY, b"another\n")
    assert belonging.id_of(moved) == known


def test_another_store_takes_over_only_if_that_is_said(warehouse, stores):
    """From then on the one before is refused."""
    belonging.claim(warehouse, stores[0])
    belonging.claim(warehouse, stores[1], moved=True)
    belonging.require(warehouse, stores[1])
    with pytest.raises(ConfigurationError, match="is another one"):
        belonging.require(warehouse, stores[0])
    assert ask(warehouse, "SELECT address FROM model_stores") == [(str(stores[1]),)]


@pytest.mark.failure_mode(87)
@on_sqlite
def test_nothing_is_trained_into_another_store(shop, tmp_path):
    """An empty folder, as a forgotten mount is one, is found out before anything is fitted."""
    belonging.claim(Warehouse(shop.warehouse), ModelStore(shop.model_store))
    elsewhere = replace(shop, model_store=str(tmp_path / "forgotten"))
    with pytest.raises(ConfigurationError, match="forgotten is another one: two deployments"):
        train.train(elsewhere, "orders", TRAINED + timedelta(hours=6))
