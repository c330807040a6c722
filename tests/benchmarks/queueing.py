"""Many models that share slots: when is each interval published? Simulated, task by task.

Each tick of a model is a chain of tasks, each of which takes a slot for its time: plan, its parts,
publish, then monitor and prune, and beside them answer. Who waits longest goes first, as in Airflow
among tasks of one priority. A large model has many parts that take long.

What a task takes, and the scheduler between two of them, is near what `./run bench tick` measured
of a tick of 1,000 rows on PostgreSQL, alone on two busy processors: 7.6 s until its last task was
done, where these give 7.5 s. A slot has a processor when it needs one; the scheduler keeps up.
"""

import heapq
from dataclasses import dataclass
from itertools import count

TICK = 600.0
HOURS = 6.0
# Seconds of a slot, and of the scheduler between two tasks.
SHORT, PART, HAND_OFF = 1.0, 2.5, 0.5
LARGE_PART, LARGE_PARTS = 120.0, 16


@dataclass(frozen=True)
class Fleet:
    """What shares the slots.

    Attributes:
        models: how many, each with a tick every ten minutes.
        slots: how many tasks run at once.
        spread: whether their ticks are spread over the ten minutes, and not all at once.
        large: how many of the models are large, with a tick every hour.
        pooled: how many slots the parts of large models have, in a pool; 0 for all of them.
    """

    models: int
    slots: int
    spread: bool = False
    large: int = 0
    pooled: int = 0


@dataclass(frozen=True)
class Found:
    """Seconds from the end of an interval to its publication, of models that are not large."""

    p50: float
    p95: float
    worst: float
    busy: float
    keeps_up: bool


@dataclass
class _Tick:
    """One interval of one model."""

    due: float
    is_large: bool
    left: int  # parts that are not scored yet


def simulate(fleet):
    """Live through six hours of a fleet."""
    order = count()
    events, waiting, waiting_for_pool = [], [], []
    free, pool = fleet.slots, fleet.pooled
    delays, work, now = [], 0.0, 0.0

    def happens(at, what, kind, tick):
        heapq.heappush(events, (at, next(order), what, kind, tick))

    for due, is_large, parts in _due(fleet):
        tick = _Tick(due, is_large, parts)
        for kind in ("plan", "answer"):
            happens(due + HAND_OFF, "ready", kind, tick)
    while events:
        now, number, what, kind, tick = heapq.heappop(events)
        if what == "ready":
            is_pooled = fleet.pooled and kind == "score" and tick.is_large
            heapq.heappush(waiting_for_pool if is_pooled else waiting, (now, number, kind, tick))
        else:
            free += 1
            pool += kind == "score" and tick.is_large
            for after in _after(kind, tick):
                happens(now + HAND_OFF, "ready", after, tick)
            if kind == "publish" and not tick.is_large:
                delays.append(now - tick.due)
        while free and (waiting or (waiting_for_pool and pool)):
            lines = [waiting] * bool(waiting) + [waiting_for_pool] * bool(waiting_for_pool and pool)
            _, _, kind, tick = heapq.heappop(min(lines, key=lambda line: line[0][:2]))
            took = SHORT if kind != "score" else LARGE_PART if tick.is_large else PART
            free, work = free - 1, work + took
            pool -= kind == "score" and tick.is_large
            happens(now + took, "done", kind, tick)
    delays.sort()
    return Found(
        p50=delays[len(delays) // 2],
        p95=delays[int(len(delays) * 0.95)],
        worst=delays[-1],
        busy=work / (fleet.slots * max(now, HOURS * 3600)),  # what was late came after six hours
        keeps_up=delays[-1] < TICK,
    )


def _due(fleet):
    """When each tick is due, whether it is a large model's, and how many parts it has."""
    for number in range(fleet.models):
        is_large = number < fleet.large
        due = TICK * number / fleet.models if fleet.spread else 0.0
        while due < HOURS * 3600:
            yield due, is_large, LARGE_PARTS if is_large else 1
            due += 3600.0 if is_large else TICK


def _after(kind, tick):
    """The tasks that may begin once one has ended."""
    if kind == "plan":
        return ["score"] * tick.left
    if kind == "score":
        tick.left -= 1
        return [] if tick.left else ["publish"]
    return ["monitor", "prune"] if kind == "publish" else []
