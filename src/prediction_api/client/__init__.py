"""A client of the API that says what it gives: what is fresh, the last good, or a default.

    policy = Policy(last_good_for=timedelta(hours=6), default=0.5)
    client = PredictionClient("http://127.0.0.1:8000", policy=policy)
    given = client.get("orders", "order-17")
    given.score, given.source, given.age

Nothing is given that the policy does not name: without one, only what is fresh. It needs httpx and
nothing else of the package.
"""

from prediction_api.client.asynchronous import AsyncPredictionClient
from prediction_api.client.blocking import PredictionClient
from prediction_api.client.errors import (
    AwayError,
    MisconfiguredError,
    NoPredictionError,
    PredictionApiError,
    RefusedError,
)
from prediction_api.client.exports import Wanted
from prediction_api.client.lookups import Given, LookedUp, Policy
from prediction_api.client.records import (
    Computed,
    CurrentPrediction,
    PastPrediction,
    Prediction,
    Progress,
    Publication,
    Result,
    Status,
    Submitted,
)

__all__ = [
    "AsyncPredictionClient",
    "AwayError",
    "Computed",
    "CurrentPrediction",
    "Given",
    "LookedUp",
    "MisconfiguredError",
    "NoPredictionError",
    "PastPrediction",
    "Policy",
    "Prediction",
    "PredictionApiError",
    "PredictionClient",
    "Progress",
    "Publication",
    "RefusedError",
    "Result",
    "Status",
    "Submitted",
    "Wanted",
]
