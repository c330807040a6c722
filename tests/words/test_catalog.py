"""Model files are found by name and read without a heavy import; what is wrong is told at once."""

import subprocess
import sys
from datetime import timedelta
from textwrap import dedent

import pytest

from batch_jobs.catalog import hidden_files, load_model, model_names
from batch_jobs.errors import ConfigurationError, ModelFileError, UnknownModelError

GOOD = """
    from batch_jobs import BatchModel, Number
    model = BatchModel(
        description="A test",
        features_query="SELECT :start, :end",
        labels_query="SELECT :start, :end",
        features={"x": Number()},
        estimator=object,
    )
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make an importable package of model files: `package("team", orders="…")`."""

    def make(name, **files):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        for file, content in files.items():
            (folder / f"{file}.py").write_text(dedent(content))
        return name

    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield make
    for module in set(sys.modules) - before:
        del sys.modules[module]


def test_every_file_of_a_package_is_a_model_of_its_name(package):
    """Sorted; files that begin with an underscore are helpers."""
    name = package("team_names", zebra=GOOD, ape=GOOD, _helpers="")
    assert model_names([name]) == ["ape", "zebra"]
    assert load_model("ape", [name]).name == "ape"


def test_a_model_itself_may_be_given_beside_the_packages(package):
    """It hides the file it was made of, as in a replay that evaluates by another rule."""
    name = package("team_given", ape=GOOD, zebra=GOOD)
    changed = load_model("ape", [name]).model_copy(update={"look_back": timedelta(hours=3)})
    again = changed.model_copy(update={"look_back": timedelta(hours=4)})
    assert load_model("ape", [changed, again, name]) == changed
    assert model_names([changed, name]) == ["ape", "zebra"]


def test_an_unknown_model_is_told_the_known_ones(package):
    """A slip of the pen is mended without a look into the folder."""
    name = package("team_unknown", ape=GOOD, zebra=GOOD)
    with pytest.raises(UnknownModelError, match="unknown model 'zebre'; known models: ape, zebra"):
        load_model("zebre", [name])


def test_a_package_named_first_hides_the_models_of_a_later_one(package):
    """A user's `iris` is served instead of the bundled one."""
    first = package("team_first", iris=GOOD.replace("A test", "The team's own"))
    second = package("team_second", iris=GOOD)
    assert model_names([first, second]) == ["iris"]
    assert load_model("iris", [first, second]).description == "The team's own"


def test_all_problems_of_a_model_file_are_told_at_once(package):
    """Wrong fields, queries, schedules and spans in one error."""
    wrong = """
        from datetime import timedelta
        from batch_jobs import BatchModel, Number
        model = BatchModel(
            description="",
            features_query="SELECT 1",
            labels_query="SELECT :start",
            features={"as_of": Number(), "x": "number"},
            estimator=None,
            schedule="every day",
            history=timedelta(days=3),
            holdout=timedelta(days=3),
            chunk_row=5,
        )
    """
    with pytest.raises(ModelFileError) as caught:
        load_model("bad", [package("team_bad", bad=wrong)])
    places = [problem.partition(":")[0].partition(".")[0] for problem in caught.value.problems]
    assert set(places) == {
        *("description", "features_query", "labels_query", "features", "estimator"),
        *("schedule", "holdout", "chunk_row"),
    }
    assert str(caught.value).startswith("model file bad.py: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("model = (", "SyntaxError"),
        ("raise SystemExit('done')", "SystemExit: done"),
        ("class Late(BaseException): pass\nraise Late('after 30 s')", "Late: after 30 s"),
        ("# \x00", "null bytes"),
        ("modell = 1", "must assign a BatchModel to the name `model`"),
        ("model = {'description': 'A dict'}", "must assign a BatchModel to the name `model`"),
    ],
)
def test_a_file_that_does_not_define_a_model_says_why(package, content, expected):
    """Whatever the file raises is a finding about the file, not a crash of ours."""
    with pytest.raises(ModelFileError, match=r"^model file broken\.py: ") as caught:
        load_model("broken", [package("team_broken", broken=content)])
    assert expected in str(caught.value)


MISNAMED = {
    "Flight-Delay": "flight_delay",
    "churn copy": "churn_copy",
    "churn (1)": "churn_1",
    "churn.v2": "churn_v2",
    "2024": "model_2024",
    "Ü": "model",
    "{{ x }}; rm": "x_rm",
    "x" * 81: "x" * 63,
}


@pytest.mark.parametrize("stem", MISNAMED)
@pytest.mark.failure_mode("model-files")
def test_a_file_name_that_cannot_be_a_dag_id_is_refused(package, stem):
    """The name becomes a DAG id, a URL segment and a column value; a better one is told.

    The file goes by that until then, so that every door knows it, and none has to know its name.
    """
    name = package("team_case", **{stem: "1 / 0", "churn": GOOD})
    better = MISNAMED[stem]
    assert model_names([name]) == sorted(["churn", better])
    for asked in (stem, better):
        with pytest.raises(ModelFileError, match=f"its name must match .* to {better}.py"):
            load_model(asked, [name])


def test_a_misnamed_file_takes_no_other_ones_name(package):
    """Not that of a model, in whichever package, nor that of another misnamed file."""
    files = {"churn-old": GOOD, "churn old": GOOD, "x" * 63: GOOD, "x" * 64: GOOD}
    first, second = package("team_stray", **files), package("team_proper", churn_old=GOOD)
    names = ["churn_old", "churn_old_1", "churn_old_2", "x" * 58 + "_1", "x" * 63]
    assert model_names([first, second]) == sorted(names)
    assert load_model("churn_old", [first, second]).name == "churn_old"
    with pytest.raises(ModelFileError, match="its name must match"):
        load_model("churn_old_1", [first, second])


def test_a_folder_that_hides_a_model_file_is_told(package, tmp_path):
    """Python imports the folder, and the model would be gone without a word; others are no models.

    Nor are what editors and systems leave beside a file.
    """
    name = package("team_folder", churn=GOOD, **{"._churn": GOOD, ".#churn": GOOD})
    for folder in ("churn", "features"):
        (tmp_path / name / folder).mkdir()
        (tmp_path / name / folder / "__init__.py").touch()
    assert model_names([name]) == ["churn"]
    with pytest.raises(ModelFileError, match="the folder churn hides it"):
        load_model("churn", [name])


def test_what_an_earlier_package_hides_is_told(package):
    """A team's own `iris` may be meant to hide the bundled one, or not."""
    packages = [package("team_above", iris=GOOD, ape=GOOD), package("team_below", iris=GOOD)]
    assert hidden_files(packages) == [("team_below.iris", "team_above.iris")]


@pytest.mark.parametrize("name", ["no_such_package", "no.such.package", "json.decoder", "..", ".x"])
def test_a_package_that_is_not_there_is_a_wrong_setting(name):
    """So are a module that is no package, and a name that is none."""
    with pytest.raises(ConfigurationError, match=f"BATCH_JOBS_MODELS names {name!r}"):
        model_names([name])


def test_a_package_whose_parent_fails_to_import_is_a_wrong_setting(package):
    """The parent of a package runs when the package is looked for."""
    parent = package("team_parent", __init__="raise RuntimeError('no licence')")
    with pytest.raises(ConfigurationError, match="RuntimeError: no licence"):
        model_names([f"{parent}.models"])


def _loaded_by(code):
    """The top-level modules that a fresh Python holds after the code has run."""
    script = f"import sys\n{dedent(code)}\nprint(*sorted(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_reading_every_model_file_loads_no_heavy_library():
    """Airflow reads the files every 30 seconds, so they may not import pandas and its like."""
    heavy = {"pandas", "numpy", "sklearn", "scipy", "pyarrow", "joblib", "airflow"}
    found = _loaded_by("""
        from batch_jobs.catalog import hidden_files, load_model, model_names
        packages = ("tests.example_models", "batch_jobs.models")
        assert {"orders", "customers"} <= set(model_names(packages))
        for name in model_names(packages):
            load_model(name, packages)
    """)
    assert found & heavy == set()
    assert "batch_jobs" in found


def test_no_module_of_the_library_imports_airflow():
    """The library and its command line run where Airflow is not installed."""
    found = _loaded_by("""
        import pkgutil, importlib, batch_jobs
        for module in pkgutil.walk_packages(batch_jobs.__path__, "batch_jobs."):
            if module.name != "batch_jobs.__main__":
                importlib.import_module(module.name)
    """)
    assert "airflow" not in found
    assert "sqlalchemy" in found
