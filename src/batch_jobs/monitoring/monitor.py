"""The verb `monitor`: how is what a model published doing, as far as can be told by now?"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime

from batch_jobs import clock
from batch_jobs.interval import require_aware
from batch_jobs.monitoring import performance
from batch_jobs.monitoring.drift_search import look_for_drift
from batch_jobs.monitoring.findings import Finding
from batch_jobs.monitoring.judgement import Judgement, judge
from batch_jobs.registry.deployment import Place, opened

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What one look at a model has found.

    Attributes:
        model: its name.
        at: when it was looked at.
        drift: what is unlike training in the newest day and in the newest window of days.
        notes: what could not be told and why, a line each.
        judged: start of the newest day that could be compared with training, if any.
        judgement: whether outcomes show damage.
        restated: how many past windows have other figures than at the look before.
        has_outcomes: whether outcomes were asked at all.
    """

    model: str
    at: datetime
    drift: tuple[Finding, ...]
    notes: tuple[str, ...]
    judgement: Judgement
    restated: int = 0
    judged: datetime | None = None
    has_outcomes: bool = True


def monitor(
    place: Place, name: str, now: datetime | None = None, *, outcomes: bool = True
) -> Report:
    """Look at what a model has published until now, and keep what is found.

    Args:
        place: where everything is.
        name: which model.
        now: until when; by default the clock's time.
        outcomes: whether past windows are judged by what became of them, too, which takes longer
            and need not be done more often than once a day.

    Raises:
        InputError: unknown model, or no warehouse.
        WarehouseUnavailableError: the database does not answer; the next look makes it good.
    """
    deployment = opened(place)
    model = deployment.model(name)
    at = require_aware(now) if now else clock.now()
    judged, drift, notes = look_for_drift(deployment.warehouse, model, at)
    if not outcomes:
        return Report(
            model.name,
            at,
            tuple(drift),
            tuple(notes),
            Judgement(model.name, at),
            judged=judged,
            has_outcomes=False,
        )
    restated = performance.update(deployment, name, at)
    return Report(
        model.name,
        at,
        tuple(drift),
        (*notes, *restated.notes),
        judgement=judge(deployment, name, at),
        restated=len(restated.windows),
        judged=judged,
    )
