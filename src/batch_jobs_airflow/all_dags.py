"""Every DAG of every model, for the one file that `batch-jobs dags` writes."""

from batch_jobs_airflow import monitor_dag, predict_dag, rollback_dag, train_dag
from batch_jobs_airflow.dags import make_dags


def make_all_dags() -> None:
    """Make the DAGs `train`, `predict`, `monitor` and `rollback` of every model."""
    make_dags(train_dag.make_dag, predict_dag.make_dag, monitor_dag.make_dag, rollback_dag.make_dag)
