"""The benchmark of the API runs and tells what it measured; how fast anything is, no test asks."""

import json
import subprocess
import sys

from tests.conftest import ROOT

SMALL = ["--rows", "200", "--seconds", "0.2", "--repeats", "1", "--connections", "2", "--json"]


def test_it_measures_every_route_beside_its_floor():
    """Each answer is a success, idle and while somebody publishes."""
    command = [sys.executable, "-m", "tests.benchmarks.api", *SMALL, "--databases", "sqlite"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    records = json.loads(answer.stdout.splitlines()[-1])
    assert [(one["while"], one["what"]) for one in records] == [
        *(("idle", "constant"), ("idle", "look-up")),
        *(("publishing", "constant"), ("publishing", "look-up")),
        *(("computing", "bare handler"), ("computing", "POST /predict")),
    ]
    for one in records:
        assert one["failed"] == 0
        assert one["requests_per_second"] > 0
        assert 0 < one["p50_ms"] <= one["p99_ms"]
        assert one["ratio"] > 0
