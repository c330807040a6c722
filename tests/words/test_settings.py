"""Settings come from three variables, and never show the warehouse's URL."""

import pytest

from batch_jobs.errors import ConfigurationError
from batch_jobs.settings import BUNDLED_MODELS, Settings, let_threads_sleep, model_packages

SECRET = "postgresql://writer:hunter2@db/serving"
ENVIRON = {"BATCH_JOBS_WAREHOUSE": SECRET, "BATCH_JOBS_MODEL_STORE": "/srv/models"}


def test_all_missing_variables_are_named_at_once_with_examples():
    """One run of the command tells all that is to be set."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environ({})
    assert str(caught.value) == (
        "not set: BATCH_JOBS_WAREHOUSE (for example sqlite:////srv/batch/warehouse.db), "
        "BATCH_JOBS_MODEL_STORE (for example /srv/batch/models)"
    )


def test_an_empty_variable_is_a_missing_one():
    """Compose files and shells set empty ones."""
    with pytest.raises(ConfigurationError, match="not set: BATCH_JOBS_MODEL_STORE"):
        Settings.from_environ(ENVIRON | {"BATCH_JOBS_MODEL_STORE": ""})


def test_only_what_is_missing_is_named():
    """What is set is not complained about."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_environ({"BATCH_JOBS_MODEL_STORE": "/srv/models"})
    assert "BATCH_JOBS_MODEL_STORE" not in str(caught.value)


def test_what_is_wrong_is_told_with_what_is_missing():
    """One run of the command tells all that is to be mended."""
    with pytest.raises(ConfigurationError, match=r"not set: BATCH_JOBS_WAREHOUSE .*; .*'newest'"):
        Settings.from_environ({"BATCH_JOBS_MODEL_STORE": "/srv", "BATCH_JOBS_LIBRARIES": "newest"})


def test_a_connection_wins_over_the_environment():
    """Airflow's connection `warehouse` is passed in by the tasks."""
    settings = Settings.from_environ(ENVIRON, warehouse="sqlite:////elsewhere.db")
    assert settings.warehouse == "sqlite:////elsewhere.db"


def test_the_warehouse_is_never_shown():
    """Its URL may hold a password."""
    shown = repr(Settings.from_environ(ENVIRON)) + str(Settings.from_environ(ENVIRON))
    assert "hunter2" not in shown


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", ()),
        ("team.models", ("team.models",)),
        (" a , b,,a ", ("a", "b")),
    ],
)
def test_the_bundled_models_come_last(value, expected):
    """So that a user's model hides a bundled one of the same name."""
    assert model_packages({"BATCH_JOBS_MODELS": value}) == (*expected, BUNDLED_MODELS)


def test_idle_threads_sleep_unless_the_environment_says_otherwise():
    """Spinning threads take the processors from whatever else runs on the machine."""
    default, chosen = {}, {"OMP_WAIT_POLICY": "active"}
    let_threads_sleep(default)
    let_threads_sleep(chosen)
    assert (default, chosen) == ({"OMP_WAIT_POLICY": "passive"}, {"OMP_WAIT_POLICY": "active"})


def test_signatures_and_library_policy_have_variables_of_their_own():
    """All three may be missing; an empty one is."""
    plain = Settings.from_environ(ENVIRON | {"BATCH_JOBS_VERIFY_KEY": ""})
    assert (plain.signing_key, plain.verify_key, plain.libraries) == (None, "hash-only", "same")
    told = {
        "BATCH_JOBS_SIGNING_KEY": "/run/secrets/signing.pem",
        "BATCH_JOBS_VERIFY_KEY": "/etc/batch/verify.pem",
        "BATCH_JOBS_LIBRARIES": "golden",
    }
    full = Settings.from_environ(ENVIRON | told)
    assert [full.signing_key, full.verify_key, full.libraries] == list(told.values())
    with pytest.raises(ConfigurationError, match="'newest'; write same or golden"):
        Settings.from_environ(ENVIRON | {"BATCH_JOBS_LIBRARIES": "newest"})


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"BATCH_JOBS_MODEL_STORE": "file:///srv/models"}, None),
        ({"BATCH_JOBS_MODEL_STORE": "s3://bucket/models"}, "~/.cache/batch-jobs/models"),
        (
            {"BATCH_JOBS_MODEL_STORE": "s3://bucket/models", "XDG_CACHE_HOME": "/var/cache/me"},
            "/var/cache/me/batch-jobs/models",
        ),
        ({"BATCH_JOBS_MODEL_CACHE": "/srv/copies"}, "/srv/copies"),
    ],
)
def test_copies_are_kept_of_a_store_that_may_be_out_of_reach(environ, expected):
    """Of a folder only where somebody says so."""
    assert Settings.from_environ(ENVIRON | environ).model_cache == expected
