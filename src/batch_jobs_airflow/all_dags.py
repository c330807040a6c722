"""Every DAG of every model, for the one file that `batch-jobs dags` writes."""

from batch_jobs_airflow import predict_dag, rollback_dag, train_dag
from batch_jobs_airflow.dags import make_dags


def make_all_dags() -> None:
    """Make `train_<model>`, `predict_<model>` and `rollback_<model>` of every model."""
    make_dags(train_dag.make_dag, predict_dag.make_dag, rollback_dag.make_dag)
