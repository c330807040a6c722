"""The PostgreSQL of the tests is a real one, and is gone with the tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text

from tests.support.postgres_server import PostgresServer

ROOT = Path(__file__).parent.parent.parent

STARTER = """
import os, signal
from tests.support.postgres_server import PostgresServer

server = PostgresServer()
server.start()
heir = os.fork()
if heir:
    print(server.folder, server.pid, heir, flush=True)
signal.pause()
"""


def test_its_url_leads_sqlalchemy_to_it(postgres, postgres_url):
    """SQLAlchemy connects to the fresh database with nothing but the address."""
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        name = connection.scalar(text("SELECT current_database()"))
        tables = connection.scalar(
            text("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        )
    engine.dispose()
    assert (postgres.url(name), tables) == (postgres_url, 0)


def test_it_is_set_up_like_a_warehouse(postgres):
    """It listens on this machine only, and has UTC, UTF-8 and proper passwords."""
    names = ("listen_addresses", "timezone", "server_encoding", "password_encryption", "fsync")
    found = {name: postgres.execute(f"SHOW {name}")[0][0] for name in names}
    assert found == {
        "listen_addresses": "127.0.0.1",
        "timezone": "UTC",
        "server_encoding": "UTF8",
        "password_encryption": "scram-sha-256",
        "fsync": "off",
    }


@pytest.mark.parametrize("way", ["port", "socket"])
def test_it_refuses_a_wrong_password(postgres, way):
    """Neither the port nor the socket lets anybody in without the password."""
    host = "127.0.0.1" if way == "port" else str(postgres.folder)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        postgres.connect(host=host, password="wrong")


def test_what_was_committed_survives_a_crash(postgres, postgres_url):
    """After a crash and a start the committed row is there, and the other one is not."""
    database = postgres_url.rpartition("/")[2]
    postgres.execute("CREATE TABLE kept AS SELECT 1 AS number", database)
    client = postgres.connect(database, autocommit=False)
    client.execute("INSERT INTO kept VALUES (2)")
    crashed = postgres.pid

    postgres.crash()
    with pytest.raises(psycopg.OperationalError):
        client.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="refused"):
        postgres.connect()
    postgres.start()

    client.close()
    assert postgres.pid != crashed
    assert postgres.execute("SELECT number FROM kept", database) == [(1,)]
    assert "automatic recovery in progress" in postgres.log


def test_a_stopped_server_needs_no_recovery(postgres):
    """A restart shuts down in order, and keeps the port."""
    before = len(postgres.log)
    postgres.restart()
    log = postgres.log[before:]
    assert "database system is shut down" in log
    assert "automatic recovery" not in log


def test_a_database_is_dropped_under_its_clients(postgres):
    """Who is still connected is sent away; dropping what is not there is no error."""
    postgres.create_database("dropped")
    client = postgres.connect("dropped")
    postgres.drop_database("dropped")
    postgres.drop_database("dropped")
    with pytest.raises(psycopg.OperationalError, match="terminating connection"):
        client.execute("SELECT 1")
    client.close()
    assert postgres.execute("SELECT 1 FROM pg_database WHERE datname = 'dropped'") == []


def test_a_database_is_copied(postgres, postgres_url):
    """A database made from a template has its tables."""
    template = postgres_url.rpartition("/")[2]
    postgres.execute("CREATE TABLE kept AS SELECT 1 AS number", template)
    postgres.create_database("copied", template)
    found = postgres.execute("SELECT number FROM kept", "copied")
    postgres.drop_database("copied")
    assert found == [(1,)]


def test_settings_hold_from_the_next_start():
    """Settings are lines of postgresql.conf, and may change between two starts."""
    with PostgresServer(fsync=True, settings={"work_mem": "8MB"}) as server:
        first = server.execute("SELECT current_setting('work_mem'), current_setting('fsync')")
        server.settings["work_mem"] = "16MB"
        server.restart()
        second = server.execute("SHOW work_mem")
    assert (first, second) == ([("8MB", "on")], [("16MB",)])
    assert not server.folder.exists()


def test_a_server_that_cannot_start_says_why():
    """The error has the server's own words, and nothing is left behind."""
    server = PostgresServer(settings={"no_such_setting": "1"})
    try:
        with pytest.raises(RuntimeError, match="no_such_setting"):
            server.start()
    finally:
        server.close()
    assert not server.folder.exists()


def test_it_dies_with_whoever_started_it():
    """A killed starter leaves no server and no folder, even if a fork of it lives on."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    folder, pid, heir = starter.stdout.readline().split()
    try:
        starter.kill()
        starter.wait()
        gone = _within(30, lambda: not _is_alive(int(pid)) and not Path(folder).exists())
    finally:
        os.kill(int(heir), signal.SIGKILL)
        starter.stdout.close()
    assert gone


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _within(seconds, condition):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
