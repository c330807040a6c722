"""The CeleryExecutor for real: PostgreSQL, Redis and two workers, of which one is lost.

The settings are those of docs/how-to/celery.md, which a test holds to them.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain

import pytest

from batch_jobs.models.iris import model
from batch_jobs_airflow.dags import dag_settings
from tests.conftest import ROOT
from tests.fault_models._rows import prepare, tick
from tests.support.airflow_cases import (
    PATIENCE,
    PATIENT,
    Cases,
    LastingAirflow,
    free_port,
    gone,
    make_root,
    until,
)
from tests.support.celery_workers import Workers, celery_workers
from tests.support.deployment import Deployment, shown
from tests.support.postgres_server import PostgresServer
from tests.support.reader import Reader
from tests.support.redis_server import RedisServer
from tests.support.slack_endpoint import listening

PAGE = (ROOT / "docs" / "how-to" / "celery.md").read_text("utf-8")
MODEL = """
from tests.fault_models.ticks import model as ticks

model = ticks.model_copy(update={"parts": 8})
"""
PARTS = 8
SCORED = "score.chunk_staged"


def settings_of_the_page():
    """What the page has for `airflow.cfg`, as variables of the environment."""
    [block] = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    found, section = {}, ""
    for line in map(str.strip, block.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith("#"):
            name, value = (part.strip() for part in line.split("=", 1))
            found[f"AIRFLOW__{section}__{name}".upper()] = value
    return found


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """An Airflow with two workers, and a model in eight parts whose tick 0 is published."""
    folder = tmp_path_factory.mktemp("celery")
    root = folder / "root"
    make_root(root, [])
    (root / "faulty" / "ticks.py").write_text(MODEL)
    policies = root / "airflow_local_settings.py"
    hurried = "    task.retry_delay = timedelta(seconds=1)\n"
    assert hurried in policies.read_text()
    policies.write_text(policies.read_text().replace(hurried, ""))
    with (
        PostgresServer(settings={"scram_iterations": "1"}) as postgres,
        RedisServer() as redis,
        listening() as slack,
    ):
        for name in ("airflow", "results", "warehouse"):
            postgres.create_database(name)
        settings, versions = prepare(postgres.url("warehouse"), folder)
        environ = (
            PATIENT
            | settings_of_the_page()
            | {
                "PYTHONPATH": f"{root}{os.pathsep}{ROOT}{os.pathsep}{ROOT / 'src'}",
                "BATCH_JOBS_WAREHOUSE": postgres.url("warehouse"),
                "BATCH_JOBS_MODEL_STORE": str(folder / "models"),
                "BATCH_JOBS_MODELS": "faulty",
                "AIRFLOW_CONN_SLACK_WEBHOOK": slack.connection(),
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": with_psycopg2(postgres.url("airflow")),
                "AIRFLOW__DATABASE__SQL_ALCHEMY_CONNECT_ARGS": "",
                "AIRFLOW__CELERY__BROKER_URL": redis.url,
                "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{with_psycopg2(postgres.url('results'))}",
            }
        )
        with LastingAirflow(root, folder / "airflow", free_port(), environ) as airflow:
            airflow._warm = True  # the API server is not asked before the first task asks it
            airflow.wait_healthy(PATIENCE)
            with celery_workers(airflow, "first", "second") as workers:
                cases = Cases(root, airflow, postgres.url("warehouse"), slack)
                until(lambda: has_dag(cases), "the DAG file")
                yield Site(
                    cases, workers, postgres, redis, Deployment(settings, versions, postgres)
                )


@dataclass(frozen=True)
class Site:
    """What runs."""

    cases: Cases
    workers: Workers
    postgres: PostgresServer
    redis: RedisServer
    deployment: Deployment
    published: list[int] = field(default_factory=lambda: [0])

    def begin(self, number):
        """Start a run of a tick."""
        span = {"interval_start": tick(number).start, "interval_end": tick(number).end}
        self.cases.begin("ticks", **{name: time.isoformat() for name, time in span.items()})

    def tries(self):
        """How often each task of the run was tried, and each part."""
        path = f"{self.cases.run('ticks')}/taskInstances"
        found = self.cases.api("GET", path)["task_instances"]
        assert {one["state"] for one in found} == {"success"}
        assert [one["task_id"] for one in found].count("score") == PARTS
        return {one["try_number"] for one in found}

    def start_what_has_ended(self):
        """As what keeps Airflow running does: without its database a component may end."""
        for name in ("scheduler", "dag-processor"):
            if gone(self.cases.airflow.pid(name)):
                self.cases.airflow.start_again(name)

    def told(self):
        """What Slack has heard of runs that failed."""
        return [text for text in self.cases.slack.texts if "predict_ticks" in text]

    def is_published(self, number):
        """Whether readers see this tick, too, published by the only attempt at it."""
        assert self.cases.ended("ticks") == "success"
        self.published.append(number)
        assert self.deployment.seen("ticks") == shown("ticks", self.published)
        assert self.deployment.states("ticks", number) == ["published"]
        return self.deployment.unsound() == []


def has_dag(cases):
    """Whether Airflow has read the file."""
    return any(dag["dag_id"] == "predict_ticks" for dag in cases.api("GET", "/dags")["dags"])


def with_psycopg2(url):
    """The URL for Airflow's and Celery's own tables."""
    return url.replace("+psycopg:", "+psycopg2:")


@pytest.mark.failure_mode(85)
def test_the_waits_after_a_lost_worker_come_to_little_more_than_a_minute():
    """Until its heartbeat is missed, until that is noticed, and before the retry."""
    waits = [
        float(value)
        for name, value in settings_of_the_page().items()
        if "HEARTBEAT_TIMEOUT" in name
    ]
    assert waits == [30, 5]
    retry = dag_settings(model, None)["default_args"]["retry_delay"].total_seconds()
    assert sum(waits) + retry == 65


@pytest.fixture
def reader(site):
    """Somebody who reads all the while, and has seen nothing wrong."""
    made = Reader(site.deployment.url, site.deployment.versions, rest=0.05)
    made.looked()
    yield made
    seen = made.stop()
    assert not seen.violations, str(seen)
    assert seen.reads


@pytest.mark.failure_mode(85)
def test_the_parts_of_a_run_are_scored_by_both_workers(site, reader):
    """At the first try, though the first task of all asks an API server that has just started."""
    site.begin(1)
    assert site.is_published(1)
    assert site.tries() == {1}
    assert all(site.workers.received().values())


@pytest.mark.failure_mode(85)
def test_a_lost_worker_s_part_is_scored_by_the_other_one(site, reader):
    """Once its heartbeat is missed; nobody is told, since the run goes on by itself."""
    site.cases.stop_at("ticks", SCORED)
    site.begin(2)
    task = site.cases.stopped("ticks")
    site.workers.lose(site.workers.of(task))
    assert gone(task)
    site.cases.let_go(task)  # nobody else shall take it for another one
    assert site.is_published(2)
    assert site.tries() == {1, 2}
    assert len(site.workers.alive()) == 1
    assert site.told() == []


@pytest.mark.failure_mode(85)
def test_restarts_and_a_message_that_comes_twice_change_nothing(site, reader):
    """Redis and PostgreSQL go away while a part is scored; then Redis gives it out again.

    The others have ended by then: a worker that loses Redis with all of its slots taken may, after
    that, be given a message that it never begins; docs/how-to/celery.md tells what helps.
    """
    site.cases.stop_at("ticks", SCORED)
    site.begin(3)
    task = site.cases.stopped("ticks")
    worker = site.workers.of(task)
    until(lambda: len(site.workers.under_way(worker)) == 1, "all tasks but one to end")
    site.redis.stop()
    site.redis.start()
    site.deployment.close()
    site.postgres.restart()
    with site.redis.client() as client:
        overdue = until(lambda: dict.fromkeys(client.zrange("unacked_index", 0, -1), 0), "it")
        client.zadd("unacked_index", overdue)
    until(lambda: max(Counter(chain(*site.workers.received().values())).values()) > 1, "it again")
    assert not gone(task)
    site.start_what_has_ended()
    site.cases.let_go(task)
    assert site.is_published(3)
    assert site.told() == []


@pytest.mark.failure_mode(85)
def test_slack_hears_once_of_a_run_that_fails(site):
    """And of none of those that went on by themselves."""
    site.postgres.execute("ALTER TABLE fault_rows RENAME TO moved_rows", "warehouse")
    site.begin(4)
    assert site.cases.ended("ticks") == "failed"
    until(site.told, "the alert")
    assert len(site.told()) == 1
    assert site.deployment.seen("ticks") == shown("ticks", site.published)
