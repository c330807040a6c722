"""Performance on late labels: each past window judged by what readers saw, restated as labels come.

A window is computed from its rows each time, and never added to: whatever order outcomes come in,
its figures are those of one computation at the end. Only what may still change is read again:
windows whose labels are waited for. Of these, only those are computed whose rows, outcomes or
contenders have changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from batch_jobs.errors import InputError
from batch_jobs.interval import Interval, require_aware
from batch_jobs.model import BatchModel
from batch_jobs.monitoring import outcomes, performance_rows
from batch_jobs.monitoring.performance_rows import Figure, Grain, Window
from batch_jobs.monitoring.weeks_judge import WeeksJudge, hashed
from batch_jobs.redaction import first_line
from batch_jobs.registry.deployment import Deployment, Place, opened

if TYPE_CHECKING:
    import pandas as pd


DAY, WEEK = timedelta(days=1), timedelta(days=7)
MONDAY = timedelta(days=4)  # 1970-01-05 after the beginning of Unix time


@dataclass(frozen=True)
class Restated:
    """What came of looking at the past windows of a model.

    Attributes:
        model: whose.
        windows: that have other figures than before, oldest first.
        notes: what could not be told, or was odd, one sentence each.
    """

    model: str
    windows: tuple[Window, ...] = ()
    notes: tuple[str, ...] = ()


def update(place: Place, name: str, now: datetime) -> Restated:
    """Judge the past days and weeks of a model by the outcomes that are known by now.

    What cannot be read is a note, and stops nothing else.

    Args:
        place: the deployment, or its settings.
        name: of the model.
        now: nothing counts that became known or was published later.

    Raises:
        InputError: unknown model, or no warehouse.
        WarehouseUnavailableError: the database does not answer.
    """
    deployment, now = opened(place), require_aware(now)
    model = deployment.model(name)
    since = outcomes.readable_since(deployment.warehouse, name)
    if since is None:
        return Restated(name, notes=(f"{name} has published nothing yet that could be judged",))
    known = performance_rows.windows(deployment.warehouse, name)
    changed: list[Window] = []
    notes: list[str] = []
    for week in _weeks(since, now):
        open_windows = _open(week, since, now, known)
        if not open_windows:
            continue
        try:
            restated, told = _restate(deployment, model, week, open_windows, known, now)
        except InputError as error:
            notes.append(f"the week of {week.start:%Y-%m-%d} is not judged: {first_line(error)}")
            continue
        changed += restated
        notes += told
    return Restated(name, tuple(changed), tuple(dict.fromkeys(notes)))


def _weeks(since: datetime, now: datetime) -> Iterator[Interval]:
    """The weeks from a moment to now, which begin on Mondays; the last one may not have ended."""
    epoch = datetime(1970, 1, 1, tzinfo=now.tzinfo) + MONDAY
    start = epoch + (since - epoch) // WEEK * WEEK
    while start < now:
        yield Interval(start, start + WEEK)
        start += WEEK


def _open(
    week: Interval,
    since: datetime,
    now: datetime,
    known: Mapping[tuple[Grain, datetime], Window],
) -> list[tuple[Grain, Interval]]:
    """The windows of a week that have ended, of which all is there, and that are not final."""
    windows: list[tuple[Grain, Interval]] = [
        ("day", Interval(week.start + n * DAY, week.start + (n + 1) * DAY)) for n in range(7)
    ]
    windows.append(("week", week))

    def is_done(grain: Grain, window: Interval) -> bool:
        found = known.get((grain, window.start))
        # A clock that has run backwards restates nothing.
        return found is not None and (found.final or found.restated_at > now)

    return [
        (grain, window)
        for grain, window in windows
        if window.end <= now and window.end > since and not is_done(grain, window)
    ]


def _restate(
    deployment: Deployment,
    model: BatchModel,
    week: Interval,
    windows: Sequence[tuple[Grain, Interval]],
    known: Mapping[tuple[Grain, datetime], Window],
    now: datetime,
) -> tuple[list[Window], list[str]]:
    """Judge the windows of a week; those that have changed, and notes."""
    warehouse = deployment.warehouse
    rows = outcomes.read_week(warehouse, model, week)
    if rows.empty:
        return [], []
    judge = WeeksJudge(deployment, model, rows, week, now)
    stored: list[tuple[Window, list[Figure] | None]] = []
    notes = []
    for grain, interval in windows:
        seen = outcomes.seen(rows, model, interval, now)
        if not len(seen.rows) and not seen.late:
            continue
        before = known.get((grain, interval.start))
        window = _window(model, grain, interval, seen, judge.digest(seen.rows), now)
        notes += _odd(model, window, before, rows, interval)
        if before and before.digest == window.digest:
            if window.final:
                stored.append((window, None))
            continue
        stored.append((window, judge.figures(seen.rows, brief=grain == "day")))
    if stored:
        performance_rows.restate(warehouse, model.name, stored)
    restated = [window for window, figures in stored if figures is not None]
    return restated, notes + judge.notes


def _window(
    model: BatchModel,
    grain: Grain,
    interval: Interval,
    seen: outcomes.Seen,
    digest: str,
    now: datetime,
) -> Window:
    horizon = min(now, interval.end + model.monitor.performance.labels_within)
    return Window(
        grain=grain,
        start=interval.start,
        end=interval.end,
        row_count=len(seen.rows),
        label_count=int(seen.rows["known_at"].notna().sum()),
        late_count=seen.late,
        digest=digest,
        labels_until=horizon,
        labels_digest=_labels_digest(seen.rows, horizon),
        final=interval.end + model.monitor.performance.labels_within <= now,
        restated_at=now,
    )


def _labels_digest(rows: pd.DataFrame, until: datetime) -> str:
    from batch_jobs.database.columns import inferred, texts

    known = rows[rows["known_at"] <= until]
    label = texts(inferred(known["label"]))
    told = known[["entity_id", "interval_start"]].assign(label=label)
    return hashlib.sha256(hashed(told)).hexdigest()


def _odd(
    model: BatchModel,
    window: Window,
    before: Window | None,
    rows: pd.DataFrame,
    interval: Interval,
) -> list[str]:
    """What somebody should know of the labels of a week."""
    if window.grain != "week":
        return []
    week = f"the week of {window.start:%Y-%m-%d}"
    within = model.monitor.performance.labels_within
    found = []
    if window.final and window.row_count and not window.label_count:
        found.append(
            f"no outcome of {week} has become known within {within.days} days: does labels_query "
            f"give the keys of features_query, and known_at the moment at which each was known?"
        )
    if window.late_count and not window.row_count:
        found.append(
            f"all {window.late_count:,} predictions of {week} were published after their outcomes "
            f"were known: none of them counts"
        )
    if before is not None:
        then = outcomes.seen(rows, model, interval, before.labels_until).rows
        if _labels_digest(then, before.labels_until) != before.labels_digest:
            found.append(
                f"labels of {week} that were known by {before.labels_until:%Y-%m-%dT%H:%MZ} have "
                f"changed, or came later than their known_at says; its figures are restated"
            )
    return found
