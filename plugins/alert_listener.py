"""Registers the listener of batch_jobs_airflow where no installed package does so."""

from importlib.metadata import PackageNotFoundError, distribution


def _is_an_entry_point() -> bool:
    try:
        entry_points = distribution("batch-jobs").entry_points
    except PackageNotFoundError:  # it is on the PYTHONPATH only
        return False
    return bool(entry_points.select(group="airflow.plugins", name="batch_jobs_alerts"))


if not _is_an_entry_point():  # else Airflow would warn in every process that it has it already
    from batch_jobs_airflow.listener import AlertListenerPlugin

    __all__ = ["AlertListenerPlugin"]
