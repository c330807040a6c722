"""A server's settings come from the environment, and wrong ones are told at once."""

import os
import re
import subprocess
import sys
import traceback

import pytest

from batch_jobs.errors import ConfigurationError
from batch_jobs.settings import Settings
from prediction_api.config import LOOPBACK_NAMES, Config
from tests.conftest import ROOT
from tests.support.api import KEY, OTHER_KEY

PLACES = {"BATCH_JOBS_WAREHOUSE": "sqlite:////w.db", "BATCH_JOBS_MODEL_STORE": "/models"}


def test_the_default_is_open_on_this_machine_only():
    """Nobody needs a key where nobody else can ask."""
    config = Config.from_environ(PLACES)
    assert (config.host, config.port, config.keys) == ("127.0.0.1", 8000, ())
    assert config.hosts == LOOPBACK_NAMES
    assert str(config.rate) == "6000 per 1 minute"


def test_every_variable_is_read():
    """Each has its place in the config."""
    config = Config.from_environ(
        PLACES
        | {
            "PREDICTION_API_HOST": "0.0.0.0",
            "PREDICTION_API_PORT": "9000",
            "PREDICTION_API_KEYS": f"{KEY}, {OTHER_KEY}",
            "PREDICTION_API_HOSTS": "api.example.com",
            "PREDICTION_API_MODEL": "churn",
            "PREDICTION_API_RATE": "10/second",
            "PREDICTION_API_BODY_BYTES": "99",
            "PREDICTION_API_SECONDS": "1.5",
        }
    )
    assert (config.host, config.port, config.keys) == ("0.0.0.0", 9000, (KEY, OTHER_KEY))
    assert (config.hosts, config.model) == (("api.example.com",), "churn")
    assert (str(config.rate), config.body_bytes, config.seconds) == ("10 per 1 second", 99, 1.5)


def test_no_other_machine_is_let_in_without_a_key():
    """It is refused before a port is opened, and the message says what to do."""
    with pytest.raises(ConfigurationError, match="set keys, or listen on"):
        Config.from_environ(PLACES | {"PREDICTION_API_HOST": "0.0.0.0"})
    assert Config.from_environ(PLACES | {"PREDICTION_API_HOST": "::1"}).host == "::1"


def test_wrong_values_are_told_together_and_keys_never():
    """One error names each variable and what would be right."""
    wrong = {
        "PREDICTION_API_PORT": "70000",
        "PREDICTION_API_KEYS": "short-secret",
        "PREDICTION_API_RATE": "often",
        "PREDICTION_API_BODY_BYTES": "-1",
        "PREDICTION_API_SECONDS": "nan",
        "PREDICTION_API_UPLOAD_BYTES": "10 MB",
        "PREDICTION_API_UPLOAD_ROWS": "1.5",
        "PREDICTION_API_UPLOAD_SECONDS": "3600",
        "PREDICTION_API_ANSWER": "perhaps",
    }
    with pytest.raises(ConfigurationError) as caught:
        Config.from_environ(PLACES | wrong)
    for name, value in wrong.items():
        assert name in str(caught.value)
        assert repr(value) in str(caught.value) or name == "PREDICTION_API_KEYS"
    assert "write a port, such as 8000" in str(caught.value)
    assert "short-secret" not in str(caught.value)
    assert KEY not in repr(Config.from_environ(PLACES | {"PREDICTION_API_KEYS": KEY}))


def test_what_is_missing_is_told_beside_what_is_wrong():
    """The warehouse, the model store and the keys that another machine would need."""
    wrong = {"PREDICTION_API_HOST": "0.0.0.0", "PREDICTION_API_PORT": "x"}
    with pytest.raises(ConfigurationError) as caught:
        Config.from_environ(wrong)
    names = ("PREDICTION_API_PORT", "PREDICTION_API_KEYS")
    for name in (*names, "BATCH_JOBS_WAREHOUSE", "BATCH_JOBS_MODEL_STORE"):
        assert name in str(caught.value)


def test_a_key_is_not_shown_by_what_pydantic_says_of_it():
    """Neither in the error nor in those that led to it."""
    for keys in ("short-secret", f"{KEY},short-secret", "sécrèt" * 4):
        with pytest.raises(ConfigurationError) as caught:
            Config.from_environ(PLACES | {"PREDICTION_API_KEYS": keys})
        shown = "".join(traceback.format_exception(caught.value))
        assert not {"short-secret", KEY, "sécrèt"} & set(re.findall(r"[\w-]+", shown))


def test_what_is_empty_counts_as_missing():
    """As a file of variables has it for what nobody has filled in."""
    names = ("HOST", "PORT", "KEYS", "HOSTS", "MODEL", "RATE", "ANSWER")
    empty = {f"PREDICTION_API_{name}": "" for name in names}
    assert Config.from_environ(PLACES | empty) == Config.from_environ(PLACES)


def test_only_the_door_reads_the_environment(monkeypatch):
    """A config that is made with values has those, and the defaults."""
    monkeypatch.setenv("PREDICTION_API_PORT", "9000")
    assert Config(settings=Settings("sqlite:////w.db", "/models")).port == 8000


@pytest.mark.parametrize(
    ("given", "warehouse", "answers"),
    [
        ("", "sqlite:////w.db", True),
        ("", "postgresql+psycopg://db/w", False),
        ("auto", "sqlite:////w.db", True),
        ("no", "sqlite:////w.db", False),
        ("yes", "postgresql+psycopg://db/w", True),
    ],
)
def test_requests_are_answered_where_whoever_asks_can_write(given, warehouse, answers):
    """On SQLite, unless a person says otherwise."""
    environ = PLACES | {"BATCH_JOBS_WAREHOUSE": warehouse, "PREDICTION_API_ANSWER": given}
    assert Config.from_environ(environ).answer is answers


def test_with_keys_every_name_is_answered():
    """Unless names are given."""
    keys = PLACES | {"PREDICTION_API_KEYS": KEY}
    assert Config.from_environ(keys).hosts == ("*",)
    assert Config.from_environ(keys | {"PREDICTION_API_HOSTS": "a.b, c.d"}).hosts == ("a.b", "c.d")


def test_wrong_settings_end_the_command_with_one_line():
    """Exit 2, and no traceback."""
    environ = {"PATH": os.environ["PATH"], "PREDICTION_API_PORT": "x", **PLACES}
    command = [sys.executable, "-m", "prediction_api"]
    ended = subprocess.run(
        command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "error: PREDICTION_API_PORT is 'x'; write a port, such as 8000\n"
