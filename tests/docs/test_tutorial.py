"""The tutorial is lived through: each of its commands, in its order, in one shell."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TUTORIAL = (ROOT / "docs" / "tutorial" / "index.md").read_text()
NOT_TESTED = "<!-- not tested: it boots an Airflow -->\n"
BLOCKS = [
    (before.endswith(NOT_TESTED), code)
    for before, code in re.findall(r"(.*?)```sh\n(.*?)```", TUTORIAL, re.DOTALL)
]
# Stands for ./run in a clone: it installs nothing, and leaves this clone's warehouse alone.
RUN = f"""#!/bin/sh
[ "$1" = batch-jobs ] || exit 97
shift
PYTHONPATH=. exec {Path(sys.executable).with_name("batch-jobs")} "$@"
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks like a clone in which everything is installed."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / ".local").mkdir()
    (folder / ".venv").symlink_to(ROOT / ".venv" if (ROOT / ".venv").exists() else sys.prefix)
    (folder / "run").write_text(RUN)
    (folder / "run").chmod(0o755)
    return folder


def test_only_the_demo_is_not_tested():
    """Everything else is lived through below."""
    left_out = [code for untested, code in BLOCKS if untested]
    assert left_out == ["./run demo --once\n", "./run demo\n"]


def test_every_command_works(clone):
    """Whoever pastes them one after the other ends with predictions of a model of his own."""
    script = "set -eu\n" + "".join(code for untested, code in BLOCKS if not untested)
    environment = os.environ | {
        "BATCH_JOBS_WAREHOUSE": f"sqlite:///{clone}/.local/warehouse.db",
        "BATCH_JOBS_MODEL_STORE": f"{clone}/.local/models",
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "my_team" / "models" / "flowers.py").exists()
    assert (clone / "my_team" / "tests" / "test_flowers.py").exists()
    assert "36 intervals of flowers are published" in done.stdout
    rows = done.stdout.splitlines()[-5:]
    assert [
        row for row in rows if not re.fullmatch(r"\S+ (setosa|versicolor|virginica) \d\.\d+", row)
    ] == []
