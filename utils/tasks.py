"""What the DAGs are made of: models as Airflow sees them, and the callables of their tasks.

A callable reads Airflow's context, calls one verb of `batch_jobs` and translates its errors: what
repeating cannot mend fails without a retry. An interval that a newer attempt has claimed is that
one's to publish, and no run is a success before it has.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import (
    Asset,
    AssetOrTimeSchedule,
    BaseOperator,
    Connection,
    Context,
    CronDataIntervalTimetable,
)
from airflow.sdk.definitions._internal.contextmanager import DagContext
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSkipException,
)
from pydantic import ConfigDict

from batch_jobs.catalog import hidden_files, load_model, model_names
from batch_jobs.errors import (
    ArtifactError,
    BatchJobsError,
    ConfigurationError,
    FencedError,
    FormError,
    InputError,
    ModelFileError,
    NoChampionError,
    UnavailableError,
    WarehouseUnavailableError,
)
from batch_jobs.interval import Interval, newest_due
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.settings import Settings, let_threads_sleep, model_packages
from utils import forms
from utils.slack_alert import fail_alert, flush_alerts, record_error, recovery_alert

if TYPE_CHECKING:
    from datetime import datetime

    from batch_jobs.runs.ledger import Run


log = logging.getLogger(__name__)
Done = TypeVar("Done")

WAREHOUSE_CONNECTION_ID = "warehouse"
# How Airflow's connection types are spelled in a SQLAlchemy URL.
# Extras of a connection to PostgreSQL that are Airflow's own.
NOT_FOR_LIBPQ = {
    *("cursor", "iam", "redshift", "cluster-identifier", "workgroup-name", "aws_conn_id"),
    *("azure_conn_id", "sqlalchemy_scheme", "sqlalchemy_query", "enable_log_db_messages"),
}
DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}


class StandIn(BatchModel):
    """Takes the place of a model of which there can be no DAG; its tasks fail with the reason."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    reason: ModelFileError


# Why Airflow refused the DAG of the model that `models` gave last, if it did.
_refused: list[ModelFileError] = []


def models() -> Iterator[BatchModel]:
    """Every model there is a file for, found without a heavy import.

    One that cannot be read, or whose DAG Airflow refuses `on_its_own`, gets a stand-in with the
    default schedules: its tasks fail with the reason, loudly, and the other models go on.
    """
    packages = model_packages()
    for hidden, first in hidden_files(packages):
        log.info("%s hides %s, which is not served", first, hidden)
    for name in model_names(packages):
        _refused.clear()
        try:
            yield load_model(name, packages)
        except ModelFileError as error:
            _refused.append(error)
        for reason in _refused[:]:
            log.warning("%s", reason)
            yield _stand_in(name, reason)


@contextmanager
def on_its_own(model: BatchModel) -> Iterator[None]:
    """Let Airflow refuse what is made of one model without losing the others of the file."""
    registered = DagContext.autoregistered_dags.copy()
    try:
        yield
    except Exception as error:
        if isinstance(model, StandIn):
            raise
        DagContext.autoregistered_dags.intersection_update(registered)
        reason = f"Airflow refuses its DAG: {error}"
        _refused.append(ModelFileError(f"model file {model.name}.py", [reason]))


def _stand_in(name: str, reason: ModelFileError) -> StandIn:
    blank: dict[str, Any] = {"name": name, "description": f"**Broken**: {reason}", "reason": reason}
    return StandIn.model_construct(**blank)


def _fail_because(reason: ModelFileError, _: Context) -> None:
    raise AirflowFailException(str(reason)) from reason


def dag_settings(model: BatchModel, doc: str | None) -> dict[str, Any]:
    """What every DAG of a model has in common.

    Args:
        model: the model served.
        doc: the DAG file's docstring, which says what to do at three in the morning.
    """
    broken = (
        {"pre_execute": partial(_fail_because, model.reason)} if isinstance(model, StandIn) else {}
    )
    return {
        "doc_md": f"# {model.name}\n\n{model.description}\n\n{doc}",
        "catchup": False,
        "max_active_runs": 1,
        "tags": ["batch-serving", model.name, *model.tags],
        "default_args": {
            "owner": model.owner,
            "retries": 2,
            "retry_delay": timedelta(seconds=30),
            "on_failure_callback": record_error,
            **broken,
        },
        "on_failure_callback": fail_alert,
        "on_success_callback": recovery_alert,
    }


def champion_asset(model: BatchModel) -> Asset:
    """The asset whose events say that a model has a new champion."""
    return Asset(name=f"{model.name}_champion", uri=f"batch-jobs://champion/{model.name}")


def drift_asset(model: BatchModel) -> Asset:
    """The asset whose events say that a model has drifted; monitoring raises them."""
    return Asset(name=f"{model.name}_drift", uri=f"batch-jobs://drift/{model.name}")


def train_schedule(model: BatchModel) -> CronDataIntervalTimetable | AssetOrTimeSchedule:
    """The cron of training; with `retrain_on_drift`, the events of `drift_asset` besides.

    A run of the cron has its data interval either way; one of an event has none, and trains as of
    the moment at which it was asked for.
    """
    cron = CronDataIntervalTimetable(model.train_schedule, timezone="UTC")
    if model.retrain_on_drift is None:
        return cron
    return AssetOrTimeSchedule(timetable=cron, assets=[drift_asset(model)])


def train_timeout(model: BatchModel) -> timedelta:
    """The longest that a run of training may take, with the patience for a person's word."""
    return model.train_timeout + (model.gate.approval or timedelta())


def before_training(model: BatchModel) -> list[BaseOperator]:
    """The task that looks why the training starts, if monitoring can start it."""
    if model.retrain_on_drift is None:
        return []
    return [
        PythonOperator(
            task_id="evidence", python_callable=evidence, op_kwargs={"model": model.name}
        )
    ]


def before_promotion(model: BatchModel) -> list[BaseOperator]:
    """The task that asks a person, if the gate wants one."""
    if model.gate.approval is None:
        return []
    from utils.approval import ApprovalOperator

    return [ApprovalOperator(task_id="approve", model=model.name, patience=model.gate.approval)]


def airflow_settings() -> Settings:
    """The deployment's settings; Airflow's connection `warehouse` wins over the environment."""
    let_threads_sleep()
    return Settings.from_environ(os.environ, warehouse=_connection_url())


def as_of(schedule: str, dag_run: Any) -> str:
    """The moment as of which a run trains, for its command; see `forms.as_of`."""
    with translated():
        return forms.as_of(schedule, dag_run).isoformat()


class CommandOperator(BashOperator):
    """Run `batch-jobs` in a process of its own, whose memory goes back to the system.

    The command in the log can be pasted into a shell; the warehouse's URL, which may hold a
    password, goes through the environment.
    """

    def execute(self, context: Context) -> None:
        """Run the command; its last line is the error's text if it fails."""
        environment = self.get_env(context)
        if url := _connection_url():
            environment["BATCH_JOBS_WAREHOUSE"] = url
        result = self.subprocess_hook.run_command(
            [shutil.which("bash") or "bash", "-c", self.bash_command], env=environment
        )
        if result.exit_code == FencedError.exit_code:
            raise AirflowSkipException(result.output)
        if result.exit_code == InputError.exit_code:
            raise AirflowFailException(result.output)
        if result.exit_code != 0:
            raise AirflowException(f"exit code {result.exit_code}: {result.output}")


def evidence(model: str, dag_run: Any, triggering_asset_events: Any, **_: Any) -> None:
    """Tell what started the training; skipped if it was drift and the model is fresh enough."""
    from batch_jobs.alerts.messages import length
    from batch_jobs.registry import promotion

    events = [event for found in triggering_asset_events.values() for event in found]
    if not events:
        log.info("not started by drift, but as %s", dag_run.run_id)
        return
    for event in events:
        log.info("%s at %s: %s", event.asset.name, event.timestamp, event.extra)
    with translated():
        settings = airflow_settings()
        span = load_model(model, settings.models).retrain_on_drift or timedelta()
        fresh = promotion.trained_since(settings, model, dag_run.run_after - span)
    if fresh is not None:
        raise AirflowSkipException(
            f"{model} is not trained again: {fresh.version} was trained as of {fresh.as_of}, and "
            f"retrain_on_drift asks for {length(span)} between"
        )


def trained_as_of(settings: Settings, model: str, dag_run: Any) -> datetime:
    """The moment as of which a run has trained, by which its own version is known."""
    return forms.as_of(load_model(model, settings.models).train_schedule, dag_run)


def promote(model: str, ti: Any, outlet_events: Any, dag_run: Any, **_: Any) -> dict[str, Any]:
    """Let the gate, and a person if one is asked, decide; skipped if the champion stays."""
    from batch_jobs.registry import promotion

    version, by, actor = None, None, f"airflow {dag_run.run_id}"
    if "approve" in ti.task.upstream_task_ids:
        word = ti.xcom_pull(task_ids="approve")
        version, by = word["version"], word["by"]
        if word["refused"]:
            raise AirflowSkipException(f"the champion stays: {word['refused']}")
        if by:
            actor = f"{by} ({actor})"
    with translated():
        settings = airflow_settings()
        answer = promotion.promote(
            settings,
            model,
            version,
            actor=actor,
            as_of=trained_as_of(settings, model, dag_run),
            approved_by=by,
        )
    if answer.outcome == "kept":
        raise AirflowSkipException(
            f"{answer.version.version} is not promoted, {answer.champion or 'nobody'} goes on "
            f"serving: {answer.reason}"
        )
    log.info("%s %s: %s", answer.version.version, answer.outcome, answer.reason)
    event = {"version": answer.version.version, "outcome": answer.outcome}
    for outlet in ti.task.outlets:
        outlet_events[outlet].extra = {**event, "metrics": dict(answer.version.metrics)}
    return event


def rollback(
    model: str, params: dict[str, Any], ti: Any, outlet_events: Any, dag_run: Any, **_: Any
) -> dict[str, Any]:
    """Make an earlier version the champion again, and score again what the later one had scored."""
    from batch_jobs.registry import promotion
    from batch_jobs.runs import backfill

    _die_with_supervisor()
    with translated():
        settings = airflow_settings()
        forms.require_known(dag_run, forms.ROLLBACK_PARAMS)
        if not params["version"] or not params["reason"]:
            raise FormError("give the version that shall serve again, and the reason")
        with forms.own_mistakes(ArtifactError):
            promotion.require_served(settings, model, params["version"])
        answer, runs = backfill.rollback(
            settings,
            model,
            params["version"],
            actor=f"airflow {dag_run.run_id}",
            reason=params["reason"],
        )
    log.info("%s is the champion; %d intervals were scored again", params["version"], len(runs))
    event = {"version": answer.version.version, "outcome": answer.outcome}
    for outlet in ti.task.outlets:
        outlet_events[outlet].extra = event
    return {**event, "scored_again": len(runs)}


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
    with translated(), _left_to_newer():
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
    from batch_jobs.runs import attempts, jobs
    from batch_jobs.runs.prescoring import Prescorer
    from batch_jobs.scoring.counts import Counts

    _die_with_supervisor()
    settings, token = airflow_settings(), str(ti.id)
    predictors = Prescorer(settings)

    def score_run(run_id: int) -> Counts:
        return jobs.score(settings, model, run_id, part, token, predictors=predictors)

    with attempts.attempt(settings, run_ids):
        done = _on_each(run_ids, score_run)
    return asdict(sum(done.values(), Counts()))


def publish(parts: Sequence[dict[str, Any]], **_: Any) -> dict[str, int]:
    """Publish every claimed run, oldest interval first, each in one transaction.

    A success if every interval is published; what a newer attempt has taken over is waited for, in
    the end and not for long.
    """
    from batch_jobs.runs import attempts, jobs

    _die_with_supervisor()
    settings, run_ids = airflow_settings(), parts[0]["run_ids"]

    def publish_run(run_id: int) -> Run:
        return jobs.publish(settings, run_id)

    def await_newer(run_id: int) -> Run:
        return attempts.await_newer(settings, run_id)

    with attempts.attempt(settings, run_ids):
        published = _on_each(run_ids, publish_run, await_newer)
    newest = max(published.values(), key=lambda run: run.interval.end)
    own = [run for run in published.values() if run.run_id in run_ids]
    return {"published": len(own), "newest_run_id": newest.run_id}


def answer(model: str, ti: Any, **_: Any) -> dict[str, int]:
    """Answer the requests that wait, for half the time until the next run at most.

    What is left goes on in the next run, which this one must not hold up. A request that the model
    could not answer fails the task once all have had their turn.
    """
    from batch_jobs import clock
    from batch_jobs.requests import worker

    _die_with_supervisor()
    with translated():
        settings = airflow_settings()
        declared, now = load_model(model, settings.models), clock.now()
        due = newest_due(declared.schedule, now)
        until = now + min(due.end - due.start, declared.timeout) / 2
        answered = worker.answer(settings, model, str(ti.id), stop=lambda: clock.now() > until)
    if failed := [str(one) for one in answered if one.error]:
        raise AirflowFailException("; ".join(failed))
    return {"requests": len(answered), "rows": sum(one.counts.read for one in answered)}


def prune(model: str, **_: Any) -> dict[str, int]:
    """Remove what readers have not seen for longer than the model keeps it."""
    from batch_jobs.runs import jobs

    with translated():
        [pruned] = jobs.prune(airflow_settings(), model)
    return {"runs": pruned.retired, "rows": pruned.rows}


@contextmanager
def translated() -> Iterator[None]:
    """Turn our errors into Airflow's: only what did not answer is retried, one is no failure."""
    try:
        yield
    except NoChampionError as error:
        raise AirflowSkipException(str(error)) from error
    except UnavailableError:
        raise
    except BatchJobsError as error:
        raise AirflowFailException(str(error)) from error


@contextmanager
def _left_to_newer() -> Iterator[None]:
    """Skip what a newer attempt has claimed before this one could: nothing was begun."""
    try:
        yield
    except FencedError as error:
        raise AirflowSkipException(str(error)) from error


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
    _raise_one(errors)
    return done


def _raise_one(errors: Sequence[Exception]) -> None:
    """Raise what several runs have failed with: as one that may pass, if one of them may."""
    for error in errors:
        if isinstance(error, UnavailableError) or not isinstance(error, BatchJobsError):
            raise error
    if errors:
        raise AirflowFailException("; ".join(map(str, errors))) from errors[0]


# What the connection `warehouse` was when this process last asked for it, if it has.
_known: list[Any] = []


def _connection() -> Any:
    """Airflow's connection `warehouse`; None if it is not defined.

    Airflow that is too busy to answer is asked again, and then taken to have nothing new to tell:
    a task whose error is to be noted has asked before.
    """
    try:
        found = _looked_up()
    except Exception:  # noqa: BLE001 - whatever a server or a secrets backend raises
        try:
            found = _looked_up()
        except Exception:
            if not _known:
                raise
            return _known[0]
    _known[:] = [found]
    return found


def _looked_up() -> Connection | None:
    try:
        found: Connection = Connection.get(WAREHOUSE_CONNECTION_ID)
    except AirflowNotFoundException:
        return None
    return found


def _connection_url() -> str | None:
    """The SQLAlchemy URL of Airflow's connection `warehouse`, if it is defined."""
    from sqlalchemy import URL

    connection = _connection()
    if connection is None:
        return None
    if connection.conn_type == "sqlite":
        return URL.create(
            "sqlite", database=connection.host or connection.schema
        ).render_as_string()
    query = {}
    for name, value in connection.extra_dejson.items():
        if isinstance(value, dict | list):
            raise ConfigurationError(
                f"Airflow's connection `{WAREHOUSE_CONNECTION_ID}`: the extra {name!r} is nested; "
                f"PostgreSQL takes texts and numbers, such as connect_timeout"
            )
        if name not in NOT_FOR_LIBPQ and value is not None:
            query[name] = value if isinstance(value, str) else json.dumps(value)
    host, port = connection.host, connection.port
    if host and host.startswith(("/", "%2F", "%2f")):  # the folder of a socket is no part of a URL
        query["host"] = unquote(host)
        query |= {"port": str(port)} if port else {}
        host = port = None
    return URL.create(
        DRIVERS.get(connection.conn_type, connection.conn_type),
        username=connection.login,
        password=connection.password,
        host=host,
        port=port,
        database=connection.schema,
        query=query,
    ).render_as_string(hide_password=False)


def _die_with_supervisor() -> None:
    """Ask Linux to kill this task if its supervisor dies, so that it cannot outlive its retry.

    The fence in the warehouse keeps such a task harmless anyway; this keeps it from being one.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
