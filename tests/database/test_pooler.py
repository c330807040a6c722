"""PostgreSQL behind a real PgBouncer, which gives each transaction whatever session is free."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError

from batch_jobs.database.sessions import settings_in
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError
from batch_jobs.interval import Interval
from batch_jobs.runs import jobs
from tests.conftest import TRAINED
from tests.fault_models._rows import tick
from tests.support.api import serving, settings_of
from tests.support.attempts import publish
from tests.support.attempts import tick as hour
from tests.support.history import latest, prune
from tests.support.mishaps import is_published_once, with_query
from tests.support.pooler import pgbouncer

DROPS = {"ignore_startup_parameters": "options"}
MADE = "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname IN ('public', 'serving')"
# What a session that is free keeps of those who had it before.
KEPT = """
    SELECT current_setting('lock_timeout'), current_setting('search_path'),
           current_setting('batch_jobs.session', true), current_setting('transaction_read_only')"""
MODELS = ("ticks", "population")
LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"


@pytest.fixture(params=[{}, DROPS], ids=["refuses settings", "drops settings"])
def pooled(request, postgres):
    """The port of a PgBouncer in transaction mode, as it is installed and as is advised."""
    with pgbouncer(postgres, **request.param) as port:
        yield port


def through(port, url):
    """The URL by way of a pooler."""
    return make_url(url).set(port=port).render_as_string(hide_password=False)


def is_left_as_found(postgres, port, database):
    """Whether no session that the pooler keeps knows of us, and none holds a lock."""
    with postgres.connect(database, port=port) as connection:
        found = {connection.execute(KEPT, prepare=False).fetchone() for _ in range(6)}
    assert found <= {("0", '"$user", public', given, "off") for given in (None, "")}
    return postgres.execute(LOCKS) == [(0,)]


@pytest.mark.failure_mode(84)
def test_a_warehouse_is_made_in_its_own_schema_behind_a_pooler(postgres, postgres_url, pooled):
    """And beside the tables of the shop it makes none; its roles can be made, too."""
    warehouse = Warehouse(through(pooled, postgres_url))
    assert warehouse.ensure_schema()
    warehouse.require_schema()
    warehouse.ensure_roles()
    database = make_url(postgres_url).database
    assert postgres.execute(MADE, database) == [("serving",)]
    assert is_left_as_found(postgres, pooled, database)


@pytest.mark.parametrize("deployment", ["postgresql"], indirect=True)
@pytest.mark.failure_mode(84)
def test_whatever_a_deployment_does_goes_through_a_pooler(deployment, pooled, postgres):
    """Training, runs of few and of many rows, and what many processes at once ask for."""
    behind = with_query(deployment.settings, port=pooled)
    with ThreadPoolExecutor(4) as pool:
        runs = list(
            pool.map(lambda name: jobs.predict(behind, name, tick(1)), ("ticks", "population"))
        )
    assert [run.state for run in runs] == ["published", "published"]
    for model in ("ticks", "population"):
        assert is_published_once(deployment, model)
    assert is_left_as_found(postgres, pooled, make_url(deployment.url).database)


@pytest.mark.failure_mode(84)
def test_tables_of_past_runs_are_dropped_behind_a_pooler(
    postgres, postgres_url, pooled, monkeypatch
):
    """In short transactions, as there is no session in which one could be detached at leisure."""
    monkeypatch.setattr("batch_jobs.runs.claims.LARGE", 1)
    warehouse = Warehouse(through(pooled, postgres_url))
    warehouse.ensure_schema()
    for number in range(4):
        publish(warehouse, hour(number), {"a": number / 10}, mode="replace")
    assert len(tables(warehouse)) == 4
    database = make_url(postgres_url).database
    with postgres.connect(database, autocommit=False) as reading:
        reading.execute("SELECT * FROM serving.prediction_history")
        prune(warehouse, latest(warehouse) + timedelta(seconds=1))
        assert len(tables(warehouse)) == 4
    prune(warehouse, latest(warehouse) + timedelta(seconds=1))
    assert tables(warehouse) == ["predictions_r4"]
    assert is_left_as_found(postgres, pooled, database)


def tables(warehouse):
    """The tables that runs have for themselves."""
    named = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'predictions\\_r%'"
    with warehouse.read() as connection:
        return sorted(connection.scalars(text(named)))


@pytest.mark.failure_mode(84)
def test_a_transaction_knows_its_settings_behind_a_pooler(postgres_url, pooled):
    """Those of the URL, too, of which the last one wins; and who reads cannot write."""
    url = make_url(through(pooled, postgres_url))
    url = url.update_query_dict({"options": "-c lock_timeout=7s -c application_name=50%\\ sure"})
    warehouse = Warehouse(url.render_as_string(hide_password=False))
    warehouse.ensure_schema()
    known = "SELECT current_setting('lock_timeout'), current_setting('application_name')"
    for way in (warehouse.write, warehouse.read, warehouse.source):
        with way() as connection:
            assert tuple(connection.execute(text(known)).one()) == ("7s", "50% sure")
    for way in (warehouse.read, warehouse.source):
        with pytest.raises(DBAPIError, match="read-only"), way() as connection:
            connection.exec_driver_sql("CREATE TABLE public.other (x int)")
    asked = f"{known}, current_setting('timezone'), current_setting('search_path'), :start, :end"
    values = {"start": "2024-03-01T00:00:00+00:00", "end": "2024-03-02T00:00:00+00:00"}
    for _ in range(5):
        [chunk] = warehouse.stream(asked, values, 10)
        assert chunk.iloc[0, :4].tolist() == ["7s", "50% sure", "UTC", '"$user", public']
    with pytest.raises(Exception, match="read-only"):
        list(warehouse.stream("SELECT lo_create(0)", {}, 10))


@pytest.mark.failure_mode(84)
def test_what_reads_for_long_behind_a_pooler_is_not_taken_for_stopped(postgres_url, pooled):
    """A client predicts while the server waits for the end of its transaction."""
    url = make_url(through(pooled, postgres_url))
    url = url.update_query_dict({"options": "-c idle_in_transaction_session_timeout=50ms"})
    warehouse = Warehouse(url.render_as_string(hide_password=False))
    with warehouse.source() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
    chunks = warehouse.stream("SELECT x FROM generate_series(1, 30) AS x", {}, 10)
    found = [next(chunks)]
    # Whoever asks for nothing else meanwhile is ended after that time.
    with pytest.raises(DBAPIError, match="idle-in-transaction"):
        fall_asleep(warehouse)
    assert sum(map(len, [*found, *chunks])) == 30


def fall_asleep(warehouse):
    """Leave a transaction idle for a while."""
    with warehouse.write() as other, warehouse.read() as connection:
        connection.execute(text("SELECT 1"))
        other.execute(text("SELECT pg_sleep(0.2)"))
        connection.execute(text("SELECT 1"))


@pytest.mark.parametrize("shop", ["postgresql"], indirect=True)
@pytest.mark.failure_mode(84)
def test_the_api_answers_behind_a_pooler(shop, pooled):
    """It reads, computes and keeps; many clients at once get their own answers."""
    run = jobs.predict(shop, "orders", Interval(TRAINED, TRAINED + timedelta(hours=6)))
    behind = replace(shop, warehouse=through(pooled, shop.warehouse))
    with serving(behind, model="orders") as client:
        keys = client.get(f"/v1/models/orders/runs/{run.run_id}/predictions").text.splitlines()
        asked = [f"/v1/models/orders/predictions/order-{number}" for number in range(40)]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(client.get, asked))
        assert {answer.status_code for answer in answers} <= {200, 404}
        assert keys
        body = {"features": {"amount": 90.0, "country": "kr"}}
        assert client.post("/v1/models/orders/predict", json=body).status_code == 200
        assert client.get("/readyz").status_code == 200


@pytest.mark.failure_mode(84)
def test_a_pooler_of_statements_is_refused_at_once(postgres, postgres_url, caplog):
    """It has no transactions; whoever runs it is told what to set."""
    Warehouse(postgres_url).ensure_schema()
    with pgbouncer(postgres, "statement") as port:
        url = through(port, postgres_url)
        warehouse = Warehouse(url)
        for verb in (warehouse.ensure_schema, warehouse.require_schema):
            with pytest.raises(ConfigurationError, match="pool_mode = transaction"):
                verb()
        with serving(settings_of(url)) as client:
            assert client.get("/v1/models").status_code == 503
    assert "pool_mode = transaction" in caplog.text


@pytest.mark.failure_mode(84)
def test_what_a_pooler_does_not_know_is_told_at_once(postgres, postgres_url):
    """A database or a user that is in none of its files."""
    with pgbouncer(postgres) as port:
        url = make_url(through(port, postgres_url))
        for change in ({"username": "nobody_knows"}, {"password": "wrong"}, {"database": "other"}):
            wrong = url.set(**change).render_as_string(hide_password=False)
            with pytest.raises(ConfigurationError, match="refuses the connection"):
                Warehouse(wrong).require_schema()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ("", {}),
        ("-c a=1 -c b=two --c=3 -cd=4", {"a": "1", "b": "two", "c": "3", "d": "4"}),
        ("-c a=1 -c a=2", {"a": "2"}),
        ("-c a=one\\ two -c b.c=x\\\\y", {"a": "one two", "b.c": "x\\y"}),
    ],
)
@pytest.mark.failure_mode(84)
def test_the_settings_in_options_are_those_that_libpq_takes(options, settings):
    """A space and a backslash are escaped by a backslash."""
    assert settings_in(options) == settings
