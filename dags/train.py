"""The DAG `train_<model>` of each model; what it does is told in batch_jobs_airflow."""

from batch_jobs_airflow import train_dag
from batch_jobs_airflow.dags import make_dags

make_dags(train_dag.make_dag)
