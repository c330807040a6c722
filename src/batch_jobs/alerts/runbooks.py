"""What to do about each cause: the sections of `runbooks.md`, which stands beside this file."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

# What failed stands before the cause: `predict-killed`, or `own_dag:killed`.
_STAGE = re.compile(r"^(?:(?:predict|train|monitor|rollback|backfill)-|[^:/]+:)(?=[a-z])")


def text() -> str:
    """All of them, as Markdown with a heading for each cause."""
    return resources.files(__package__).joinpath("runbooks.md").read_text("utf-8")


@cache
def sections() -> dict[str, str]:
    """What to do, by cause, as Markdown."""
    parts = (part.partition("\n") for part in re.split(r"^## ", text(), flags=re.MULTILINE))
    return {name: said.strip() for name, _, said in parts if name}


def name_of(cause: str) -> str:
    """The runbook of a cause: without what failed, and what tells it apart from others."""
    return _STAGE.sub("", cause.partition("/")[0])
