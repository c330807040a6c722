"""Airflow glue: what talks to Airflow and is no DAG."""
