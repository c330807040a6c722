"""Compute a prediction when asked, and tell it again: `POST /predict`, `GET /predict/{id}`.

Each model has a route of its own, whose body is typed by the model's contract.
"""

# Not `from __future__ import annotations`: FastAPI could not find the types made here.
from fastapi import APIRouter, Request, Response

from batch_jobs.model import BatchModel
from prediction_api.online import BY_ID, BY_KEY, Answered, Asked, same
from prediction_api.problems import ProblemError, documented
from prediction_api.routing import StrictRoute
from prediction_api.schemas import (
    IdempotencyKey,
    OnlinePrediction,
    PredictionId,
    PredictionRequest,
    features_of,
    request_of,
)
from prediction_api.state import State, state_of


def router_for(state: State) -> APIRouter:
    """The routes of each model there is a file for, and `POST /predict` of the configured one."""
    router = APIRouter(tags=["online"], route_class=StrictRoute)
    for path, name in state.paths("predict"):
        _add(router, path, state.models[name])
    router.add_api_route(
        "/predict/{id}",
        computed,
        operation_id="computed_prediction",
        response_model=OnlinePrediction,
        responses=documented(404),
    )
    return router


def _add(router: APIRouter, path: str, model: BatchModel) -> None:
    body_type = request_of(model)

    async def predict(
        request: Request,
        body: body_type,  # type: ignore[valid-type]
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        return await _predict(request, model, body, idempotency_key)

    router.add_api_route(
        path,
        predict,
        methods=["POST"],
        operation_id=f"predict_{model.name}" if path != "/predict" else "predict",
        summary=f"Compute a prediction of {model.name}, and keep it.",
        description=model.description,
        response_model=OnlinePrediction,
        responses=documented(409, 413),
    )


async def _predict(
    request: Request, model: BatchModel, body: PredictionRequest, key: str | None
) -> Response:
    state = state_of(request)
    asked = Asked(
        model=model.name,
        values=features_of(body),
        contract=model.features,
        client=getattr(request.state, "client", ""),
        key=key,
    )
    answered = await _first_answer(state, asked) or await state.online.ask(asked)
    return _rendered(answered)


async def _first_answer(state: State, asked: Asked) -> Answered | None:
    """The answer that this request got before; also after another version was promoted."""
    if asked.key is None:
        return None
    values = {"client": asked.client, "idempotency_key": asked.key}
    rows = await state.database.fetch(BY_KEY, **values)
    if not rows:
        return None
    answer = same(asked, Answered.from_row(rows[0]))
    if isinstance(answer, ProblemError):
        raise answer
    return answer


async def computed(request: Request, id: PredictionId) -> Response:  # noqa: A002 # as in the URL
    """A prediction that was computed before, for who had asked for it."""
    rows = await state_of(request).database.fetch(BY_ID, prediction_id=id)
    if not rows or rows[0]["client"] != getattr(request.state, "client", ""):
        raise ProblemError(404, "there is no prediction of this id")
    return _rendered(Answered.from_row(rows[0]))


def _rendered(answered: Answered) -> Response:
    told = OnlinePrediction(
        id=answered.id,
        result=answered.score if answered.label is None else answered.label,
        score=answered.score,
        model=answered.model,
        model_version=answered.model_version,
        features=dict(answered.features),
        created_at=answered.created_at,
    )
    return Response(told.model_dump_json(), media_type="application/json")
