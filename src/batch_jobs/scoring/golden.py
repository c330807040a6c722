"""Golden rows: a few rows and what a version answered to them when it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from batch_jobs.scoring.fitted import Fitted, are_alike

if TYPE_CHECKING:
    import pandas as pd


GOLDEN_ROWS = 20


def golden(fitted: Fitted, rows: pd.DataFrame) -> dict[str, Any]:
    """A few rows and what the estimator answers to them, as plain JSON values.

    Args:
        fitted: whose answers.
        rows: some of them are taken, evenly spaced.

    Returns:
        `inputs`, per feature a list of values, and `answers`, one list a row.
    """
    chosen = rows.iloc[:: max(len(rows) // GOLDEN_ROWS, 1)].head(GOLDEN_ROWS)
    inputs = chosen[list(fitted.features)]
    answers = fitted.answers(fitted.inputs(inputs))
    plain = inputs.astype("object").where(inputs.notna(), None)
    return {
        "inputs": {name: plain[name].tolist() for name in plain},
        "answers": answers.tolist(),
    }


def unlike_golden(fitted: Fitted, kept: Mapping[str, Any]) -> str | None:
    """What is wrong with an estimator's answers to its golden rows; None if they are alike."""
    import numpy as np
    import pandas as pd

    columns = {
        name: pd.Series(kept["inputs"][name], dtype="float64" if kind.kind == "number" else "str")
        for name, kind in fitted.features.items()
    }
    wanted = np.array(kept["answers"], "float64")
    answers = fitted.answers(fitted.inputs(pd.DataFrame(columns)))
    if answers.shape != wanted.shape:
        return f"it gives {answers.shape[1]} numbers a row where it gave {wanted.shape[1]}"
    if are_alike(answers, wanted).all():
        return None
    row = int(np.abs(answers - wanted).max(axis=1).argmax())
    return f"row {row + 1} of {len(wanted)} is answered {answers[row]} where it was {wanted[row]}"
