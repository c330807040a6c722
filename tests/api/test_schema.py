"""Schemathesis asks what OpenAPI promises, and what it forbids, and holds the answers to it."""

import shutil

import pytest
import schemathesis
from hypothesis import HealthCheck, settings, strategies
from schemathesis.specs.openapi.checks import positive_data_acceptance

from batch_jobs.interval import Interval
from batch_jobs.runs import jobs
from prediction_api.config import Config
from prediction_api.main import create_app
from tests.api.test_requests import PARQUET, as_parquet
from tests.conftest import TRAINED, _settings_in
from tests.support.api import KEY, bearer, serving, settings_of

schemathesis.openapi.media_type(
    PARQUET, strategies.binary() | strategies.just(as_parquet(visits=[1.0]))
)
EXAMPLES = 25  # of each route, beside what covers its bounds
WHOLE = schemathesis.openapi.from_dict(
    create_app(Config(settings=settings_of("sqlite:////nowhere.db"), model="orders")).openapi()
)
OF_ANY_MODEL = r"(:compute|/infer|/invocations)$"
SCHEMA = WHOLE.exclude(path_regex=OF_ANY_MODEL)


@pytest.fixture(scope="module")
def server(tmp_path_factory, _trained_shop):
    """A client of a server whose two models have a champion, and published a day."""
    folder = tmp_path_factory.mktemp("schema") / "shop"
    shutil.copytree(_trained_shop, folder)
    made = _settings_in(folder)
    for name in ("orders", "customers"):
        jobs.predict(made, name, Interval(TRAINED, TRAINED.replace(hour=1)))
    with serving(made, model="orders", keys=(KEY,), hosts=("*",)) as client:
        yield client


@SCHEMA.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_it_is_promised(case, server):
    """No 5xx, only documented answers, what fits is taken, what does not is refused."""
    # A schema cannot say which bytes are a file of the right columns, nor which moments have been.
    is_file = case.media_type not in (None, "application/json")
    of_a_moment = any(
        isinstance(part, dict) and "as_of" in part for part in (case.query, case.body)
    )
    case.call_and_validate(
        base_url=str(server.base_url),
        headers=bearer(KEY),
        excluded_checks=[positive_data_acceptance] if is_file or of_a_moment else [],
    )


@WHOLE.include(path_regex=OF_ANY_MODEL).parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_a_route_of_any_model_answers_as_it_is_promised(case, server):
    """Likewise, but that its schema cannot say which features the model has."""
    case.call_and_validate(
        base_url=str(server.base_url),
        headers=bearer(KEY),
        excluded_checks=[positive_data_acceptance],
    )
