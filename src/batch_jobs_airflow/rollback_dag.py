"""Make an earlier version of a model the champion again; started by hand only.

**What it does.** `rollback` proves that the earlier version loads, verifies and answers its golden
rows, makes it the champion, and scores again, interval by interval, what readers still see of the
version that is left. Who asked for it and why is recorded in `promotions`.

**If it fails.** If the champion had not moved yet, nothing has changed; the log says what is wrong
with the version. If it had, readers see some intervals of either version: mend the cause and clear
`rollback`, which goes on where it stopped.

**By hand.** *Trigger*, with a *version* of the table `model_versions` and a *reason*.
"""

from airflow.sdk import DAG

from batch_jobs.model import BatchModel
from batch_jobs_airflow import dags, forms, training_tasks


def make_dag(model: BatchModel) -> None:
    """Make `rollback_<model>`."""
    with DAG(
        dag_id=f"rollback_{model.name}",
        description=f"Make an earlier version of {model.name} the champion again",
        schedule=None,
        is_paused_upon_creation=False,  # nothing starts it but a person
        dagrun_timeout=model.train_timeout,
        params=forms.ROLLBACK_PARAMS,
        **dags.dag_settings(model, __doc__, model.train_placement),
    ):
        dags.verb(model, training_tasks.rollback, outlets=[dags.champion_asset(model)])
