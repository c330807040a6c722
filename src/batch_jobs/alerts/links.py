"""The links of a message: to others' machines alone, and to the runbook."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

from batch_jobs.alerts.problems import Problem
from batch_jobs.alerts.runbooks import name_of
from batch_jobs.settings import AlertSettings


def linked(problem: Problem) -> Problem:
    """The problem with links that whoever reads of it elsewhere can open.

    The link to its runbook is there where a deployment says where they are.
    """
    found = {label: url for label, url in problem.links.items() if not is_of_this_machine(url)}
    base = AlertSettings.from_environ().runbooks
    return replace(
        problem, links=found | ({"Runbook": f"{base}#{name_of(problem.cause)}"} if base else {})
    )


def is_of_this_machine(url: str) -> bool:
    """Whether an address leads to the machine of whoever opens it."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return True
    return host in {"", "localhost", "::1", "0.0.0.0"} or host.startswith("127.")  # noqa: S104
