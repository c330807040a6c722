"""The health check of the containers: who is well, who is ended, and who is left alone."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from deploy.healthy import API_SERVER, PATIENCE, check
from tests.conftest import ROOT


@pytest.fixture
def health():
    """What an API server tells, which a test changes; its `address`."""

    class Told(dict):
        address = ""

    told = Told(
        metadatabase={"status": "healthy"},
        scheduler={"status": "healthy"},
        dag_processor={"status": "unhealthy"},
        triggerer={"status": None},
    )

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(told).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told.address = f"http://127.0.0.1:{server.server_port}/"
        yield told
        server.shutdown()


@pytest.fixture
def look(health, tmp_path):
    """Look so often at a component: whether it was well each time, and how often it was ended."""
    ended = []

    def look(component, times=1, address=None):
        found = [
            check(
                component, address or health.address, tmp_path / component, lambda: ended.append(1)
            )
            for _ in range(times)
        ]
        return found, len(ended)

    return look


def test_a_component_is_well_if_its_heart_beats(look):
    """A status of 200 says nothing."""
    assert look("scheduler") == ([True], 0)
    assert look("dag_processor") == ([False], 0)
    assert look("triggerer") == ([False], 0)
    assert look(API_SERVER) == ([True], 0)


def test_what_is_sick_for_long_is_ended(look, health):
    """After as many checks in a row; one that finds it well begins the count anew."""
    health["scheduler"]["status"] = "unhealthy"
    assert look("scheduler", PATIENCE - 1) == ([False] * (PATIENCE - 1), 0)
    health["scheduler"]["status"] = "healthy"
    assert look("scheduler") == ([True], 0)
    health["scheduler"]["status"] = "unhealthy"
    assert look("scheduler", PATIENCE) == ([False] * PATIENCE, 1)


def test_nobody_is_ended_for_another_ones_silence(look):
    """Where nobody answers, only the API server itself is sick; others may well be at work."""
    nobody = "http://127.0.0.1:1/"
    assert look("scheduler", PATIENCE + 1, nobody) == ([False] * (PATIENCE + 1), 0)
    assert look(API_SERVER, PATIENCE, nobody) == ([False] * PATIENCE, 1)


def test_an_api_server_without_its_database_is_left_alone(look, health):
    """To begin anew would not bring that back."""
    health["metadatabase"]["status"] = "unhealthy"
    assert look(API_SERVER, PATIENCE + 1) == ([False] * (PATIENCE + 1), 0)


def test_the_script_needs_no_package():
    """It runs every thirty seconds in each container."""
    script = ROOT / "deploy" / "healthy.py"
    done = subprocess.run([sys.executable, "-S", script], capture_output=True, check=False)
    assert b"IndexError" in done.stderr  # no component was named; all its imports were there
