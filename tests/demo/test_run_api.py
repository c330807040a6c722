"""`./run api` serves at once, with a model that answers in the clone's own warehouse."""

import os
import re
import signal
import socket
import subprocess
import sys
from threading import Event

import httpx
import pytest

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.registry import champions
from batch_jobs.settings import Settings
from demo.api import LocalApi, prepare
from demo.local import LocalAirflowError, RefusedError
from tests.conftest import ROOT
from tests.support.api import serving

SEED = b"{'features': [5.1, 3.5, 1.4, 0.2]}"  # as the seed prints it


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """Settings of a clone's own warehouse, which was prepared from nothing, and its file."""
    folder = tmp_path_factory.mktemp("clone") / ".local"
    settings = Settings(f"sqlite:///{folder}/warehouse.db", str(folder / "models"))
    prepare(settings, folder / "warehouse.db")
    return settings, folder / "warehouse.db"


def test_the_request_of_the_seed_works_as_it_is_printed(embedded):
    """In its single quotes too; the result is kept under the id."""
    with serving(embedded[0]) as client:
        headers = {"Content-Type": "application/json"}
        answer = client.post("/predict", content=SEED, headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["result"] == "setosa"
        assert client.get(f"/predict/{answer.json()['id']}").json() == answer.json()
        listed = client.post("/models/iris/predict", json={"features": [5.1, 3.5, 1.4, 0.2]})
        assert listed.json()["result"] == "setosa"


def test_what_is_there_is_not_made_again(embedded):
    """The champion stays; a warehouse of somebody's own gets its tables, and no model."""
    settings, file = embedded
    before = champions.champion(Warehouse(settings.warehouse), "iris")
    prepare(settings, file)
    assert champions.champion(Warehouse(settings.warehouse), "iris") == before
    own = Settings(f"sqlite:///{file.parent}/own.db", settings.model_store)
    prepare(own, file)
    assert champions.champion(Warehouse(own.warehouse), "iris") is None


def test_the_demo_has_one_beside_it_until_it_ends(embedded, tmp_path):
    """Whatever a person's own settings say; a port that is taken is told with the option for it."""
    settings, _ = embedded
    environ = os.environ | {
        "BATCH_JOBS_WAREHOUSE": settings.warehouse,
        "BATCH_JOBS_MODEL_STORE": settings.model_store,
        "PREDICTION_API_KEYS": "short",
    }
    api = LocalApi(_free_port(), environ, tmp_path / "api.log")
    api.start("iris")
    try:
        while not api.ready():
            Event().wait(0.05)
        assert "<h1>iris</h1>" in httpx.get(api.url).text
        with pytest.raises(RefusedError, match="--api-port"):
            api.start("iris")
    finally:
        api.stop()
    with pytest.raises(LocalAirflowError, match=r"api\.log"):
        api.ready()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_it_tells_a_request_that_works_and_ends_when_told_to(embedded):
    """The example it prints is asked as printed; on SIGTERM it ends with exit 0."""
    settings, _ = embedded
    port = _free_port()
    environ = os.environ | {
        "BATCH_JOBS_WAREHOUSE": settings.warehouse,
        "BATCH_JOBS_MODEL_STORE": settings.model_store,
    }
    command = [sys.executable, "-m", "demo.api", "--port", str(port)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environ, cwd=ROOT, **pipes) as server:
        try:
            while "Uvicorn running" not in (line := server.stderr.readline()):
                assert line, "the server ended"
            told = "".join(
                iter(
                    server.stdout.readline, f"What it can be asked: http://127.0.0.1:{port}/docs\n"
                )
            )
            [url, body] = re.search(r"-X POST (\S+) .*-d '([^']+)'", told, re.DOTALL).groups()
            answer = httpx.post(url, content=body, headers={"Content-Type": "application/json"})
            assert answer.json()["result"] == "setosa"
            assert httpx.get(f"http://127.0.0.1:{port}/docs").status_code == 200
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate()
    assert server.returncode in (0, -signal.SIGTERM)
