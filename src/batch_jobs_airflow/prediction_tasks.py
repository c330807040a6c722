"""The callables of the tasks that predict: claim, score, publish, answer, prune.

A callable reads Airflow's context, calls one verb of `batch_jobs` and translates its errors: what
repeating cannot mend fails without a retry. An interval that a newer attempt has claimed is that
one's to publish, and no run is a success before it has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from batch_jobs.errors import FencedError, UnavailableError, WarehouseUnavailableError
from batch_jobs.interval import Interval, newest_due
from batch_jobs.redaction import first_line
from batch_jobs_airflow import forms
from batch_jobs_airflow.alerts import flush_alerts
from batch_jobs_airflow.connections import airflow_settings
from batch_jobs_airflow.context import die_with_supervisor
from batch_jobs_airflow.errors import left_to_newer, raise_one, translated

if TYPE_CHECKING:
    from datetime import datetime

    from batch_jobs.runs.ledger import Run

log = logging.getLogger(__name__)
Done = TypeVar("Done")


def plan(
    model: str,
    ti: Any,
    dag_run: Any,
    params: dict[str, Any],
    data_interval_start: datetime | None = None,
    data_interval_end: datetime | None = None,
    **_: Any,
) -> list[dict[str, Any]]:
    """Claim the interval of this DAG run, and missed ones before it; one item for each part.

    Skipped if there is nothing to claim: all is published, or a newer attempt's.

    A run without an interval of its own (triggered by hand) takes the newest one that was due when
    it was triggered. A backfill, and a run that somebody wants of certain intervals, heal no gaps.
    """
    flush_alerts()
    with translated(), left_to_newer():
        from batch_jobs.runs.planning import Planner

        planner = Planner(airflow_settings(), model, str(ti.id))
        schedule = planner.model.schedule
        start, end = data_interval_start, data_interval_end
        with forms.own_mistakes():
            own = Interval(start, end) if start and end else None
        wanted = forms.intervals(schedule, dag_run, params, own)
        if wanted is not None:
            runs = planner.claim_each(
                wanted,
                champion="then" if dag_run.run_type == "backfill" else "current",
                force=params["force"] or bool(params["accept"]),
                accept=params["accept"],
            )
        else:
            newest = newest_due(schedule, end or dag_run.run_after)
            runs = planner.plan_due(newest)
    run_ids = [run.run_id for run in runs if not run.is_done]
    if not run_ids:
        done = runs[-1].interval if runs else "what no newer attempt has claimed"
        raise AirflowSkipException(f"{done} is already published; nothing to do")
    return [
        {"model": model, "part": part, "run_ids": run_ids} for part in range(planner.model.parts)
    ]


def score(model: str, part: int, run_ids: Sequence[int], ti: Any, **_: Any) -> dict[str, int]:
    """Stage one part of every claimed run, oldest interval first.

    What a newer attempt has taken over is left to it; `publish` looks what that came to.
    """
    from batch_jobs.registry.deployment import Deployment
    from batch_jobs.runs import attempts, jobs
    from batch_jobs.scoring.counts import Counts

    die_with_supervisor()
    deployment, token = Deployment(airflow_settings()), str(ti.id)

    def score_run(run_id: int) -> Counts:
        return jobs.score(deployment, model, run_id, part, token)

    with attempts.attempt(deployment, run_ids):
        done = _on_each(run_ids, score_run)
    return asdict(sum(done.values(), Counts()))


def publish(
    parts: Sequence[dict[str, Any]], ti: Any, outlet_events: Any, **_: Any
) -> dict[str, int]:
    """Publish every claimed run, oldest interval first, each in one transaction.

    A success if every interval is published; what a newer attempt has taken over is waited for, in
    the end and not for long. The event of the model's predictions says which run is the newest, and
    how many there are.
    """
    from batch_jobs.registry.deployment import Deployment
    from batch_jobs.runs import attempts, jobs

    die_with_supervisor()
    deployment, run_ids = Deployment(airflow_settings()), parts[0]["run_ids"]

    def publish_run(run_id: int) -> Run:
        return jobs.publish(deployment, run_id)

    def await_newer(run_id: int) -> Run:
        return attempts.await_newer(deployment, run_id)

    with attempts.attempt(deployment, run_ids):
        published = _on_each(run_ids, publish_run, await_newer)
    newest = max(published.values(), key=lambda run: run.interval.end)
    own = [run for run in published.values() if run.run_id in run_ids]
    for outlet in ti.task.outlets:
        outlet_events[outlet].extra = {**newest.as_dict(), "published": len(own)}
    return {"published": len(own), "newest_run_id": newest.run_id}


def answer(model: str, ti: Any, **_: Any) -> dict[str, int]:
    """Answer the requests that wait, for half the time until the next run at most.

    What is left goes on in the next run, which this one must not hold up. A request that the model
    could not answer fails the task once all have had their turn, unless its sender is at fault.
    """
    from batch_jobs import clock
    from batch_jobs.registry.deployment import Deployment
    from batch_jobs.requests import worker

    die_with_supervisor()
    with translated():
        deployment, now = Deployment(airflow_settings()), clock.now()
        declared = deployment.model(model)
        due = newest_due(declared.schedule, now)
        until = now + min(due.end - due.start, declared.timeout) / 2
        answered = worker.answer(deployment, model, str(ti.id), stop=lambda: clock.now() > until)
    if failed := [str(one) for one in answered if one.error and not one.of_sender]:
        raise AirflowFailException("; ".join(failed))
    return {"requests": len(answered), "rows": sum(one.counts.read for one in answered)}


def prune(model: str, **_: Any) -> dict[str, int]:
    """Remove what readers have not seen for longer than the model keeps it."""
    from batch_jobs.runs import jobs

    with translated():
        [pruned] = jobs.prune(airflow_settings(), model)
    return {"runs": pruned.retired, "rows": pruned.rows}


def _on_each(
    run_ids: Sequence[int],
    act: Callable[[int], Done],
    when_fenced: Callable[[int], Done] | None = None,
) -> dict[int, Done]:
    """Act on every run: one that fails keeps no later one from being published.

    Args:
        run_ids: of the runs, the oldest interval first.
        act: what to do with one.
        when_fenced: what to do, in the end, with one that a newer attempt has fenced off; by
            default nothing, and it is missing in the answer.

    Raises:
        AirflowFailException: some have failed, and trying again will not help.
        Exception: one that may pass.
    """
    done: dict[int, Done] = {}
    fenced: list[int] = []
    errors: list[Exception] = []
    for run_id in run_ids:
        try:
            done[run_id] = act(run_id)
        except FencedError as error:
            log.warning("run %d: %s", run_id, error)
            fenced.append(run_id)
        except Exception as error:
            log.error("run %d: %s", run_id, first_line(error))  # noqa: TRY400
            errors.append(error)
            away = sum(isinstance(each, UnavailableError) for each in errors)
            if isinstance(error, WarehouseUnavailableError) or away > 1:
                raise  # nor will it answer for the others; what is done stays done
    for run_id in fenced:
        try:
            if when_fenced is not None:
                done[run_id] = when_fenced(run_id)
        except FencedError as error:
            errors.append(error)
    raise_one(errors)
    return done
