"""On PostgreSQL, who only writes can do its work and no more, and who only reads can only read."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import errors

from batch_jobs.alerts import incidents, mutes, outbox, outbox_messages, parcels, task_errors
from batch_jobs.alerts.problems import Message
from batch_jobs.alerts.slack import Answer
from batch_jobs.database import leases
from batch_jobs.database.warehouse import SCHEMA_VERSION, Warehouse
from batch_jobs.errors import ArtifactError, ConfigurationError
from batch_jobs.interval import Interval
from batch_jobs.registry import champions, promotion, versions
from batch_jobs.requests import messages, submit, worker
from batch_jobs.requests.submit import Row, Submission
from batch_jobs.runs import backfills, jobs, ledger, overview, retention
from batch_jobs.training import train
from tests.conftest import OPENED, TRAINED, _settings_in, as_login
from tests.example_models._tables import make_tables
from tests.support import api
from tests.support.attempts import ask, publish, seen, tick
from tests.support.history import prune
from tests.support.planned import plan
from tests.support.postgres_server import PostgresServer

VIEWS = {
    *("current_predictions", "serving_status", "prediction_history", "predictions"),
    *("read_contract", "model_drift", "model_performance", "incidents"),
    *("merged_predictions", "left_predictions"),
}
CONTRACT = VIEWS | {
    *("prediction_runs", "rejected_rows", "model_versions", "promotions", "signs_of_life"),
}
INTERNAL = {
    *(
        "schema_version",
        "model_stores",
        "locks",
        "golden_rows",
        "fences",
        "run_parts",
        "shared_predictions",
        "run_predictions",
    ),
    "served_predictions",
    *("current_rows", "superseded_rows", "serving_heads", "task_errors"),
    *("profiles", "drift_findings"),
    *("performance_windows", "model_performance_rows", "damage_episodes"),
    *("incident_rows", "incident_reports", "mutes"),
    *("outbox_messages", "outbox_deliveries", "outbox_channels"),
    "online_predictions",
    *("requests", "request_rows", "request_results", "request_rejects", "cancelled_requests"),
}
# What a requester may read beside the contract.
REQUESTED = {"golden_rows"} | {
    name for name in INTERNAL if name.startswith(("online_", "request", "cancelled_"))
}
HOUR = timedelta(hours=1)
NOT_FOR_WRITERS = [
    "DELETE FROM serving.promotions",
    "UPDATE serving.promotions SET actor = 'somebody'",
    "TRUNCATE serving.promotions",
    "ALTER TABLE serving.promotions DISABLE TRIGGER ALL",
    "DROP TRIGGER promotions_keep ON serving.promotions",
    "UPDATE serving.model_versions SET sha256 = repeat('0', 64)",
    "DELETE FROM serving.model_versions",
    "DELETE FROM serving.prediction_runs",
    "DELETE FROM serving.serving_heads",
    "UPDATE serving.shared_predictions SET score = 1",
    "UPDATE serving.schema_version SET version = 99",
    "DROP VIEW serving.current_predictions",
    "CREATE OR REPLACE VIEW serving.current_predictions AS SELECT 1",
    "ALTER TABLE serving.prediction_runs ADD COLUMN x text",
    "DROP SCHEMA serving CASCADE",
    "CREATE TABLE public.x (x text)",
    "CREATE SCHEMA x",
    "CREATE TEMPORARY TABLE x (x text)",
    "CREATE ROLE x",
    "DELETE FROM public.orders",
    "INSERT INTO serving.online_predictions SELECT * FROM serving.online_predictions",
    "UPDATE serving.online_predictions SET score = 1",
    "INSERT INTO serving.requests SELECT * FROM serving.requests",
    "UPDATE serving.requests SET rows_read = 0",
    "INSERT INTO serving.request_rows SELECT * FROM serving.request_rows",
    "UPDATE serving.request_results SET score = 1",
    "COPY (SELECT 1) TO PROGRAM 'true'",
]
NOT_FOR_REQUESTERS = [
    *(f"SELECT * FROM serving.{name}" for name in sorted(INTERNAL - REQUESTED)),
    "SELECT * FROM public.orders",
    *(f"SELECT * FROM serving.{name} FOR UPDATE" for name in sorted(REQUESTED)),
    *(f"DELETE FROM serving.{name}" for name in sorted(REQUESTED | CONTRACT - VIEWS)),
    *(f"TRUNCATE serving.{name}" for name in sorted(REQUESTED)),
    "UPDATE serving.online_predictions SET score = 1",
    "UPDATE serving.requests SET state = 'done'",
    "UPDATE serving.request_rows SET features = '{}'",
    "UPDATE serving.request_results SET score = 1",
    "UPDATE serving.request_rejects SET reason = ''",
    *(
        f"INSERT INTO serving.requests (request_id, model, client, request_sha256, created_at,"
        f" rows_read, {column}) VALUES (1, 'orders', '', '', now(), 0, DEFAULT)"
        for column in ("state", "token", "claimed_at", "rows_scored", "model_version", "error")
    ),
    "INSERT INTO serving.request_results VALUES (1, 1, 'a', 0.5, NULL)",
    "INSERT INTO serving.request_rejects VALUES (1, 1, 'a', 'a reason')",
    "INSERT INTO serving.promotions SELECT * FROM serving.promotions",
    "CREATE TABLE serving.x (x text)",
    "CREATE TEMPORARY TABLE x (x text)",
    "SET ROLE batch_jobs_reader",
]
NOT_FOR_READERS = [
    *(f"SELECT * FROM serving.{name}" for name in sorted(INTERNAL)),
    *("SELECT * FROM serving.predictions_r2", "SELECT * FROM public.orders"),
    *(f"SELECT * FROM serving.{name} FOR UPDATE" for name in sorted(CONTRACT)),
    *(f"DELETE FROM serving.{name}" for name in sorted(CONTRACT - VIEWS)),
    "INSERT INTO serving.promotions SELECT * FROM serving.promotions",
    "UPDATE serving.model_versions SET sha256 = repeat('0', 64)",
    "DO 'BEGIN LOCK TABLE serving.locks IN SHARE UPDATE EXCLUSIVE MODE; END'",
    "TRUNCATE serving.rejected_rows",
    "DO 'BEGIN LOCK TABLE serving.prediction_runs IN EXCLUSIVE MODE; END'",
    "DROP VIEW serving.current_predictions",
    "CREATE TABLE serving.x (x text)",
    "CREATE TABLE public.x (x text)",
    "CREATE TEMPORARY TABLE x (x text)",
    "CREATE FUNCTION serving.x() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE SCHEMA x",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY (SELECT 1) TO '/tmp/x'",
    "SELECT pg_read_file('postgresql.conf')",
    "SELECT pg_ls_dir('.')",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT lo_creat(-1)",
    "SELECT lo_create(0)",
    "SELECT lo_put(1, 0, 'x')",
    "SET ROLE batch_jobs_writer",
    "GRANT batch_jobs_writer TO CURRENT_USER",
]


@pytest.fixture
def owned(postgres, postgres_url):
    """The warehouse of a superuser, with roles, in which everybody may read the source tables."""
    made = Warehouse(postgres_url)
    made.ensure_schema()
    assert made.ensure_roles() == []
    with made.write_source() as connection:
        make_tables(connection, OPENED, TRAINED + timedelta(days=1))
        connection.exec_driver_sql("GRANT SELECT ON orders, customers TO batch_jobs_writer")
    return made


def _allowed(url, statements, before="SELECT 1"):
    """Which statements are not refused for want of a right."""
    found = []
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for statement in statements:
            connection.execute(before)
            try:
                connection.execute(statement)
            except errors.InsufficientPrivilege:
                continue
            except psycopg.Error as error:
                found.append((statement, str(error)))
            else:
                found.append((statement, "was done"))
    return found


@pytest.mark.parametrize("large", [1, 10**9], ids=["own-tables", "shared-table"])
def test_a_writer_can_do_all_of_its_work(owned, login, tmp_path, monkeypatch, large):
    """Train, promote, predict, backfill, force, prune and the outbox, in both modes.

    Another login goes on where the first one stopped: what it made belongs to the role.
    """
    monkeypatch.setattr("batch_jobs.runs.claims.LARGE", large)
    first = _settings_in(tmp_path, login("batch_jobs_writer"))
    second = replace(first, warehouse=login("batch_jobs_writer"))
    writer = Warehouse(second.warehouse)
    for name, length in (("orders", HOUR / 3), ("customers", 2 * HOUR)):
        day = Interval(TRAINED, TRAINED + length)
        version = train.train(first, name, TRAINED)
        assert versions.register(writer, version).sha256 == version.sha256
        promotion.promote(second, name, actor="tests")
        runs = backfills.backfill(first, name, day)
        again = [jobs.predict(second, name, run.interval, force=True) for run in runs[-2:]]
        assert {run.state for run in [*runs, *again]} == {"published"}
        assert overview.gaps(second, name)[0].start == day.end
        left = retention.prune(writer, name, timedelta(days=-9999), timedelta(minutes=5))
        assert (left.retired >= 2, left.left) == (True, 0)
        assert worker.answer(first, name, leases.new_token()) == []
        given_up = plan(first, name, day, leases.new_token())
        plan(second, name, day, leases.new_token())
        jobs.predict(second, name, day)
        assert ledger.find_run(writer, given_up.run_id).state == "failed"
    assert {row["model"] for row in overview.status(second)} == {"orders", "customers"}
    now = datetime.now(UTC)
    assert outbox_messages.write_alone(writer, "key", Message("line", "text"), now)
    severities = ("news", "page")
    assert outbox.take_hold(writer, "slack", severities, "me", now)
    parcel = parcels.next_parcel(writer, "slack", severities, now)
    outbox.mark_failed(writer, "slack", parcel.ids, Answer("a test"), now)
    outbox.mark_sent(writer, "slack", parcel.ids, now)
    outbox.release(writer, "slack", "me")
    mutes.mute(writer, mutes.Mute("orders", "*", "why", "link", now + HOUR, "me"), now)
    assert mutes.unmute(writer, "orders", "*")
    assert incidents.report(
        writer, incidents.Problem("predict-killed", "orders", "a test"), "1", now
    )
    assert incidents.resolve(writer, "orders", ["predict-*"], now) != []
    task = task_errors.TaskTry("dag", "run", "task", -1, 1)
    task_errors.remember_error(writer, task, "a test", now)
    assert task_errors.recall_error(writer, task) == "a test"
    assert writer.ensure_schema() is False


def test_a_writer_can_do_no_more(owned, login):
    """It changes no promotion, view, shape of a table or source, and makes nothing elsewhere."""
    assert _allowed(login("batch_jobs_writer"), NOT_FOR_WRITERS) == []


def test_a_newer_schema_is_not_the_writers_to_make(owned, login, monkeypatch):
    """It belongs to whoever ran `init`; the error is one clear line."""
    url = login("batch_jobs_writer")
    monkeypatch.setattr("batch_jobs.database.warehouse.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(
        Warehouse,
        "_scripts",
        lambda _: {SCHEMA_VERSION: "", SCHEMA_VERSION + 1: "ALTER TABLE fences ADD x text"},
    )
    with pytest.raises(ConfigurationError, match="must be owner of table fences"):
        Warehouse(url).ensure_schema()


@pytest.fixture
def reader(owned, login, tmp_path, monkeypatch):
    """The URL of a reader of a warehouse in which both models have published."""
    monkeypatch.setattr("batch_jobs.runs.claims.LARGE", 1)
    settings = _settings_in(tmp_path, login("batch_jobs_writer"))
    for name in ("orders", "customers"):
        train.train(settings, name, TRAINED)
        promotion.promote(settings, name, actor="tests")
        jobs.predict(settings, name, Interval(TRAINED, TRAINED + HOUR))
    return login("batch_jobs_reader")


def test_a_reader_reads_the_contract(reader, owned):
    """Also what a writer has just put into a table of its own, through views of the owner."""
    with psycopg.connect(reader.replace("+psycopg", ""), autocommit=True) as connection:
        empty = {
            "left_predictions",
            "rejected_rows",
            "model_drift",
            "model_performance",
            "incidents",
            "signs_of_life",
        }
        for name in CONTRACT:
            rows = connection.execute(f"SELECT * FROM serving.{name}").fetchall()
            assert bool(rows) == (name not in empty), name
        counts = "SELECT model, count(*) FROM serving.current_predictions GROUP BY 1 ORDER BY 1"
        assert connection.execute(counts).fetchall() == [("customers", 50), ("orders", 6)]
    relations = "SELECT relname FROM pg_class WHERE relnamespace = 'serving'::regnamespace"
    known = {
        name
        for (name,) in ask(owned, f"{relations} AND relkind IN ('r', 'v', 'p')")
        if not name.startswith("predictions_r")
    }
    assert known - {"orders", "customers"} == CONTRACT | INTERNAL


def test_a_reader_can_do_nothing_else(reader):
    """Rights come from grants, so no setting of the session gives more."""
    assert _allowed(reader, NOT_FOR_READERS, "SET default_transaction_read_only = off") == []


def test_a_reader_sees_no_row_of_the_source_in_a_manifest(reader, owned):
    """Golden rows are features of real entities; whoever loads a version has them still."""
    manifest = "SELECT manifest::text FROM serving.model_versions"
    found = [json.loads(row) for (row,) in ask(Warehouse(reader), manifest)]
    assert [(len(one) > 10, "golden" in one) for one in found] == [(True, False)] * 2
    version = champions.champion(owned, "orders")
    whole = versions.whole_manifest(owned, version)
    assert len(whole["golden"]["answers"]) == 20
    with pytest.raises(ArtifactError, match=r"permission denied .*; a login that predicts is a"):
        versions.whole_manifest(Warehouse(reader), version)


def test_a_reader_keeps_no_writer_waiting(reader, owned):
    """What a reader can lock by name is no lock of ours: publishing and the rest go on."""
    by_name = "SELECT pg_advisory_lock(hashtextextended(%s, 0))"
    with psycopg.connect(reader.replace("+psycopg", "")) as connection:
        for name in ("", "orders", "serving", "run_predictions", "alerts of orders"):
            connection.execute(by_name, [f"serving.{name}"])
        publish(owned, tick(1), {"a": 0.5}, mode="merge")
        later = datetime(2024, 3, 2, tzinfo=UTC)
        publish(owned, Interval(later, later + HOUR), {"x": 0.1}, mode="replace", model="customers")
        left = retention.prune(owned, "customers", timedelta(days=-9999), timedelta(0))
        assert (left.retired, left.left) == (1, 0)
        assert owned.ensure_roles() == []
        assert not connection.closed


def test_two_writers_lock_a_name_one_after_the_other(owned, in_background):
    """Also if neither has been locked before; another name keeps nobody waiting."""
    order = []

    def second():
        with owned.write() as connection:
            owned.database.lock_model(connection, "new")
            order.append("second")

    for _ in range(2):  # the row is there the second time
        with owned.write() as connection:
            owned.database.lock_model(connection, "new")
            waiting = in_background(second)
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while ask(owned, blocked) == [(0,)]:
                assert not waiting.done()
            with owned.write() as other:
                owned.database.lock_model(other, "another")
            order.append("first")
        waiting.result(30)
    assert order == ["first", "second"] * 2


def test_a_requester_computes_predictions_and_does_no_more(reader, owned, login, tmp_path):
    """It reads the contract, and keeps what it answered, which nobody changes."""
    settings = _settings_in(tmp_path, login("batch_jobs_requester"))
    with api.serving(settings, model="orders") as client:
        body = {"features": {"amount": 1.5, "country": None}}
        told = client.post("/predict", json=body, headers={"Idempotency-Key": "1"})
        assert told.status_code == 200, told.text
        assert client.get(f"/predict/{told.json()['id']}").json() == told.json()
        assert client.get("/models/customers/status").status_code == 200
        many = client.post("/requests", json={"rows": [body["features"]]})
        assert client.get(many.headers["location"]).json()["state"] == "waiting"
    session = "SET default_transaction_read_only = off"
    assert _allowed(settings.warehouse, NOT_FOR_REQUESTERS, session) == []


def test_a_requester_adds_a_request_that_a_writer_answers(reader, owned, login, tmp_path):
    """Its state and all that comes of it are for the writer to say, who also removes it."""
    url = login("batch_jobs_requester")
    requester = Warehouse(url)
    asked = Submission("orders", [Row("a", {"amount": 1.5, "country": None})], "me", "key")
    told = submit.submit(requester, asked)
    again = submit.submit(requester, asked)
    assert (told.first, again.first, again.request_id) == (True, False, told.request_id)
    states = "SELECT request_id, state, rows_read, token FROM requests"
    assert ask(requester, states) == [(told.request_id, "waiting", 1, None)]
    settings = _settings_in(tmp_path, login("batch_jobs_writer"))
    asker = replace(settings, warehouse=url)
    with pytest.raises(ConfigurationError, match="permission denied"):
        worker.answer(asker, "orders", leases.new_token())
    [answered] = worker.answer(settings, "orders", leases.new_token())
    assert answered.state == "done"
    assert ask(requester, "SELECT entity_id FROM request_results") == [("a",)]
    (answered,) = messages.finished(requester, [told.request_id]).values()
    (sent,) = messages.answers(requester, messages.Place("asked", 0, 7), answered)
    assert [row["entity_id"] for row in json.loads(sent)["results"]] == ["a"]
    assert retention.prune(Warehouse(settings.warehouse), "orders", -HOUR).requests == 1
    assert ask(requester, "SELECT * FROM requests") == []


def test_who_is_no_member_sees_nothing(owned, login):
    """Everybody has lost what everybody has by default."""
    looks = [f"SELECT * FROM serving.{name}" for name in sorted(CONTRACT | INTERNAL)]
    assert _allowed(login(), [*looks, "CREATE TEMPORARY TABLE x (x text)"]) == []


def test_roles_may_be_made_again(owned, postgres):
    """And once more, in another database of the same server."""
    assert owned.ensure_roles() == []
    postgres.create_database("other_warehouse")
    other = Warehouse(postgres.url("other_warehouse"))
    other.ensure_schema()
    assert other.ensure_roles() == []
    postgres.drop_database("other_warehouse")


def test_who_is_no_superuser_can_make_them(tmp_path):
    """With CREATEROLE; what only the owner of the database may do is told."""
    with PostgresServer() as server:
        server.execute("CREATE ROLE admin LOGIN PASSWORD 'secret' CREATEROLE")
        server.create_database("warehouse")
        server.execute("GRANT CREATE ON DATABASE warehouse TO admin")
        made = Warehouse(as_login("admin", server.url("warehouse")))
        made.ensure_schema()
        publish(made, tick(0), {"a": 0.1}, mode="replace")
        to_execute = made.ensure_roles()
        assert "REVOKE TEMPORARY ON DATABASE warehouse FROM PUBLIC" in to_execute
        [functions] = [one for one in to_execute if "lo_creat(integer)" in one]
        assert functions.startswith("REVOKE EXECUTE ON FUNCTION ")
        for statement in to_execute:
            server.execute(statement, "warehouse")
        assert made.ensure_roles() == []
        server.execute("CREATE ROLE job LOGIN PASSWORD 'secret' IN ROLE batch_jobs_writer")
        writer = Warehouse(as_login("job", server.url("warehouse")))
        publish(writer, tick(1), {"a": 0.2, "b": 0.2}, mode="replace")
        assert prune(writer, before=datetime.now(UTC)).retired == 1
        assert seen(made) == seen(writer) == {"a": 0.2, "b": 0.2}


def test_a_writer_cannot_make_them(owned, login):
    """One clear line says who can; exit 2."""
    writer = Warehouse(login("batch_jobs_writer"))
    with pytest.raises(ConfigurationError, match="cannot make the roles") as caught:
        writer.ensure_roles()
    assert "connect as who made its tables" in str(caught.value)
    assert caught.value.exit_code == 2


def test_on_sqlite_there_are_no_roles(tmp_path):
    """One clear line says what decides instead; exit 2."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/w.db")
    warehouse.ensure_schema()
    with pytest.raises(ConfigurationError, match="only PostgreSQL has roles; on SQLite") as caught:
        warehouse.ensure_roles()
    assert caught.value.exit_code == 2
