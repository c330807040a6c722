"""Fixtures that the tests share; Airflow gets a folder of its own before it is imported."""

import gc
import os
import shutil
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.engine import make_url

from batch_jobs.database.connections import close_kept

ROOT = Path(__file__).parent.parent
_folder = tempfile.TemporaryDirectory(prefix="batch-jobs-airflow-")  # removed at exit
AIRFLOW_HOME = Path(_folder.name)

# A shell that starts us in the background has us, and all that we start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Airflow reads these once, when it is first imported; no test may see what the user has set.
for name in list(os.environ):
    if name.startswith(("AIRFLOW_", "BATCH_JOBS_")):
        del os.environ[name]
os.environ |= {
    "AIRFLOW_HOME": str(AIRFLOW_HOME),
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
    "AIRFLOW__CORE__PLUGINS_FOLDER": str(AIRFLOW_HOME / "plugins"),
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{AIRFLOW_HOME}/airflow.db",
    "PYTHONPATH": str(ROOT),
    "OMP_WAIT_POLICY": "passive",
    "BATCH_JOBS_SPOOL": str(AIRFLOW_HOME / "spool"),
}

# Files that take longest, which boot an Airflow or live through weeks: they are begun first, so
# that no process of the test run is left alone with one of them at the end.
LONGEST = (
    "airflow/test_celery.py",
    *("airflow/test_process_faults.py", "airflow/test_dag_runs.py"),
    *("airflow/test_alerts_end_to_end.py", "airflow/test_approval_and_drift.py"),
    *("airflow/test_end_to_end.py", "faults/test_faults.py", "training/test_walk_forward.py"),
    *("backtest/test_run.py", "faults/test_memory.py", "training/test_train.py"),
    "runs/test_jobs.py",
)

# What shares the Airflow of tests/airflow/conftest.py.
SHARING = (
    *("airflow/test_end_to_end.py", "airflow/test_approval_and_drift.py", "airflow/test_watch.py"),
)

# The shop of the example models: three weeks of orders, all in the past, with a leap day.
OPENED = datetime(2024, 2, 10, tzinfo=UTC)
TRAINED = OPENED + timedelta(days=20)


# `./run test --fast` leaves out the rooms that start an Airflow, a server or many processes, the
# files that live through weeks, compile or measure, and whatever needs PostgreSQL, S3 or a browser.
FAST = {
    *("alerts", "api", "cli", "database", "evaluation", "monitoring", "project"),
    *("registry", "reports", "requests", "runs", "samples", "scoring", "training", "words"),
}
SLOW = {
    "airflow",
    "backtest",
    "backups",
    "benchmarks",
    "demo",
    "docs",
    "faults",
    "packaging",
    "support",
}
SLOW_FILES = {
    *("training/test_walk_forward.py", "samples/test_flight_delay.py", "api/test_corpus.py"),
    *("words/test_interruption.py", "project/test_run_script.py", "project/test_benchmarks.py"),
    *("scoring/test_compiled_trees.py", "api/test_schema.py", "api/test_read_contract.py"),
    *("database/test_compose_logins.py", "database/test_roles.py"),
    *("database/test_sqlite_reader.py", "monitoring/test_watch_command.py"),
    *("monitoring/test_drift.py", "monitoring/test_judgement.py", "monitoring/test_watch.py"),
    *("monitoring/test_performance.py", "training/test_train.py", "training/test_check.py"),
    "api/test_online.py",
}
SERVERS = {"postgres", "_s3", "browser"}


def is_slow_file(path):
    """Whether a file of tests has no part in the inner loop, so that it need not be imported."""
    room, name = path.parts[-2:]
    return name.startswith("test_") and (room in SLOW or f"{room}/{name}" in SLOW_FILES)


def is_fast(item):
    """Whether a test belongs to the inner loop."""
    needs_postgres = getattr(item, "callspec", None) and "postgresql" in str(item.callspec.params)
    return not (
        is_slow_file(item.path)
        or SERVERS & set(item.fixturenames)
        or needs_postgres
        or item.get_closest_marker("slow")
    )


def pytest_ignore_collect(collection_path, config):
    """Leave out whole files if what is fast is asked for."""
    return True if config.getoption("--fast") and is_slow_file(collection_path) else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process of the test run for all the files that share an Airflow."""
    from xdist.scheduler import LoadFileScheduling

    class OneAirflow(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "the Airflow" if file.endswith(SHARING) else file

    return OneAirflow(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_finish():
    """All that was imported and collected stays: let no collection of garbage look at it again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Leave out what is slow if that is asked for, and begin with the files that take longest."""
    if config.getoption("--fast"):
        slow = [item for item in items if not is_fast(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if is_fast(item)]
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def _undrawn():
    """Evaluations are drawn as empty frames in this process: drawings are half of a training."""
    from batch_jobs.reports import gate

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "svg", lambda _, label, **__: f'<svg aria-label="{label}"></svg>')
        yield


@pytest.fixture(scope="module")
def drawn():
    """Draw the evaluations of trainings after all."""
    from batch_jobs.reports import gate, html

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "svg", html.svg)
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def warehouse_url(request, tmp_path):
    """The URL of a database with nothing in it, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/warehouse.db"
    return request.getfixturevalue("postgres_url")


@pytest.fixture(scope="session")
def _postgres_template(postgres):
    """A database with our tables and views, to copy."""
    from batch_jobs.database.warehouse import Warehouse

    postgres.create_database("empty_warehouse")
    Warehouse(postgres.url("empty_warehouse")).ensure_schema()
    return "empty_warehouse"


@pytest.fixture(params=["sqlite", "postgresql"])
def warehouse(request, tmp_path):
    """A warehouse with its tables and views, and nothing in them."""
    from batch_jobs.database.warehouse import Warehouse

    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")
        template = request.getfixturevalue("_postgres_template")
        with _copied(server, template) as url:
            yield Warehouse(url)
        return
    made = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    made.ensure_schema()
    yield made


@pytest.fixture(scope="session")
def _trained_shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    _open_shop(_settings_in(folder))
    close_kept()  # so that all is in the file, to be copied
    return folder


@pytest.fixture(scope="session")
def _trained_postgres_shop(tmp_path_factory, postgres):
    folder = tmp_path_factory.mktemp("postgres_shop")
    postgres.create_database("trained_shop")
    _open_shop(_settings_in(folder, postgres.url("trained_shop")))
    return folder


def _open_shop(settings):
    from batch_jobs.database.warehouse import Warehouse
    from batch_jobs.registry import promotion
    from batch_jobs.training import train
    from tests.example_models._tables import make_tables

    warehouse = Warehouse(settings.warehouse)
    warehouse.ensure_schema()
    with warehouse.write_source() as connection:
        make_tables(connection, OPENED, TRAINED + timedelta(days=1))
    for name in ("orders", "customers"):
        train.train(settings, name, TRAINED)
        promotion.promote(settings, name, actor="tests")


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request, tmp_path):
    """Settings of a deployment whose two example models have a champion and predicted nothing."""
    if request.param == "sqlite":
        shutil.copytree(request.getfixturevalue("_trained_shop"), tmp_path / "shop")
        yield _settings_in(tmp_path / "shop")
        return
    server = request.getfixturevalue("postgres")
    shutil.copytree(request.getfixturevalue("_trained_postgres_shop"), tmp_path / "shop")
    with _copied(server, "trained_shop") as url:
        yield _settings_in(tmp_path / "shop", url)


@contextmanager
def _copied(server, template):
    name = f"test_{uuid4().hex}"
    server.create_database(name, template)
    yield server.url(name)
    server.drop_database(name)


@pytest.fixture(scope="session")
def flights_2013(tmp_path_factory):
    """A warehouse with the real flights and weather of 2013, not moved; only to be read."""
    from batch_jobs.database.warehouse import Warehouse
    from batch_jobs.samples.flights import load_flights

    made = Warehouse(f"sqlite:///{tmp_path_factory.mktemp('flights')}/warehouse.db")
    made.ensure_schema()
    with made.write() as connection:
        load_flights(connection, datetime(2013, 11, 1, tzinfo=UTC))
    close_kept()
    return made


@pytest.fixture(scope="session")
def postgres():
    """One PostgreSQL server for all tests; databases are cheap, servers are not."""
    from tests.support.postgres_server import PostgresServer

    # Tests connect thousands of times, each with 4096 rounds of hashing if nothing is said.
    with PostgresServer(settings={"scram_iterations": "1"}) as server:
        server.execute(f"ALTER ROLE postgres PASSWORD '{server.password}'")
        yield server


@pytest.fixture
def postgres_url(postgres):
    """A fresh and empty database of the server, dropped afterwards."""
    name = f"test_{uuid4().hex}"
    postgres.create_database(name)
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def login(postgres, postgres_url):
    """Make a login that is nothing but a member of some roles; its URL for the database."""
    made = []

    def make(*groups):
        name = f"login_{len(made)}_{make_url(postgres_url).database}"[:60]
        made.append(name)
        postgres.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'")
        for group in groups:
            postgres.execute(f"GRANT {group} TO {name}")
        return as_login(name, postgres_url)

    yield make
    database = make_url(postgres_url).database
    for name in made:
        postgres.execute(f"DROP OWNED BY {name} CASCADE", database)
        postgres.execute(f"DROP ROLE {name}")


def as_login(name, url):
    """The URL of another login."""
    changed = make_url(url).set(username=name, password="secret")
    return changed.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def _s3():
    from tests.support.s3_server import S3Server

    server = S3Server()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(_s3, monkeypatch):
    """A server of S3's HTTP interface, which all clients of this process find."""
    from tests.support.s3_server import forget_clients

    for name, value in _s3.environ.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield _s3
    forget_clients()


@pytest.fixture
def bucket(s3):
    """A new bucket on it."""
    from tests.support.s3_server import Bucket

    return Bucket(f"test-{uuid4().hex}")


def _settings_in(folder, warehouse=None):
    from batch_jobs.settings import Settings

    return Settings(
        warehouse=warehouse or f"sqlite:///{folder}/warehouse.db",
        model_store=str(folder / "models"),
        models=("tests.example_models",),
    )


def pytest_addoption(parser):
    """Let tests be left out, and the soak run longer, or again as it ran before."""
    parser.addoption("--fast", action="store_true", help="leave out what takes long")
    parser.addoption("--soak-seconds", type=float, help="how long a soak lasts")
    parser.addoption("--soak-seed", type=int, help="of its faults")


@pytest.fixture(scope="session")
def _faulty(tmp_path_factory):
    from tests.fault_models._rows import prepare

    folder = tmp_path_factory.mktemp("faults")
    made = prepare(f"sqlite:///{folder}/warehouse.db", folder)
    close_kept()
    return folder, made


@pytest.fixture(scope="session")
def _faulty_postgres(tmp_path_factory, postgres):
    from tests.fault_models._rows import prepare

    folder = tmp_path_factory.mktemp("postgres_faults")
    postgres.create_database("faults")
    return folder, prepare(postgres.url("faults"), folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment(request, tmp_path, monkeypatch):
    """Two models with one tick published, to try faults on; see tests/support/deployment.py."""
    from tests.support.deployment import Deployment

    monkeypatch.setattr("batch_jobs.runs.claims.LARGE", 1)  # as in tests/support/warm.py
    if request.param == "sqlite":
        folder, (settings, versions) = request.getfixturevalue("_faulty")
        shutil.copy(folder / "warehouse.db", tmp_path)
        made = Deployment(settings, versions).at(f"sqlite:///{tmp_path}/warehouse.db")
        yield made
        made.close()
        return
    server = request.getfixturevalue("postgres")
    _, (settings, versions) = request.getfixturevalue("_faulty_postgres")
    with _copied(server, "faults") as url:
        made = Deployment(settings, versions, server).at(url)
        yield made
        made.close()


@pytest.fixture
def attempt(deployment):
    """Make an attempt on the deployment in a process of its own: `attempt(act, ..., order=...)`."""
    from tests.support.faults import Attempt

    made = []

    def start(act, *arguments, settings=deployment.settings, **keywords):
        made.append(Attempt(act, settings, *arguments, **keywords))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def reader(deployment):
    """Make a reader of the deployment that looks all the while: `reader()`."""
    from tests.support.reader import Reader

    made = []

    def start(**options):
        made.append(Reader(deployment.url, deployment.versions, **options))
        return made[-1]

    yield start
    for one in made:
        one.close()


@pytest.fixture
def in_background():
    """Run something beside the test in this process: `in_background(act, ...)` gives its future."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit
