"""Pieces of Markdown, and what docstrings say of attributes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

REQUIRED = "required"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; what would end a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """As code, if there is any."""
    return f"`{text}`" if text else ""


def attributes(documented: type) -> dict[str, str]:
    """What a Google-style docstring says of each attribute, one line each."""
    said = inspect.getdoc(documented) or ""
    section = said.partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if begun := re.match(r"    (\w+): (.*)", line):
            name, found[name] = begun[1], begun[2]
        elif line.startswith("        ") and name:
            found[name] += f" {line.strip()}"
        elif line.strip():
            break
    return {name: _sentence(text) for name, text in found.items()}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("`") else text


def default(value: Any) -> str:
    """A default as a page shows it; nothing for none."""
    match value:
        case None | "" | ():
            shown = ""
        case bool():
            shown = "yes" if value else "no"
        case int():
            shown = code(str(value))
        case timedelta():
            shown = _span(value)
        case BaseModel():
            shown = code(f"{type(value).__name__}()")
        case tuple():
            shown = code(", ".join(map(str, value)))
        case Mapping() if not value:
            shown = ""
        case _:
            shown = REQUIRED if value == REQUIRED else code(str(value))
    return shown


def _span(value: timedelta) -> str:
    for unit in ("weeks", "days", "hours", "minutes", "seconds"):
        number, rest = divmod(value, timedelta(**{unit: 1}))
        if number and not rest:
            return f"{number} {unit if number > 1 else unit[:-1]}"
    return str(value)
