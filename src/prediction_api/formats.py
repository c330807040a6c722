"""Rows of a run as lines of JSON, as CSV, and as an Arrow stream."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from prediction_api.database import Row

COLUMNS = (
    *("model", "entity_id", "score", "label", "model_version", "run_id"),
    *("interval_start", "interval_end", "published_at"),
)
# A cell that begins so is a formula to a spreadsheet (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def _ndjson(rows: Sequence[Row], whole: Mapping[str, Any]) -> bytes:
    lines = [
        json.dumps({**whole, **dict(row)}, ensure_ascii=False, default=text_of) for row in rows
    ]
    return "".join(f"{line}\n" for line in lines).encode()


def _csv(rows: Sequence[Row], whole: Mapping[str, Any]) -> bytes:
    shared = {name: text_of(value) for name, value in whole.items()}
    return csv_of(COLUMNS, ({**shared, **dict(row)} for row in rows))


def csv_of(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Rows as CSV, without cells that a spreadsheet would compute."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row[name]) for name in columns])
    return out.getvalue().encode()


def _arrow(rows: Sequence[Row], whole: Mapping[str, Any]) -> bytes:
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
    content: bytes = sink.getvalue().to_pybytes()
    return content


FORMATS: Mapping[str, tuple[Callable[[Sequence[Row], Mapping[str, Any]], bytes], str]] = {
    "ndjson": (_ndjson, "application/x-ndjson"),
    "csv": (_csv, "text/csv; charset=utf-8; header=present"),
    "arrow": (_arrow, "application/vnd.apache.arrow.stream"),
}


def text_of(value: Any) -> str:
    """A value as text; a time in ISO 8601."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; what is a number stays one."""
    if not isinstance(value, str) or not value.startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
