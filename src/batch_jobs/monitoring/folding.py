"""Profiles of hours and days, merged from those of published runs.

Adding up is exact, so a span whose runs have changed is merged anew from all of them, in any order
and as often as one likes: of each interval, the run that was published last counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.scoring.profile_bytes import decoded, encoded, merged
from batch_jobs.scoring.profiles import Layout, Profile

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
GRAINS = {"hour": HOUR, "day": DAY}
# What is looked at though nothing was published since: a clock may have run backwards.
LOOKED_AT_ANYWAY = 8 * DAY
SLACK = HOUR  # a run may become visible after a later one, and another machine's clock be off
DAYS_AT_ONCE = 14
_INSERT = text("""
    INSERT INTO profiles (model, grain, span_start, model_version, runs, run_count, missing,
      covered, profile, folded_at)
    VALUES (:model, :grain, :start, :version, :runs, :run_count, :missing, :covered, :profile,
      :now)""")

Layouts = Mapping[str, Layout]


def fold(
    warehouse: Warehouse, model: str, layouts: Layouts, offset: timedelta, now: datetime
) -> int:
    """Merge the profiles of runs that were published since the last time; how many spans changed.

    Args:
        warehouse: where they are.
        model: whose.
        layouts: of its versions that have profiles.
        offset: at what time of the UTC day its days begin.
        now: when.
    """
    days = _changed(warehouse, model, offset)
    changed = 0
    for first in range(0, len(days), DAYS_AT_ONCE):
        some = days[first : first + DAYS_AT_ONCE]
        changed += _fold(warehouse, model, layouts, some, offset, now)
    return changed


@repeatable
def _changed(warehouse: Warehouse, model: str, offset: timedelta) -> list[datetime]:
    """The days in which a run was published since they were merged last, and the newest ones."""
    with warehouse.read() as connection:
        last = connection.scalar(
            text("SELECT max(folded_at) FROM profiles WHERE model = :model"), {"model": model}
        )
        newest = connection.scalar(
            text("""
                SELECT max(interval_start) FROM prediction_runs
                WHERE model = :model AND published_at IS NOT NULL"""),
            {"model": model},
        )
        if newest is None:
            return []
        since = loaded_time(last) - SLACK if last else datetime(1970, 1, 1, tzinfo=UTC)
        starts = connection.scalars(
            text("""
                SELECT interval_start FROM prediction_runs
                WHERE model = :model AND published_at >= :since
                UNION SELECT interval_start FROM prediction_runs
                WHERE model = :model AND interval_start >= :anyway
                  AND state IN ('published', 'retired')"""),
            {
                "model": model,
                "since": stored_time(since),
                "anyway": stored_time(loaded_time(newest) - LOOKED_AT_ANYWAY),
            },
        ).all()
        return sorted({_floor(loaded_time(start), "day", offset) for start in starts})


def _floor(moment: datetime, grain: str, offset: timedelta) -> datetime:
    own = (moment - offset).replace(minute=0, second=0, microsecond=0)
    return (own if grain == "hour" else own.replace(hour=0)) + offset


@repeatable
def _fold(
    warehouse: Warehouse,
    model: str,
    layouts: Layouts,
    days: Sequence[datetime],
    offset: timedelta,
    now: datetime,
) -> int:
    with warehouse.write() as connection:
        runs = connection.execute(
            text("""
                SELECT r.run_id, r.interval_start, r.interval_end, r.model_version, r.published_at
                FROM prediction_runs AS r
                WHERE r.model = :model AND r.interval_start >= :first AND r.interval_start < :last
                  AND r.published_at IS NOT NULL"""),
            _between(model, days[0], days[-1] + DAY),
        ).all()
        stored = {
            (row.grain, loaded_time(row.span_start), row.model_version): row.runs
            for row in connection.execute(
                text("""
                    SELECT grain, span_start, model_version, runs FROM profiles
                    WHERE model = :model AND span_start >= :first AND span_start < :last"""),
                _between(model, days[0], days[-1] + DAY),
            )
        }
        spans = _spans(_newest(runs), offset)
        due = {key: rows for key, rows in spans.items() if stored.get(key) != _digest(rows)}
        ids = sorted({row.run_id for rows in due.values() for row in rows})
        parts: dict[int, list[Any]] = {}
        for first in range(0, len(ids), 500):
            for row in connection.execute(
                text(f"""
                    SELECT run_id, rows_read, profile FROM run_parts
                    WHERE run_id IN ({", ".join(map(str, ids[first : first + 500]))})"""),  # noqa: S608
            ):
                parts.setdefault(row.run_id, []).append(row)
        found = {
            key: _merged(rows, parts, layouts.get(key[2]), GRAINS[key[0]])
            for key, rows in due.items()
        }
        # What has long lost the profiles of its runs stays as it was.
        made = {
            key: told
            for key, told in found.items()
            if told and (key not in stored or told["run_count"] >= told["missing"])
        }
        for grain, start, version in [*made, *(key for key in stored if key not in spans)]:
            connection.execute(
                text("""
                    DELETE FROM profiles WHERE model = :model AND grain = :grain
                      AND span_start = :start AND model_version = :version"""),
                {"model": model, "grain": grain, "start": stored_time(start), "version": version},
            )
        if made:
            connection.execute(
                _INSERT,
                [
                    {"model": model, "grain": grain, "start": stored_time(start), **told}
                    | {"version": version, "now": stored_time(now)}
                    | {"runs": _digest(due[grain, start, version])}
                    for (grain, start, version), told in made.items()
                ],
            )
    return len(made)


def _between(model: str, first: datetime, last: datetime) -> dict[str, str]:
    return {"model": model, "first": stored_time(first), "last": stored_time(last)}


def _newest(runs: Iterable[Row[Any]]) -> list[Row[Any]]:
    """Of each interval the run that was published last."""
    found: dict[Any, Row[Any]] = {}
    for row in runs:
        key = (row.interval_start, row.interval_end)
        other = found.get(key)
        if other is None or (other.published_at, other.run_id) < (row.published_at, row.run_id):
            found[key] = row
    return list(found.values())


def _spans(
    runs: Iterable[Row[Any]], offset: timedelta
) -> dict[tuple[str, datetime, str], list[Row[Any]]]:
    found: dict[tuple[str, datetime, str], list[Row[Any]]] = {}
    for row in runs:
        start = loaded_time(row.interval_start)
        for grain in GRAINS:
            found.setdefault((grain, _floor(start, grain, offset), row.model_version), []).append(
                row
            )
    return found


def _digest(rows: Iterable[Row[Any]]) -> str:
    told = ",".join(str(run_id) for run_id in sorted(row.run_id for row in rows))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _merged(
    rows: Sequence[Row[Any]],
    parts: Mapping[int, Sequence[Row[Any]]],
    layout: Layout | None,
    span: timedelta,
) -> dict[str, Any] | None:
    """The profile of some runs, and how much of their span it tells of; None if nothing."""
    if layout is None:
        return None
    profiles: list[Profile] = []
    missing, covered = 0, timedelta()
    for row in rows:
        own = parts.get(row.run_id, ())
        found = [decoded(bytes(each.profile), layout) for each in own if each.profile is not None]
        read = sum(1 for each in own if each.rows_read)
        if len([each for each in found if each is not None]) < read:
            missing += 1
            continue
        profiles += [each for each in found if each is not None]
        covered += loaded_time(row.interval_end) - loaded_time(row.interval_start)
    whole = merged(profiles) if profiles else layout.empty()
    return {
        "profile": encoded(whole),
        "run_count": len(rows) - missing,
        "missing": missing,
        "covered": min(covered / span, 1.0),
    }
