"""The page of failure modes has every case, each with a test, and every test of faults a case."""

import ast
import re

import pytest

from docs.generator.failure_modes import Test as Named
from docs.generator.failure_modes import cases, databases, functions, marked, tables
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "explanation" / "failure-modes.md").read_text()
HARNESS = "harness"  # tests of what the faults are tried with
SECTIONS = cases(ROOT)["section"]
NUMBERS = [case["number"] for section in SECTIONS for case in section["case"]]
NOTES = [note["name"] for section in SECTIONS for note in section.get("note", [])]
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


def test_every_case_is_told_once_and_in_order():
    """With a cause, what readers see and what is alerted."""
    assert list(range(1, len(NUMBERS) + 1)) == NUMBERS
    for section in SECTIONS:
        assert all(case[key] for case in section["case"] for key in ("cause", "readers", "alerted"))


def test_every_invariant_is_told():
    """In a line each."""
    assert re.findall(r"^\| I(\d+) \|", PAGE, re.MULTILINE) == [str(n) for n in range(1, 15)]


def test_every_mark_is_of_a_case_and_every_case_has_a_test():
    """So that nothing is promised that was not tried."""
    assert set(marked(ROOT)) == {*NUMBERS, *NOTES, HARNESS}


@pytest.mark.parametrize("name", SUITE)
def test_every_test_of_faults_is_on_the_page(name):
    """A fault that was tried and is not told helps nobody at night."""
    told = {test.name for tests in marked(ROOT).values() for test in tests if test.file == name}
    tests = {test for test in functions(ROOT / "tests" / name) if test.startswith("test_")}
    assert tests - told == set()


def test_the_suite_is_found():
    """By what its tests are given, so that no file is forgotten."""
    found = {"faults/test_faults.py", "faults/test_network_faults.py", "support/test_writers.py"}
    assert found < set(SUITE)


@pytest.mark.parametrize(
    ("file", "test", "expected"),
    [
        ("faults/test_soak.py", "test_readers_see_only_whole_states_while_attempts_die", "both"),
        (
            "database/test_partitions.py",
            "test_what_an_attempt_left_attached_is_swept",
            "postgresql",
        ),
        ("words/test_interval.py", "test_due_intervals_tile_time_without_gap_or_overlap", ""),
    ],
)
def test_the_databases_of_a_test_are_known_by_its_fixtures(file, test, expected):
    """Also where a whole file runs on one of them."""
    both = {"sqlite", "postgresql"}
    found = databases(ROOT, Named(file, test))
    assert found == (both if expected == "both" else {expected} - {""})


def test_the_page_has_a_row_for_each_case():
    """Of six cells, none of which is empty."""
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", tables(ROOT), re.MULTILINE)
    assert [int(number) for number, _ in rows] == NUMBERS
    assert {len(re.split(r" (?<!\\)\| ", rest)) for _, rest in rows} == {5}


def test_a_mark_is_written_out():
    """The page is made without running the tests, so a mark holds plain values."""
    for path in (ROOT / "tests").rglob("test_*.py"):
        for found in re.findall(
            r"^@pytest\.mark\.failure_mode\((.*)\)$", path.read_text(), re.MULTILINE
        ):
            assert ast.literal_eval(f"({found},)")
