"""The circuit breaker: a complete run may still look so wrong that readers should not see it.

Small intervals are noisy, so a limit trips only where chance does not explain it: shares by the
lower end of Wilson's interval (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953),
volumes by three standard deviations of a Poisson count.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from math import sqrt
from statistics import median

from batch_jobs.model import Limits

# The one-sided 99 % of the normal distribution, and how many equal scores are no accident.
Z = 2.326
MANY = 100
# Shorter than a week, a history does not know the source's weekends.
LEARNT_FROM = timedelta(days=7)


def too_many_rejected(limits: Limits, read: int, rejected: int) -> str | None:
    """What is wrong with the share of rejected rows, if anything is."""
    if not rejected or _wilson_low(rejected, read) <= limits.rejected:
        return None
    return (
        f"{rejected:,} of {read:,} rows were rejected, more than {limits.rejected:.0%} "
        f"(see rejected_rows for the reasons)"
    )


def _wilson_low(hits: int, trials: int) -> float:
    share, spread = hits / trials, Z * Z / trials
    margin = Z * sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return (share + spread / 2 - margin) / (1 + spread)


def constant_scores(limits: Limits, scored: int, scores: tuple[float, float] | None) -> str | None:
    """What is wrong with scores that are all the same, if that is."""
    if limits.constant_scores or scored < MANY or scores is None or scores[0] != scores[1]:
        return None
    return f"all {scored:,} rows got the same score {scores[0]!r}"


def odd_population(limits: Limits, read: int, earlier: Sequence[int]) -> str | None:
    """What is wrong with the size of a population, compared with that of the runs before it."""
    if not earlier:
        return None
    usual = median(earlier)
    low, high = (usual * factor for factor in limits.population)
    if low - 3 * sqrt(low) <= read <= high + 3 * sqrt(high):
        return None
    return (
        f"{read:,} rows were read where the last {len(earlier)} runs had {usual:,.0f}, not between "
        f"{limits.population[0]:g} and {limits.population[1]:g} times as many"
    )


def surge(limits: Limits, read: int, most: int | None) -> str | None:
    """What is wrong with an interval of so many rows, where `most` was the most until now."""
    if most is None or read < MANY or read <= limits.surge * max(most, 1):
        return None
    return (
        f"{read:,} rows were read where no interval of the last four weeks had more than {most:,}, "
        f"over {limits.surge:g} times as many"
    )


def silent_too_long(
    limits: Limits, silence: timedelta, longest: timedelta | None, known: timedelta
) -> str | None:
    """What is wrong with a source that gave no row for so long.

    Args:
        limits: what the model declares.
        silence: since the end of the last interval that had a row.
        longest: the longest silence before that one; None if there was none.
        known: how far the history goes back from which `longest` is known.
    """
    limit = limits.silence
    learnt = f"twice the longest silence of the last {known.days} days"
    if limit is None:
        if longest is None or known < LEARNT_FROM:
            return None
        limit = 2 * longest
    else:
        learnt = "what the model file allows"
    if silence <= limit:
        return None
    return f"the source gave no row for {silence}, longer than {limit} ({learnt}), and none since"
