"""Where the tasks find the warehouse, also while Airflow is too busy to say."""

import pytest
from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException
from sqlalchemy.engine import make_url

from batch_jobs.database.postgres import PostgreSQL
from batch_jobs.errors import ConfigurationError
from batch_jobs_airflow import connections


class Lookups:
    """What Airflow answers, one after the other; the last one again and again."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def __call__(self, name):
        """Answer the next one."""
        assert name == "warehouse"
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def airflow(monkeypatch):
    """Let Airflow answer so: `airflow(error, connection)`; nothing was asked before."""
    monkeypatch.setattr(connections, "_known", [])

    def answer(*answers):
        lookups = Lookups(*answers)
        monkeypatch.setattr(Connection, "get", lookups)
        return lookups

    return answer


BUSY = RuntimeError("API_SERVER_ERROR: database is locked")
FOUND = Connection(
    conn_id="warehouse", conn_type="postgres", host="db", login="w", password="p", schema="serving"
)
URL = "postgresql+psycopg://w:p@db/serving"


def test_a_connection_is_told_as_a_url(airflow):
    """With its driver spelled; None where there is none."""
    airflow(FOUND)
    assert connections.connection_url() == URL
    airflow(AirflowNotFoundException("warehouse"))
    assert connections.connection_url() is None


@pytest.mark.parametrize(
    ("parts", "query"),
    [
        ({"extra": '{"connect_timeout": 10}'}, {"connect_timeout": "10"}),
        ({"extra": '{"sslmode": "require", "keepalives": true}'}, {"sslmode": "require"}),
        ({"extra": '{"cursor": "dictcursor", "iam": false, "gssencmode": null}'}, {}),
        ({"host": "/var/run/postgresql"}, {"host": "/var/run/postgresql"}),
        (
            {"host": "%2Fcloudsql%2Fproject", "port": 5433},
            {"host": "/cloudsql/project", "port": "5433"},
        ),
    ],
)
def test_extras_and_sockets_of_a_connection_are_those_of_the_driver(airflow, parts, query):
    """As Airflow's form writes them: numbers, truth values, null, and what is Airflow's own."""
    airflow(
        Connection(
            conn_id="warehouse",
            conn_type="postgres",
            login="w",
            password="a@/%:b",
            **{"host": "db", "schema": "serving", **parts},
        )
    )
    url = make_url(connections.connection_url())
    assert (url.database, url.password) == ("serving", "a@/%:b")
    assert query.items() <= url.query.items()
    assert not {"cursor", "iam", "gssencmode"} & url.query.keys()
    assert PostgreSQL(url).url.database == "serving"


def test_a_nested_extra_is_refused_by_name(airflow):
    """Its value is not told: it may hold a password."""
    nested = Connection(conn_id="warehouse", conn_type="postgres", extra='{"ssl": {"key": "x y"}}')
    airflow(nested)
    with pytest.raises(ConfigurationError, match="the extra 'ssl' is nested") as caught:
        connections.connection_url()
    assert "x y" not in str(caught.value)


def test_airflow_that_is_busy_is_asked_again(airflow):
    """Once; it has waited for its own database before it gave up."""
    lookups = airflow(BUSY, FOUND)
    assert (connections.connection_url(), lookups.asked) == (URL, 2)


@pytest.mark.parametrize(
    ("before", "url"), [(FOUND, URL), (AirflowNotFoundException("warehouse"), None)]
)
def test_airflow_that_stays_busy_has_nothing_new_to_tell(airflow, before, url):
    """A task whose error is to be noted has asked before."""
    airflow(before)
    connections.connection_url()
    lookups = airflow(BUSY)
    assert (connections.connection_url(), lookups.asked) == (url, 2)


def test_what_was_never_known_is_not_guessed(airflow):
    """The environment may name another warehouse than the connection."""
    lookups = airflow(BUSY)
    with pytest.raises(RuntimeError, match="database is locked"):
        connections.connection_url()
    assert lookups.asked == 2
