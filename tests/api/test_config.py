"""A server's settings come from the environment, and wrong ones are told at once."""

import os
import subprocess
import sys

import pytest

from batch_jobs.errors import ConfigurationError
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
    }
    with pytest.raises(ConfigurationError) as caught:
        Config.from_environ(PLACES | wrong)
    for name in wrong:
        assert name in str(caught.value)
    assert "short-secret" not in str(caught.value)
    assert KEY not in repr(Config.from_environ(PLACES | {"PREDICTION_API_KEYS": KEY}))


def test_wrong_settings_end_the_command_with_one_line():
    """Exit 2, and no traceback."""
    environ = {"PATH": os.environ["PATH"], "PREDICTION_API_PORT": "x"}
    command = [sys.executable, "-m", "prediction_api"]
    ended = subprocess.run(
        command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr == "error: PREDICTION_API_PORT is 'x'; write a port, such as 8000\n"
