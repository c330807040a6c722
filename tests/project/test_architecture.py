"""The table of rooms is held: arrows between them go one way, and no module grows too long.

If a test here fails: move the code to the room where it belongs (DESIGN, "Rooms"), or, if it is a
new room, give it a line in BELOW.
"""

import ast
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent.parent / "src" / "batch_jobs"
API = LIBRARY.parent / "prediction_api"
WORDS = {
    *("errors", "settings", "interval", "clock", "model", "catalog", "redaction", "failpoints"),
    *("interruption", "fields", "monitor", "placement"),
}
# Which rooms a room may know; all of them may use the words.
BELOW = {
    "database": set(),
    "scoring": {"database"},
    "samples": {"database"},
    "reports": set(),
    "alerts": {"database"},
    "evaluation": {"scoring"},
    "registry": {"database", "scoring"},
    "requests": {"database", "scoring", "registry"},
    "training": {"database", "scoring", "evaluation", "registry", "reports"},
    "runs": {"database", "scoring", "registry", "requests"},
    "monitoring": {
        *("database", "scoring", "evaluation", "registry", "training", "runs", "alerts", "reports"),
    },
    "backtest": {
        *("database", "scoring", "evaluation", "registry", "training", "runs", "monitoring"),
    },
    "backups": {"database", "registry"},
    "cli": {
        *("database", "samples", "registry", "backups", "requests", "training", "runs", "backtest"),
        *("alerts", "monitoring", "reports"),
    },
    "models": set(),
}
# What the API may know of the library: what is declared and stored, and how a version is loaded and
# asked. It reads the views of the contract, and neither stages nor publishes. Its page looks like
# reports.
KNOWN_TO_THE_API = {"database", "scoring", "registry", "requests", "reports"}
LONGEST = 300
# Modules that may have more lines than that, each for a reason.
MAY_BE_LONGER = {
    "database/postgres.py": "the whole of what one database does its own way",
    "database/sqlite.py": "likewise",
}
# Frames in, frames out: no SQL, files, environment or clock. A buffer in memory is no file.
PURE = {
    *("scoring/contract", "scoring/keys", "scoring/fitted", "scoring/golden"),
    *("scoring/compiled_trees", "database/columns"),
    *("evaluation/metrics", "evaluation/gate", "evaluation/bootstrap", "evaluation/ground_truth"),
    *(
        "runs/circuit_breaker",
        "training/fit",
        "reports/html",
        "reports/gate",
        "reports/backtest",
    ),
    *("alerts/mrkdwn", "alerts/incident_words", "alerts/delivery_words", "alerts/problems"),
    "alerts/causes",
}
IMPURE = {
    *("sqlalchemy", "sqlite3", "os", "pathlib", "shutil", "tempfile", "subprocess"),
    *("time", "socket", "urllib", "http", "logging", "threading", "requests", "random"),
}
HEAVY = {
    *("pandas", "numpy", "sklearn", "scipy", "pyarrow", "joblib", "numba", "matplotlib", "jinja2"),
}
# Imported inside functions only, and so may itself import what it likes.
DEFERRED = {"scoring.compiled_trees", "database.copy"}
FILES = sorted(LIBRARY.rglob("*.py"))
API_FILES = sorted(API.rglob("*.py"))
GLUE_FILES = sorted((LIBRARY.parent / "batch_jobs_airflow").rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts): path
    for path in FILES
    if path.name != "__init__.py"
}


def _tree(path):
    return ast.parse(path.read_text(), filename=str(path))


def _imports(nodes):
    """Full names of everything imported; `from a import b` gives `a` and `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write the whole name of the module"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _known(path):
    """The modules of the library that a file imports, wherever it does so."""
    return set(_imports(ast.walk(_tree(path)))) & set(MODULES)


def _room(module):
    """The room of a module; `words` is the ground floor, `doors` calls the command line."""
    parts = module.split(".")
    if len(parts) > 2:
        return parts[1]
    return "words" if parts[1] in WORDS else "doors"


def _for_type_checkers(tree):
    """Nodes under `if TYPE_CHECKING:`, which never run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from ast.walk(node)


def test_every_room_is_in_the_table():
    """A new room is made on purpose; one that went leaves no line behind."""
    assert {_room(module) for module in MODULES} == {*BELOW, "words", "doors"}
    assert {module.split(".")[1] for module in MODULES if _room(module) == "doors"} == {"__main__"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_arrows_between_rooms_go_down(module):
    """A room knows those that the table gives it, and the words; the words know only words."""
    room = _room(module)
    known = {_room(other) for other in _known(MODULES[module])} - {room}
    may = {"words": set(), "doors": {"cli"}}.get(room, BELOW.get(room, set()) | {"words"})
    assert known <= may


@pytest.mark.parametrize("room", sorted(BELOW))
def test_the_table_promises_no_more_than_is_used(room):
    """So that it is a picture of the house, and not of a wish."""
    own = [path for module, path in MODULES.items() if _room(module) == room]
    used = {_room(other) for path in own for other in _known(path)}
    assert BELOW[room] - used == set()


@pytest.mark.parametrize("package", ["batch_jobs", "batch_jobs_airflow", "prediction_api"])
def test_no_two_modules_import_each_other(package):
    """Not even within a room, nor in a circle of three; and so neither do rooms."""
    paths = {
        ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts): path
        for path in (LIBRARY.parent / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    imported = {module: set(_imports(ast.walk(_tree(path)))) for module, path in paths.items()}
    below = {module: (known & set(paths)) - {module} for module, known in imported.items()}
    while free := [name for name, needs in below.items() if not needs & set(below)]:
        for name in free:
            del below[name]
    assert below == {}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_is_private_to_a_module_stays_there(module):
    """A name with an underscore is nobody else's."""
    taken = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(_tree(MODULES[module]))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("batch_jobs")
        for alias in node.names
        if alias.name.startswith("_")
    }
    assert taken == set()


@pytest.mark.parametrize("path", API_FILES, ids=lambda path: str(path.relative_to(API)))
def test_nothing_of_the_api_but_its_app_knows_a_router(path):
    """What two routers need lies beside them, so that no route leans on another."""
    if path != API / "main.py":
        assert [
            full
            for full in _imports(ast.walk(_tree(path)))
            if full.startswith("prediction_api.routers")
        ] == []


@pytest.mark.parametrize(
    "path", [*API_FILES, *GLUE_FILES], ids=lambda path: str(path.relative_to(LIBRARY.parent))
)
def test_no_module_of_api_and_glue_is_too_long(path):
    """Without an exception."""
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_no_module_is_too_long(path):
    """To be read in one sitting."""
    name = str(path.relative_to(LIBRARY))
    lines = len(path.read_text().splitlines())
    assert (lines > LONGEST) == (name in MAY_BE_LONGER), f"{name} has {lines} lines"


@pytest.mark.parametrize("name", sorted(PURE))
def test_the_pure_core_reaches_for_nothing_outside(name):
    """No SQL, file, environment, network or clock."""
    tree = _tree(LIBRARY / f"{name}.py")
    assert {full.partition(".")[0] for full in _imports(ast.walk(tree))} & IMPURE == set()
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    clocks = ("now", "utcnow", "today")
    assert {
        call for call in called if call in {"open", "io.open", "print"} or call.endswith(clocks)
    } == set()


@pytest.mark.parametrize(
    "name", sorted(set(MODULES) - {"batch_jobs.clock", "batch_jobs.cli.models"})
)
def test_only_the_clock_asks_the_machine_for_the_time(name):
    """Else a replay would mix its time with ours; samples lie around our time."""
    tree = _tree(MODULES[name])
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called & {"datetime.now", "datetime.utcnow", "datetime.today", "time.time"} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_nothing_of_airflow_is_imported(path):
    """The library and its command line run without it, and without the API."""
    imported = {full.partition(".")[0] for full in _imports(ast.walk(_tree(path)))}
    assert (
        imported
        & {"airflow", "batch_jobs_airflow", "utils", "demo", "dags", "plugins", "prediction_api"}
        == set()
    )


@pytest.mark.parametrize("path", API_FILES, ids=lambda path: str(path.relative_to(API)))
def test_the_api_knows_the_contract_and_the_registry_only(path):
    """An app of its own, which a server without Airflow can run."""
    imported = set(_imports(ast.walk(_tree(path))))
    assert {name.partition(".")[0] for name in imported} & {
        "airflow",
        "batch_jobs_airflow",
        "utils",
        "demo",
        "tests",
    } == set()
    rooms = {_room(module) for module in _known(path)}
    assert rooms <= KNOWN_TO_THE_API | {"words"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_heavy_libraries_are_imported_where_they_are_used(path):
    """Inside functions, so that reading a DAG file loads none of them."""
    tree = _tree(path)
    unrun = set(_for_type_checkers(tree))
    inside = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        for child in ast.walk(node)
    }
    atop = set(_imports(node for node in ast.walk(tree) if node not in inside | unrun))
    assert not atop & {f"batch_jobs.{name}" for name in DEFERRED}
    if ".".join(path.relative_to(LIBRARY).with_suffix("").parts) not in DEFERRED:
        assert {full.partition(".")[0] for full in atop} & HEAVY == set()


@pytest.mark.parametrize(
    "name",
    [
        "alerts/mrkdwn",
        *sorted(WORDS - {"model", "fields", "interval", "catalog", "monitor", "placement"}),
    ],
)
def test_words_need_the_standard_library_only(name):
    """But for pydantic and croniter, where a model and its schedule are declared."""
    imported = {
        full.partition(".")[0] for full in _imports(ast.walk(_tree(LIBRARY / f"{name}.py")))
    }
    assert imported - set(sys.stdlib_module_names) <= {"batch_jobs"}
