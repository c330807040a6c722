"""No regular expression takes longer than in proportion to its text, whatever is written there.

Python's `re` goes back and tries again, and keeps all other threads waiting: a cell of 8,000
digits took 14 s (CWE-1333). If a test here fails: let no two parts that can repeat match the same
text side by side, and let none that repeats be searched for from every place.
"""

import ast
import importlib
import re
import time
from itertools import product
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent.parent / "src"
SINGLE, PAIRS = 100_000, 2_000  # how long a text of one letter or of two in turn is
SECONDS = 1.0  # a superlinear one takes many times as long; a linear one takes milliseconds
FUNCTIONS = {
    "compile",
    "sub",
    "subn",
    "match",
    "fullmatch",
    "search",
    "split",
    "findall",
    "finditer",
}


def _files():
    # What redaction reads is cut before; tests/words hold it.
    return [path for path in sorted(SOURCE.rglob("*.py")) if path.stem != "redaction"]


def _inline(tree):
    """Patterns that are written where they are used, and how."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, first = node.func.value, node.args[0] if node.args else None
        written = isinstance(first, ast.Constant) and isinstance(first.value, str)
        if (
            isinstance(owner, ast.Name)
            and owner.id == "re"
            and node.func.attr in FUNCTIONS - {"compile"}
        ):
            assert written, f"a pattern that is not written out: {ast.unparse(node)}"
            yield re.compile(first.value), node.func.attr


def _within(value):
    """The patterns in a value, which may be a collection of them."""
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, tuple | list | frozenset | set):
        for each in value:
            yield from _within(each)
    elif isinstance(value, dict):
        yield from _within(list(value.values()))


def _found():
    """Every pattern of the source, and the ways in which it is used."""
    sources = {path: path.read_text() for path in _files()}
    everything = "\n".join(sources.values())
    for path, source in sources.items():
        if not re.search(r"\bre\.[a-z]", source):
            continue
        place = path.relative_to(SOURCE).with_suffix("")
        for number, (pattern, used) in enumerate(_inline(ast.parse(source))):
            yield pytest.param(pattern, {used}, id=f"{place}-{number}")
        module = importlib.import_module(".".join(place.parts))
        for name, value in vars(module).items():
            for number, pattern in enumerate(_within(value)):
                used = set(re.findall(rf"\b{name}\.([a-z]+)\(", everything)) & FUNCTIONS
                yield pytest.param(pattern, used or {"search"}, id=f"{place}-{name}-{number}")


def _letters(pattern):
    """A letter for each that the pattern names, and for each kind of them."""
    written = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode()
    letters = set(re.sub(r"\\.|[\[\](){}?*+|^$]", "", written)) | set("\\")
    letters |= {"1", "a", " ", "\n", "-", '"', "'", ":", "/"}
    return sorted(letters)


def _texts(pattern):
    letters = _letters(pattern)
    for length in (SINGLE // 10, SINGLE):  # or a bad one would take minutes to be found
        for letter in letters:
            yield letter * length
            yield letter * length + "\0"
    for pair in product(letters, letters):
        yield "".join(pair) * (PAIRS // 2) + "\0"


@pytest.mark.parametrize(("pattern", "used"), list(_found()))
def test_it_takes_no_longer_than_in_proportion(pattern, used):
    """Also on what nearly fits, as far as its end."""
    in_bytes = isinstance(pattern.pattern, bytes)
    for each in _texts(pattern):
        text = each.encode() if in_bytes else each
        for name in sorted(used):
            arguments = (text[:0], text) if name in ("sub", "subn") else (text,)
            began = time.thread_time()
            found = getattr(pattern, name)(*arguments)
            for _ in found if name == "finditer" else ():
                pass
            took = time.thread_time() - began
            assert took < SECONDS, f"{name} of {pattern.pattern!r}: {took:.1f} s on {text[:8]!r}…"
