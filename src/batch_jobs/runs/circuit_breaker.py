"""The circuit breaker: a complete run may still look so wrong that readers should not see it.

Small intervals are noisy, so a limit trips only where chance does not explain it: shares by the
lower end of Wilson's interval (Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953),
volumes by three standard deviations of a Poisson count. Intervals may be of any length, made by the
schedule or by hand, so what is compared is rows in a span of time and not rows of an interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from math import ceil, log, sqrt
from statistics import median

from batch_jobs.interval import Volume
from batch_jobs.model import Limits

# The one-sided 99 % of the normal distribution, and how many equal scores are no accident.
Z = 2.326
MANY = 100
DAY = timedelta(days=1)
YEAR = 365 * DAY.total_seconds()
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
    """A problem if all scores are the same; else None."""
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


def fullest(volumes: Sequence[Volume], length: timedelta) -> float | None:
    """How many rows the fullest span of a length had, as far as intervals of any length tell.

    A longer interval tells its mean, and shorter ones add up. Where they do not cover half of such
    a span, there is their rate, at the most that chance may have hidden. None if there is nothing.
    """
    shorter = [volume for volume in volumes if volume.length <= length]
    spans = list(_spans(shorter, length))
    known = [rows * (length / covered) for rows, covered in spans if 2 * covered >= length]
    known += [
        volume.rows * (length / volume.length) for volume in volumes if volume.length > length
    ]
    if known or not spans:
        return max(known, default=None)
    rows = sum(volume.rows for volume in shorter)
    covered = sum((volume.length for volume in shorter), timedelta())
    return _poisson_high(rows) * (length / covered)


def _spans(volumes: Sequence[Volume], length: timedelta) -> Iterator[tuple[int, timedelta]]:
    """The rows, and the time covered, of the intervals in each span that begins with one."""
    apart: list[Volume] = []
    for volume in sorted(volumes):
        if not apart or volume.start >= apart[-1].end:
            apart.append(volume)
    rows, covered, behind = 0, timedelta(), 0
    for first in apart:
        while behind < len(apart) and apart[behind].end <= first.start + length:
            rows, covered = rows + apart[behind].rows, covered + apart[behind].length
            behind += 1
        yield rows, covered
        rows, covered = rows - first.rows, covered - first.length


def _poisson_high(count: int) -> float:
    """The upper end of a Poisson count's mean, as Wilson's interval has it for a share."""
    return count + Z * Z / 2 + Z * sqrt(count + Z * Z / 4)


def surge(limits: Limits, read: int, most: float | None) -> str | None:
    """What is wrong with an interval of so many rows, where one as long had `most` at the most."""
    if most is None or read < MANY or read <= limits.surge * max(most, 1):
        return None
    return (
        f"{read:,} rows were read where no interval as long had more than {most:,.0f} in the last "
        f"four weeks, over {limits.surge:g} times as many"
    )


def silent_too_long(
    limits: Limits,
    volumes: Sequence[Volume],
    since: datetime,
    until: datetime,
    period: timedelta,
) -> str | None:
    """What is wrong with a source that gave no row for so long.

    Args:
        limits: what the model declares.
        volumes: what the last weeks had, in the order of their starts.
        since: when the last row came, as far as is known.
        until: the end of the interval that has none either.
        period: of the schedule; a single interval without rows is no outage.
    """
    silence = until - since
    before = [volume for volume in volumes if volume.end <= since]
    # Longer intervals with rows do not tell whether they had such a silence.
    known = sum((each.length for each in before if each.length <= 2 * silence), timedelta())
    if limits.silence is not None:
        limit, learnt = limits.silence, "what the model file allows"
    elif silence <= period or known < LEARNT_FROM:
        return None
    else:
        days = f"of the last {known.days} days"
        limit, learnt = max(
            (2 * longest_silence(before), f"twice the longest silence {days}"),
            (period, "one interval of the schedule"),
            (
                _by_chance(before, since, until),
                f"by chance less than once a year at the rate {days}",
            ),
        )
    if silence <= limit:
        return None
    return f"the source gave no row for {silence}, longer than {limit} ({learnt}), and none since"


def longest_silence(volumes: Sequence[Volume]) -> timedelta:
    """The longest time without rows that came to an end, as far as it was looked at throughout.

    Args:
        volumes: in the order of their starts.
    """
    longest = quiet = timedelta()
    reached = None
    for start, end, rows in volumes:
        if reached is None or start > reached:
            quiet, reached = timedelta(), start
        if rows:
            longest, quiet = max(longest, quiet), timedelta()
        elif end > reached:
            quiet += end - reached
        reached = max(reached, end)
    return longest


def _by_chance(volumes: Sequence[Volume], since: datetime, until: datetime) -> timedelta:
    """How long rows that come one by one, at random, stay away once a year; a day at the most.

    At the lowest rate of the weeks as a whole, of these hours on each of their days, and of these
    hours on this day of the week: a gap beyond `g` comes `rate * year * exp(-rate * g)` times.
    """
    alike = [_within(volumes, since, until, step) for step in (DAY, 7 * DAY)]
    whole = sum(volume.rows for volume in volumes), sum((v.length for v in volumes), timedelta())
    rates = [rows / covered.total_seconds() for rows, covered in (whole, *alike) if rows]
    gaps = [log(rate * YEAR) / rate for rate in rates if rate * YEAR > 1]
    return min(timedelta(minutes=ceil(max(gaps, default=YEAR) / 60)), DAY)


def _within(
    volumes: Sequence[Volume], since: datetime, until: datetime, step: timedelta
) -> tuple[float, timedelta]:
    """The rows, and the time covered, of a span's like so many days before it, and before that."""
    rows, covered = 0.0, timedelta()
    if until - since > DAY:
        return rows, covered
    for volume in volumes:
        back = max(-(-(since - volume.end) // step), 1) * step
        common = min(volume.end, until - back) - max(volume.start, since - back)
        if common > timedelta():
            rows, covered = rows + volume.rows * (common / volume.length), covered + common
    return rows, covered
