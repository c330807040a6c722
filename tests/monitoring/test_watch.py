"""The watch hears what is silent, by its root, once, and hears when it is over."""

import copy
import sqlite3
from contextlib import closing, contextmanager
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import text

from batch_jobs import clock
from batch_jobs.database.transactions import stored_time
from batch_jobs.monitoring.telling import IncidentTeller
from batch_jobs.monitoring.watch import SURE_AFTER, Watch
from batch_jobs.registry import champions, versions
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.settings import Settings, WatchSettings
from tests.support.airflow_rest import PASSWORD, RECORDED, USER, answering
from tests.support.attempts import MIDNIGHT, claim, publish, tick

MINUTE = timedelta(minutes=1)
GATE = {"promote": True, "reasons": ["shown to be no worse"], "champion": None}
SERVED = 6  # intervals of ten minutes, from midnight on
NOON = MIDNIGHT + timedelta(minutes=10 * SERVED)  # of this little day
on_sqlite = pytest.mark.parametrize("warehouse", ["sqlite"], indirect=True)


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


def _broken(rest):
    rest.import_errors = copy.deepcopy(RECORDED["import_errors"]["import_errors"])


def _away(rest):
    rest.mode = "login"


def _hanging(rest):
    [run] = copy.deepcopy(RECORDED["running"]["dag_runs"])[:1]
    run |= {"dag_id": "predict_orders", "start_date": MIDNIGHT.isoformat()}
    rest.runs = [run]


@on_sqlite
@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (_stopped("scheduler"), (None, "airflow-scheduler")),
        (_stopped("dag_processor"), (None, "airflow-dag-processor")),
        (_stopped("triggerer"), (None, "airflow-triggerer")),
        (_stopped("metadatabase"), (None, "airflow-metadatabase")),
        (_away, (None, "airflow-away")),
        (_broken, (None, "dag-file/zz_broken.py")),
        (_paused("predict_orders"), ("orders", "dag-paused/predict")),
        (_paused("train_orders"), ("orders", "dag-paused/train")),
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
    *("airflow-triggerer", "airflow-dag-processor", "dag-paused/train", "dag-file/zz_broken.py"),
}


def asked_of(site, name, at):
    """Let the newest question about `orders` be one that a real Airflow has told of."""
    [question] = copy.deepcopy(RECORDED[name]["hitl_details"])
    site.rest.questions["train_orders"] = question | {"created_at": at.isoformat()}


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
    from tests.example_models import orders

    gate = orders.model.gate.model_copy(update={"approval": patience})
    monkeypatch.setattr(orders, "model", orders.model.model_copy(update={"gate": gate}))


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


def test_a_gap_behind_newer_intervals_is_told_and_is_not_called_overdue(site):
    """Once it is older than a delay; and it is over when it is filled."""
    for number in range(SERVED + 1, SERVED + 4):
        publish(site.warehouse, tick(number), {"a": 0.5})
    assert look(site, NOON + timedelta(minutes=40)) == {("orders", "gap")}
    publish(site.warehouse, tick(SERVED), {"a": 0.5})
    assert look(site, NOON + timedelta(minutes=41)) == set()


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
