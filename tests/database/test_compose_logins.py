"""The logins that docker-compose.yaml makes can do what their services do, and no more."""

import os
import subprocess
from dataclasses import replace

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from batch_jobs import Interval
from batch_jobs.database.connections import close_kept
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError
from batch_jobs.registry import promotion
from batch_jobs.runs import jobs
from batch_jobs.samples.load import load
from batch_jobs.settings import Settings
from batch_jobs.training import train
from tests.conftest import OPENED, ROOT, TRAINED
from tests.example_models._tables import STEP, make_tables
from tests.support.postgres_server import PostgresServer

LOGINS = ("airflow", "results", "owner", "writer", "reader", "requester")
VARIABLES = {
    "AIRFLOW_DB_PASSWORD": "airflow",
    "RESULTS_PASSWORD": "results",
    **{f"WAREHOUSE_{name.upper()}_PASSWORD": name for name in LOGINS[2:]},
}


@pytest.fixture(scope="module")
def server():
    """A server on which the script of a new volume has run."""
    with PostgresServer(settings={"scram_iterations": "1"}) as server:
        programs = server._programs
        environ = {name: f"secret-of-{login}" for name, login in VARIABLES.items()}
        environ |= {"POSTGRES_USER": "postgres", "PGPASSWORD": server.password}
        environ |= {"PGHOST": "127.0.0.1", "PGPORT": str(server.port)}
        subprocess.run(
            ["bash", ROOT / "deploy" / "postgres" / "databases.sh"],
            env=os.environ | environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"},
            check=True,
            capture_output=True,
        )
        yield server
        close_kept()


def url(server, login, database="warehouse"):
    """As docker-compose.yaml writes it."""
    name = login if login in LOGINS[:2] else f"warehouse_{login}"
    return f"postgresql+psycopg://{name}:secret-of-{login}@127.0.0.1:{server.port}/{database}"


def test_the_stack_begins_with_what_the_script_has_made(server, tmp_path):
    """The owner makes tables and roles, the writer trains and publishes, the others read."""
    owner = Warehouse(url(server, "owner"))
    owner.ensure_schema()
    assert owner.ensure_roles() == []
    load(owner, TRAINED, shift_weeks=None)
    with owner.write_source() as connection:
        make_tables(connection, OPENED, TRAINED + STEP)
    settings = Settings(url(server, "writer"), str(tmp_path), ("tests.example_models",))
    train.train(settings, "orders", TRAINED)
    promotion.promote(settings, "orders", actor="tests")
    run = jobs.predict(settings, "orders", Interval(TRAINED, TRAINED + STEP))
    assert run.state == "published"
    for login in ("reader", "requester"):
        reader = Warehouse(replace(settings, warehouse=url(server, login)).warehouse)
        with reader.read() as connection:
            seen = connection.scalar(text("SELECT count(*) FROM serving.current_predictions"))
            assert seen == run.counts.scored
        with pytest.raises(DBAPIError, match="permission denied"), reader.read() as connection:
            connection.execute(text("SELECT * FROM public.flights"))


@pytest.mark.parametrize("login", ["writer", "reader", "requester", "results"])
def test_nobody_else_reaches_the_database_of_airflow(server, login):
    """Nor does Airflow's own login reach the warehouse."""
    with pytest.raises(ConfigurationError, match="does not have CONNECT privilege"):
        Warehouse(url(server, login, "airflow")).ensure_schema()


def test_airflows_login_does_not_reach_the_warehouse(server):
    """It has a database of its own."""
    with pytest.raises(ConfigurationError, match="does not have CONNECT privilege"):
        Warehouse(url(server, "airflow")).ensure_schema()
