"""What DAGs are made of: models as Airflow sees them, schedules, assets and settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import (
    Asset,
    AssetOrTimeSchedule,
    BaseOperator,
    Context,
    CronDataIntervalTimetable,
    get_parsing_context,
)
from airflow.sdk.definitions._internal.contextmanager import DagContext
from airflow.sdk.exceptions import AirflowFailException
from pydantic import ConfigDict

from batch_jobs.catalog import hidden_files, load_model, model_names
from batch_jobs.errors import ModelFileError
from batch_jobs.model import BatchModel
from batch_jobs.placement import Placement
from batch_jobs.settings import model_packages
from batch_jobs_airflow import forms, placing
from batch_jobs_airflow.alerts import fail_alert, record_error, recovery_alert
from batch_jobs_airflow.errors import translated
from batch_jobs_airflow.training_tasks import evidence

log = logging.getLogger(__name__)


class StandIn(BatchModel):
    """Takes the place of a model of which there can be no DAG; its tasks fail with the reason."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    reason: ModelFileError


def make_dags(*makers: Callable[[BatchModel], None]) -> None:
    """Make the DAGs of every model there is a file for, each on its own.

    A model that cannot be read, or one of whose DAGs Airflow refuses, gets a stand-in with the
    default schedules: its tasks fail with the reason, loudly, and the other models go on. The DAGs
    belong to the file that Airflow reads at that time, as all do that are made in a `with`. A task
    reads the file of its own model alone.

    Args:
        makers: each makes one DAG of a model, in a `with DAG(...)`.
    """
    for model in _models():
        for make in makers:
            registered = DagContext.autoregistered_dags.copy()
            try:
                make(model)
            except Exception as error:
                if isinstance(model, StandIn):
                    raise
                DagContext.autoregistered_dags.intersection_update(registered)
                reason = f"Airflow refuses its DAG: {error}"
                make(_stand_in(model.name, ModelFileError(f"model file {model.name}.py", [reason])))


def _models() -> Iterator[BatchModel]:
    """Every model, found without a heavy import; a stand-in for one that cannot be read."""
    packages = model_packages()
    for hidden, first in hidden_files(packages):
        log.info("%s hides %s, which is not served", first, hidden)
    names = model_names(packages)
    own = (get_parsing_context().dag_id or "").partition("_")[2]
    for name in [own] if own in names else names:
        try:
            yield load_model(name, packages)
        except ModelFileError as error:
            yield _stand_in(name, error)


def _stand_in(name: str, reason: ModelFileError) -> StandIn:
    log.warning("%s", reason)
    blank: dict[str, Any] = {"name": name, "description": f"**Broken**: {reason}", "reason": reason}
    return StandIn.model_construct(**blank)


def _fail_because(reason: ModelFileError, _: Context) -> None:
    raise AirflowFailException(str(reason)) from reason


def dag_settings(
    model: BatchModel, doc: str | None, placement: Placement | None = None
) -> dict[str, Any]:
    """What every DAG of a model has in common.

    Args:
        model: the model served.
        doc: its module's docstring, which says what to do at three in the morning.
        placement: where its tasks run, if not where the model's do.
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
            **placing.task_settings(placement or model.placement),
            **broken,
        },
        "on_failure_callback": fail_alert,
        "on_success_callback": recovery_alert,
    }


def verb(model: BatchModel, act: Callable[..., Any], **settings: Any) -> PythonOperator:
    """The task that calls a verb with the model's name; it has the verb's name itself.

    Args:
        model: the model served.
        act: called with `model` and Airflow's context.
        settings: of the operator; `op_kwargs` are given to the verb, too.
    """
    given = {"model": model.name, **settings.pop("op_kwargs", {})}
    return PythonOperator(task_id=act.__name__, python_callable=act, op_kwargs=given, **settings)


def champion_asset(model: BatchModel) -> Asset:
    """The asset whose events say that a model has a new champion."""
    return Asset(name=f"{model.name}_champion", uri=f"batch-jobs://champion/{model.name}")


def predictions_asset(model: BatchModel) -> Asset:
    """The asset whose events say that predictions of a model were published, and which.

    An event's `extra` is the newest run's row of the ledger, and `published`, how many runs there
    were: a DAG that is scheduled on the asset reads it from its triggering events.
    """
    return Asset(name=f"{model.name}_predictions", uri=f"batch-jobs://predictions/{model.name}")


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
    return [verb(model, evidence)]


def before_promotion(model: BatchModel) -> list[BaseOperator]:
    """The task that asks a person, if the gate wants one."""
    if model.gate.approval is None:
        return []
    from batch_jobs_airflow.approval import ApprovalOperator

    return [ApprovalOperator(task_id="approve", model=model.name, patience=model.gate.approval)]


def as_of(schedule: str, dag_run: Any) -> str:
    """The moment as of which a run trains, for its command; see `forms.as_of`."""
    with translated():
        return forms.as_of(schedule, dag_run).isoformat()
