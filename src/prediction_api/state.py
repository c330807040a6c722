"""What all requests of one server share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import Request

from batch_jobs.model import BatchModel
from prediction_api.champions import Champions
from prediction_api.config import Config
from prediction_api.current_predictions import CurrentPredictions
from prediction_api.database import Database
from prediction_api.distribution import Distributions
from prediction_api.events import Listeners
from prediction_api.metrics import Metrics
from prediction_api.online import Online
from prediction_api.uploads import Reader
from prediction_api.worker import RequestWorker


@dataclass(frozen=True)
class State:
    """What all requests of one server share.

    Attributes:
        config: how the server is set up.
        models: what each is asked, by name: as its champion was trained, or as its file says.
        database: the warehouse, to read.
        current: looks up what readers see now.
        metrics: the numbers of this server.
        champions: the versions that compute predictions on request.
        online: computes them.
        readers: read requests of many rows, by the name of the model.
        worker: scores requests of many rows in this process, if it is to.
        listeners: those who are told what is new.
        distributions: how the scores of each model are spread.
    """

    config: Config
    models: dict[str, BatchModel]
    database: Database
    current: CurrentPredictions
    metrics: Metrics
    champions: Champions
    online: Online
    readers: dict[str, Reader]
    worker: RequestWorker
    listeners: Listeners
    distributions: Distributions

    def paths(self, end: str) -> Iterator[tuple[str, str]]:
        """Where each model is asked for something, and where the configured one is: path, name."""
        yield from ((f"/models/{name}/{end}", name) for name in self.models)
        if self.config.model in self.models:
            yield f"/{end}", self.config.model


def state_of(request: Request) -> State:
    """The state of the server that a request came to."""
    state: State = request.app.state.shared
    return state
