"""Imports point downwards only, so that the pure core never learns who called it.

If a test here fails: move the code to the room where it belongs (DESIGN, "Rooms"), or, if a new
module was made, give it a line in ROOMS.
"""

import ast
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parent.parent / "src" / "batch_jobs"
API = LIBRARY.parent / "prediction_api"
# From the bottom to the top: a module may import from rooms below its own, and from its own.
ROOMS = {
    "words": {
        *("errors", "interval", "model", "settings", "catalog", "redaction", "messages"),
        *("failpoints", "clock", "interruption"),
    },
    "pure": {
        "contract",
        "columns",
        "scoring",
        "training",
        "gate",
        "circuit_breaker",
        "compiled_trees",
    }
    | {"drawing", "gate_page", "outcomes", "replay_page"},
    "stores": {
        *("warehouse", "sqlite", "postgres", "ledger", "staging", "publication", "registry"),
        *(
            "connections",
            "run_tables",
            "binary_rows",
            "retention",
            "old_versions",
            "artifacts",
            "local_folder",
            "remote_folder",
            "copies",
            "signing",
            "outbox",
            "slack_webhook",
            "requests",
            "claims",
            "leases",
            "refusals",
        ),
    },
    "doors": {
        *(
            "lifecycle",
            "loading",
            "checking",
            "model_template",
            "planning",
            "replay",
            "streaming",
            "missed_rows",
            "serving",
            "answering",
            "samples",
            "cli",
        ),
        *("__init__", "__main__"),
    },
}
# What the API may know of the library: what is declared and stored, and how a version is loaded and
# asked. It reads the views of the contract, and neither stages nor publishes.
KNOWN_TO_THE_API = {
    *("clock", "errors", "interval", "model", "settings", "catalog", "redaction"),
    *("columns", "contract", "scoring", "warehouse", "postgres", "sqlite", "registry", "loading"),
    *("requests", "claims", "answering"),
}
HEIGHT = {module: height for height, room in enumerate(ROOMS.values()) for module in room}
# The pure core takes frames and gives frames: no SQL, files, environment or clock. A buffer in
# memory is no file.
IMPURE = {
    *("sqlalchemy", "sqlite3", "os", "pathlib", "shutil", "tempfile", "subprocess"),
    *("time", "socket", "urllib", "http", "logging", "threading", "requests", "random"),
}
HEAVY = {"pandas", "numpy", "sklearn", "scipy", "pyarrow", "joblib", "numba", "matplotlib"}
# Imported inside functions only, and so may itself import what it likes.
DEFERRED = {"compiled_trees", "binary_rows"}
MODULES = sorted(LIBRARY.glob("*.py"))
FILES = sorted(LIBRARY.rglob("*.py"))
API_FILES = sorted(API.rglob("*.py"))


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


def _siblings(path):
    """The modules of the library that a module imports, wherever it does so."""
    names = (name.split(".") for name in _imports(ast.walk(_tree(path))))
    return {parts[1] for parts in names if parts[0] == "batch_jobs" and len(parts) > 1} & set(
        HEIGHT
    )


def _for_type_checkers(tree):
    """Nodes under `if TYPE_CHECKING:`, which never run."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from ast.walk(node)


def test_every_module_has_its_room():
    """A new module is put somewhere on purpose; a module that went leaves no line behind."""
    assert {path.stem for path in MODULES} == set(HEIGHT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_downwards(path):
    """Words know nothing; the pure core knows words; stores know both; doors know all."""
    upwards = {name for name in _siblings(path) if HEIGHT[name] > HEIGHT[path.stem]}
    assert upwards - {"__init__"} == set()


@pytest.mark.parametrize("name", sorted(ROOMS["words"] | ROOMS["stores"]))
def test_neither_words_nor_stores_know_the_pure_core(name):
    """What stores keep was made by the doors, which call the core."""
    assert _siblings(LIBRARY / f"{name}.py") & ROOMS["pure"] == set()


def test_no_two_modules_import_each_other():
    """Not even within a room, nor in a circle of three."""
    below = {path.stem: _siblings(path) - {path.stem} for path in MODULES}
    while free := [name for name, needs in below.items() if not needs & set(below)]:
        for name in free:
            del below[name]
    assert below == {}


@pytest.mark.parametrize("name", sorted(ROOMS["pure"]))
def test_the_pure_core_reaches_for_nothing_outside(name):
    """No SQL, file, environment, network or clock."""
    tree = _tree(LIBRARY / f"{name}.py")
    assert {full.partition(".")[0] for full in _imports(ast.walk(tree))} & IMPURE == set()
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    clocks = ("now", "utcnow", "today")
    assert {
        call for call in called if call in {"open", "io.open", "print"} or call.endswith(clocks)
    } == set()


@pytest.mark.parametrize("name", sorted(set(HEIGHT) - {"clock", "cli"}))
def test_only_the_clock_asks_the_machine_for_the_time(name):
    """Else a replay would mix its time with ours; samples lie around our time."""
    tree = _tree(LIBRARY / f"{name}.py")
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called & {"datetime.now", "datetime.utcnow", "datetime.today", "time.time"} == set()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_nothing_of_airflow_is_imported(path):
    """The library and its command line run without it, and without the API."""
    imported = {full.partition(".")[0] for full in _imports(ast.walk(_tree(path)))}
    assert imported & {"airflow", "utils", "dags", "plugins", "prediction_api"} == set()


@pytest.mark.parametrize("path", API_FILES, ids=lambda path: str(path.relative_to(API)))
def test_the_api_knows_the_contract_and_the_registry_only(path):
    """An app of its own, which a server without Airflow can run."""
    imported = set(_imports(ast.walk(_tree(path))))
    assert {name.partition(".")[0] for name in imported} & {"airflow", "utils", "tests"} == set()
    assert _siblings(path) <= KNOWN_TO_THE_API


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
    if path.stem not in DEFERRED:
        assert {full.partition(".")[0] for full in atop} & HEAVY == set()


@pytest.mark.parametrize("name", sorted(ROOMS["words"] - {"model", "interval", "catalog"}))
def test_words_need_the_standard_library_only(name):
    """But for pydantic and croniter, where a model and its schedule are declared."""
    imported = {
        full.partition(".")[0] for full in _imports(ast.walk(_tree(LIBRARY / f"{name}.py")))
    }
    assert imported - set(sys.stdlib_module_names) <= {"batch_jobs"}
