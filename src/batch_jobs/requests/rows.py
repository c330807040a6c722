"""The rows of a request: their features as they were sent, and as the contract takes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batch_jobs.database.columns import text_of
from batch_jobs.model import BatchModel, Number

if TYPE_CHECKING:
    import pandas as pd


def key_columns(numbers: Sequence[str], entities: Mapping[str, str | None]) -> dict[str, Any]:
    """The columns `row_number` and `entity_id` of rows."""
    import pyarrow as pa

    return {
        "row_number": pa.array([int(number) for number in numbers], pa.int64()),
        "entity_id": pa.array([entities[number] for number in numbers], pa.string()),
    }


def features_of(model: BatchModel, features: str) -> dict[str, Any] | str:
    """The features of a row, in declared order; or why they are none."""
    try:
        found = json.loads(features)
    except (ValueError, RecursionError):
        return "its features cannot be read"
    if not isinstance(found, dict):
        return "its features are not a JSON object"
    problems = [f"{name} is not given" for name in model.features if name not in found]
    problems += [
        f"{name} is a list or an object"
        for name in model.features
        if isinstance(found.get(name), list | dict)
    ]
    return "; ".join(problems) or {name: found[name] for name in model.features}


def frame_of(model: BatchModel, rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Rows as of the features query, in columns that do not depend on which rows share a chunk."""
    import pandas as pd

    columns: dict[str, Any] = {"entity_id": pd.array(list(rows), "str")}
    for name, kind in model.features.items():
        values = [row[name] for row in rows.values()]
        if not isinstance(kind, Number):
            # What has no text stays what it is, for the contract to say so: it is not missing.
            values = [
                value if isinstance(value, str | None) else (text_of(value) or value)
                for value in values
            ]
        columns[name] = pd.Series(values, dtype="object")
    return pd.DataFrame(columns)
