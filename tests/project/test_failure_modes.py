"""The page of failure modes is held to the tests, so that it cannot drift."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/failure-modes.md").read_text()
CASES = range(1, 74)
# What a row of the table says of its databases, by the databases that its tests run on.
ON = {
    frozenset({"sqlite", "postgresql"}): "both",
    frozenset({"postgresql"}): "PostgreSQL",
    frozenset({"sqlite"}): "SQLite",
    frozenset(): "-",
}
BOTH = {"deployment", "shop", "warehouse", "warehouse_url"}  # fixtures that run on both
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if re.match(r"\| \d+ \|", line)
]
# Files whose tests break a deployment on purpose.
SUITE = [
    "airflow/test_process_faults.py",
    *sorted(
        str(path.relative_to(ROOT / "tests"))
        for path in (ROOT / "tests").rglob("test_*.py")
        if re.search(
            r"^from tests\.support\.(deployment|mishaps|soak) imp", path.read_text(), re.MULTILINE
        )
    ),
]


@cache
def functions(name):
    """`{name: node}` of the functions at the top of a test file."""
    tree = ast.parse((ROOT / "tests" / name).read_text())
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def named(text):
    """The tests that a text names, as pairs of file and function."""
    return re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", text)


def fixtures_of(name, node):
    """All fixtures that a test is given, those of its fixtures among them."""
    known = functions("conftest.py") | functions(name)
    found, left = set(), [argument.arg for argument in node.args.args]
    while left:
        fixture = left.pop()
        if fixture not in found:
            found.add(fixture)
            left += [
                argument.arg for argument in getattr(known.get(fixture), "args", node.args).args
            ]
    return found


def databases(name, test):
    """The databases that a test runs on."""
    node = functions(name)[test]
    marks = {mark.id for mark in node.decorator_list if isinstance(mark, ast.Name)}
    source = (ROOT / "tests" / name).read_text()
    for database in ("sqlite", "postgres"):
        everywhere = rf'^pytestmark = pytest.mark.parametrize\("deployment", \["{database}'
        if f"on_{database}" in marks or re.search(everywhere, source, re.MULTILINE):
            return {"sqlite"} if database == "sqlite" else {"postgresql"}
    fixtures = fixtures_of(name, node)
    if "cases" in fixtures:  # a real Airflow; the cases that also run on SQLite are parameters
        return {"sqlite", "postgresql"} if "name" in fixtures else {"postgresql"}
    if fixtures & BOTH:
        return {"sqlite", "postgresql"}
    if "sqlite" in test:
        return {"sqlite"}
    return {"postgresql"} if "postgres" in fixtures else set()


def test_every_case_is_on_the_page_once():
    """In order, each with what readers see, what is alerted, its tests and its databases."""
    assert [int(row[0]) for row in ROWS] == list(CASES)
    assert {len(row) for row in ROWS} == {6}
    assert all(all(row) for row in ROWS)


def test_every_invariant_is_told():
    """In a line each."""
    assert re.findall(r"^\| I(\d+) \|", PAGE, re.MULTILINE) == [str(n) for n in range(1, 15)]


@pytest.mark.parametrize("row", ROWS, ids=[f"case {row[0]}" for row in ROWS])
def test_a_case_names_tests_that_exist_and_their_databases(row):
    """So that nothing is promised that was not tried."""
    tests = named(row[4])
    assert tests
    assert ", ".join(f"`{name}::{test}`" for name, test in tests) == row[4]
    ran = set()
    for name, test in tests:
        assert test in functions(name), f"{name} has no {test}"
        ran |= databases(name, test)
    assert ON[frozenset(ran)] == row[5]


def test_every_test_that_is_named_exists():
    """Outside of the table too."""
    missing = [pair for pair in named(PAGE) if pair[1] not in functions(pair[0])]
    assert missing == []


@pytest.mark.parametrize("name", SUITE)
def test_every_test_of_faults_is_on_the_page(name):
    """A fault that was tried and is not told helps nobody at night."""
    told = {test for file, test in named(PAGE) if file == name}
    assert {test for test in functions(name) if test.startswith("test_")} - told == set()


def test_the_suite_is_found():
    """By what its tests are given, so that no file is forgotten."""
    found = {"faults/test_faults.py", "faults/test_network_faults.py", "support/test_writers.py"}
    assert found < set(SUITE)
