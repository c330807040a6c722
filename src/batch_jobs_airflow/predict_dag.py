"""Score and publish each model, every ten minutes or as often as its file says.

**What it does.** `plan` claims the newest due interval, and before it those that an outage left
unpublished; `score` reads, checks, predicts and stages their rows, one task a part; `publish` makes
each interval visible in one transaction, oldest first; `monitor` looks for drift, and `prune`
removes what readers have not seen for longer than the model keeps it. Beside all that, `answer`
scores the requests of many rows that wait, for half the time until the next run at most.

**If it fails.** Readers still see the last good predictions. The last line of the failed task's log
says what was wrong and what would be right. The next run publishes the missed intervals by itself
(within the model's look-back), so often you only mend the cause; to try at once, clear `plan`. If
only `prune` failed, nothing is urgent: the next run removes what this one left. If only `answer`
failed, its log names the requests that the model could not answer, or says why none was.

**By hand.** *Trigger* without parameters scores the newest due interval; *Interval start* and *end*
choose others, all that are due between the two, and *Score again* repeats what is published.
"""

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, CronDataIntervalTimetable, TriggerRule

from batch_jobs.model import BatchModel
from batch_jobs_airflow import dags, forms, monitoring_tasks, prediction_tasks


def make_dag(model: BatchModel) -> None:
    """Make `predict_<model>`."""
    with DAG(
        dag_id=f"predict_{model.name}",
        description=f"Score and publish {model.name}",
        schedule=CronDataIntervalTimetable(model.schedule, timezone="UTC"),
        dagrun_timeout=model.timeout,
        params=forms.SPAN_PARAMS,
        **dags.dag_settings(model, __doc__),
    ):
        plan = dags.verb(model, prediction_tasks.plan, inlets=[dags.champion_asset(model)])
        score = PythonOperator.partial(
            task_id="score", python_callable=prediction_tasks.score
        ).expand(op_kwargs=plan.output)
        publish = PythonOperator(
            task_id="publish",
            python_callable=prediction_tasks.publish,
            op_kwargs={"parts": plan.output},
            outlets=[dags.predictions_asset(model)],
            trigger_rule=TriggerRule.ALL_DONE_MIN_ONE_SUCCESS,  # a part keeps back its own interval
        )
        prune = dags.verb(model, prediction_tasks.prune)
        score >> publish >> [dags.verb(model, monitoring_tasks.monitor), prune]
        # On its own: neither holds the predictions up, nor is held up by them.
        dags.verb(model, prediction_tasks.answer)
