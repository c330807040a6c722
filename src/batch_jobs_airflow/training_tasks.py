"""The callables of the tasks that decide which version serves: evidence, promote, rollback."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

from airflow.sdk.exceptions import AirflowSkipException

from batch_jobs.errors import ArtifactError, FormError
from batch_jobs_airflow import forms
from batch_jobs_airflow.alerts import send_news
from batch_jobs_airflow.connections import airflow_settings
from batch_jobs_airflow.context import actor_of, die_with_supervisor
from batch_jobs_airflow.errors import translated

log = logging.getLogger(__name__)


def evidence(model: str, dag_run: Any, triggering_asset_events: Any, **_: Any) -> None:
    """Tell what started the training; skipped if it was drift and the model is fresh enough."""
    from batch_jobs.alerts.mrkdwn import length
    from batch_jobs.registry import promotion
    from batch_jobs.registry.deployment import Deployment

    events = [event for found in triggering_asset_events.values() for event in found]
    if not events:
        log.info("not started by drift, but as %s", dag_run.run_id)
        return
    for event in events:
        log.info("%s at %s: %s", event.asset.name, event.timestamp, event.extra)
    with translated():
        deployment = Deployment(airflow_settings())
        span = deployment.model(model).retrain_on_drift or timedelta()
        fresh = promotion.trained_since(deployment, model, dag_run.run_after - span)
    if fresh is not None:
        raise AirflowSkipException(
            f"{model} is not trained again: {fresh.version} was trained as of {fresh.as_of}, and "
            f"retrain_on_drift asks for {length(span)} between"
        )


def promote(model: str, ti: Any, outlet_events: Any, dag_run: Any, **_: Any) -> dict[str, Any]:
    """Let the gate, and a person if one is asked, decide; skipped if the champion stays."""
    from batch_jobs.registry import champions, promotion
    from batch_jobs.registry.deployment import Deployment

    version, by, actor = None, None, actor_of(dag_run)
    if "approve" in ti.task.upstream_task_ids:
        word = ti.xcom_pull(task_ids="approve")
        version, by = word["version"], word["by"]
        if word["refused"]:
            with translated():
                serves = champions.champion(Deployment(airflow_settings()).warehouse, model)
            asked, serving = version or "the new version", serves.version if serves else None
            _tell_that_it_stays(model, asked, serving, word["refused"], dag_run)
            raise AirflowSkipException(f"the champion stays: {word['refused']}")
        if by:
            actor = f"{by} (airflow {dag_run.run_id})"
    with translated():
        deployment = Deployment(airflow_settings())
        answer = promotion.promote(
            deployment,
            model,
            version,
            actor=actor,
            as_of=forms.trained_as_of(deployment, model, dag_run),
            approved_by=by,
        )
    if answer.outcome == "kept":
        _tell_that_it_stays(model, answer.version.version, answer.champion, answer.reason, dag_run)
        raise AirflowSkipException(
            f"{answer.version.version} is not promoted, {answer.champion or 'nobody'} goes on "
            f"serving: {answer.reason}"
        )
    log.info("%s %s: %s", answer.version.version, answer.outcome, answer.reason)
    event = {"version": answer.version.version, "outcome": answer.outcome}
    for outlet in ti.task.outlets:
        outlet_events[outlet].extra = {**event, "metrics": dict(answer.version.metrics)}
    return event


def _tell_that_it_stays(
    model: str, version: str, champion: str | None, reason: str, dag_run: Any
) -> None:
    """News: the gate or a person said no, or nobody said anything in time."""
    from batch_jobs.alerts import news

    key = f"champion of {model} stays: {version} in {dag_run.run_id}"
    send_news(news.champion_stays(model, version, champion, reason), key)


def rollback(
    model: str, params: dict[str, Any], ti: Any, outlet_events: Any, dag_run: Any, **_: Any
) -> dict[str, Any]:
    """Make an earlier version the champion again, and score again what the later one had scored."""
    from batch_jobs.registry import promotion
    from batch_jobs.runs import backfills

    die_with_supervisor()
    with translated():
        settings = airflow_settings()
        forms.require_known(dag_run, forms.ROLLBACK_PARAMS)
        if not params["version"] or not params["reason"]:
            raise FormError("give the version that shall serve again, and the reason")
        with forms.own_mistakes(ArtifactError):
            promotion.require_served(settings, model, params["version"])
        answer, runs = backfills.rollback(
            settings,
            model,
            params["version"],
            actor=actor_of(dag_run),
            reason=params["reason"],
        )
    log.info("%s is the champion; %d intervals were scored again", params["version"], len(runs))
    event = {"version": answer.version.version, "outcome": answer.outcome}
    for outlet in ti.task.outlets:
        outlet_events[outlet].extra = event
    return {**event, "scored_again": len(runs)}
