"""The kinds of values that a model file may hold, and what is wrong with those it may not."""

from __future__ import annotations

import re
import unicodedata
from datetime import timedelta
from typing import Annotated

from croniter import croniter
from pydantic import AfterValidator, Field

# What SQLAlchemy's text() takes for a bound parameter: no cast `::` and no escaped `\\:`.
PARAMETER_PATTERN = re.compile(r"(?<![:\w\\]):(\w+)(?!:)")

# Texts, names and comments, in which nothing is a parameter; a comment with a plus is a hint.
_QUOTED = (
    r"""\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|"(?:[^"]|"")*"|"""
    r"""(?<!\w)\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|/\*\+.*?\*/"""
)

_COMMENT = r"--[^\n]*|/\*.*?\*/"

QUOTED_PATTERN = re.compile(f"(?P<quoted>{_QUOTED})|(?P<comment>{_COMMENT})", re.DOTALL)

# PostgreSQL's cast right behind a parameter, which SQLAlchemy would not see.
CAST_PATTERN = re.compile(r"(?<![:\w\\]):(start|end)(?=::)")

CENTURY = timedelta(days=36_525)

LONGEST_CRON = 200  # Airflow stores it in words, in a column of 1,000 characters


def _positive(span: timedelta) -> timedelta:
    if span <= timedelta(0):
        raise ValueError("must be longer than zero")
    if span > CENTURY:  # no date minus the longest of all is a date
        raise ValueError(f"must be at most {CENTURY.days:,} days, a hundred years")
    return span


def _written(text: str) -> str:
    for sign in text:
        if unicodedata.category(sign) == "Cc" and sign not in "\n\r\t":
            raise ValueError(f"must be text, and has the character {sign!a}")
    return text


def _line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"must be one line of text, not {text!a}")
    return text


Span = Annotated[timedelta, AfterValidator(_positive)]

# What Airflow's database takes: it would refuse the whole file that has more.
Written = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_written)]

Owner = Annotated[str, Field(max_length=500), AfterValidator(_line)]

Tag = Annotated[str, Field(max_length=100), AfterValidator(_line)]

# Of a pool or a queue.
Name = Annotated[str, Field(max_length=256), AfterValidator(_line)]


def _query(sql: str) -> str:
    sql = CAST_PATTERN.sub(r"(:\1)", QUOTED_PATTERN.sub(_without_parameters, sql))
    used = PARAMETER_PATTERN.findall(sql)
    missing = [f":{name}" for name in ("start", "end") if name not in used]
    unknown = [f":{name}" for name in dict.fromkeys(used) if name not in ("start", "end")]
    if missing:
        raise ValueError(f"the query must use the bound parameter {' and '.join(missing)}")
    if unknown:
        raise ValueError(
            f"the query has the unknown parameter {' and '.join(unknown)}; only :start and :end "
            f"are given"
        )
    return sql.strip().rstrip("; \n")


def _without_parameters(found: re.Match[str]) -> str:
    """A text whose colons stay colons; of a comment, nothing but the space that it keeps apart."""
    return " " if found["comment"] else PARAMETER_PATTERN.sub(r"\\:\1", found["quoted"])


def _cron(text: str) -> str:
    if len(text) > LONGEST_CRON:
        raise ValueError(f"must be at most {LONGEST_CRON} characters long, not {len(text)}")
    try:
        croniter(text).get_next()  # a valid one may never come round: 30 February
    except (ValueError, KeyError):
        comes_round = False
    else:
        comes_round = True
    if len(text.split()) != 5 or not comes_round:
        raise ValueError(f"{text!r} is not a cron expression of five fields like '*/10 * * * *'")
    return text


Query = Annotated[str, AfterValidator(_query)]

Cron = Annotated[str, AfterValidator(_cron)]
