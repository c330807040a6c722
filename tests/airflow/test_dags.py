"""The DAG files: what they define, and what reading them must not cost."""

import ast
import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from importlib.util import find_spec

import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import AssetOrTimeSchedule, CronDataIntervalTimetable
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError
from airflow.serialization.serialized_objects import DagSerialization
from typer.testing import CliRunner

from batch_jobs import Placement
from batch_jobs.cli.main import app
from batch_jobs_airflow import dags
from batch_jobs_airflow.alerts import fail_alert, record_error, recovery_alert
from tests.conftest import ROOT

DAG_FILES = [
    *sorted((ROOT / "dags").glob("*.py")),
    *sorted((ROOT / "src" / "batch_jobs_airflow").glob("*_dag.py")),
]

PARSE = """
import json, socket, sqlite3, sys

opened = []
sqlite3.connect = lambda *args, **kwargs: opened.append(f"sqlite {args}")
socket.socket.connect = lambda self, address: opened.append(f"socket {address}")

from airflow.dag_processing.dagbag import DagBag

heavy = {"numpy", "pandas", "pyarrow", "sklearn", "joblib"}
before = heavy & set(sys.modules)
opened.clear()
bag = DagBag(sys.argv[1])
print(json.dumps({
    "dags": sorted(bag.dags), "errors": bag.import_errors, "opened": opened,
    "heavy": sorted(heavy & set(sys.modules) - before),
}))
"""


@pytest.fixture(scope="module")
def bag():
    """Every DAG of the bundled models."""
    return DagBag(ROOT / "dags")


def parse_elsewhere(**environ):
    """Parse the DAG files in a process of its own; what it found and what it touched."""
    answer = subprocess.run(
        [sys.executable, "-c", PARSE, str(ROOT / "dags")],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout.splitlines()[-1])


def test_each_model_gets_a_dag_for_each_verb(bag):
    """A model file is all it takes: its name names the pair."""
    assert bag.import_errors == {}
    assert set(bag.dags) == {
        f"{verb}_{model}"
        for verb in ("train", "predict", "monitor", "rollback")
        for model in ("flight_delay", "iris")
    }


def test_the_one_file_for_an_existing_airflow_makes_the_same_dags(bag, tmp_path):
    """`batch-jobs dags` writes it; each DAG belongs to that file, also when it is read again."""
    CliRunner().invoke(app, ["dags", "--folder", str(tmp_path)], catch_exceptions=False)
    file = tmp_path / "batch_serving.py"
    assert file.read_text() == CliRunner().invoke(app, ["dags"]).stdout
    for _ in range(2):
        one = DagBag(tmp_path)
        assert one.import_errors == {}
        assert {dag.fileloc for dag in one.dags.values()} == {str(file)}
        assert {name: dag.doc_md for name, dag in one.dags.items()} == {
            name: dag.doc_md for name, dag in bag.dags.items()
        }


def test_a_task_reads_the_file_of_its_own_model_alone(monkeypatch):
    """Airflow says which DAG it wants; what is no DAG of ours might be in the same file."""
    wanted = "_AIRFLOW_PARSING_CONTEXT_DAG_ID"
    monkeypatch.setenv(wanted, "predict_iris")
    own = set(DagBag(ROOT / "dags").dags)
    monkeypatch.setenv(wanted, "somebody_elses")
    everything = set(DagBag(ROOT / "dags").dags)
    assert own == {f"{verb}_iris" for verb in ("train", "predict", "monitor", "rollback")}
    assert own < everything


def test_parsing_opens_no_connection_and_loads_nothing_heavy():
    """Airflow reads DAG files every 30 seconds, and every task reads its own again."""
    found = parse_elsewhere(BATCH_JOBS_MODELS="tests.example_models")
    assert found["errors"] == {}
    assert found["opened"] == []
    assert found["heavy"] == []
    assert "predict_orders" in found["dags"]


def test_a_broken_model_file_keeps_its_dags_and_stops_no_other(tmp_path):
    """The broken model's tasks fail with the reason; the other models go on."""
    (tmp_path / "team").mkdir()
    (tmp_path / "team" / "__init__.py").touch()
    (tmp_path / "team" / "churn.py").write_text("model = 1 / 0\n")
    found = parse_elsewhere(BATCH_JOBS_MODELS="team", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert found["errors"] == {}
    assert {"train_churn", "predict_churn", "rollback_churn", "train_iris"} <= set(found["dags"])


# What is changed in a copy of the sample model, and a part of what is then told of its file.
ODD = {
    "churn copy": ("", "", "rename it, for example to churn_copy.py"),
    "x" * 81: ("", "", "its name must match"),
    "tagged": ('"sample"', '"x" * 101', "at most 100 characters"),
    "two_lines": ('"sample"', r'"a\nb"', "must be one line of text"),
    "unowned": ('tags=("sample",)', 'owner=" "', "must be one line of text"),
    "zero": ('description="', r'description="\0', r"has the character '\x00'"),
    "torn": ('description="', r'description="\ud800', "a valid string"),
    "wordy": ('tags=("sample",)', 'schedule="0," * 99 + "0 * * * *"', "at most 200 characters"),
    "endless": ('tags=("sample",)', "timeout=timedelta.max", "at most 36,525 days"),
    "latin": ('"""', '"\udcff"""', "can't decode byte 0xff"),
    "hanging": ("def estimator", "import signal\nsignal.pause()\ndef estimator", "import timeout"),
}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """The DAGs of a package that has a sound model file and all the odd ones, by their ids."""
    folder = tmp_path_factory.mktemp("odd") / "crowd"
    folder.mkdir()
    (folder / "__init__.py").touch()
    sample = (ROOT / "src" / "batch_jobs" / "models" / "iris.py").read_text()
    for stem, (old, new, _) in {"sound": ("", "", ""), **ODD}.items():
        source = sample.replace(old, new, 1).encode(errors="surrogateescape")
        (folder / f"{stem}.py").write_bytes(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder.parent))
        patch.setenv("BATCH_JOBS_MODELS", "crowd")
        patch.setenv("AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT", "1")
        bag = DagBag(ROOT / "dags")
    assert bag.import_errors == {}
    return bag.dags


@pytest.mark.failure_mode("model-files")
def test_what_is_wrong_with_a_model_file_takes_no_other_model_along(crowd):
    """Whatever is wrong with it: every file has its three DAGs, and the sound ones go on."""
    names = {"sound", "iris", "flight_delay", "churn_copy", "x" * 63, *list(ODD)[2:]}
    assert set(crowd) == {
        f"{verb}_{name}" for name in names for verb in ("train", "predict", "monitor", "rollback")
    }
    assert "Broken" not in crowd["predict_sound"].doc_md
    DagSerialization.to_dict(crowd["train_sound"])


@pytest.mark.parametrize("stem", ODD)
@pytest.mark.failure_mode("model-files")
def test_the_tasks_of_a_wrong_model_file_fail_with_the_reason(crowd, stem):
    """And its description in Airflow's UI says it, in words that Airflow can store."""
    name, reason = {"churn copy": "churn_copy"}.get(stem, stem)[:63], ODD[stem][2]
    for verb in ("train", "predict", "monitor", "rollback"):
        dag = crowd[f"{verb}_{name}"]
        assert reason in dag.doc_md
        json.dumps(DagSerialization.to_dict(dag)).encode()
        task = dag.tasks[0]
        with pytest.raises(AirflowFailException, match=re.escape(reason)):
            task._pre_execute_hook({})


@pytest.mark.parametrize("wrong", [{"tags": ("x" * 101,)}, {"owner": 5}, {"parts": "x"}])
@pytest.mark.failure_mode("model-files")
def test_what_airflow_refuses_of_one_model_is_told_of_that_one(monkeypatch, wrong):
    """Even what we do not know to be refused."""
    from batch_jobs.models.iris import model

    monkeypatch.setattr("batch_jobs.models.iris.model", model.model_copy(update=wrong))
    bag = DagBag(ROOT / "dags")
    assert bag.import_errors == {}
    assert {"predict_iris", "predict_flight_delay"} < set(bag.dags)


@pytest.mark.parametrize("path", DAG_FILES, ids=lambda path: path.name)
def test_dag_files_are_thin(path):
    """Docstring, imports, arrows: no function but the one `with DAG`, no SQL, about fifty lines."""
    source = path.read_text()
    tree = ast.parse(source)
    bodies = [
        n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda | ast.ClassDef)
    ]
    own = ["make_dag"] if path.stem.endswith("_dag") else []
    assert [getattr(one, "name", "lambda") for one in bodies] == own, (
        f"{path.name}: move functions to batch_jobs_airflow/prediction_tasks.py"
    )
    assert "select " not in source.lower().replace("select.", "")
    assert len(source.splitlines()) <= 60


@pytest.mark.failure_mode(20)
def test_every_dag_keeps_house_policy(bag):
    """Alerts, limits and help are on every DAG, or the engineer on call is on their own."""
    for dag in bag.dags.values():
        assert dag.on_failure_callback is fail_alert, f"{dag.dag_id}: use dags.dag_settings"
        assert dag.on_success_callback is recovery_alert
        assert dag.default_args["on_failure_callback"] is record_error
        assert "**If it fails.**" in dag.doc_md
        assert dag.dagrun_timeout is not None
        assert (dag.catchup, dag.max_active_runs) == (False, 1)
        assert {"batch-serving"} < dag.tags
        assert all(task.retries == 2 and task.owner for task in dag.tasks)


def test_intervals_are_not_of_zero_length(bag):
    """A plain cron string would give start == end in Airflow 3."""
    predict, train = bag.dags["predict_flight_delay"], bag.dags["train_flight_delay"]
    assert isinstance(predict.timetable, CronDataIntervalTimetable)
    assert (predict.timetable.expression, str(predict.timetable.timezone)) == (
        "*/10 * * * *",
        "UTC",
    )
    assert train.timetable.expression == "0 3 * * 1"


def test_a_rollback_is_started_by_hand_only(bag):
    """And asks for a version and a reason."""
    dag = bag.dags["rollback_iris"]
    assert (type(dag.timetable).__name__, dag.is_paused_upon_creation) == ("NullTimetable", False)
    assert set(dag.params) == {"version", "reason"}
    for name, wrong in (("version", "../x"), ("version", ""), ("reason", ""), ("reason", " ")):
        with pytest.raises(ParamValidationError):
            dag.params.get_param(name).resolve(wrong)


def test_nobody_is_asked_and_nothing_but_the_cron_trains_unless_the_model_says_so(bag):
    """The tasks, the schedule and the time limit of a model that does not are as ever."""
    train = bag.dags["train_iris"]
    assert list(train.task_dict) == ["train", "promote"]
    assert isinstance(train.timetable, CronDataIntervalTimetable)
    assert train.dagrun_timeout == timedelta(hours=2)
    assert train.task_dict["train"].execution_timeout is None


def test_a_model_can_ask_a_person_and_be_trained_when_it_drifts(monkeypatch):
    """The time for an answer comes on top of that for the training, which keeps its own."""
    from batch_jobs.models.iris import model

    gate = model.gate.model_copy(update={"approval": timedelta(days=2)})
    wanted = {"gate": gate, "retrain_on_drift": timedelta(days=1)}
    monkeypatch.setattr("batch_jobs.models.iris.model", model.model_copy(update=wanted))
    train = DagBag(ROOT / "dags").dags["train_iris"]
    assert [task.task_id for task in train.topological_sort()] == [
        *("evidence", "train", "approve", "promote")
    ]
    assert train.dagrun_timeout == timedelta(days=2, hours=2)
    assert train.task_dict["train"].execution_timeout == timedelta(hours=2)
    assert isinstance(train.timetable, AssetOrTimeSchedule)
    assert isinstance(train.timetable.timetable, CronDataIntervalTimetable)
    assert train.timetable.asset_condition.objects[0].name == "iris_drift"


def test_a_model_says_where_its_tasks_run_and_before_whose(monkeypatch, bag):
    """Its training elsewhere, if it says so; without a word all is Airflow's default."""
    from batch_jobs.models.iris import model

    large = Placement(pool="large", queue="big", priority=7, cpu=2, memory="4Gi")
    wanted = {"placement": Placement(pool="small", priority=5), "train_placement": large}
    monkeypatch.setattr("batch_jobs.models.iris.model", model.model_copy(update=wanted))
    placed = DagBag(ROOT / "dags").dags

    assert {placement_of(task) for task in bag.dags["predict_iris"].tasks} == {
        ("default_pool", "default", 1)
    }
    assert {placement_of(task) for task in placed["predict_iris"].tasks} == {
        ("small", "default", 5)
    }
    for verb in ("train", "rollback"):
        assert {placement_of(task) for task in placed[f"{verb}_iris"].tasks} == {
            ("large", "big", 7)
        }


def placement_of(task):
    """Pool, queue and the weight by which the scheduler sorts, of a task as it is stored."""
    stored = DagSerialization.to_dict(task.dag)["dag"]["tasks"]
    [found] = [one["__var"] for one in stored if one["__var"]["task_id"] == task.task_id]
    found = found.get("partial_kwargs", found)
    asks = "cpu" in str(found.get("executor_config"))
    assert asks == (find_spec("kubernetes") is not None and found.get("pool") == "large")
    assert found["weight_rule"] == "absolute"
    return (
        found.get("pool", "default_pool"),
        found.get("queue", "default"),
        found.get("priority_weight", 1),
    )


def test_the_training_command_holds_no_user_input(bag):
    """What a person types into the trigger form never reaches a shell."""
    train = bag.dags["train_flight_delay"].task_dict["train"]
    assert train.bash_command == "batch-jobs train flight_delay --as-of {{ as_of(dag_run) }}"
    assert bag.dags["train_flight_delay"].user_defined_macros["as_of"].func is dags.as_of


def test_a_promotion_announces_the_champion_that_predictions_read(bag):
    """The model's asset links the two DAGs in Airflow's UI."""
    promote = bag.dags["train_iris"].task_dict["promote"]
    plan = bag.dags["predict_iris"].task_dict["plan"]
    assert [asset.name for asset in promote.outlets] == ["iris_champion"]
    assert plan.inlets == promote.outlets


def test_a_publication_announces_the_predictions(bag):
    """Other DAGs can be scheduled on the asset."""
    publish = bag.dags["predict_iris"].task_dict["publish"]
    assert [asset.uri for asset in publish.outlets] == ["batch-jobs://predictions/iris"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interval_start", "yesterday; rm -rf /"),
        ("interval_start", "2026-11-22T15:00:00"),
        ("interval_end", 20261122),
        ("force", "yes"),
        ("accept", ""),
        ("accept", " "),
    ],
)
def test_the_trigger_form_refuses_what_is_no_interval(bag, name, value):
    """JSON schema checks the form before a run is made."""
    param = bag.dags["predict_iris"].params.get_param(name)
    with pytest.raises(ParamValidationError):
        param.resolve(value)


def test_a_part_cannot_outlast_its_run(bag):
    """The run's own timeout bounds all its tasks."""
    assert bag.dags["predict_iris"].dagrun_timeout <= timedelta(hours=1)
