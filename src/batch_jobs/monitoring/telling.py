"""The incidents of the watch: opened and ended in the warehouse, and delivered from here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from batch_jobs.alerts import incidents, outbox_status
from batch_jobs.alerts.channels import Channel, configured
from batch_jobs.alerts.problems import Problem
from batch_jobs.alerts.reporter import Reporter
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.monitoring.watching.judgement import Key
from batch_jobs.monitoring.watching.words import capital, sentence

# Longer than a message should wait, and than Slack's own short troubles.
WAITS_TOO_LONG = timedelta(minutes=15)
DELIVERING_SECONDS = 20.0


class IncidentTeller:
    """Tells by the incidents of a warehouse, and without it where it is away; see `watch.Teller`.

    Args:
        warehouse: with the incidents and the outbox.
        channels: finds where messages go; by default those of the environment.
    """

    def __init__(
        self, warehouse: Warehouse, channels: Callable[[], Sequence[Channel]] = configured
    ) -> None:
        self._warehouse = warehouse
        self._reporter = Reporter(warehouse, channels)

    def report(self, problem: Problem, since: datetime, now: datetime, *, alone: bool) -> None:
        """Open its incident, or count it in there: once an hour, however often the watch looks."""
        hours = (now - since) // timedelta(hours=1)
        key = f"watch {problem.model or ''} {problem.cause} {since.isoformat()} {hours}"
        told = replace(
            problem,
            title=capital(problem.title),
            impact=problem.impact and sentence(problem.impact),
            next_step=problem.next_step and sentence(problem.next_step),
        )
        if alone:
            self._reporter.report_alone(told, key, now)
        else:
            self._reporter.report(told, key)

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
        late = [
            each
            for each in outbox_status.undelivered(self._warehouse, now)
            if each.channel and each.oldest and now - each.oldest > WAITS_TOO_LONG
        ]
        return sum(each.waiting for each in late), "; ".join(map(str, late))

    def deliver(self, now: datetime) -> str | None:
        """Deliver what is to be told; what was wrong if that was not possible."""
        self._reporter.flush(DELIVERING_SECONDS)
        late, why = self.waiting(now)
        return why if late else None
