"""`new`: a model file to begin with, and its test; both work as they stand, on sample irises."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from batch_jobs.errors import ConfigurationError, ModelFileError
from batch_jobs.model import NAME_PATTERN

OWN_WORDS = "Which iris is it? The smallest complete model: copy this file, then"
TEST = '''"""All that can be proved of {name} is proved: on the sample irises."""

from datetime import UTC, datetime

from batch_jobs.training.check import check
from batch_jobs.samples.iris import load_iris
from batch_jobs.settings import Settings
from batch_jobs.database.warehouse import Warehouse


def test_{name}_keeps_what_it_promises(tmp_path):
    """The SQL, the contract, the labels, the fit: what fails is told in words."""
    now = datetime(2024, 3, 1, tzinfo=UTC)
    warehouse = Warehouse(f"sqlite:///{{tmp_path}}/warehouse.db")
    warehouse.ensure_schema()
    with warehouse.write() as connection:
        load_iris(connection, now)
    settings = Settings(str(warehouse), str(tmp_path / "models"), ("{package}",))
    failed = [finding for finding in check(settings, "{name}", now) if not finding.holds]
    assert failed == []
'''


def write(name: str, package: str, into: Path, tests: Path) -> list[Path]:
    """Write a model file and its test.

    Args:
        name: of the model.
        package: of the model files, as the test imports it.
        into: the package's folder.
        tests: the folder of the tests; made if it is not there.

    Returns:
        The two files.

    Raises:
        ModelFileError: no model can have that name.
        ConfigurationError: a file is there already, or cannot be written.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ModelFileError(
            f"model file {name}.py",
            [f"its name must match {NAME_PATTERN.pattern}, because it becomes a DAG id"],
        )
    iris = files("batch_jobs.models").joinpath("iris.py").read_text("utf-8")
    model = iris.replace(OWN_WORDS, f"{name}, begun as a copy of the sample iris:")
    wanted = {
        into / f"{name}.py": model,
        tests / f"test_{name}.py": TEST.format(name=name, package=package),
    }
    if there := [str(path) for path in wanted if path.exists()]:
        raise ConfigurationError(f"{', '.join(there)}: there already; choose another name")
    try:
        tests.mkdir(parents=True, exist_ok=True)
        for path, content in wanted.items():
            path.write_text(content, "utf-8")
    except OSError as error:
        raise ConfigurationError(f"{error.filename} cannot be written: {error.strerror}") from error
    return list(wanted)
