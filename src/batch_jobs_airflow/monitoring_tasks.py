"""The callables of the tasks that look how a model is doing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowSkipException

from batch_jobs_airflow.alerts import flush_alerts
from batch_jobs_airflow.connections import airflow_settings
from batch_jobs_airflow.context import redacted_line
from batch_jobs_airflow.errors import translated

if TYPE_CHECKING:
    from batch_jobs.monitoring.monitor import Report

log = logging.getLogger(__name__)


def monitor(model: str, **_: Any) -> dict[str, Any]:
    """Look for drift after a publication, which this neither delays nor fails.

    Skipped if it cannot be done; the daily DAG, which does the same and more, then fails loudly.
    """
    try:
        report = _look(model, outcomes=False)
    except Exception as error:  # noqa: BLE001 - what is published is published
        raise AirflowSkipException(f"{model} is not monitored: {redacted_line(error)}") from None
    return {"drift": len(report.drift)}


def judge(model: str, **_: Any) -> dict[str, Any]:
    """Look for drift, and judge what was published by what became of it."""
    with translated():
        report = _look(model, outcomes=True)
    judgement = report.judgement
    return {
        "drift": len(report.drift),
        "restated": report.restated,
        "damage": [each.words for each in judgement.damage],
        "retrain": judgement.retrain,
    }


def drifted(model: str, found: dict[str, Any], ti: Any, outlet_events: Any, **_: Any) -> None:
    """Ask for a training, once for each time that damage is shown; skipped if there is none."""
    from batch_jobs import clock
    from batch_jobs.monitoring import episodes
    from batch_jobs.registry.deployment import Deployment

    if not found["retrain"]:
        raise AirflowSkipException(f"{model} shows no damage for which training was not asked yet")
    for outlet in ti.task.outlets:
        outlet_events[outlet].extra = {"damage": found["damage"]}
    with translated():
        episodes.acknowledge(Deployment(airflow_settings()).warehouse, model, clock.now())


def _look(model: str, *, outcomes: bool) -> Report:
    from batch_jobs.monitoring import reporting
    from batch_jobs.monitoring.monitor import monitor
    from batch_jobs.registry.deployment import Deployment

    deployment = Deployment(airflow_settings())
    report = monitor(deployment, model, outcomes=outcomes)
    for line in [*report.notes, *(finding.words for finding in report.drift)]:
        log.info("%s", line)
    reporting.tell(deployment.warehouse, deployment.model(model), report)
    flush_alerts()
    return report
