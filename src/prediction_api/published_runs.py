"""Runs that are, or were, published: what their rows have in common, and whether they are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prediction_api.current_pages import run_of
from prediction_api.database import Statement
from prediction_api.formats import text_of
from prediction_api.problems import ProblemError
from prediction_api.state import State

RUN = Statement(
    """
    SELECT state, model_version, interval_start, interval_end, published_at
    FROM prediction_runs WHERE run_id = :run_id AND model = :model""",
    point=True,
)
SHOWN, GONE = ("published", "superseded"), "retired"


async def published(state: State, model: str, run_id: int) -> Mapping[str, Any]:
    """Version, interval and publication of a run whose rows are there.

    Raises:
        ProblemError: the model has published no such run, or its rows are gone.
    """
    rows = await state.database.fetch(RUN, model=model, run_id=run_id)
    if rows and rows[0]["state"] == GONE:
        raise ProblemError(
            410,
            f"run {run_id} of {model} is retired; begin again at /v1/models/{model}/predictions",
        )
    if not rows or rows[0]["state"] not in SHOWN:
        raise ProblemError(404, f"{model} has published no run {run_id}")
    return run_of(rows[0])


def headers_of(run: Mapping[str, Any]) -> dict[str, str]:
    """Version, interval and publication, for those who only look at the headers."""
    return {
        f"X-{name.replace('_', '-').title()}": text_of(value)
        for name, value in run.items()
        if name not in ("model", "run_id")
    }
