"""Registers the listener of batch_jobs_airflow where it is not installed as an entry point."""

from batch_jobs_airflow.listener import AlertListenerPlugin

__all__ = ["AlertListenerPlugin"]
