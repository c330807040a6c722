"""The glue between batch_jobs and Apache Airflow: DAGs, tasks, alerts and settings."""
