"""Train, evaluate and promote each model, once a week and, if its file says so, when it drifts.

**What it does.** `train` learns a challenger from what was known at the end of the
data interval, evaluates it on the newest labelled rows and registers it; `promote` makes it the
champion unless the gate says that it is worse. Where the model file asks for them, `evidence`
looks whether a training that monitoring asked for is due, and `approve` waits for a person's word.
The predictions go on with the old champion meanwhile, and afterwards if anything fails.

**If it fails.** Nothing that readers see has changed. The last line of the failed task's log says
what was wrong and what would be right; the command in the log of `train` can be pasted into a
shell. Mend the cause, then clear the failed task. `promote` *skipped* is no failure: its log has
the reason of the gate or of the person. `evidence` *skipped* means that the model is fresh enough.

**By hand.** *Trigger* trains as of its logical date, which the form fills in with now; a data
interval that you give as of its end. `approve` waits under *Required Actions* for *Approve* or
*Reject*; once its time is over the champion stays.
"""

from functools import partial

from airflow.sdk import DAG, chain

from batch_jobs.model import BatchModel
from batch_jobs_airflow import command, dags, training_tasks


def make_dag(model: BatchModel) -> None:
    """Make `train_<model>`."""
    with DAG(
        dag_id=f"train_{model.name}",
        description=f"Train, evaluate and promote {model.name}",
        schedule=dags.train_schedule(model),
        dagrun_timeout=dags.train_timeout(model),
        user_defined_macros={"as_of": partial(dags.as_of, model.train_schedule)},
        **dags.dag_settings(model, __doc__, model.train_placement),
    ):
        train = command.CommandOperator(
            task_id="train",
            execution_timeout=model.train_timeout if model.gate.approval else None,
            bash_command=f"batch-jobs train {model.name} --as-of {{{{ as_of(dag_run) }}}}",
        )
        promote = dags.verb(model, training_tasks.promote, outlets=[dags.champion_asset(model)])
        chain(*dags.before_training(model), train, *dags.before_promotion(model), promote)
