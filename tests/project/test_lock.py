"""The two lock files agree with each other and with pyproject.toml, and name no package host."""

import json
import re
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
POETRY = tomllib.loads((ROOT / "poetry.lock").read_text("utf-8"))
REQUIREMENTS = (ROOT / "requirements.lock").read_text("utf-8")

REMEDY = (
    "run `poetry lock` and `poetry export --all-extras --all-groups --output requirements.lock`"
)


def _required() -> dict[tuple[str, str], set[str]]:
    """The hashes of each (package, version) of requirements.lock."""
    found = {}
    for entry in REQUIREMENTS.replace("\\\n", " ").splitlines():
        if entry.strip():
            name, version = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?==(\S+)", entry).groups()
            found[name, version] = set(re.findall(r"--hash=(\S+)", entry))
    return found


def test_requirements_lock_is_the_export_of_poetry_lock():
    """Both have the same packages, versions and hashes."""
    locked = {
        (package["name"], package["version"]): {file["hash"] for file in package["files"]}
        for package in POETRY["package"]
    }
    assert locked == _required(), REMEDY


def test_every_requirement_has_a_hash():
    """Nothing is installed that was not seen when the lock was made."""
    assert [name for name, hashes in _required().items() if not hashes] == []


def test_poetry_lock_belongs_to_pyproject():
    """The hash in poetry.lock is that of the dependencies in pyproject.toml.

    Poetry 2.5 hashes the sorted JSON of what decides about dependencies.
    """
    project = {
        key: PYPROJECT["project"][key]
        for key in ("requires-python", "dependencies", "optional-dependencies")
    }
    relevant = {
        "project": project,
        "dependency-groups": PYPROJECT["dependency-groups"],
        "tool": {"poetry": {}},
    }
    expected = sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()
    assert expected == POETRY["metadata"]["content-hash"], REMEDY


@pytest.mark.parametrize("name", ["poetry.lock", "requirements.lock"])
def test_locks_name_no_host(name):
    """Who installs chooses where from; the hashes say that it is the same."""
    text = (ROOT / name).read_text("utf-8")
    assert re.findall(r"\w+://[^\s\"']+", text) == []
