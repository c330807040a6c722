"""A backup is whole, or is refused; from it a deployment serves the same and goes on."""

import json
import os
import threading
from dataclasses import replace

import pytest
from sqlalchemy.engine import make_url

from batch_jobs.backups import backup, dumps
from batch_jobs.database.connections import close_kept
from batch_jobs.database.warehouse import SCHEMA_VERSION, Warehouse
from batch_jobs.errors import BatchJobsError, ConfigurationError, WarehouseVersionError
from batch_jobs.interval import Interval
from batch_jobs.requests.worker import answer_each
from batch_jobs.runs import jobs
from tests.conftest import TRAINED
from tests.example_models._tables import STEP
from tests.support.asking import state, submit
from tests.support.attempts import ask

on_sqlite = pytest.mark.parametrize("shop", ["sqlite"], indirect=True)
SERVED = """
    SELECT model, entity_id, score, label, model_version, run_id, interval_end, published_at
    FROM current_predictions ORDER BY model, entity_id"""


@pytest.fixture(autouse=True)
def _programs(request, monkeypatch):
    """pg_dump of the server's own version."""
    if "postgresql" in request.node.name:
        programs = request.getfixturevalue("postgres")._programs
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def elsewhere(shop, tmp_path, request):
    """Settings of a deployment beside the shop, of which nothing is there yet."""
    store = str(tmp_path / "elsewhere" / "models")
    (tmp_path / "elsewhere").mkdir()
    if shop.warehouse.startswith("sqlite"):
        url = f"sqlite:///{tmp_path}/elsewhere/warehouse.db"
        yield replace(shop, warehouse=url, model_store=store)
        return
    server, name = request.getfixturevalue("postgres"), f"elsewhere_{os.getpid()}"
    server.create_database(name)
    yield replace(shop, warehouse=server.url(name), model_store=store)
    close_kept()
    server.drop_database(name)


def _step(number):
    return Interval(TRAINED + number * STEP, TRAINED + (number + 1) * STEP)


def _make_sources(shop, elsewhere):
    """Of PostgreSQL the tables of the source are their owner's to bring back."""
    if shop.warehouse.startswith("sqlite"):
        return
    from tests.conftest import OPENED
    from tests.example_models._tables import make_tables

    with Warehouse(elsewhere.warehouse).write_source() as connection:
        make_tables(connection, OPENED, TRAINED + 40 * STEP)


def test_a_restored_deployment_serves_the_same_and_goes_on(shop, elsewhere, tmp_path):
    """In both modes: predictions, versions and history; then runs, requests and a promotion."""
    for model in ("orders", "customers"):
        jobs.predict(shop, model, _step(0))
    jobs.predict(shop, "orders", _step(1))
    made = backup.make(shop, tmp_path / "backup")
    assert (made.versions, made.schema_version) == (2, SCHEMA_VERSION)
    served = ask(Warehouse(shop.warehouse), SERVED)
    jobs.predict(shop, "orders", _step(2))  # later than the backup

    assert backup.restore(elsewhere, tmp_path / "backup") == made
    there = Warehouse(elsewhere.warehouse)
    assert ask(there, SERVED) == served
    _make_sources(shop, elsewhere)
    run = jobs.predict(elsewhere, "orders", _step(2))
    assert run.state == "published"
    assert ask(there, SERVED.replace("run_id,", "").replace(", published_at", "")) == ask(
        Warehouse(shop.warehouse), SERVED.replace("run_id,", "").replace(", published_at", "")
    )
    asked = submit(elsewhere, "orders", [("a", {"amount": 1.5, "country": "kr"})])
    answer_each(elsewhere, ["orders"], told=lambda _, error: pytest.fail(str(error)))
    assert state(elsewhere, asked)[0] == "done"


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
def test_the_roles_come_back_with_their_rights(shop, elsewhere, tmp_path):
    """Where the warehouse had them."""
    Warehouse(shop.warehouse).ensure_roles()
    assert backup.make(shop, tmp_path / "backup").has_roles
    backup.restore(elsewhere, tmp_path / "backup")
    may = "SELECT has_table_privilege('batch_jobs_reader', 'serving.current_predictions', 'SELECT')"
    assert ask(Warehouse(elsewhere.warehouse), may) == [(True,)]


def test_a_backup_is_of_one_moment_while_others_publish(shop, elsewhere, tmp_path):
    """Whole runs are in it, with as many rows as the ledger says."""
    stop, failed = threading.Event(), []

    def publish():
        number = 0
        try:
            while not stop.is_set():
                jobs.predict(shop, "orders", _step(number))
                number += 1
        except Exception as error:  # noqa: BLE001 - told by the test
            failed.append(error)

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        for number in range(3):
            backup.make(shop, tmp_path / f"backup-{number}")
    finally:
        stop.set()
        thread.join()
    assert failed == []
    backup.restore(elsewhere, tmp_path / "backup-2")
    wrong = """
        SELECT r.run_id FROM prediction_runs AS r LEFT JOIN predictions AS p ON p.run_id = r.run_id
        WHERE r.state = 'published' GROUP BY r.run_id, r.rows_scored
        HAVING count(p.run_id) <> r.rows_scored"""
    assert ask(Warehouse(elsewhere.warehouse), wrong) == []


def _change_a_byte(folder):
    path = next(folder.glob("models/orders/*/model.joblib"))
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


def _of_the_future(folder):
    about = folder / "backup.json"
    told = json.loads(about.read_text()) | {"schema_version": SCHEMA_VERSION + 1}
    about.write_text(json.dumps(told))


@on_sqlite
@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (_change_a_byte, ConfigurationError, "is not what it was: models/orders/"),
        (lambda folder: (folder / "warehouse.db").unlink(), ConfigurationError, "warehouse.db"),
        (lambda folder: (folder / "backup.json").unlink(), ConfigurationError, "no whole backup"),
        (_of_the_future, WarehouseVersionError, "upgrade batch-jobs"),
    ],
)
def test_a_damaged_backup_is_refused_and_nothing_is_changed(
    shop, elsewhere, tmp_path, damage, error, said
):
    """Before a byte is written anywhere."""
    backup.make(shop, tmp_path / "backup")
    damage(tmp_path / "backup")
    with pytest.raises(error, match=said):
        backup.restore(elsewhere, tmp_path / "backup")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_nothing_that_is_there_is_overwritten(shop, tmp_path):
    """Neither a warehouse by a restored one, nor a backup by another."""
    backup.make(shop, tmp_path / "backup")
    with pytest.raises(ConfigurationError, match="already; restore into a new place"):
        backup.restore(shop, tmp_path / "backup")
    with pytest.raises(ConfigurationError, match="is there already; name a folder"):
        backup.make(shop, tmp_path / "backup")


@on_sqlite
def test_a_backup_that_fails_leaves_no_folder_that_looks_like_one(shop, tmp_path):
    """An artifact that was changed is found while it is copied."""
    path = next((tmp_path / "shop" / "models").glob("orders/*/model.joblib"))
    path.write_bytes(b"x")
    with pytest.raises(BatchJobsError, match="has changed"):
        backup.make(shop, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
def test_what_postgresql_says_is_told_without_the_password(shop, tmp_path, monkeypatch):
    """And where its programs are missing, how to get them."""
    wrong = make_url(shop.warehouse).set(database="no_such").render_as_string(hide_password=False)
    with pytest.raises(BatchJobsError, match=r"pg_dump has failed: .*no_such") as caught:
        dumps.dump(wrong, tmp_path)
    assert make_url(shop.warehouse).password not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match="apt install postgresql-client"):
        dumps.dump(shop.warehouse, tmp_path)
    with pytest.raises(ConfigurationError, match="another kind of database"):
        dumps.load(tmp_path / "warehouse.db", shop.warehouse)
