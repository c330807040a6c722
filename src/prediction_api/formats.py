"""Rows of a run as lines of JSON, as CSV, and as an Arrow stream."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import is_not
from typing import Annotated, Any

from fastapi import Query

from prediction_api.database import Row

COLUMNS = (
    *("model", "entity_id", "score", "label", "model_version", "run_id"),
    *("interval_start", "interval_end", "published_at"),
)
# A cell that begins so is a formula to a spreadsheet (OWASP, "CSV Injection").
CHANGED = "X-Changed-Cells"
Raw = Annotated[
    bool,
    Query(
        description="CSV with every cell as it is. Without it, text that a spreadsheet would take "
        f"for a formula begins with an apostrophe; the header {CHANGED} says how many cells do."
    ),
]
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True)
class Written:
    """Rows in a form.

    Attributes:
        content: the bytes.
        changed: how many cells begin with an apostrophe that their values have not.
    """

    content: bytes
    changed: int = 0

    @property
    def headers(self) -> dict[str, str]:
        """What tells of changed cells, so that nobody joins by them unawares."""
        return {CHANGED: str(self.changed)} if self.changed else {}


def _ndjson(rows: Sequence[Row], whole: Mapping[str, Any], raw: bool) -> Written:  # noqa: ARG001, FBT001
    lines = [
        json.dumps({**whole, **dict(row)}, ensure_ascii=False, default=text_of) for row in rows
    ]
    return Written("".join(f"{line}\n" for line in lines).encode())


def _csv(rows: Sequence[Row], whole: Mapping[str, Any], raw: bool) -> Written:  # noqa: FBT001
    return csv_of(COLUMNS, ({**whole, **dict(row)} for row in rows), raw=raw)


def csv_of(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, raw: bool) -> Written:
    """Rows as CSV: raw, or without cells that a spreadsheet would compute."""
    out, changed = io.StringIO(), 0
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        cells = [_plain(row[name]) for name in columns]
        if not raw:
            safe = [_cell(cell) for cell in cells]
            changed += sum(map(is_not, cells, safe))
            cells = safe
        writer.writerow(cells)
    return Written(out.getvalue().encode(), changed)


def _arrow(rows: Sequence[Row], whole: Mapping[str, Any], raw: bool) -> Written:  # noqa: ARG001, FBT001
    import pyarrow as pa

    time = pa.timestamp("us", "UTC")
    types = {"score": pa.float64(), "run_id": pa.int64()} | dict.fromkeys(COLUMNS[6:], time)
    columns = {
        name: pa.array(
            [row[name] for row in rows] if name not in whole else [whole[name]] * len(rows),
            types.get(name, pa.string()),
        )
        for name in COLUMNS
    }
    table, sink = pa.table(columns), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Written(sink.getvalue().to_pybytes())


Write = Callable[[Sequence[Row], Mapping[str, Any], bool], Written]
FORMATS: Mapping[str, tuple[Write, str]] = {
    "ndjson": (_ndjson, "application/x-ndjson"),
    "csv": (_csv, "text/csv; charset=utf-8; header=present"),
    "arrow": (_arrow, "application/vnd.apache.arrow.stream"),
}


def text_of(value: Any) -> str:
    """A value as text; a time in ISO 8601, spelled as JSON has it."""
    if not isinstance(value, datetime):
        return str(value)
    return value.isoformat().replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    return text_of(value) if isinstance(value, datetime) else value


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; what is a number stays one."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
