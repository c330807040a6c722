"""Drift: which statistics of a day, or of a window of days, are unlike the days of training.

The days of training differ among themselves, by weather, seasons and holidays, and rows of one day
resemble each other: so limits come from how far single days of training lay from their middle, and
not from counts of rows. Where weekdays differ, a day is compared with its own weekday. A feature is
steady if its days are nearly alike (little intraclass correlation, see Kish, "Survey Sampling",
1965, 5.4): there small changes tell. In the others, days come in spells, and only large ones do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batch_jobs.monitoring.statistics import Statistic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST_BLOCKS = 7
FEWEST_WEEKS = 4  # of training, to compare weekdays with weekdays
STEADY = 0.02  # intraclass correlation: variance of the days' means in that of all rows
TYPICAL_BLOCKS = 55  # for which the limits are; of fewer, the farthest is nearer by chance
SHARED_BY_DAY = 0.5  # likewise: a day is then one observation
TELLS_WEEKDAY = 0.1  # spreads between the means of any two weekdays
STEADY_SLICE = 0.3  # spread of the logarithms of counts: those that vary more are not watched
FREE_ROWS = 3  # of a day: may lie beyond training's range or be new, whatever their share is
# A window is unusual that lies farther off than a + b times the farthest single day of training;
# for one day, and for the mean of several.
Limit = tuple[float, float]
LIMITS: Mapping[str, tuple[Limit, Limit]] = {
    "level": ((0.25, 3.3), (0.25, 1.3)),
    "spread": ((0.3, 2.6), (0.25, 0.95)),
    "shape": ((0.3, 3.7), (0.2, 2.3)),
    "nulls": ((0.1, 2.7), (0.025, 0.7)),
    "range": ((9.0, 0.0), (0.5, 0.0)),  # one day may lie beyond all that training saw
    "far": ((0.65, 0.0), (0.12, 0.0)),
    "hard range": ((0.01, 0.0), (0.01, 0.0)),
    "category": ((0.035, 5.8), (0.02, 1.2)),
    "unseen": ((0.015, 1.5), (0.0075, 1.0)),
    "relation level": ((0.6, 4.0), (0.6, 1.5)),
    "relation size": ((0.3, 3.4), (0.3, 1.0)),
    "labels": ((0.1, 1.6), (0.1, 0.6)),
    "slice": ((0.55, 3.0), (0.16, 0.85)),
    "volume": ((0.4, 2.0), (0.1, 0.3)),
    "rejected": ((0.02, 2.0), (0.01, 1.0)),
    "stuck": ((0.5, 0.0), (0.5, 0.0)),
}
LIMITS_OF_STEADY: Mapping[str, tuple[Limit, Limit]] = {
    "level": ((0.1, 5.6), (0.05, 1.0)),
    "spread": ((0.08, 2.7), (0.05, 0.5)),
    "shape": ((0.03, 2.6), (0.022, 0.9)),
    "range": ((0.003, 0.0), (0.003, 0.0)),
    "far": ((0.003, 0.0), (0.003, 0.0)),
}
# Beyond training's range by at least this share of it is far.
FAR = 0.25
MOST_OF_ONE_BIN = 0.5  # a number with such a bin may well have one value for a day


@dataclass(frozen=True, eq=False)
class Usual:
    """What the days of training were like.

    Attributes:
        names: of the statistics.
        middle: of each weekday, Monday first, shape (7, statistics).
        farthest: how far a day of training lay from that, shape (statistics,).
        limits: for one day and for several, shape (2, statistics).
        blocks: how many days there were.
    """

    names: Sequence[Statistic]
    middle: NDArray[np.float64]
    farthest: NDArray[np.float64]
    limits: NDArray[np.float64]
    blocks: int


def usual(
    names: Sequence[Statistic], values: NDArray[np.float64], weekdays: NDArray[np.int64]
) -> Usual:
    """What is usual, by the days of training.

    Args:
        names: of the statistics.
        values: of each block of training, shape (blocks, statistics).
        weekdays: of each block, 0 for Monday.
    """
    import numpy as np

    blocks = len(values)
    there = ~np.isnan(values)
    known = np.where(there, values, 0.0)
    mean = known.sum(axis=0) / np.maximum(there.sum(axis=0), 1)
    middle = np.tile(mean, (7, 1))
    plain = np.where(there, values - mean, 0.0)
    spread = np.sqrt((plain**2).sum(axis=0) / max(blocks - 1, 1))
    raw = farthest = np.abs(plain).max(axis=0)
    steady_spread = spread
    if np.bincount(weekdays, minlength=7).min() >= FEWEST_WEEKS:
        own = np.stack([_mean(values[weekdays == day], mean) for day in range(7)])
        left = np.where(there, values - own[weekdays], 0.0)
        own_spread = np.sqrt((left**2).sum(axis=0) / (blocks - 7))
        tells = own_spread < 0.7 * spread
        middle = np.where(tells, own, middle)
        weeks = blocks / 7
        own_farthest = np.abs(left).max(axis=0) * np.sqrt(weeks / (weeks - 1))
        farthest = np.where(tells, own_farthest, farthest)
        steady_spread = np.where(tells, own_spread, spread)
    of_days = _of_days(names, spread, middle)
    middle, farthest = (np.where(of_days, *both) for both in ((mean, middle), (raw, farthest)))
    more = (1 + 10 / blocks) / (1 + 10 / TYPICAL_BLOCKS)
    steady_spread = np.where(of_days, spread, steady_spread)
    limits = _limits(names, mean, steady_spread, farthest * max(more, 1.0))
    return Usual(names, middle, farthest, limits, blocks)


def _mean(values: NDArray[np.float64], default: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    there = ~np.isnan(values)
    count = there.sum(axis=0)
    found: NDArray[np.float64] = np.where(
        count > 0, np.where(there, values, 0).sum(axis=0) / np.maximum(count, 1), default
    )
    return found


def _of_days(
    names: Sequence[Statistic], spread: NDArray[np.float64], middle: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which statistics are of a number that a whole day shares, such as whether it is a holiday.

    Such a day is one observation, and no weekday tells it, but if the number is that of the weekday
    itself, so that no two weekdays have the same.
    """
    import numpy as np

    shared = {
        each.feature
        for place, each in enumerate(names)
        if each.kind == "level"
        and spread[place] ** 2 > SHARED_BY_DAY
        and np.diff(np.sort(middle[:, place])).min() < TELLS_WEEKDAY
    }
    return np.array([each.feature in shared for each in names])


def _limits(
    names: Sequence[Statistic],
    mean: NDArray[np.float64],
    spread: NDArray[np.float64],
    farthest: NDArray[np.float64],
) -> NDArray[np.float64]:
    """How far one day and several days may lie from the middle, shape (2, statistics)."""
    import numpy as np

    steady = {
        each.feature
        for place, each in enumerate(names)
        if each.kind == "level" and spread[place] ** 2 < STEADY and each.feature != "score"
    }
    fullest: dict[str, float] = {}
    for place, each in enumerate(names):
        if each.kind == "shape":
            fullest[each.feature] = max(fullest.get(each.feature, 0.0), float(mean[place]))
    limits = np.empty((2, len(names)))
    for place, each in enumerate(names):
        kind = _kind(each)
        chosen = LIMITS[kind]
        if each.feature in steady and each.kind != "relation":
            chosen = LIMITS_OF_STEADY.get(kind, chosen)
        for row, (least, times) in enumerate(chosen):
            limits[row, place] = least + times * farthest[place]
        may_stay = fullest.get(each.feature, 1.0) >= MOST_OF_ONE_BIN or mean[place] > 0
        varies = kind == "slice" and spread[place] > STEADY_SLICE
        if (kind == "stuck" and may_stay) or varies:
            limits[:, place] = np.inf
    return limits


def _kind(each: Statistic) -> str:
    if each.kind == "range":
        if each.is_hard:
            return "hard range"
        return "far" if float(each.item.partition(" by ")[2] or 0) >= FAR else "range"
    return f"relation {each.item}" if each.kind == "relation" else each.kind


@dataclass(frozen=True)
class Unusual:
    """One statistic that is beyond its limit.

    Attributes:
        statistic: which.
        usual: the middle of training.
        value: what it is.
        limit: how far off it may be.
        severity: how far off it is, in limits.
    """

    statistic: Statistic
    usual: float
    value: float
    limit: float
    severity: float


def unusual(
    days: Sequence[tuple[Usual, NDArray[np.float64], int, float]], times: float = 1.0
) -> list[Unusual]:
    """What is unlike training in a window of days, the worst first.

    Args:
        days: of each, oldest first, what is usual for the version that published it, its
            statistics, its weekday and how many rows it has. Each is held against its own version,
            and a window by the mean of how far its days lie off in their limits.
        times: what all limits are multiplied by.
    """
    import numpy as np

    row = 0 if len(days) == 1 else 1
    found: dict[Statistic, list[tuple[float, ...]]] = {}
    for known, values, weekday, rows in days:
        limits = times * np.maximum(known.limits[row], _free(known, rows))
        off = values - known.middle[weekday]
        with np.errstate(invalid="ignore"):
            ratio = off / limits
        for place in np.flatnonzero(~np.isnan(ratio)).tolist():
            figures = (known.middle[weekday, place], values[place], limits[place], ratio[place])
            found.setdefault(known.names[place], []).append(tuple(map(float, figures)))
    least = len(days) // 2 + 1
    told = []
    for statistic, several in found.items():
        if len(several) < least:
            continue
        usual_, value, limit, severity = np.mean(several, axis=0).tolist()
        if abs(severity) > 1:
            told.append(Unusual(statistic, usual_, value, limit, abs(severity)))
    return sorted(told, key=lambda each: -each.severity)


def _free(known: Usual, rows: float) -> NDArray[np.float64]:
    """What a few rows may add to the share of those that training never saw."""
    import numpy as np

    rare = [each.kind in {"range", "unseen", "rejected"} for each in known.names]
    return np.where(rare, FREE_ROWS / max(rows, 1.0), 0.0)


def roots(found: Sequence[Unusual]) -> list[Unusual]:
    """Of what is unusual, what a person should read: one line a cause, and not its echoes.

    Args:
        found: the worst first.
    """
    kept: list[Unusual] = []
    for each in found:
        statistic = each.statistic
        if statistic.kind != "relation" and not _is_echo(statistic, found):
            same = [k for k in kept if k.statistic.feature == statistic.feature]
            if all(k.statistic.kind != statistic.kind for k in same) or statistic.kind in {
                "category",
                "slice",
                "labels",
            }:
                kept.append(each)
    direct = {k.statistic.feature for k in kept} - {"score", "label", "rows"}
    related = [each for each in found if each.statistic.kind == "relation"]
    if related and not direct:
        kept.append(related[0])
    return sorted(kept, key=lambda each: -each.severity)


def _is_echo(statistic: Statistic, found: Sequence[Unusual]) -> bool:
    """Whether something else that was found says the same thing better."""
    better = {
        "level": {"stuck", "range"},
        "spread": {"stuck", "range", "level"},
        "shape": {"stuck", "range", "level", "spread", "nulls"},
        "category": {"unseen", "nulls"},
        "slice": {"volume"},
    }.get(statistic.kind, set())
    feature = "rows" if statistic.kind == "slice" else statistic.feature
    return any(o.statistic.kind in better and o.statistic.feature == feature for o in found)
