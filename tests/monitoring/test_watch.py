"""The watch hears what is silent, by its root, once, and hears when it is over."""

import copy
import json
import shutil
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from batch_jobs import Limits, clock
from batch_jobs.alerts import causes
from batch_jobs.alerts.causes import of_dag_file
from batch_jobs.alerts.incidents import open_incidents
from batch_jobs.database.connections import close_kept
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.monitoring.telling import IncidentTeller
from batch_jobs.monitoring.watch import SURE_AFTER, Watch
from batch_jobs.monitoring.watching import airflow, of_machines, surroundings
from batch_jobs.monitoring.watching import facts as found_out
from batch_jobs.monitoring.watching.facts import Disk, Facts
from batch_jobs.monitoring.watching.judgement import DETECTORS, EXPLAINS, OWN, judge
from batch_jobs.monitoring.watching.questions import UnansweredError, ask
from batch_jobs.registry import champions, versions
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.runs import jobs
from batch_jobs.settings import Settings, WatchSettings
from tests.conftest import TRAINED
from tests.example_models import orders
from tests.support.airflow_rest import PASSWORD, RECORDED, TOKEN, USER, answering
from tests.support.attempts import MIDNIGHT, claim, publish, tick
from tests.support.attempts import ask as rows
from tests.support.slack_endpoint import listening

MINUTE = timedelta(minutes=1)
GATE = {"promote": True, "reasons": ["shown to be no worse"], "champion": None}
SERVED = 6  # intervals of ten minutes, from midnight on
NOON = MIDNIGHT + timedelta(minutes=10 * SERVED)  # of this little day
on_sqlite = pytest.mark.parametrize("warehouse", ["sqlite"], indirect=True)


@pytest.fixture(autouse=True)
def _spool(tmp_path, monkeypatch):
    """What is kept outside of the warehouse, and a deployment without a channel."""
    monkeypatch.setenv("BATCH_JOBS_SPOOL", str(tmp_path / "spool"))
    monkeypatch.delenv("AIRFLOW_CONN_SLACK_WEBHOOK", raising=False)


@pytest.fixture
def slack(monkeypatch):
    """A stand-in for Slack, which is the only channel."""
    with listening() as endpoint:
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_WEBHOOK", endpoint.connection())
        yield endpoint


@pytest.fixture
def rest():
    """A stand-in for Airflow that knows `orders` alone."""
    with answering() as rest:
        rest.dags = {name: dag for name, dag in rest.dags.items() if name.endswith("_iris")}
        rest.knows("orders")
        rest.beat(NOON)
        yield rest


@pytest.fixture
def site(warehouse, rest, tmp_path):
    """A deployment in which `orders` has a champion and is published up to now."""
    register(warehouse, "v1", MIDNIGHT)
    promote(warehouse, "v1", MIDNIGHT)
    for number in range(SERVED):
        publish(warehouse, tick(number), {"a": 0.5})
    return settle(warehouse, rest, tmp_path)


def settle(warehouse, rest, folder, **changed):
    """A watch of that warehouse and that Airflow."""
    url = (
        warehouse.database.url.render_as_string(hide_password=False)
        if (warehouse.database.name == "postgresql")
        else str(warehouse)
    )
    settings = Settings(url, str(folder), models=("tests.example_models",))
    asked = {"airflow_url": rest.url, "airflow_user": USER, "airflow_password": PASSWORD}
    watching = WatchSettings(**{**asked, **changed})
    made = SimpleNamespace(warehouse=warehouse, rest=rest, settings=settings, watching=watching)
    made.teller = IncidentTeller(warehouse)
    made.watch = Watch(settings, watching, lambda _: made.teller)
    return made


def register(warehouse, version, as_of, gate=GATE, created_at=None, model="orders"):
    """A version of a model that was trained as of a moment."""
    made = ModelVersion(model, version, stored_time(as_of), "0" * 64, {"size_bytes": 0}, {}, gate)
    with clock.set_to(created_at or as_of):
        versions.register(warehouse, made)


def promote(warehouse, version, now):
    """Let a version of `orders` serve from a moment on."""
    serving = champions.champion(warehouse, "orders")
    with clock.set_to(now):
        champions.promote(
            warehouse,
            versions.find_version(warehouse, "orders", version),
            expected=serving and serving.version,
            action="promote",
            actor="tests",
            reason="better",
        )


def look(site, now):
    """What is open after two looks at a moment, which are what it takes to be sure."""
    for moment in (now, now + SURE_AFTER):
        with clock.set_to(moment):
            found = site.watch.look()
    assert found.failed == []
    return set(site.teller.open())


def test_what_works_is_not_told_of(site):
    """Right after a publication, and until the next interval is due and a little longer."""
    assert look(site, NOON + MINUTE) == set()
    assert look(site, NOON + timedelta(minutes=20)) == set()


@pytest.mark.failure_mode(76)
def test_a_silent_model_is_heard_of_once_the_interval_after_is_due_too(site):
    """Within two periods, and it is over once that is published."""
    assert look(site, NOON + timedelta(minutes=22)) == {("orders", "overdue")}
    for number in (SERVED, SERVED + 1):
        publish(site.warehouse, tick(number), {"a": 0.5})
    assert look(site, NOON + timedelta(minutes=23)) == set()


def _stopped(process):
    def change(rest):
        rest.health[process]["status"] = "unhealthy"

    return change


def _paused(dag_id):
    def change(rest):
        rest.dags[dag_id]["is_paused"] = True

    return change


def _gone(dag_id):
    def change(rest):
        del rest.dags[dag_id]

    return change


BROKEN_FILE = of_dag_file("RuntimeError: password=*** of a dag of airflow")


def _broken(rest):
    rest.import_errors = copy.deepcopy(RECORDED["import_errors"]["import_errors"])


def _away(rest):
    rest.mode = "login"


def _hanging(rest):
    [run] = copy.deepcopy(RECORDED["running"]["dag_runs"])[:1]
    run |= {"dag_id": "predict_orders", "start_date": MIDNIGHT.isoformat()}
    rest.runs = [run]


@pytest.mark.failure_mode(74, 75)
@on_sqlite
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_stopped("scheduler"), (None, "airflow-scheduler")),
        (_stopped("dag_processor"), (None, "airflow-dag-processor")),
        (_stopped("triggerer"), (None, "airflow-triggerer")),
        (_stopped("metadatabase"), (None, "airflow-metadatabase")),
        (_away, (None, "airflow-away")),
        (_broken, (None, BROKEN_FILE)),
        (_paused("predict_orders"), ("orders", "dag-paused/predict")),
        (_paused("train_orders"), ("orders", "dag-paused/train")),
        (_paused("monitor_orders"), ("orders", "dag-paused/monitor")),
        (_gone("predict_orders"), ("orders", "dag-missing/predict")),
        (_hanging, ("orders", "run-hangs/predict")),
    ],
)
def test_each_silence_of_airflow_is_one_incident_by_its_root(site, change, cause):
    """Also when an interval is overdue by then: that is its echo. And it is over when it is."""
    site.rest.health, kept = copy.deepcopy(site.rest.health), site.rest.health
    dags = copy.deepcopy(site.rest.dags)
    change(site.rest)
    assert look(site, NOON + MINUTE) == {cause}
    late = look(site, NOON + timedelta(hours=1))
    follows = {("orders", "overdue")} if cause[1] in HARMLESS else set()
    assert late == {cause} | follows
    site.rest.health, site.rest.dags, site.rest.mode = kept, dags, "ok"
    site.rest.import_errors, site.rest.runs = [], []
    assert look(site, NOON + timedelta(hours=1, minutes=1)) == {("orders", "overdue")}


# Nothing follows from these for a prediction.
HARMLESS = {
    *("airflow-triggerer", "airflow-dag-processor", "dag-paused/train", BROKEN_FILE),
    "dag-paused/monitor",
}


def asked_of(site, name, at):
    """Let the newest question about `orders` be one that a real Airflow has told of."""
    [question] = copy.deepcopy(RECORDED[name]["hitl_details"])
    site.rest.questions["train_orders"] = question | {"created_at": at.isoformat()}


@pytest.mark.failure_mode(80)
def test_a_person_is_reminded_and_told_when_their_time_is_over(site, monkeypatch):
    """Nobody is reminded at once, nor after an answer, whatever it was."""
    approving(monkeypatch, timedelta(hours=1))
    asked_of(site, "waiting", NOON)
    assert look(site, NOON + MINUTE) == set()
    for number in range(SERVED, SERVED + 12):
        publish(site.warehouse, tick(number), {"a": 0.5})
    assert look(site, NOON + timedelta(minutes=31)) == {("orders", "approval")}
    asked_of(site, "answered", NOON)
    assert look(site, NOON + timedelta(minutes=32)) == set()
    asked_of(site, "expired", NOON)
    assert look(site, NOON + timedelta(minutes=61)) == {("orders", "approval")}
    register(site.warehouse, "v2", NOON)
    promote(site.warehouse, "v2", NOON + timedelta(minutes=62))
    assert look(site, NOON + timedelta(minutes=63)) == set()


def approving(monkeypatch, patience):
    """Let the gate of `orders` ask a person."""
    gate = orders.model.gate.model_copy(update={"approval": patience})
    monkeypatch.setattr(orders, "model", orders.model.model_copy(update={"gate": gate}))


@pytest.mark.failure_mode(80)
def test_trainings_that_do_not_come_or_are_refused_are_told(site):
    """Once the last one should have ended, and from the second refusal in a row on."""
    for number in range(SERVED, SERVED + 4):
        publish(site.warehouse, tick(number), {"a": 0.5})
    monday = MIDNIGHT + timedelta(days=3, hours=3)  # at three, as the orders are trained
    silent = {("orders", "overdue")}
    assert look(site, monday + timedelta(hours=1)) == silent
    assert look(site, monday + timedelta(hours=2, minutes=2)) == silent | {
        ("orders", "training-overdue")
    }
    refused = {"promote": False, "reasons": ["shown to be worse"], "champion": "v1"}
    register(site.warehouse, "v2", monday, refused)
    assert look(site, monday + timedelta(hours=3)) == silent
    register(site.warehouse, "v3", monday + timedelta(days=7), refused)
    later = monday + timedelta(days=7, hours=1)
    assert look(site, later) == silent | {("orders", "gate-refuses")}
    register(site.warehouse, "v4", monday + timedelta(days=8))
    promote(site.warehouse, "v4", later + timedelta(days=1))
    assert look(site, later + timedelta(days=1)) == silent


@pytest.mark.failure_mode(76)
def test_a_gap_behind_newer_intervals_is_told_and_is_not_called_overdue(site):
    """Once it is older than a delay; and it is over when it is filled."""
    for number in range(SERVED + 1, SERVED + 4):
        publish(site.warehouse, tick(number), {"a": 0.5})
    assert look(site, NOON + timedelta(minutes=40)) == {("orders", "gap")}
    publish(site.warehouse, tick(SERVED), {"a": 0.5})
    assert look(site, NOON + timedelta(minutes=41)) == set()


@pytest.mark.failure_mode(77)
def test_an_attempt_that_hangs_is_told_and_not_the_delay_that_it_brings(site):
    """If it works for longer than the timeout, and if it was not heard of for ten minutes."""
    with clock.set_to(NOON + timedelta(minutes=10)):
        run = claim(site.warehouse, tick(SERVED))
    assert look(site, NOON + timedelta(minutes=19)) == set()
    assert look(site, NOON + timedelta(minutes=25)) == {("orders", "attempt-hangs")}
    with site.warehouse.write() as connection:
        connection.execute(
            text("UPDATE prediction_runs SET claimed_at = :now WHERE run_id = :run"),
            {"now": stored_time(NOON + timedelta(minutes=44)), "run": run.run_id},
        )
    assert look(site, NOON + timedelta(minutes=45)) == {("orders", "attempt-hangs")}
    publish(site.warehouse, tick(SERVED), {"a": 0.5})
    assert ("orders", "attempt-hangs") not in look(site, NOON + timedelta(minutes=46))


@pytest.mark.failure_mode(80)
def test_a_model_without_a_champion_or_that_never_ran_is_told(warehouse, rest, tmp_path):
    """While it is trained it has its time; a paused model that never ran is nobody's concern."""
    site = settle(warehouse, rest, tmp_path)
    site.rest.runs = [
        {**RECORDED["running"]["dag_runs"][0], "dag_id": "train_orders", "start_date": _stored(0)}
    ]
    assert look(site, MIDNIGHT) == set()
    site.rest.runs = []
    assert look(site, MIDNIGHT + MINUTE) == {("orders", "no-champion")}
    register(warehouse, "v1", MIDNIGHT)
    promote(warehouse, "v1", MIDNIGHT)
    assert look(site, MIDNIGHT + timedelta(minutes=20)) == set()
    assert look(site, MIDNIGHT + timedelta(minutes=25)) == {("orders", "never-ran")}
    for dag in site.rest.dags.values():
        dag["is_paused"] = True
    assert look(site, MIDNIGHT + timedelta(minutes=26)) == set()


def _stored(minute):
    return stored_time(MIDNIGHT + minute * MINUTE)


@contextmanager
def held(path):
    """Hold the write lock of a file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.failure_mode(79)
@on_sqlite
def test_a_warehouse_that_nobody_can_write_to_is_told_and_is_over(site, monkeypatch):
    """Not by the warehouse, which takes nothing: by whoever tells without it."""
    monkeypatch.setattr("batch_jobs.database.sqlite.BUSY_TIMEOUT_MS", 50)
    close_kept()
    path = site.settings.warehouse.removeprefix("sqlite:///")
    with held(path):
        found = _looked(site, NOON + MINUTE)
    assert [(each.model, each.cause) for each in found.problems] == [(None, "warehouse-locked")]
    assert "locked" in found.problems[0].detail
    assert look(site, NOON + 2 * MINUTE) == set()


@pytest.mark.failure_mode(79)
@on_sqlite
def test_what_was_told_before_is_not_told_again_without_the_warehouse(site, monkeypatch):
    """The watch remembers what was open, when nobody can write it down any more."""
    monkeypatch.setattr("batch_jobs.database.sqlite.BUSY_TIMEOUT_MS", 50)
    close_kept()
    site.rest.health["scheduler"]["status"] = "unhealthy"
    assert [each.cause for each in _looked(site, NOON).problems] == ["airflow-scheduler"]
    told = []
    monkeypatch.setattr(site.teller, "report", lambda problem, *_, **__: told.append(problem.cause))
    with held(site.settings.warehouse.removeprefix("sqlite:///")):
        found = _looked(site, NOON + MINUTE)
    assert {each.cause for each in found.problems} == {"airflow-scheduler", "warehouse-locked"}
    assert told == ["warehouse-locked"]


@pytest.mark.failure_mode(79)
@on_sqlite
def test_a_warehouse_that_is_away_is_one_incident(site):
    """Nothing else is told that nobody can know; what others were asked is judged all the same."""
    path = site.settings.warehouse.removeprefix("sqlite:///")
    Path(path).rename(f"{path}.away")
    site.rest.health["scheduler"]["status"] = "unhealthy"
    found = _looked(site, NOON + timedelta(hours=1))
    assert {(each.model, each.cause) for each in found.problems} == {
        (None, "warehouse-away"),
        (None, "airflow-scheduler"),
    }
    Path(f"{path}.away").rename(path)
    assert look(site, NOON + timedelta(hours=1, minutes=1)) == {(None, "airflow-scheduler")}


def _looked(site, now):
    """What the second of two looks at a moment has found."""
    for moment in (now, now + SURE_AFTER):
        with clock.set_to(moment):
            found = site.watch.look()
    return found


@pytest.mark.failure_mode(75)
@on_sqlite
def test_an_airflow_that_hangs_holds_nobody_up(site, monkeypatch):
    """Each question has its time, and what others answer is judged."""
    monkeypatch.setattr(airflow, "HEALTH_SECONDS", 0.2)
    site.rest.mode = "hang"
    began = time.monotonic()
    assert look(site, NOON + timedelta(hours=1)) == {(None, "airflow-away")}
    assert time.monotonic() - began < 20


@on_sqlite
@pytest.mark.parametrize(
    ("login", "cause"),
    [
        ({"airflow_password": "wrong-and-secret"}, "airflow-refuses"),
        ({"airflow_user": None}, "airflow-refuses"),
        ({"airflow_token": TOKEN, "airflow_user": None}, None),
        ({"airflow_token": "old-and-secret"}, "airflow-refuses"),
    ],
)
def test_a_login_that_airflow_refuses_is_told_without_its_secrets(site, tmp_path, login, cause):
    """Its health is open to all, so a dead scheduler is heard of even so."""
    site = settle(site.warehouse, site.rest, tmp_path, **login)
    assert look(site, NOON) == ({(None, cause)} if cause else set())
    told = json.dumps([vars(each.problem) for each in open_incidents(site.warehouse)])
    assert not any(value in told for value in ("secret", TOKEN) if login)
    site.rest.health["scheduler"]["status"] = "unhealthy"
    assert (None, "airflow-scheduler") in look(site, NOON + MINUTE)


@on_sqlite
def test_where_everybody_is_an_administrator_no_login_is_needed(site, tmp_path):
    """As with Airflow's SimpleAuthManager in a demo."""
    site.rest.all_admins = True
    site = settle(site.warehouse, site.rest, tmp_path, airflow_user=None)
    assert look(site, NOON) == set()


@pytest.mark.failure_mode(83)
@on_sqlite
def test_a_clock_that_goes_back_is_told_and_ends_nothing(site):
    """What was overdue stays so; once the clock has been believed, all goes on."""
    late = NOON + timedelta(hours=5)
    assert look(site, late) == {("orders", "overdue")}
    back = {("orders", "overdue"), (None, "clock")}
    assert look(site, NOON + MINUTE) == back
    assert look(site, NOON + timedelta(minutes=30)) == back
    assert look(site, NOON + timedelta(hours=1, minutes=2)) == {("orders", "overdue")}


@pytest.mark.failure_mode(82)
@on_sqlite
def test_a_detector_that_fails_is_one_warning_and_stops_no_other(site, monkeypatch):
    """And the incidents that it would have judged are neither opened nor ended."""

    def fails(_):
        raise ZeroDivisionError("of a password=hunter2")

    patched = tuple(
        replace(each, find=fails) if each.causes == ("overdue",) else each for each in DETECTORS
    )
    monkeypatch.setattr("batch_jobs.monitoring.watch.judge", lambda facts: judge(facts, patched))
    site.rest.dags["train_orders"]["is_paused"] = True
    found = _looked(site, NOON + timedelta(hours=1))
    assert site.teller.open().keys() == {
        (None, "watch-fails"),
        ("orders", "dag-paused/train"),
    }
    assert found.failed == ["overdue: ZeroDivisionError: of a password=***"]


@pytest.mark.failure_mode(81)
@on_sqlite
def test_a_model_file_that_breaks_or_goes_is_told_by_a_watch_that_runs_on(
    warehouse, rest, tmp_path, monkeypatch
):
    """It reads the files anew when one has changed, and what is mended is over."""
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "__init__.py").touch()
    file = tmp_path / "team" / "orders.py"
    good = "from tests.example_models.orders import model as known\n\nmodel = known.model_copy()\n"
    file.write_text(good)
    monkeypatch.syspath_prepend(tmp_path)
    register(warehouse, "v1", MIDNIGHT)
    promote(warehouse, "v1", MIDNIGHT)
    publish(warehouse, tick(0), {"a": 0.5})
    site = settle(warehouse, rest, tmp_path)
    site.watch = Watch(
        replace(site.settings, models=("team",)), site.watching, lambda _: site.teller
    )
    now = MIDNIGHT + timedelta(minutes=11)
    assert look(site, now) == set()
    file.write_text("raise RuntimeError('half a file')\n")
    assert look(site, now + MINUTE) == {("orders", "model-file")}
    file.write_text(good + "# mended\n")
    assert look(site, now + 2 * MINUTE) == set()
    file.unlink()
    assert look(site, now + 3 * MINUTE) == {("orders", "model-file")}


GIB = 1024**3


@pytest.mark.parametrize(
    ("free", "full_in", "cause"),
    [
        (50 * GIB, None, None),
        (3 * GIB, None, "disk/warehouse"),
        (GIB // 2, None, "disk-full/warehouse"),
        (20 * GIB, timedelta(hours=3), "disk/warehouse"),
        (20 * GIB, timedelta(days=3), None),
        (90 * GIB, timedelta(hours=3), None),
    ],
)
def test_a_disk_is_told_before_it_is_full(free, full_in, cause):
    """By what is left, and by how fast that goes; a large disk is never full by its share alone."""
    disk = Disk("the warehouse", "/srv", 100 * GIB, free, full_in)
    facts = Facts(NOON, found_out.Warehouse("sqlite"), disks=[disk])
    assert [each.cause for each in of_machines.disk(facts)] == ([cause] if cause else [])


def test_how_fast_a_disk_fills_is_known_from_the_looks_before(tmp_path, monkeypatch):
    """After half an hour of them; a clock that went back forgets what was later."""
    free = iter(range(10, 0, -1))
    usage = lambda _: shutil._ntuple_diskusage(20 * GIB, 0, next(free) * GIB)  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    settings, memory = Settings(f"sqlite:///{tmp_path}/w.db", f"{tmp_path}/gone"), {}
    told = [
        next(surroundings.disks(settings, memory, NOON + minute * MINUTE)).full_in
        for minute in (0, 10, 20, 30, 40, 0)
    ]
    assert told == [None, None, None, timedelta(minutes=70), timedelta(minutes=60), None]


@on_sqlite
def test_numbers_that_stand_still_are_told(warehouse, rest, tmp_path):
    """A server that lives counts our own questions; one behind a cache does not."""
    with counting() as server:
        site = settle(warehouse, rest, tmp_path, api_url=server.url, airflow_url=None)
        assert look(site, NOON) == set()
        assert look(site, NOON + MINUTE) == set()
        server.frozen = True
        assert look(site, NOON + 2 * MINUTE) == set()
        frozen = {(None, "numbers-still/prediction-API's-metrics")}
        assert look(site, NOON + 3 * MINUTE) == frozen
        server.frozen, server.ready = False, 503
        assert look(site, NOON + 4 * MINUTE) == {(None, "service-away/prediction-API")}


@pytest.mark.failure_mode(82)
@on_sqlite
def test_the_dead_mans_switch_hears_of_good_looks_and_of_bad_ones(site, tmp_path):
    """Its address is a secret; one that cannot be reached stops nothing."""
    with counting() as server:
        site = settle(site.warehouse, site.rest, tmp_path, ping_url=f"{server.url}/ping/s3cr3t")
        assert look(site, NOON) == set()
        assert server.asked == ["/ping/s3cr3t"] * 2
        site.teller.deliver = lambda _: "Slack takes nothing"
        assert _looked(site, NOON + MINUTE).failed == ["Slack takes nothing"]
        assert server.asked[2:] == ["/ping/s3cr3t/fail"] * 2
    with pytest.raises(UnansweredError) as told:
        ask(f"{server.url}/ping/s3cr3t")
    assert "s3cr3t" not in str(told.value)
    assert _looked(site, NOON + 2 * MINUTE).at == NOON + 2 * MINUTE + SURE_AFTER


class Counting:
    """A server whose numbers count its requests, unless they are frozen."""

    def __init__(self):
        self.asked, self.frozen, self.ready, self._count = [], False, 200, 0

    def answer(self, path):
        """Status and text."""
        self.asked.append(path)
        if path == "/readyz":
            self._count += not self.frozen
            return self.ready, "{}"
        told = f"process_cpu_seconds_total {len(self.asked)}\nrequests_total {self._count}\n"
        return 200, told


@contextmanager
def counting():
    """Such a server, until the block is left."""
    state = Counting()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, told = state.answer(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(told.encode())

        def log_message(self, *_):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def test_a_sign_of_life_remembers_between_looks_of_different_processes(warehouse, rest, tmp_path):
    """So that a look by cron is sure of what the one before it has found."""
    rest.health["scheduler"]["status"] = "unhealthy"
    for moment in (NOON, NOON + MINUTE):
        site = settle(warehouse, rest, tmp_path)
        with clock.set_to(moment):
            found = site.watch.look()
    assert [each.cause for each in found.problems] == ["airflow-scheduler"]
    [sign] = rows(warehouse, "SELECT name, seen_at, every_seconds, problems FROM signs_of_life")
    assert (sign[0], loaded_time(sign[1]), *sign[2:]) == ("watch", NOON + MINUTE, 60, 1)


@pytest.mark.failure_mode(78)
def test_a_source_that_is_silent_is_told_and_not_the_delay_that_it_brings(
    shop, rest, tmp_path, monkeypatch
):
    """By what the model allows, or by what the circuit breaker has learnt."""
    limited = orders.model.model_copy(update={"limits": Limits(silence=timedelta(minutes=30))})
    monkeypatch.setattr(orders, "model", limited)
    warehouse = Warehouse(shop.warehouse)
    with clock.set_to(TRAINED):
        for start in (TRAINED - 20 * MINUTE, TRAINED - 10 * MINUTE):
            jobs.predict(shop, "orders", Interval(start, start + 10 * MINUTE))
    site = settle(warehouse, rest, tmp_path)
    assert look(site, TRAINED + MINUTE) == set()
    assert look(site, TRAINED + timedelta(minutes=45)) == {("orders", "overdue")}
    with warehouse.write_source() as connection:
        silent = text("DELETE FROM orders WHERE placed_at >= :since")
        connection.execute(silent, {"since": stored_time(TRAINED)})
    assert look(site, TRAINED + timedelta(minutes=46)) == {
        ("orders", "overdue"),
        ("orders", "source-silent"),
    }


@pytest.mark.failure_mode(79)
@on_sqlite
def test_slack_hears_it_without_airflow_and_without_the_warehouse(site, slack):
    """Each cause once by its name, with what to do, and then that it is over."""
    site.rest.mode = "login"
    look(site, NOON)
    look(site, NOON + MINUTE)
    site.rest.mode = "ok"
    look(site, NOON + 2 * MINUTE)
    away, over = _told(slack)
    assert "Airflow's API server does not answer" in away
    assert "Start it again (`airflow api-server`), and see its log." in away
    assert "Over: Airflow" in over
    path = site.settings.warehouse.removeprefix("sqlite:///")
    Path(path).rename(f"{path}.away")
    _looked(site, NOON + 3 * MINUTE)
    _looked(site, NOON + 4 * MINUTE)
    assert "The warehouse does not answer" in _told(slack)[2]
    Path(f"{path}.away").rename(path)
    look(site, NOON + 5 * MINUTE)
    look(site, NOON + 6 * MINUTE)
    assert len(_told(slack)) == 4
    assert "Over: The warehouse" in _told(slack)[3]


def _told(slack):
    """What was told of incidents, and not that there is a champion."""
    return [each for each in slack.texts if "champion" not in each]


@pytest.mark.failure_mode(82)
@on_sqlite
def test_a_slack_that_takes_nothing_is_said_where_it_can_be(site, slack):
    """By the dead man's switch, by the exit code, and by an incident that waits for it."""
    slack.mode = "500"
    site.rest.health["scheduler"]["status"] = "unhealthy"
    look(site, NOON)
    for minute in (2, 12, 17):
        found = _looked(site, NOON + minute * MINUTE)
    assert "500" in found.failed[0]
    assert (None, "outbox") in site.teller.open()
    assert slack.url not in json.dumps(found.as_dict(), default=str)
    slack.mode = "ok"
    for minute in (60, 61):
        found = _looked(site, NOON + minute * MINUTE)
    assert found.failed == []
    assert (None, "outbox") not in site.teller.open()


def test_what_explains_what_names_causes_that_there_are():
    """A root that nobody tells of would explain nothing."""
    stages = {"predict", "train"}
    known = OWN | {each.name for each in causes.KINDS}
    assert {root.partition("/")[0] for root in EXPLAINS} <= known | stages
    assert {echo for echoes in EXPLAINS.values() for echo in echoes} <= OWN
