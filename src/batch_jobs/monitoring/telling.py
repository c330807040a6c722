"""The incidents of the watch: opened and ended in the warehouse, and delivered from here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from batch_jobs.alerts import incidents
from batch_jobs.alerts.problems import Problem
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.monitoring.watching.judgement import Key


class IncidentTeller:
    """Tells by the incidents of a warehouse; see `watch.Teller`.

    Args:
        warehouse: with the incidents and the outbox.
    """

    def __init__(self, warehouse: Warehouse) -> None:
        self._warehouse = warehouse

    def report(self, problem: Problem, since: datetime, now: datetime, *, alone: bool) -> None:
        """Open its incident, or count it in there: once an hour, however often the watch looks."""
        hours = (now - since) // timedelta(hours=1)
        key = f"watch {problem.model or ''} {problem.cause} {since.isoformat()} {hours}"
        if not alone:
            incidents.report(self._warehouse, problem, key, now)

    def resolve(self, keys: Sequence[Key], now: datetime) -> None:
        """End incidents, by model and cause; those of one model with one message."""
        causes: dict[str | None, list[str]] = defaultdict(list)
        for model, cause in keys:
            causes[model].append(cause)
        for model, ended in causes.items():
            incidents.resolve(self._warehouse, model, ended, now)

    def open(self) -> Mapping[Key, str]:
        """The incidents that last, and what each is about, as far as the warehouse knows."""
        problems = (each.problem for each in incidents.open_incidents(self._warehouse))
        return {(each.model, each.cause): each.subject or "" for each in problems}

    def waiting(self, now: datetime) -> tuple[int, str]:
        """How many messages wait for longer than they should, and why."""
        return 0, f"nothing waits at {now}"  # until it can be asked

    def deliver(self, now: datetime) -> str | None:
        """Deliver what is to be told; what was wrong if that was not possible."""
        incidents.tell_due(self._warehouse, now)
        return None
