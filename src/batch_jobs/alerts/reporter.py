"""Reports to the incidents if the warehouse answers, and otherwise to the spool and the channels.

    reporter = Reporter(settings.warehouse, channels.configured)
    reporter.report(Problem("dag-paused", "iris", "predict_iris is paused"), key="paused 27 Nov")
    reporter.resolve("iris", ["dag-paused"])
    reporter.flush()

Everything is bounded in time: a callback of Airflow has 20 seconds.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta

from batch_jobs import clock
from batch_jobs.alerts import causes, delivery, incident_words, incidents, outbox_messages, spooling
from batch_jobs.alerts.bounded import within
from batch_jobs.alerts.channels import Channel
from batch_jobs.alerts.incident_rows import redacted
from batch_jobs.alerts.links import linked
from batch_jobs.alerts.problems import Message, Problem, Severity
from batch_jobs.alerts.spool import Spool
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError
from batch_jobs.redaction import first_line

log = logging.getLogger(__name__)

COMPOSING_SECONDS = 8.0
LOOKING_SECONDS = 3.0
SENDING_SECONDS = 7.0


class Reporter:
    """Where problems and messages of one deployment go.

    Args:
        warehouse: where the incidents are; or its URL.
        channels: finds the channels; called where something is to be sent.
        now: what time it is.
        environ: with where the spool is.
    """

    def __init__(
        self,
        warehouse: Warehouse | str,
        channels: Callable[[], Sequence[Channel]],
        now: Callable[[], datetime] = clock.now,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._warehouse, self._channels, self._now = warehouse, channels, now
        self.spool = Spool(_named(warehouse), environ)
        self._until = time.monotonic() + SENDING_SECONDS

    def report(
        self,
        problem: Problem,
        key: str,
        *,
        hold: timedelta = timedelta(),
        is_passing: bool = False,
    ) -> bool:
        """Report a problem; see `incidents.report`. Whether the warehouse took it."""
        at = self._now()

        def kept(warehouse: Warehouse) -> None:
            incidents.report(warehouse, problem, key, at, hold=hold, is_passing=is_passing)

        return self.put(kept, lambda error: self.report_alone(problem, key, at, error))

    def resolve(self, model: str | None, found: Collection[str]) -> bool:
        """End incidents; see `incidents.resolve`. While the warehouse is away, none is ended."""
        at = self._now()
        return self.put(lambda warehouse: incidents.resolve(warehouse, model, found, at), None)

    def write(self, message: Message, key: str, severity: Severity = "news") -> bool:
        """Send a message that is about no incident, once for each key."""
        at = self._now()

        def kept(warehouse: Warehouse) -> None:
            outbox_messages.write_alone(warehouse, key, message, at, severity)

        return self.put(kept, lambda _: self.write_alone(message, key, severity, at))

    def put(
        self,
        work: Callable[[Warehouse], object],
        alone: Callable[[BaseException], object] | None,
        seconds: float | None = None,
    ) -> bool:
        """Do something with the warehouse, what is in the spool before it; or do without.

        Args:
            work: what to do.
            alone: what to do if the warehouse cannot be used, by its error; None if it can then be
                done without.
            seconds: how long to wait for the warehouse instead of eight seconds.

        Returns:
            Whether the warehouse could be used; if not, what could be sent was sent already.
        """

        def prepared() -> None:
            warehouse = self._opened()
            if alone is not None:
                warehouse.ensure_schema()
            self._bring_over(warehouse)
            work(warehouse)

        try:
            within(COMPOSING_SECONDS if seconds is None else seconds, prepared)
        except Exception as error:  # noqa: BLE001 - whatever it is, the alert comes first
            log.warning("the outbox of alerts cannot be used: %s", first_line(error))
            if alone is not None:
                self._until = time.monotonic() + SENDING_SECONDS
                alone(error)
            return False
        return True

    def _opened(self) -> Warehouse:
        given = self._warehouse
        return given if isinstance(given, Warehouse) else Warehouse(given)

    def _bring_over(self, warehouse: Warehouse) -> None:
        if not self.spool.is_empty():
            warehouse.ensure_schema()
            spooling.bring_over(warehouse, self.spool)

    def report_alone(
        self, problem: Problem, key: str, at: datetime, error: BaseException | None = None
    ) -> None:
        """Report a problem, and that the warehouse is away, without the warehouse.

        Args:
            problem: what was met.
            key: names the occurrence.
            at: when.
            error: what the warehouse said, if that is to be told.
        """
        self._spool_problem(redacted(problem), key, at)
        if error is not None and problem.cause not in DEPLOYMENT_CAUSES:
            self.report_warehouse(f"{key}, the warehouse", at, error)

    def report_warehouse(self, key: str, at: datetime, error: BaseException) -> None:
        """Report that the warehouse is away, by what it said."""
        self._spool_problem(warehouse_problem(error), key, at)

    def write_alone(self, message: Message, key: str, severity: Severity, at: datetime) -> None:
        """Send a message without the warehouse."""
        channels = [each for each in self._channels() if severity in each.severities]
        event = self.spool.add(
            "message",
            at,
            key=key,
            severity=severity,
            line=message.line,
            text=message.text,
            blocks=[dict(block) for block in message.blocks],
            channels=[each.name for each in channels],
        )
        self._send_alone(message, channels, str(event["id"]) if event else None, at)

    def _spool_problem(self, problem: Problem, key: str, at: datetime) -> None:
        channels = [each for each in self._channels() if problem.severity in each.severities]
        names = [each.name for each in channels]

        def is_due(told: Sequence[datetime]) -> bool:
            gaps = incidents.REMINDERS
            return not told or at - told[-1] >= gaps[min(len(told), len(gaps)) - 1]

        met = self.spool.add_problem(linked(problem), key, at, names, is_due)
        if met is None:
            return
        if met.is_due:
            message = incident_words.told(met.incident, None, at, is_known=False)
            self._send_alone(message, channels, met.event if met.is_kept else None, at)
        elif not channels or not met.is_kept:
            log.warning("this alert waits to be sent: %s", incident_words.title_of(problem))

    def _send_alone(
        self, message: Message, channels: Sequence[Channel], event: str | None, at: datetime
    ) -> None:
        problems = [self._send_to(channel, message) for channel in channels]
        if channels and None in problems:
            return
        if event is not None:
            self.spool.add("untold", at, of=event)
        why = "; ".join(problem for problem in problems if problem) or "no channel"
        kept = "will be sent later" if event else "could not be kept"
        log.warning("this alert was not sent (%s) and %s: %s", why, kept, message.line)

    def _send_to(self, channel: Channel, message: Message) -> str | None:
        answer = within(SENDING_SECONDS + 1, lambda: channel.way.send(message, SENDING_SECONDS))
        return None if answer.is_unanswered else answer.problem  # it may have arrived

    def flush(self, seconds: float | None = None) -> None:
        """Bring over what is in the spool, and send what waits, for at most seven seconds.

        Args:
            seconds: for how long to send instead.
        """
        channels = self._channels()
        warehouse = self._opened()
        seconds = SENDING_SECONDS if seconds is None else seconds

        def look() -> bool:
            self._bring_over(warehouse)
            delivery.collect(warehouse, channels, self._now())
            return delivery.is_anything_waiting(warehouse, channels, self._now())

        if within(LOOKING_SECONDS, look):
            within(
                seconds + 1,
                lambda: delivery.send_waiting(warehouse, channels, seconds, self._now),
            )


def _named(warehouse: Warehouse | str) -> str:
    """The warehouse as all processes name it, whatever login and options they have."""
    try:
        return str(warehouse if isinstance(warehouse, Warehouse) else Warehouse(warehouse))
    except ConfigurationError:
        return str(warehouse)


DEPLOYMENT_CAUSES = frozenset(kind.name for kind in causes.KINDS if kind.scope == "deployment")


def warehouse_problem(error: BaseException) -> Problem:
    """That the warehouse is away, as the alerts themselves have met it."""
    if isinstance(error, TimeoutError):
        detail = f"the warehouse did not answer within {COMPOSING_SECONDS:g} s"
    else:
        detail = first_line(error)
    found = causes.classify(detail)
    kind = found.kind if found.kind.scope == "deployment" else causes.kind_of(causes.WAREHOUSE)
    return Problem(kind.name, None, kind.title, detail, next_step=kind.next_step)
