"""Compute a few rows at once, in our form, in that of the Open Inference Protocol and MLflow's.

https://github.com/kserve/open-inference-protocol and `mlflow models serve`.
"""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from batch_jobs.model import Number
from prediction_api.online import Answered
from prediction_api.problems import ProblemError, documented
from prediction_api.routing import StrictRoute
from prediction_api.schemas import ModelName
from prediction_api.small_batches import MOST_ROWS, by_rows, compute, declared, require_few
from prediction_api.state import state_of
from prediction_api.unpacking import MOST_COLUMNS

router = APIRouter(route_class=StrictRoute)
ONLINE: list[str | Enum] = ["online"]
V2: list[str | Enum] = ["Open Inference Protocol"]
MLFLOW: list[str | Enum] = ["MLflow"]
SEVERAL: dict[str, Any] = {"responses": documented(404, 409, 413)}
Row = dict[str, Any] | list[Any]


class Rows(BaseModel):
    """Rows of features, each by name or listed in declared order."""

    model_config = ConfigDict(extra="forbid")

    rows: list[Row] = Field(min_length=1, max_length=MOST_ROWS)


class ComputedRow(BaseModel):
    """A prediction that was computed, and is kept."""

    id: int
    score: float
    label: str | None
    model_version: str
    created_at: datetime


class ComputedRows(BaseModel):
    """Predictions, in the order of the rows."""

    model: str
    predictions: list[ComputedRow]


class Tensor(BaseModel):
    """An input or output of the Open Inference Protocol."""

    name: str
    shape: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, max_length=2)
    datatype: str
    data: Annotated[list[Any], Field(max_length=MOST_ROWS * MOST_COLUMNS)]


def _counted(given: object) -> object:
    """What is given, if there is little enough of it to be looked at one by one."""
    if isinstance(given, list) and len(given) > MOST_COLUMNS:
        raise ValueError(f"has {len(given):,}, and at most {MOST_COLUMNS:,} are looked at")
    return given


Few = BeforeValidator(_counted)


class InferenceRequest(BaseModel):
    """A request of the Open Inference Protocol: an input a feature, or one with all of them."""

    id: str | None = Field(None, max_length=200)
    inputs: Annotated[list[Tensor], Field(min_length=1), Few]


class InferenceResponse(BaseModel):
    """An answer of the Open Inference Protocol: `score`, and `label` of a classifier."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None
    outputs: list[Tensor]


class Invocation(BaseModel):
    """A request to MLflow's scoring server, in one of its four forms."""

    model_config = ConfigDict(extra="ignore")

    dataframe_split: dict[Literal["columns", "data", "index"], Annotated[list[Any], Few]] | None = (
        None
    )
    dataframe_records: Annotated[list[dict[str, Any]] | None, Few] = None
    instances: Annotated[list[Row] | None, Few] = None
    inputs: Annotated[dict[str, list[Any]] | list[Row] | None, Few] = None


@router.post("/models/{model}/predictions:compute", tags=ONLINE, operation_id="compute", **SEVERAL)
async def computed(request: Request, model: ModelName, body: Rows) -> ComputedRows:
    """Compute predictions of up to a hundred rows, and keep them."""
    found = await compute(request, model, body.rows)
    return ComputedRows(
        model=model,
        predictions=[ComputedRow.model_validate(vars(one), from_attributes=True) for one in found],
    )


@router.get("/v2/health/live", tags=V2, responses=documented(), operation_id="v2_live")
async def live() -> dict[str, bool]:
    """The server runs."""
    return {"live": True}


@router.get("/v2/health/ready", tags=V2, responses=documented(), operation_id="v2_ready")
async def ready() -> dict[str, bool]:
    """The server answers."""
    return {"ready": True}


@router.get(
    "/v2/models/{model}/ready",
    tags=V2,
    responses=documented(404, 409),
    operation_id="v2_model_ready",
)
async def model_ready(request: Request, model: ModelName) -> dict[str, Any]:
    """The model has a champion, which answers."""
    state = state_of(request)
    declared(state, model)
    if state.champions.get(model) is None:
        raise ProblemError(409, f"{model} has no champion yet")
    return {"name": model, "ready": True}


@router.get("/v2/models/{model}", tags=V2, responses=documented(404), operation_id="v2_model")
async def metadata(request: Request, model: ModelName) -> dict[str, Any]:
    """What the model is asked for, and what it answers with."""
    state = state_of(request)
    features, champion = declared(state, model).features, state.champions.get(model)
    return {
        "name": model,
        "versions": [champion.version] if champion else [],
        "platform": "batch-jobs_scikit-learn",
        "inputs": [
            {
                "name": name,
                "datatype": "FP64" if isinstance(kind, Number) else "BYTES",
                "shape": [-1],
            }
            for name, kind in features.items()
        ],
        "outputs": [
            {"name": "score", "datatype": "FP64", "shape": [-1]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
        ],
    }


@router.post("/v2/models/{model}/infer", tags=V2, operation_id="v2_infer", **SEVERAL)
async def infer(request: Request, model: ModelName, body: InferenceRequest) -> InferenceResponse:
    """Compute predictions of up to a hundred rows: an input for each feature, or one with all."""
    found = await compute(request, model, _rows_of(body.inputs))
    return InferenceResponse(
        model_name=model, model_version=found[0].model_version, id=body.id, outputs=_outputs(found)
    )


def _rows_of(inputs: list[Tensor]) -> list[Any]:
    require_few(max(tensor.shape[0] for tensor in inputs))
    if len(inputs) == 1 and len(inputs[0].shape) == 2 and inputs[0].shape[1] != 1:
        tensor = inputs[0]
        rows, width = tensor.shape
        flat = _flat(tensor.data)
        if len(flat) != rows * width or not width:
            raise ProblemError(422, f"{tensor.name[:50]} has {len(flat)} values, and another shape")
        return [flat[start : start + width] for start in range(0, len(flat), width)]
    return by_rows({tensor.name: _flat(tensor.data) for tensor in inputs})


def _flat(data: list[Any]) -> list[Any]:
    """The values of a tensor, which may be nested as its shape is."""
    return [value for part in data for value in (part if isinstance(part, list) else (part,))]


def _outputs(found: list[Answered]) -> list[Tensor]:
    scores, labels = [one.score for one in found], [one.label for one in found]
    shape = [len(found)]
    outputs = [Tensor(name="score", shape=shape, datatype="FP64", data=scores)]
    if any(label is not None for label in labels):
        outputs.append(Tensor(name="label", shape=shape, datatype="BYTES", data=labels))
    return outputs


@router.post("/models/{model}/invocations", tags=MLFLOW, operation_id="invoke_model", **SEVERAL)
async def invoke_model(
    request: Request, model: ModelName, body: Invocation
) -> dict[str, list[dict[str, Any]]]:
    """Compute predictions of up to a hundred rows, as MLflow's scoring server is asked."""
    return await _invoke(request, model, body)


@router.post("/invocations", tags=MLFLOW, operation_id="invoke", **SEVERAL)
async def invoke(request: Request, body: Invocation) -> dict[str, list[dict[str, Any]]]:
    """The same of the model of PREDICTION_API_MODEL, as a client of MLflow asks."""
    return await _invoke(request, state_of(request).config.model, body)


async def _invoke(
    request: Request, model: str, body: Invocation
) -> dict[str, list[dict[str, Any]]]:
    found = await compute(request, model, _invoked(body))
    return {"predictions": [{"score": one.score, "label": one.label} for one in found]}


def _invoked(body: Invocation) -> list[Any]:
    if body.dataframe_split is not None:
        columns, data = body.dataframe_split.get("columns"), body.dataframe_split.get("data", [])
        if columns is None:
            return data
        names = [str(name) for name in columns]
        wrong = next(
            (row for row in data if not isinstance(row, list) or len(row) != len(names)), 0
        )
        if wrong != 0:
            raise ProblemError(422, f"a row of data has not {len(names)} values, as columns has")
        return [dict(zip(names, row, strict=True)) for row in data]
    if isinstance(body.inputs, dict):
        return by_rows(body.inputs)
    given = body.dataframe_records or body.instances or body.inputs
    if given is None:
        raise ProblemError(
            422, "send dataframe_split, dataframe_records, instances or inputs, with a row at least"
        )
    return list(given)
