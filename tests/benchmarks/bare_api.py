"""The least that an online prediction can be: one row, `predict_proba`, and nothing is kept."""

import os

import pandas as pd
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from batch_jobs.catalog import load_model
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.registry import champions
from batch_jobs.registry.loading import load_version
from batch_jobs.settings import Settings


class Flower(BaseModel):
    """What is asked."""

    features: list[float]


def app(settings: Settings) -> FastAPI:
    """An app of one handler, with its estimator loaded."""
    model = load_model("iris", settings.models)
    version = champions.champion(Warehouse(settings.warehouse), "iris")
    assert version is not None
    estimator = load_version(settings, model, version).estimator
    names, made = list(model.features), FastAPI()

    @made.post("/bare")
    async def bare(flower: Flower) -> dict[str, list[float]]:
        [row] = estimator.predict_proba(pd.DataFrame([flower.features], columns=names))
        return {"result": row.tolist()}

    return made


if __name__ == "__main__":
    port = int(os.environ["PREDICTION_API_PORT"])
    uvicorn.run(
        app(Settings.from_environ()), port=port, loop="uvloop", http="httptools", access_log=False
    )
