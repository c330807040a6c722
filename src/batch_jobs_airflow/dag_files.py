"""DAG files that do not load: files with one error are one incident."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from batch_jobs_airflow.slack import utc_now

if TYPE_CHECKING:
    from batch_jobs.alerts.problems import Problem
    from batch_jobs.alerts.reporter import Reporter
    from batch_jobs.database.warehouse import Warehouse

APART = ", "


def report(reporter: Reporter, path: str, error: str, *, is_new: bool) -> bool:
    """Report a DAG file that does not load: once, and then counted once an hour.

    Args:
        reporter: to whom.
        path: the file.
        error: why it does not load, without secrets.
        is_new: whether the file loaded until now, so that its incidents before are over.

    Returns:
        Whether the warehouse took it.
    """
    from batch_jobs.alerts import incidents
    from batch_jobs.alerts.causes import of_dag_file

    at = utc_now()
    # A file is parsed every 30 seconds; once an hour is enough to count.
    occurrence = at.isoformat() if is_new else f"{at:%Y-%m-%dT%H}"
    cause = of_dag_file(error)
    key = f"import {path} {cause} {occurrence}"

    def put(warehouse: Warehouse) -> None:
        if is_new:
            alone_in = [
                incident.problem.cause
                for incident in incidents.open_incidents(warehouse)
                if incident.problem.subject == path
            ]
            incidents.resolve(warehouse, None, alone_in, at, is_told=False)
        known = [
            file
            for incident in incidents.open_incidents(warehouse)
            if incident.problem.cause == cause
            for file in (incident.problem.subject or "").split(APART)
        ]
        files = list(dict.fromkeys([*known, path]))
        incidents.report(warehouse, _problem(files, cause, error), key, at)

    def alone(failed: BaseException) -> None:
        if is_new:
            reporter.report_alone(_problem([path], cause, error), key, at, failed)

    return reporter.put(put, alone)


def resolve(warehouse: Warehouse, path: object, now: datetime) -> None:
    """End the incidents of a DAG file, of which a DAG has run."""
    from batch_jobs.alerts import incidents

    ended = [
        incident.problem.cause
        for incident in incidents.open_incidents(warehouse)
        if incident.problem.cause.startswith("dag-file/")
        if any(str(path).endswith(file) for file in (incident.problem.subject or "").split(APART))
    ]
    if ended:
        incidents.resolve(warehouse, None, ended, now)


def _problem(files: list[str], cause: str, error: str) -> Problem:
    from batch_jobs.alerts.problems import Problem

    names = [file.replace("\\", "/").rpartition("/")[2] for file in files]
    one = len(names) == 1
    return Problem(
        cause,
        None,
        f"DAG file {names[0]} does not load" if one else f"{len(names)} DAG files do not load",
        error,
        impact="Its DAGs do not run until it does." if one else "Nor do their DAGs run.",
        next_step="Mend the file, or what it imports; Airflow reads it again within a minute.",
        subject=APART.join(files),
        facts=tuple(files),
    )
