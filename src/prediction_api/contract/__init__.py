"""The read contract: what an app may rely on in the warehouse, column by column.

`pytest --pyargs prediction_api.contract` proves it on the database of `BATCH_JOBS_WAREHOUSE`, with
a reader's rights, and changes nothing there.
"""

from __future__ import annotations

from collections.abc import Mapping

# The first number changes when something is taken away or means something else, the second when
# something is added.
VERSION = "1.0"
_PREDICTION = {
    "model": "name of the model's file",
    "entity_id": "key of the features query, unique within its model",
    "score": "finite: the regression's value, or the probability of the positive class (of two) "
    "or of the predicted one (of more)",
    "label": "predicted class as text; NULL for a regression",
    "model_version": "version that scored the row; see model_versions",
    "run_id": "prediction run that published the row; see prediction_runs",
    "interval_start": "start of the interval that was scored, UTC, included",
    "interval_end": "end of the interval that was scored, UTC, not included",
    "published_at": "when readers could first see the row, UTC",
}
VIEWS: Mapping[str, Mapping[str, str]] = {
    "current_predictions": _PREDICTION,
    "serving_status": {
        "model": "name of the model's file; one row each, from its first publication on",
        "run_id": "run of the newest interval that is published",
        "model_version": "version that scored that run",
        "interval_start": "start of that interval, UTC, included",
        "interval_end": "end of that interval, UTC, not included",
        "published_at": "when that run was published, UTC",
        "row_count": "how many rows that run has",
        "fresh_until": "end of the newest interval up to which every due one is published, UTC",
    },
    "prediction_history": {
        **_PREDICTION,
        "superseded_at": "when readers could no longer see the row, UTC; NULL while they can",
        "hindsight": "1 if a version scored the row that was trained after its interval, else 0",
    },
}
