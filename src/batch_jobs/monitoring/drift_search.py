"""Look for drift: merge what was published, compare each day with training, keep what is found."""

from __future__ import annotations

from datetime import datetime, timedelta

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.model import BatchModel
from batch_jobs.monitoring import comparison, findings, folding, profiles
from batch_jobs.monitoring.findings import Finding
from batch_jobs.registry.references import Reference, reference_of
from batch_jobs.registry.versions import find_version
from batch_jobs.training.reference import block_offset

LOOKED_AT_AGAIN = timedelta(days=2)  # so that the newest day is told of each time


def look_for_drift(
    warehouse: Warehouse, model: BatchModel, now: datetime
) -> tuple[datetime | None, list[Finding], list[str]]:
    """Merge profiles, judge the days that were not, and keep what is found in them.

    Returns:
        The newest day judged, what was found in windows that end with it, and what could not be
        told.
    """
    names = _versions(warehouse, model.name)
    read = {each: reference_of(find_version(warehouse, model.name, each)) for each in names}
    references = {name: reference for name, reference in read.items() if reference is not None}
    layouts = {name: reference.layout for name, reference in references.items()}
    folding.fold(warehouse, model.name, layouts, block_offset(model), now)
    profiles.forget(warehouse, model.name, model.keep)
    since = profiles.unjudged_since(warehouse, model.name) or now
    since = min(since, now - LOOKED_AT_AGAIN)
    days: list[comparison.JudgedDay] = []
    notes = []
    for version, reference in references.items():
        if problem := comparison.too_short(reference):
            notes.append(f"{version}: {problem}")
            continue
        first = since - model.monitor.window
        read_days = profiles.days_of(warehouse, model.name, version, reference.layout, first, now)
        days += comparison.judged_days(model, version, reference, read_days)
    days.sort(key=lambda day: day.start)
    notes += _unknown(names, references, days)
    found: list[Finding] = []
    for window in comparison.windows(days, model.monitor.window, since):
        span = (window[0].start, window[-1].start + profiles.DAY)
        told = comparison.judge(model, window, references)
        findings.store(warehouse, model.name, [span], told, now)
        found += told
    profiles.mark_judged(warehouse, model.name, now)
    judged = days[-1].start if days else None
    newest = [each for each in found if judged and each.window_end == judged + profiles.DAY]
    return judged, newest, notes


@repeatable
def _versions(warehouse: Warehouse, model: str) -> list[str]:
    """The versions whose predictions were published, in the order of their names."""
    with warehouse.read() as connection:
        found = connection.scalars(
            text("""
                SELECT DISTINCT model_version FROM prediction_runs
                WHERE model = :model AND published_at IS NOT NULL ORDER BY model_version"""),
            {"model": model},
        )
        return list(found)


def _unknown(
    names: list[str], references: dict[str, Reference], days: list[comparison.JudgedDay]
) -> list[str]:
    """What could not be told of the versions that have published."""
    if not names:
        return ["nothing is published yet"]
    without = [name for name in names if name not in references]
    notes = []
    if without and without[-1] == names[-1]:
        notes.append(
            f"{without[-1]} has no profile of its training, which an older release made: drift is "
            f"told again from the next training on"
        )
    elif not days:
        notes.append("no whole day is published yet that could be compared with those of training")
    return notes
