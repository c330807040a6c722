"""Random faults in attempts that run beside each other, for a while; the seed tells which.

What a seed cannot fix is how the processes interleave: the same seed gives the same faults, and
may find another error.
"""

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field

from batch_jobs.registry import promotion
from batch_jobs.runs import jobs, overview
from tests.fault_models._rows import tick
from tests.support.faults import Attempt, Order, wait_for_an_end

SLOTS = 3  # attempts at once


@dataclass
class Tally:
    """What happened: `ends` by kind, and errors that are none of those that faults explain."""

    attempts: int = 0
    pauses: int = 0
    restarts: int = 0
    ends: Counter = field(default_factory=Counter)
    unexplained: Counter = field(default_factory=Counter)

    def __str__(self):
        ends = " ".join(f"{kind}={self.ends[kind]}" for kind in sorted(self.ends))
        return f"attempts={self.attempts} {ends} pauses={self.pauses} restarts={self.restarts}"

    def add(self, outcome):
        """Count the end of an attempt."""
        if outcome.code == -signal.SIGKILL:
            kind = "killed"
        elif outcome.code == 0:
            kind = "published"
        elif outcome.code == 3:
            kind = "fenced"
        elif outcome.error in EXPLAINED:
            kind = EXPLAINED[outcome.error]
        else:
            kind = "unexplained"
            self.unexplained[outcome.error, outcome.message[:300]] += 1
        self.ends[kind] += 1


# Told to fail; the server was restarted once too often.
EXPLAINED = {"BrokenError": "failed", "WarehouseUnavailableError": "unavailable"}


@dataclass
class _Running:
    attempt: Attempt
    model: str
    number: int
    order: Order | None
    wake_at: float | None = None  # if it was stopped


@dataclass
class Soak:
    """Random attempts with random faults.

    Args:
        act: what an attempt does: `act(model, number, force)` gives a function and its arguments.
        places: where it can be broken.
        models: which models it is done for.
        seed: of the faults.
        crash: crashes and restarts the server of the database, if it has one.
        actions: what is done at a place, as often as it is named.
        hits: the how many-th time there.
        pause: the shortest and the longest time that an attempt is stopped.
    """

    act: object
    places: tuple
    models: tuple
    seed: int
    crash: object = None
    actions: tuple = ("kill", "kill", "stop", "fail")
    hits: tuple = (1, 1, 2)
    pause: tuple = (0.05, 1)
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self):
        self._chance = random.Random(self.seed)
        self._running = []
        self.tried = dict.fromkeys(self.models, 1)  # the newest tick of each
        self._crash_at = None

    def run(self, seconds, enough=lambda: False):
        """Go on for so long, or until it is enough; all attempts have ended then."""
        end = time.monotonic() + seconds
        if self.crash:
            self._crash_at = time.monotonic() + self._chance.uniform(3, 6)
        try:
            while time.monotonic() < end and not enough():
                while len(self._running) < SLOTS:
                    self._running.append(self._start())
                self._disturb()
                wait_for_an_end([one.attempt for one in self._running], 0.02)
                self._reap()
                if self._crash_at and time.monotonic() > self._crash_at:
                    self.crash()
                    self.tally.restarts += 1
                    self._crash_at = time.monotonic() + self._chance.uniform(5, 15)
            while self._running:
                for one in self._running:
                    one.attempt.signal(signal.SIGCONT)
                wait_for_an_end([one.attempt for one in self._running], 0.02)
                self._reap()
        finally:
            for one in self._running:
                one.attempt.close()

    def _start(self):
        """An attempt at the newest tick, or (15 %) a new one at an older tick."""
        chance, model = self._chance, self._chance.choice(self.models)
        number = newest = self.tried[model]
        force = chance.random() < 0.15
        if force:
            number = chance.randint(max(newest - 60, 0), newest)
        order = None
        if chance.random() < 0.6:
            action, hit = chance.choice(self.actions), chance.choice(self.hits)
            order = Order(chance.choice(self.places), action, hit)
        function, *arguments = self.act(model, number, force)
        self.tally.attempts += 1
        return _Running(Attempt(function, *arguments, order=order), model, number, order)

    def _disturb(self):
        """Now and then kill or stop whoever runs, wherever it is; wake who has slept enough."""
        chance = self._chance.random()
        one = self._chance.choice(self._running)
        if chance < 0.01:
            one.attempt.signal(signal.SIGKILL)
        elif chance < 0.03:
            one.attempt.signal(signal.SIGSTOP)
            self._will_wake(one)
        for one in self._running:
            told = one.order is not None and one.order.action == "stop"
            if told and one.wake_at is None and one.attempt.has_reached(one.order.place):
                self._will_wake(one)
            if one.wake_at is not None and time.monotonic() > one.wake_at:
                one.attempt.signal(signal.SIGCONT)

    def _will_wake(self, one):
        one.wake_at = time.monotonic() + self._chance.uniform(*self.pause)
        self.tally.pauses += 1

    def _reap(self):
        for one in [one for one in self._running if one.attempt.ended()]:
            self._running.remove(one)
            outcome = one.attempt.result()
            self.tally.add(outcome)
            if outcome.code == 0 and one.number == self.tried[one.model]:
                self.tried[one.model] += 1


def predict(settings, model, number, force):
    """What the library does for a tick."""
    return jobs.predict(settings, model, tick(number), force=force)


def promote(settings, model, versions):
    """Let another version than the champion serve."""
    champion = overview.status(settings, model)[0]["model_version"]
    other = next(name for name in versions if name != champion)
    promotion.promote(settings, model, other, actor="tests", reason="for a change")
