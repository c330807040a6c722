"""The README is held to the code, so that it cannot drift."""

import ast
import re
import subprocess

import pytest
import typer.main

from batch_jobs.catalog import load_model, model_names
from batch_jobs.cli.main import app
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.settings import BUNDLED_MODELS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def section(title):
    """The text under a heading, up to the next heading of its level or above."""
    level, start = re.search(rf"^(#+) {re.escape(title)}$()", README, re.MULTILINE).span(1), None
    depth = level[1] - level[0]
    start = README.index("\n", level[1])
    following = re.search(rf"^#{{1,{depth}}} ", README[start:], re.MULTILINE)
    return README[start : start + following.start()] if following else README[start:]


def test_every_command_is_in_the_readme_and_every_one_there_exists():
    """A newcomer finds each command, and finds none that is not there."""
    documented = set(re.findall(r"^\| `([a-z]+)", section("Commands"), re.MULTILINE))
    assert documented == set(typer.main.get_command(app).commands)


def test_every_option_in_the_readme_exists():
    """An option that was renamed is renamed here too."""
    commands = typer.main.get_command(app).commands.values()
    known = {option for command in commands for p in command.params for option in p.opts}
    assert set(re.findall(r"(--[a-z][a-z-]*)", section("Commands"))) <= known


def test_every_variable_is_in_the_readme_and_every_one_there_exists():
    """The environment is read in one place."""
    read = set(re.findall(r"BATCH_JOBS_[A-Z_]+", (ROOT / "src/batch_jobs/settings.py").read_text()))
    assert set(re.findall(r"^\| `(BATCH_JOBS_[A-Z_]+)`", README, re.MULTILINE)) == read


def test_every_dag_in_the_readme_exists():
    """Each bundled model's pair is named."""
    dags = {
        f"{verb}_{name}" for verb in ("train", "predict") for name in model_names([BUNDLED_MODELS])
    }
    assert set(re.findall(r"`((?:train|predict)_[a-z_]+)`", section("Airflow"))) == dags


def test_every_command_of_the_run_script_is_in_the_readme():
    """`./run help` and the README tell the same."""
    told = subprocess.run(["sh", ROOT / "run", "help"], capture_output=True, text=True, check=True)
    commands = set(re.findall(r"^  ([a-z-]+)  ", told.stdout, re.MULTILINE))
    sentence = section("Commands").split("\n\n")[1].split(". ")[0]
    assert set(re.findall(r"`([a-z-]+)`", sentence)) == commands


def test_the_models_example_is_a_valid_model(tmp_path, monkeypatch):
    """What a newcomer copies works as it stands."""
    [example] = re.findall(r"```python\n(.*?)```", section("Bring your own model"), re.DOTALL)
    (tmp_path / "readme_team").mkdir()
    (tmp_path / "readme_team" / "__init__.py").touch()
    (tmp_path / "readme_team" / "churn.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    model = load_model("churn", ["readme_team"])
    assert model.gate.at_least == {"roc_auc": 0.65}
    assert model.estimator().get_params()["random_state"] == 0


def test_the_defaults_in_the_readme_are_the_defaults():
    """The table of fields quotes the code."""
    from batch_jobs import BatchModel

    fields = BatchModel.model_fields
    for name in re.findall(
        r"`([a-z_]+)`",
        "".join(
            row.split("|")[1]
            for row in section("Bring your own model").splitlines()
            if row[:2] == "| "
        ),
    ):
        assert name in fields or name == "field"
    told = section("Bring your own model")
    assert f"`{fields['schedule'].default}`, `{fields['train_schedule'].default}`" in told
    assert f"{fields['history'].default.days // 7} weeks, 1 week" in told
    assert f"| {fields['look_back'].default.days} day |" in told


@pytest.mark.parametrize("name", ["current_predictions", "serving_status"])
def test_the_views_have_the_columns_of_the_readme(tmp_path, name):
    """The read contract is what the README says."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    warehouse.ensure_schema()
    with warehouse.read() as connection:
        columns = list(connection.exec_driver_sql(f"SELECT * FROM {name}").keys())
    assert f"`{', '.join(columns)}`" in section("Reading the predictions")


def test_every_linked_file_exists():
    """No link of the README leads nowhere."""
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_dag_files_tell_what_to_do_at_night():
    """The operations section of the README and the DAGs' own docs agree that `plan` is cleared."""
    for path in (ROOT / "dags").glob("*.py"):
        assert "clear" in ast.get_docstring(ast.parse(path.read_text()))
