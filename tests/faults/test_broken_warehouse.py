"""A full disk, a file that is read-only or damaged, a role or table that is gone: one clear error.

Cases 32 to 35 and 37 of the failure modes. Readers keep what the database can still give.
"""

import logging
import os
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from batch_jobs.cli import main
from batch_jobs.database.connections import close_kept
from batch_jobs.database.warehouse import SCHEMA_VERSION, Warehouse
from batch_jobs.registry.store import ModelStore
from batch_jobs.runs import jobs
from tests.fault_models._rows import tick
from tests.support.deployment import shown
from tests.support.mishaps import (
    is_as_before,
    is_published_once,
    once,
    with_small_files,
    without_privileges,
    write_artifact,
)

on_sqlite = pytest.mark.parametrize("deployment", ["sqlite"], indirect=True)
on_postgres = pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)
PAGE = 4096


def database_file(deployment):
    """The file of a warehouse on SQLite."""
    return Path(make_url(deployment.url).database)


@on_sqlite
@pytest.mark.parametrize("size", [8_000, 60_000])
@pytest.mark.failure_mode(32)
def test_a_full_disk_under_sqlite_costs_nobody_a_row(deployment, attempt, size):
    """Wherever the write-ahead log comes to its limit; with room again, the same call publishes."""
    failed = attempt(with_small_files, size, jobs.predict, "ticks", tick(1)).result()
    assert (failed.code, failed.error) == (1, "OperationalError"), failed
    assert is_as_before(deployment)
    assert "published" not in deployment.states("ticks", 1)
    assert deployment.predict("ticks", 1).state == "published"
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert deployment.ask("PRAGMA integrity_check") == [("ok",)]
    deployment.predict("ticks", 2)
    assert (deployment.leftovers(), deployment.unsound()) == ([], [])


@on_postgres
@pytest.mark.failure_mode(33)
def test_a_full_disk_under_postgresql_costs_nobody_a_row(deployment):
    """The table of the run becomes /dev/full, on which there never is room."""
    path = "SELECT pg_relation_filepath(relname::regclass) FROM pg_class WHERE relname LIKE :name"

    def fill():
        run = deployment.ask("SELECT max(run_id) FROM prediction_runs")[0][0]
        ((found,),) = deployment.ask(path, name=f"predictions_r{run}")
        files.append(deployment.server.folder / "data" / found)
        files[0].rename(f"{files[0]}.kept")
        files[0].symlink_to("/dev/full")
        deployment.ask(f"SELECT pg_terminate_backend(pid, 10000) {others}")  # they have it open

    others = """
        FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    files = []
    with (
        once("score.opened", fill),
        pytest.raises(DBAPIError, match="No space left on device") as caught,
    ):
        deployment.predict("population", 1)
    assert caught.value.orig.sqlstate == "53100"
    assert is_as_before(deployment, "population")
    assert deployment.states("population", 1) == ["failed"]
    Path(f"{files[0]}.kept").replace(files[0])
    assert deployment.predict("population", 1).state == "published"
    assert is_published_once(deployment, "population", ("failed", "published"))


@pytest.mark.failure_mode(33)
def test_a_full_disk_under_the_model_store_leaves_no_half_of_a_file(deployment, attempt, tmp_path):
    """Neither under a version's name nor under another."""
    store = ModelStore(str(tmp_path / "models"))
    store.write("ticks", "v1", b"good", {})
    settings = replace(deployment.settings, model_store=str(tmp_path / "models"))
    failed = attempt(
        with_small_files, 50_000, write_artifact, "v2", 60_000, settings=settings
    ).result()
    assert (failed.code, failed.error) == (2, "ConfigurationError"), failed
    assert "cannot be written: File too large" in failed.message
    kept = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("models/**/*")}
    assert not [name for name in kept if "v2" in name or "new" in name]
    assert attempt(write_artifact, "v2", 60_000, settings=settings).result().code == 0
    assert (tmp_path / "models/ticks/v2/model.joblib").stat().st_size == 60_000


@on_sqlite
@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.failure_mode(34)
def test_a_warehouse_that_may_not_be_written_is_one_clear_error(deployment, attempt, what):
    """Exit 2: trying again would not help; readers read."""
    path = database_file(deployment)
    harmed = path if what == "file" else path.parent
    mode = harmed.stat().st_mode
    harmed.chmod(0o444 if what == "file" else 0o555)
    before = path.read_bytes()
    failed = attempt(without_privileges, jobs.predict, "ticks", tick(1)).result()
    assert (failed.code, failed.error) == (2, "ConfigurationError"), failed
    assert "\n" not in failed.message
    assert path.read_bytes() == before
    harmed.chmod(mode)
    assert is_as_before(deployment)
    assert deployment.predict("ticks", 1).state == "published"
    assert is_published_once(deployment)


@on_sqlite
@pytest.mark.failure_mode(34)
def test_a_warehouse_whose_folder_is_gone_is_one_clear_error(deployment, tmp_path):
    """As when a disk is not mounted: nothing is made in its place."""
    with pytest.raises(main.BatchJobsError) as caught:
        deployment.at(f"sqlite:///{tmp_path}/mounted/warehouse.db").predict("ticks", 1)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "mounted").exists()
    assert is_as_before(deployment)


def roots_of(path, *tables):
    """The numbers of the pages at which tables begin."""
    with closing(sqlite3.connect(path)) as connection:
        names = ", ".join(f"'{table}'" for table in tables)
        sql = f"SELECT rootpage FROM sqlite_master WHERE name IN ({names})"
        return [number for (number,) in connection.execute(sql)]


@on_sqlite
@pytest.mark.parametrize("table", ["predictions", "fences", "prediction_runs"])
@pytest.mark.failure_mode(35)
def test_a_damaged_page_of_sqlite_is_one_clear_error(deployment, table):
    """Nothing is published over it, and with the page restored all goes on.

    SQLite has no checksums: a bit that flips inside a value is not found by anybody.
    """
    path = database_file(deployment)
    (page,) = roots_of(path, table)
    deployment.close()
    close_kept()  # and with it what they remember of the page
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        whole = file.read(PAGE)
        file.seek((page - 1) * PAGE)
        file.write(bytes([whole[0] ^ 0x40]) + whole[1:])
    with pytest.raises(main.BatchJobsError, match="database disk image is malformed") as caught:
        deployment.predict("ticks", 1)
    assert caught.value.exit_code == 2
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE)
        file.write(whole)
    assert is_as_before(deployment)
    assert deployment.predict("ticks", 1).state == "published"
    assert is_published_once(deployment, states=deployment.states("ticks", 1))


@on_sqlite
@pytest.mark.parametrize("harm", ["cut", "flip", "all zeros"])
@pytest.mark.failure_mode(35)
def test_a_damaged_write_ahead_log_loses_transactions_and_not_their_order(
    deployment, tmp_path, harm
):
    """What readers see then is a state that once was, and the lost interval is published again."""
    path = database_file(deployment)
    with closing(sqlite3.connect(path)) as reader:  # keeps the log from being given back
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM predictions").fetchone()
        deployment.predict("ticks", 1)
        found, log = path.read_bytes(), Path(f"{path}-wal").read_bytes()
    half = len(log) // 2
    damaged = {
        "cut": log[: half + 1000],
        "flip": log[:half] + bytes([log[half] ^ 1]) + log[half + 1 :],
        "all zeros": bytes(len(log)),
    }[harm]
    copy = tmp_path / "copy.db"
    copy.write_bytes(found)
    Path(f"{copy}-wal").write_bytes(damaged)
    restored = deployment.at(f"sqlite:///{copy}")
    assert is_as_before(restored)
    assert "published" not in restored.states("ticks", 1)
    assert restored.predict("ticks", 1).state == "published"
    assert is_published_once(restored, states=restored.states("ticks", 1))
    restored.close()


@pytest.fixture
def command(deployment, monkeypatch, capsys):
    """Run `batch-jobs predict` on tick 1; its exit code and what it says."""

    def run(url):
        interval = tick(1)
        span = ["--start", interval.start.isoformat(), "--end", interval.end.isoformat()]
        monkeypatch.setattr(sys, "argv", ["batch-jobs", "predict", "ticks", *span])
        monkeypatch.setenv("BATCH_JOBS_WAREHOUSE", url)
        monkeypatch.setenv("BATCH_JOBS_MODEL_STORE", deployment.settings.model_store)
        monkeypatch.setenv("BATCH_JOBS_MODELS", "tests.fault_models")
        with pytest.raises(SystemExit) as exited:
            main.main()
        return exited.value.code or 0, "".join(capsys.readouterr())

    yield run
    logging.getLogger("batch_jobs").handlers = []


@pytest.fixture
def role(deployment):
    """A role of the server that may read and write the warehouse: its name."""
    name = f"writer_{os.getpid()}"
    server, database = deployment.server, make_url(deployment.url).database
    server.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'hunter2'")
    server.execute(
        f"GRANT USAGE ON SCHEMA serving TO {name};"
        f"GRANT ALL ON ALL TABLES IN SCHEMA serving, public TO {name};"
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA serving TO {name}",
        database,
    )
    yield name
    server.execute(f"DROP OWNED BY {name}", database)
    server.execute(f"DROP ROLE {name}")


def is_refused(answer, words, *secrets):
    """Whether a command has exited with 2 and one line that has the words but no secret."""
    code, said = answer
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, len(lines), said.count("trying again")) == (2, 1, 0), said
    assert words in lines[0]
    return not any(secret in said for secret in secrets)


@on_postgres
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("ALTER ROLE {role} PASSWORD 'another'", "password authentication failed"),
        ("ALTER ROLE {role} NOLOGIN", "not permitted to log in"),
        ("REVOKE USAGE ON SCHEMA serving FROM {role}", "permission denied for schema serving"),
        ("REVOKE INSERT ON fences FROM {role}", "permission denied for table fences"),
        ("REVOKE SELECT ON fault_rows FROM {role}", "permission denied for table fault_rows"),
    ],
)
@pytest.mark.failure_mode(37)
def test_a_role_that_lost_its_rights_is_one_clear_error(deployment, command, role, harm, words):
    """No second try, exit 2, and no password in it; with its rights back, it publishes."""
    url = make_url(deployment.url).set(username=role, password="hunter2")
    secrets = ("hunter2", deployment.server.password)
    with Warehouse(deployment.url).write() as connection:
        connection.execute(text(harm.format(role=role)))
    assert is_refused(command(url.render_as_string(hide_password=False)), words, *secrets)
    assert is_as_before(deployment)
    with Warehouse(deployment.url).write() as connection:
        connection.execute(text(f"ALTER ROLE {role} LOGIN PASSWORD 'hunter2'"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA serving TO {role}"))
        connection.execute(text(f"GRANT ALL ON fences, fault_rows TO {role}"))
    code, said = command(url.render_as_string(hide_password=False))
    assert (code, "hunter2" in said) == (0, False), said
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert deployment.unsound() == []


@on_postgres
@pytest.mark.failure_mode(37)
def test_a_database_that_is_not_there_is_one_clear_error(deployment, command):
    """It is not made, and the password is not told."""
    url = make_url(deployment.url).set(database="nowhere").render_as_string(hide_password=False)
    assert is_refused(command(url), 'database "nowhere" does not exist', deployment.server.password)
    assert is_as_before(deployment)


@pytest.mark.parametrize(
    ("harm", "repair", "words"),
    [
        ("ALTER TABLE fences RENAME TO gone", "ALTER TABLE gone RENAME TO fences", "fences"),
        ("ALTER TABLE fault_rows RENAME TO g", "ALTER TABLE g RENAME TO fault_rows", "fault_rows"),
        (
            "UPDATE schema_version SET version = 1",
            f"UPDATE schema_version SET version = {SCHEMA_VERSION}",
            "init",
        ),
    ],
)
@pytest.mark.failure_mode(37)
def test_a_warehouse_that_lacks_a_table_is_one_clear_error(
    deployment, command, harm, repair, words
):
    """Also the source's, and also the ones of this release; no second try, exit 2."""
    secret = deployment.server.password if deployment.server else "no secret"
    with Warehouse(deployment.url).write() as connection:
        connection.execute(text(harm))
    assert is_refused(command(deployment.url), words, secret)
    with Warehouse(deployment.url).write() as connection:
        connection.execute(text(repair))
    assert is_as_before(deployment)
    assert command(deployment.url)[0] == 0
    assert deployment.seen("ticks") == shown("ticks", [0, 1])
    assert deployment.unsound() == []
