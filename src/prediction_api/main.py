"""The app: what it is made of, and what happens at its start and end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from batch_jobs.catalog import load_model, model_names
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ModelFileError
from batch_jobs.model import BatchModel
from prediction_api.callers import Hosts, Sites
from prediction_api.champions import Champions
from prediction_api.config import Config
from prediction_api.current_predictions import CurrentPredictions
from prediction_api.database import open_database
from prediction_api.distribution import Distributions
from prediction_api.events import Listeners
from prediction_api.heads import Heads
from prediction_api.metrics import Metrics
from prediction_api.online import Online
from prediction_api.problems import add_handlers
from prediction_api.protection import Limited
from prediction_api.rendering import STATIC
from prediction_api.routers import (
    api_docs,
    current,
    events,
    lookup,
    models,
    my_requests,
    page,
    predict,
    predictions,
    probes,
    problem_pages,
    requests,
    runs,
    small_batches,
)
from prediction_api.state import State
from prediction_api.uploads import Most, Reader
from prediction_api.versioning import Versioned
from prediction_api.worker import RequestWorker

log = logging.getLogger(__name__)

# What pages of other sites may send and read, if they may ask at all; the cookie stays with ours.
ACROSS_SITES: dict[str, Any] = {
    "allow_methods": ["GET", "POST", "DELETE"],
    "allow_headers": [
        *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "Last-Event-ID"),
    ],
    "expose_headers": [
        *("ETag", "Link", "Location", "Retry-After", "X-As-Of", "X-Changed-Cells"),
        "X-Model-Version",
    ],
    "max_age": 600,
}


def create_app(config: Config | None = None) -> FastAPI:
    """The app, of which one process may have several; without a config, the environment's.

    Raises:
        ConfigurationError: a setting is missing or wrong.
    """
    config = config or Config.from_environ()
    app = FastAPI(
        title="Prediction API",
        description="Precomputed predictions first; computed now only when asked.",
        version="1.0",
        lifespan=_lifespan,
        redirect_slashes=False,
        openapi_url=None,  # and its pages: ours are behind the key, and need nothing from elsewhere
        generate_unique_id_function=lambda route: route.name,  # what generators name methods by
    )
    state = app.state.shared = _state(config, lambda model: _renew(app, model))
    add_handlers(app)
    app.add_middleware(Hosts, names=config.hosts)
    app.add_middleware(Versioned)
    app.add_middleware(Heads)
    if config.origins:
        app.add_middleware(Sites, allow_origins=list(config.origins), **ACROSS_SITES)
    app.add_middleware(Limited, config=config, metrics=state.metrics)
    for router in (
        predictions.router,
        lookup.router,
        current.router,
        events.router,
        models.router,
        page.router,
        page.doors,
        runs.router,
        my_requests.router,
        small_batches.router,
        models.listing,
        probes.guarded,
        probes.router,
        problem_pages.router,
        api_docs.router,
        api_docs.document,
    ):
        app.include_router(router)
    app.mount("/static", STATIC)
    _add_typed_routes(app)
    return app


def _renew(app: FastAPI, model: BatchModel) -> None:
    """Let a model be asked for what its champion was trained on, from the next request on."""
    state: State = app.state.shared
    state.models[model.name] = model
    state.readers[model.name] = _reader(model, state.config)
    _add_typed_routes(app)


def _add_typed_routes(app: FastAPI) -> None:
    """Add the routes that are typed by the features of the models, in the place of earlier ones."""
    state: State = app.state.shared
    kept = [route for route in app.router.routes if route not in getattr(app.state, "typed", ())]
    app.router.routes = list(kept)
    for router in (predict.router_for(state), requests.router_for(state)):
        app.include_router(router)
    app.state.typed = app.router.routes[len(kept) :]
    app.openapi_schema = None


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: State = app.state.shared
    await state.champions.refresh()
    following = asyncio.create_task(state.champions.follow())
    state.worker.start()
    try:
        yield
    finally:
        following.cancel()
        await asyncio.to_thread(state.worker.stop)
        state.champions.close()
        state.online.close()
        await state.database.close()


def _state(config: Config, renew: Callable[[BatchModel], None]) -> State:
    settings = config.settings
    warehouse = Warehouse(settings.warehouse)  # a wrong URL is told now, not with each request
    known, metrics = _models(config), Metrics()
    database = open_database(settings.warehouse)
    champions = Champions(settings, known, database, metrics, renew)
    return State(
        config=config,
        models=known,
        database=database,
        current=CurrentPredictions(database),
        metrics=metrics,
        champions=champions,
        online=Online(champions, warehouse),
        readers={name: _reader(model, config) for name, model in known.items()},
        worker=RequestWorker(settings, list(known) if config.answer else []),
        listeners=Listeners(),
        distributions=Distributions(database),
    )


def _reader(model: BatchModel, config: Config) -> Reader:
    return Reader(model, Most(config.upload_rows, config.upload_bytes))


def _models(config: Config) -> dict[str, BatchModel]:
    """What the model files declare; a file that is wrong keeps no other model from its readers."""
    packages = config.settings.models
    found = {}
    for name in model_names(packages):
        try:
            found[name] = load_model(name, packages)
        except ModelFileError as error:
            log.warning("%s; its predictions can be read, and none be computed", error)
    return found
