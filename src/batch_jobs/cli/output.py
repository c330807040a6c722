"""What a command prints: for a person lines and tables, for a program one JSON document."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from batch_jobs import catalog, clock
from batch_jobs.interval import Interval, due_between
from batch_jobs.settings import Settings

out = Console()


def count_due(settings: Settings, model: str, span: Interval) -> int:
    """How many intervals of a model lie in a span, which must be past."""
    span.require_past(clock.now())
    schedule = catalog.load_model(model, settings.models).schedule
    return sum(1 for _ in due_between(schedule, span.start, span.end))


@contextmanager
def bar(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Count on a terminal, towards an end if it is known; elsewhere the log lines tell."""
    columns = (
        *(SpinnerColumn(), TextColumn(what), MofNCompleteColumn(), TimeElapsedColumn()),
        *((BarColumn(), TimeRemainingColumn()) if total else ()),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def joined(gaps: Sequence[Interval]) -> list[dict[str, str]]:
    """Gaps for a person: those that touch make one row."""
    rows: list[dict[str, str]] = []
    for gap in gaps:
        start, end = minute(gap.start.isoformat()), minute(gap.end.isoformat())
        if rows and rows[-1]["to"] == start:
            rows[-1] |= {"to": end, "intervals": str(int(rows[-1]["intervals"]) + 1)}
        else:
            rows.append({"from": start, "to": end, "intervals": "1"})
    return rows


def shown_figure(value: object) -> str:
    """A figure for a person."""
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0")
    return f"{value:,}" if isinstance(value, int) else str(value)


def minute(stored: str) -> str:
    """A stored time, to the minute."""
    return f"{stored[:10]} {stored[11:16]}Z"


def tell(answer: Any, as_json: bool, shown: str | Sequence[Mapping[str, str]]) -> None:
    """Print the answer: as JSON for a program, or as a line or a table for a person."""
    if as_json:
        sys.stdout.write(json.dumps(answer, default=_plain) + "\n")
    elif isinstance(shown, str):
        out.print(shown, markup=False, highlight=False, soft_wrap=True)
    else:
        table = Table(box=SIMPLE, pad_edge=False)
        for column in shown[0]:
            # What a person copies stays whole.
            table.add_column(column, no_wrap=column in {"model", "version"}, overflow="fold")
        for row in shown:
            table.add_row(*map(Text, row.values()))  # in which no bracket is a style
        out.print(table)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value.isoformat() if isinstance(value, datetime) else str(value)
