"""The page of failure modes, out of the cases and of the tests that are marked with them.

`docs/failure-modes.toml` says what breaks, what readers see and what is alerted. Which test
tries it is said by the test itself, `@pytest.mark.failure_mode(12)`, and the databases by its
fixtures.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from docs.generator.text import code, table

MARK = "failure_mode"
BOTH = {"deployment", "shop", "warehouse", "warehouse_url"}  # fixtures that run on both databases
ON = {
    frozenset({"sqlite", "postgresql"}): "both",
    frozenset({"postgresql"}): "PostgreSQL",
    frozenset({"sqlite"}): "SQLite",
    frozenset(): "-",
}


class Test(NamedTuple):
    """One test function, in a file below `tests/`."""

    file: str
    name: str

    def __str__(self) -> str:
        """As pytest is told of it."""
        return f"{self.file}::{self.name}"


@cache
def cases(root: Path) -> dict[str, Any]:
    """What the file of cases says."""
    return tomllib.loads((root / "docs" / "failure-modes.toml").read_text("utf-8"))


@cache
def marked(root: Path) -> dict[int | str, list[Test]]:
    """The tests of each case, in the order of their files and lines."""
    found: dict[int | str, list[Test]] = defaultdict(list)
    for file in sorted((root / "tests").rglob("test_*.py")):
        name = str(file.relative_to(root / "tests"))
        for function in functions(file).values():
            for case in _cases_of(function):
                found[case].append(Test(name, function.name))
    return dict(found)


@cache
def functions(file: Path) -> dict[str, ast.FunctionDef]:
    """The functions at the top of a file."""
    if not file.exists():
        return {}
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _cases_of(function: ast.FunctionDef) -> Iterator[int | str]:
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(f".{MARK}"):
            yield from map(ast.literal_eval, decorator.args)


def tables(root: Path) -> str:
    """The cases, a table for each part of the system that breaks."""
    parts = []
    for section in cases(root)["section"]:
        third = section.get("readers", "Readers see")
        header = ("#", "Cause", third, "Alerted", "Tests", "On")
        rows = [_row(root, case) for case in section["case"]]
        parts += [f"## {section['title']}", table(header, rows)]
        parts += [_note(root, note) for note in section.get("note", [])]
    return "\n\n".join(parts)


def _row(root: Path, case: dict[str, Any]) -> Sequence[str]:
    tests = marked(root).get(case["number"], [])
    if not tests:
        raise ValueError(f"no test is marked with failure mode {case['number']}")
    ran = frozenset().union(*(databases(root, test) for test in tests))
    told = (case["cause"], case["readers"], case["alerted"])
    return (str(case["number"]), *told, ", ".join(code(str(test)) for test in tests), ON[ran])


def _note(root: Path, note: dict[str, str]) -> str:
    tests = marked(root).get(note["name"], [])
    if not tests:
        raise ValueError(f"no test is marked with {note['name']!r}")
    return f"{note['text']} Tests: {', '.join(code(str(test)) for test in tests)}."


def databases(root: Path, test: Test) -> set[str]:
    """The databases that a test runs on, by its fixtures and marks."""
    file = root / "tests" / test.file
    function, source = functions(file)[test.name], file.read_text("utf-8")
    marks = {mark.id for mark in function.decorator_list if isinstance(mark, ast.Name)}
    for database, means in (("sqlite", "sqlite"), ("postgres", "postgresql")):
        everywhere = rf'^pytestmark = pytest.mark.parametrize\("deployment", \["{database}'
        if f"on_{database}" in marks or re.search(everywhere, source, re.MULTILINE):
            return {means}
    fixtures = _fixtures_of(root, file, function)
    if "cases" in fixtures:  # a real Airflow; the cases that also run on SQLite are parameters
        return {"sqlite", "postgresql"} if "name" in fixtures else {"postgresql"}
    if fixtures & BOTH:
        return {"sqlite", "postgresql"}
    if "sqlite" in test.name:
        return {"sqlite"}
    return {"postgresql"} if "postgres" in fixtures else set()


def _fixtures_of(root: Path, file: Path, function: ast.FunctionDef) -> set[str]:
    """All fixtures that a test is given, those of its fixtures among them."""
    known = functions(root / "tests" / "conftest.py") | functions(file)
    found: set[str] = set()
    left = [argument.arg for argument in function.args.args]
    while left:
        fixture = left.pop()
        if fixture not in found:
            found.add(fixture)
            maker = known.get(fixture)
            left += [argument.arg for argument in maker.args.args] if maker else []
    return found
