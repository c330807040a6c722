"""airflow.cfg.template says what Airflow knows, what differs from its defaults, and why."""

import re
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from demo.local import make_secrets, render_config

ROOT = Path(__file__).parent.parent.parent
TEMPLATE = (ROOT / "airflow.cfg.template").read_text("utf-8")
# Found without importing Airflow, which would write a configuration of its own.
AIRFLOW = Path(find_spec("airflow").submodule_search_locations[0])
KNOWN = yaml.safe_load((AIRFLOW / "config_templates" / "config.yml").read_text("utf-8"))


def _parsed(text: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_string(text)
    return parser


SETTINGS = [
    (section, key) for section, keys in _parsed(TEMPLATE.replace("@", "")).items() for key in keys
]


@pytest.fixture
def rendered(tmp_path):
    """The file that Airflow reads, rendered for a clone in a folder with an awkward name."""
    clone = tmp_path / "100 % mine"
    clone.mkdir()
    (clone / "airflow.cfg.template").write_text(TEMPLATE)
    path = render_config(clone, clone / ".local" / "airflow", 8090)
    return clone, path


@pytest.mark.parametrize(("section", "key"), SETTINGS)
def test_airflow_knows_each_key(section, key):
    """A misspelled or moved key would be ignored without a word."""
    assert key in KNOWN.get(section, {}).get("options", {}), f"Airflow has no [{section}] {key}"


@pytest.mark.parametrize(("section", "key"), SETTINGS)
def test_each_value_differs_from_the_default(section, key, rendered):
    """A key with its default value is noise; take it out."""
    value = _parsed(rendered[1].read_text("utf-8"))[section][key]
    assert value != str(KNOWN[section]["options"][key]["default"])


@pytest.mark.parametrize(("section", "key"), SETTINGS)
def test_each_key_has_its_reason(section, key):
    """The line above each key says why it is there."""
    assert re.search(rf"^# .+\n{key} = ", TEMPLATE, re.MULTILINE), f"say why [{section}] {key}"


def test_every_placeholder_is_filled_in(rendered):
    """Root, port and secrets stand where the template has their names."""
    clone, path = rendered
    config = _parsed(path.read_text("utf-8"))
    made = make_secrets(path.parent)
    assert not [value for keys in config.values() for value in keys.values() if "@" in value]
    assert config["core"]["dags_folder"] == f"{clone}/dags"
    assert config["api"]["base_url"] == "http://127.0.0.1:8090"
    assert config["core"]["fernet_key"] == made["fernet_key"]
    assert config["api_auth"]["jwt_secret"] == made["jwt_secret"]


def test_the_template_holds_no_secret():
    """Secrets are placeholders; the Slack webhook has no place here at all."""
    for key in ("fernet_key", "secret_key", "jwt_secret"):
        assert re.search(rf"^{key} = @\w+@$", TEMPLATE, re.MULTILINE)
    assert "slack" not in TEMPLATE.lower()
