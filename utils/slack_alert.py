"""Slack: every failure is told once, or kept until it can be; see `batch_jobs_airflow.alerts`."""

from batch_jobs_airflow.alerts import (
    fail_alert,
    flush_alerts,
    record_error,
    recovery_alert,
    send_message,
    success_alert,
)

__all__ = [
    "fail_alert",
    "flush_alerts",
    "record_error",
    "recovery_alert",
    "send_message",
    "success_alert",
]
