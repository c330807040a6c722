"""What the pages say of commands, options, variables, DAGs and models is so."""

import ast
import re
import tomllib
from textwrap import dedent

import pytest
import typer.main

from batch_jobs.catalog import load_model, model_names
from batch_jobs.cli.main import app
from batch_jobs.settings import BUNDLED_MODELS
from prediction_api.config import Config
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Of other programs than ours, or of the doors ./run and its demo, bench and docs.
OTHERS = {
    *("--celery", "--scale", "--wait", "--no-recreate"),  # of ./run secrets and Docker Compose
    *("--all-extras", "--all-groups", "--output", "--build", "--detach", "--pyargs"),
    *("--once", "--port", "--api-port", "--serve", "--quiet", "--data-binary", "--no-deps"),
    *("--rows", "--grid", "--foretell", "--repeats"),  # of ./run bench scale
    *("--soak-seconds", "--soak-seed", "--queues", "--appendonly"),
    # Of Docker, kubectl and Helm.
    *("--file", "--tag", "--kustomize", "--namespace", "--current", "--attach", "--restart"),
    *("--from-literal", "--from-env-file", "--image", "--env", "--command", "--install"),
    *("--version", "--values"),
    *("--username", "--dbname", "--format", "--rm", "--entrypoint"),  # pg_dump and Docker Compose
}


def texts():
    """The pages as they are written."""
    return list(zip(NAMES, (page.read_text("utf-8") for page in PAGES), strict=True))


@pytest.mark.parametrize(("name", "text"), texts(), ids=NAMES)
def test_every_command_on_a_page_exists(name, text):
    """One that is renamed is renamed here, too."""
    told = set(re.findall(r"batch-jobs (?:--quiet )?([a-z]+)", "\n".join(snippets(text))))
    assert told - set(COMMANDS) == set()


@pytest.mark.parametrize(("name", "text"), texts(), ids=NAMES)
def test_every_option_on_a_page_exists(name, text):
    """Likewise."""
    known = {option for command in COMMANDS.values() for p in command.params for option in p.opts}
    told = re.findall(r"(?<![\w-])(--[a-z][a-z-]*)", "\n".join(snippets(text)))
    assert set(told) - known - OTHERS == set()


@pytest.mark.parametrize(("name", "text"), texts(), ids=NAMES)
def test_every_variable_on_a_page_exists(name, text):
    """The environment is read in one place each."""
    settings = (ROOT / "src" / "batch_jobs" / "settings.py").read_text()
    read = set(re.findall(r"\bBATCH_JOBS_[A-Z_]+\b", settings))
    read |= {f"PREDICTION_API_{name.upper()}" for name in Config.model_fields}
    told = re.findall(r"\b((?:BATCH_JOBS|PREDICTION_API)_[A-Z_]+)\b", text)
    assert set(told) - read == set()


def test_every_extra_is_told():
    """And each one that is told exists, on the page of extras and wherever one is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "reference" / "extras.md").read_text()
    extras = set(project["optional-dependencies"])
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == extras
    taken = re.findall(r"batch-jobs\[([\w,]+)\]", "".join(text for _, text in texts()))
    assert set(",".join(taken).split(",")) - extras == set()


def test_every_dag_of_the_bundled_models_is_told():
    """And each one that is told exists."""
    names = list(model_names([BUNDLED_MODELS]))
    dags = {f"{path.stem}_{name}" for path in (ROOT / "dags").glob("*.py") for name in names}
    text = (ROOT / "docs" / "reference" / "dags.md").read_text()
    assert set(re.findall(r"`((?:train|predict|monitor|rollback)_[a-z_]+)`", text)) == dags


def test_the_dags_tell_what_to_do_at_night():
    """The guide for the night and the DAGs' own docs agree that a task is cleared."""
    assert "clear `plan`" in (ROOT / "docs" / "how-to" / "night-on-call.md").read_text()
    for path in (ROOT / "src" / "batch_jobs_airflow").glob("*_dag.py"):
        assert "clear" in ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    ("page", "name"), [("model-merge", "churn"), ("model-replace", "spending")]
)
def test_the_example_of_a_guide_is_a_valid_model(tmp_path, monkeypatch, page, name):
    """What somebody copies works as it stands."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    [example] = re.findall(r"^ +```python\n(.*?)^ +```", text, re.DOTALL | re.MULTILINE)
    package = f"guide_of_{name}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / f"{name}.py").write_text(dedent(example))
    monkeypatch.syspath_prepend(tmp_path)
    assert load_model(name, [package]).estimator().get_params()["random_state"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_no_line_of_a_guide_names_a_folder_of_a_machine(name):
    """Examples are of /srv, /opt and the clone."""
    text = (ROOT / name).read_text()
    assert re.findall(r"(?<![\w.])/(?:home|tmp|work|root)/\S*", text) == []


def snippets(text):
    """What is written as code, in lines and in blocks."""
    return re.findall(r"```\w+\n.*?```|`[^`\n]+`", text, re.DOTALL)
