"""The prediction of an entity, as readers see it now or saw it at a moment."""

from __future__ import annotations

from datetime import datetime

from fastapi import APIRouter, Request, Response
from starlette.convertors import PathConvertor, register_url_convertor

from batch_jobs import clock
from batch_jobs.database.transactions import loaded_time
from prediction_api.database import Statement
from prediction_api.etags import HAVE_IT, IfNoneMatch, conditional
from prediction_api.freshness import freshness
from prediction_api.moments import past_moment
from prediction_api.problems import ProblemError, documented
from prediction_api.routing import QuickRoute
from prediction_api.schemas import AsOf, CurrentPrediction, EntityId, ModelName, PastPrediction
from prediction_api.state import State, state_of
from prediction_api.status import unpublished


class KeyConvertor(PathConvertor):
    """A key in a path: any, also one with slashes and line ends."""

    regex = r"[\s\S]*"


register_url_convertor("key", KeyConvertor())
router = APIRouter(tags=["reading"], route_class=QuickRoute)

PAST = Statement(
    """
    SELECT entity_id, score, label, model_version, run_id, interval_start, interval_end,
           published_at, superseded_at
    FROM prediction_history
    WHERE model = :model AND entity_id = :entity_id AND published_at <= :as_of
      AND (superseded_at IS NULL OR superseded_at > :as_of)
    ORDER BY published_at DESC, run_id DESC LIMIT 1"""
)


@router.get(
    "/models/{model}/predictions/{entity_id:key}",
    response_model=CurrentPrediction | PastPrediction,
    responses={304: HAVE_IT, **documented(404)},
)
async def prediction(
    request: Request,
    model: ModelName,
    entity_id: EntityId,
    as_of: AsOf = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """The prediction of an entity: what readers see now, or saw at a moment.

    Clients and proxies make another path of one with the keys `.` and `..`, which are looked up by
    `predictions:lookup`, as any other.
    """
    state = state_of(request)
    if "\0" in entity_id:
        raise ProblemError(422, "an entity_id has no NUL character")
    if as_of is not None:
        return await _past(state, model, entity_id, past_moment(as_of), if_none_match)
    row = await state.current.get(model, entity_id)
    if row is None:
        raise unpublished(state, model)
    if row["entity_id"] is None:
        raise ProblemError(404, f"{model} has no prediction for this entity", kind="no-prediction")
    fresh_until = loaded_time(row["fresh_until"])
    fresh = freshness(state.models.get(model), fresh_until, clock.now())
    found = CurrentPrediction(model=model, **row, stale=fresh.stale, age_seconds=fresh.age_seconds)
    return conditional(found, if_none_match, found.run_id, fresh_until, fresh.stale)


async def _past(
    state: State, model: str, entity_id: str, as_of: datetime, if_none_match: str | None
) -> Response:
    rows = await state.database.fetch(PAST, model=model, entity_id=entity_id, as_of=as_of)
    if not rows:
        raise ProblemError(
            404,
            f"nothing is known of what {model} said of this entity then: nothing was published, or "
            f"it is older than the model keeps",
            kind="no-prediction",
        )
    found = PastPrediction(model=model, as_of=as_of, **rows[0])
    return conditional(found, if_none_match, found.run_id, as_of, found.superseded_at)
