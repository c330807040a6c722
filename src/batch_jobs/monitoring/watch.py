"""The watch: it hears silence, which nothing that has stopped can tell of itself.

It runs by itself and asks the warehouse's ledger, Airflow's REST API, the prediction API and the
disks of its machine. A problem is told when two looks have found it, and is over when a look that
could judge it does not find it. It delivers what is to be told itself, so Airflow need not live.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from threading import Event
from typing import Any, Protocol

from batch_jobs import catalog, clock
from batch_jobs.alerts.problems import Problem
from batch_jobs.database.transactions import first_words
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.interval import parse_time
from batch_jobs.monitoring.watching import facts as found_out
from batch_jobs.monitoring.watching import ledger, signs, surroundings
from batch_jobs.monitoring.watching.airflow import AirflowApi
from batch_jobs.monitoring.watching.facts import Airflow, Facts
from batch_jobs.monitoring.watching.judgement import Judgement, Key, judge
from batch_jobs.monitoring.watching.questions import UnansweredError, ask, begin
from batch_jobs.redaction import first_line
from batch_jobs.settings import Settings, WatchSettings

log = logging.getLogger(__name__)

EVERY = timedelta(minutes=1)
# Between the two looks that a problem needs.
SURE_AFTER = timedelta(seconds=20)
ASKING_SECONDS = 60.0  # the warehouse, or Airflow, all questions together
# A clock that went back and stays there is right.
BELIEVED_AFTER = timedelta(hours=1)
CLOCK_STEP = timedelta(seconds=5)


class Teller(Protocol):
    """Who keeps the incidents and tells of them."""

    def report(self, problem: Problem, since: datetime, now: datetime, *, alone: bool) -> None:
        """Open the incident of a problem that was first found at a moment, or count it in there.

        Alone, it does without the warehouse, which is away or takes nothing.
        """

    def resolve(self, keys: Sequence[Key], now: datetime) -> None:
        """End incidents, by model and cause."""

    def open(self) -> Mapping[Key, str]:
        """The incidents that last, and what each is about, as far as the warehouse knows."""

    def waiting(self, now: datetime) -> tuple[int, str]:
        """How many messages wait for longer than they should, and why."""

    def deliver(self, now: datetime) -> str | None:
        """Deliver what is to be told; what was wrong if that was not possible."""


@dataclass(frozen=True)
class Look:
    """What came of a look.

    Attributes:
        at: when it began.
        problems: that are told, or would be if they were not told already.
        unsure: problems that were found for the first time.
        over: what is over since the look before.
        failed: what the watch could not do; empty if it could do all of its work.
    """

    at: datetime
    problems: Sequence[Problem]
    unsure: Sequence[Problem]
    over: Sequence[Key]
    failed: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "at": self.at.isoformat(),
            "problems": [vars(problem) for problem in self.problems],
            "unsure": [vars(problem) for problem in self.unsure],
            "over": [{"model": model, "cause": cause} for model, cause in self.over],
            "failed": list(self.failed),
        }


class Watch:
    """Looks again and again.

    Args:
        settings: of the deployment.
        watching: whom to ask beside the warehouse.
        teller: who keeps the incidents, of a warehouse.
        every: from one look to the next; None if nobody here knows.

    Raises:
        ConfigurationError: the warehouse's URL is none.
    """

    def __init__(
        self,
        settings: Settings,
        watching: WatchSettings,
        teller: Callable[[Warehouse], Teller],
        every: timedelta | None = EVERY,
    ) -> None:
        self._settings, self._watching, self._every = settings, watching, every
        self._warehouse = Warehouse(settings.warehouse)
        self._teller = teller(self._warehouse)
        self._files = ledger.Files(settings)
        self._airflow = AirflowApi(watching) if watching.airflow_url else None
        self._memory: dict[str, Any] = {}
        self._told: set[Key] = set()
        self._open: frozenset[Key] = frozenset()

    def look(self) -> Look:
        """Look once: ask everybody at once, judge, tell, and say that this was done."""
        now = clock.now()
        facts = self._ask(now)
        judgement = judge(facts)
        sure, unsure = self._sorted(judgement, now)
        can_write = not (facts.warehouse.away or facts.warehouse.locked)
        if not facts.warehouse.away:
            self._open = frozenset(facts.warehouse.open)
        # Without the warehouse nobody remembers what was told already, but for what was open there.
        new = [each for each in sure if (each.model, each.cause) not in self._open]
        failed = [*judgement.failed, *self._tell(sure if can_write else new, now, not can_write)]
        over = self._over(facts, judgement) if can_write else []
        failed += self._attempt(partial(self._teller.resolve, over, now)) if over else []
        undelivered = self._teller_says(now) if can_write else None
        failed += [undelivered] if undelivered else []
        look = Look(now, sure, unsure, over, failed)
        if can_write:
            failed += self._attempt(self._remember(look))
        self._ping(is_good=not failed)
        return look

    def run(self, stop: Event, told: Callable[[Look], None]) -> None:
        """Look until told to stop; sooner again after a look that is not sure of what it found."""
        every = (self._every or EVERY).total_seconds()
        while not stop.is_set():
            began = time.monotonic()
            look = self.look()
            told(look)
            pause = min(every, SURE_AFTER.total_seconds()) if look.unsure else every
            stop.wait(max(1.0, pause - (time.monotonic() - began)))

    # -- asking

    def _ask(self, now: datetime) -> Facts:
        """Everybody at once, each for so long and no longer."""
        self._files.refresh()
        warehouse = begin(partial(self._ask_warehouse, now))
        airflow = begin(self._ask_airflow)
        told = warehouse.result(ASKING_SECONDS)
        if isinstance(told, found_out.Warehouse):
            asked = told
        else:
            asked = found_out.Warehouse(str(self._warehouse), away=told)
        services = begin(lambda: list(surroundings.services(self._watching, self._memory, now)))
        disks = begin(lambda: list(surroundings.disks(self._settings, self._memory, now)))
        state = airflow.result(ASKING_SECONDS)
        if isinstance(state, str):
            state = Airflow(str(self._watching.airflow_url), away=state)
        return Facts(
            now,
            asked,
            airflow=state,
            services=_list(services.result(ASKING_SECONDS)),
            disks=_list(disks.result(ASKING_SECONDS)),
            behind=self._behind(now),
        )

    def _ask_warehouse(self, now: datetime) -> found_out.Warehouse:
        warehouse, locked = self._warehouse, None
        warehouse.require_schema()
        _, remembered = signs.recall(warehouse)
        self._memory = {**remembered, **self._memory}
        try:
            signs.beat(warehouse, now, self._every)
        except Exception as error:  # noqa: BLE001 - a lock, a full disk, a standby
            locked = first_words(error)
        count, why = self._teller.waiting(now)
        return found_out.Warehouse(
            shown=str(warehouse),
            locked=locked,
            models=ledger.models(self._settings, warehouse, now),
            undelivered=count,
            undelivered_why=why,
            open=self._teller.open(),
        )

    def _ask_airflow(self) -> Airflow | None:
        if self._airflow is None:
            return None
        approving = []
        for name in catalog.model_names(self._settings.models):
            with suppress(BatchJobsError):
                if catalog.load_model(name, self._settings.models).gate.approval:
                    approving.append(name)
        return self._airflow.state(approving)

    def _behind(self, now: datetime) -> timedelta:
        """How far the clock went back; one that stays there is believed."""
        latest = parse_time(self._memory.get("latest") or now.isoformat())
        if now >= latest - CLOCK_STEP:
            self._memory |= {"latest": max(now, latest).isoformat(), "went_back": None}
            return timedelta()
        went_back = parse_time(self._memory.get("went_back") or now.isoformat())
        if not timedelta() <= now - went_back < BELIEVED_AFTER:
            self._memory |= {"latest": now.isoformat(), "went_back": None}
            return timedelta()
        self._memory["went_back"] = went_back.isoformat()
        return latest - now

    # -- telling

    def _sorted(self, judgement: Judgement, now: datetime) -> tuple[list[Problem], list[Problem]]:
        """Roots that two looks have found, and those that are new; echoes are neither."""
        before: Mapping[str, str] = self._memory.get("seen") or {}
        seen: dict[str, str] = {}
        sure: list[Problem] = []
        unsure: list[Problem] = []
        for problem in judgement.problems:
            since = min(parse_time(before.get(_name(problem)) or now.isoformat()), now)
            seen[_name(problem)] = since.isoformat()
            if (problem.model, problem.cause) not in judgement.echoes:
                (sure if now - since >= SURE_AFTER else unsure).append(problem)
        self._memory["seen"] = seen
        return sure, unsure

    def _tell(self, problems: Sequence[Problem], now: datetime, alone: bool) -> list[str]:  # noqa: FBT001
        failed = []
        for problem in problems:
            since = parse_time(self._memory["seen"][_name(problem)])
            failed += self._attempt(partial(self._teller.report, problem, since, now, alone=alone))
            self._told.add((problem.model, problem.cause))
        return failed

    def _over(self, facts: Facts, judgement: Judgement) -> list[Key]:
        """What lasted until now and is not found any more by who could judge it."""
        found = {(problem.model, problem.cause) for problem in judgement.problems}
        over = [
            key
            for key in sorted({*facts.warehouse.open, *self._told}, key=str)
            if key not in found and judgement.is_over(key[1])
        ]
        self._told.difference_update(over)
        return over

    def _teller_says(self, now: datetime) -> str | None:
        try:
            return self._teller.deliver(now)
        except Exception as error:  # noqa: BLE001 - a channel may raise anything
            return first_line(error, self._watching.secrets)

    def _remember(self, look: Look) -> Callable[[], None]:
        said = "; ".join(look.failed) or None
        return partial(signs.remember, self._warehouse, len(look.problems), self._memory, said)

    def _attempt(self, act: Callable[[], object]) -> list[str]:
        """Do it; what was wrong if that failed."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - one thing that fails stops no other
            said = first_line(error, self._watching.secrets)
            log.warning("%s", said)
            return [said]
        return []

    def _ping(self, *, is_good: bool) -> None:
        """Tell the dead man's switch that the watch lives and could do its work, or could not."""
        if self._watching.ping_url:
            url = self._watching.ping_url.rstrip("/")
            try:
                answer = ask(url if is_good else f"{url}/fail")
            except UnansweredError as error:
                log.warning("the dead man's switch was not reached: %s", error)
            else:
                if not answer.is_success:
                    log.warning("the dead man's switch answered %d", answer.status)


def _name(problem: Problem) -> str:
    return f"{problem.model or ''} {problem.cause}"


def _list(told: Any) -> list[Any]:
    return told if isinstance(told, list) else []
