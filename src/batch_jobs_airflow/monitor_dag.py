"""Look once a day at how each model is doing: by drift, and by outcomes as they become known.

**What it does.** `judge` compares what came in with what the model was trained on, restates the
performance of past days and weeks as their outcomes become known, and judges it beside a constant
and other versions on the same rows; what it finds is in the views `model_drift` and
`model_performance`, in `batch-jobs monitor MODEL`, and told to Slack: damage as an alarm, drift as
news. Where the model file has `retrain_on_drift`, `drifted` starts a training when damage is shown.

**If it fails.** Predictions go on, and nothing that readers see has changed; but nobody judges them
until it works again. The last line of the failed task's log says what was wrong and what would be
right. Mend the cause and clear `judge`, or leave it to the next run, which makes good what this one
has missed. `drifted` *skipped* means that there is no damage, or that training was asked for.

**By hand.** *Trigger* looks at once.
"""

from airflow.sdk import DAG, CronDataIntervalTimetable

from batch_jobs.model import BatchModel
from batch_jobs_airflow import dags, monitoring_tasks


def make_dag(model: BatchModel) -> None:
    """Make `monitor_<model>`."""
    with DAG(
        dag_id=f"monitor_{model.name}",
        description=f"Look how {model.name} is doing",
        schedule=CronDataIntervalTimetable("0 5 * * *", timezone="UTC"),
        dagrun_timeout=model.train_timeout,
        **dags.dag_settings(model, __doc__),
    ):
        judge = dags.verb(model, monitoring_tasks.judge)
        if model.retrain_on_drift is not None:
            judge >> dags.verb(
                model,
                monitoring_tasks.drifted,
                op_kwargs={"found": judge.output},
                outlets=[dags.drift_asset(model)],
            )
