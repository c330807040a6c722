"""The DAG `monitor_<model>` of each model; what it does is told in batch_jobs_airflow."""

from batch_jobs_airflow import monitor_dag
from batch_jobs_airflow.dags import make_dags

make_dags(monitor_dag.make_dag)
