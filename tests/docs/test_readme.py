"""The README is one page that a newcomer finishes, and is held to the code."""

import re
import subprocess

from batch_jobs.catalog import load_model
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_a_newcomer_finishes_it_in_five_minutes():
    """What is longer belongs into the site."""
    assert len(README.splitlines()) <= 150


def test_every_linked_file_exists():
    """No link of the README leads nowhere, and no picture is missing."""
    links = re.findall(r'\]\(([^)#:]+)\)|<img src="([^"]+)"', README)
    assert links
    assert [link for pair in links for link in pair if not (ROOT / link).exists()] == []


def test_every_command_of_the_run_script_is_in_the_readme():
    """`./run help` and the README tell the same."""
    told = subprocess.run(["sh", ROOT / "run", "help"], capture_output=True, text=True, check=True)
    commands = set(re.findall(r"^  ([a-z-]+)  ", told.stdout, re.MULTILINE))
    [line] = [line for line in README.splitlines() if line.startswith("`./run help` lists")]
    assert set(re.findall(r"`([a-z-]+)`", line)) == commands


def test_the_models_example_is_a_valid_model(tmp_path, monkeypatch):
    """What a newcomer copies works as it stands."""
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "readme_team").mkdir()
    (tmp_path / "readme_team" / "__init__.py").touch()
    (tmp_path / "readme_team" / "churn.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    model = load_model("churn", ["readme_team"])
    assert model.gate.at_least == {"roc_auc": 0.65}
    assert model.estimator().get_params()["random_state"] == 0
