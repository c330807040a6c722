"""What monitoring would have told in a past that was replayed, look by look.

A look of a past moment sees nothing that was published, promoted or known later, so that all of
them can be had once the replay is done: it is the same, and costs nothing where nobody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from batch_jobs import clock
from batch_jobs.backtest.replay import Replay
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.monitoring import performance_history
from batch_jobs.monitoring.monitor import Report, monitor
from batch_jobs.registry.deployment import Deployment
from batch_jobs.scoring.counts import Progress

LOOK = timedelta(days=1)  # after the end of a week: most outcomes are known, and it is trained
KEPT = (
    *("model_performance_rows", "performance_windows", "damage_episodes"),
    "drift_findings",
)


def moments(replay: Replay) -> list[datetime]:
    """When somebody would have looked: a day after the end of each week."""
    return [week.end + LOOK for week in replay.weeks]


def watched(replay: Replay, progress: Progress | None = None) -> dict[str, Any]:
    """Look at a replay that is done, a day after each of its weeks, with the settings of now.

    Args:
        replay: lived through.
        progress: called with the number of looks since the last call.

    Returns:
        `alarms` and `news`, each with `at`, `month`, `kind`, `words` and `delay_hours` (from the
        end of the first window that showed it); `months`, how many of both; `weeks`, as of
        `reports.performance`; `notes`.
    """
    deployment = Deployment(replay.settings)
    _forget(deployment.warehouse, replay.name)
    alarms: list[dict[str, Any]] = []
    news: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    open_since: datetime | None = None
    for moment in moments(replay):
        with clock.set_to(moment):
            report = monitor(deployment, replay.name, moment)
        notes |= dict.fromkeys(report.notes)
        if report.judgement.since != open_since and report.judgement.damage:
            alarms += _damage(report)
        open_since = report.judgement.since
        drift = list(_drift(report))
        (alarms if replay.model.monitor.drift_alarm else news).extend(drift)
        if progress:
            progress(1)
    return {
        "alarms": alarms,
        "news": news,
        "months": _months(replay, alarms, news),
        "weeks": _weeks(replay, deployment.warehouse, alarms),
        "notes": list(notes),
    }


@repeatable
def _forget(warehouse: Warehouse, model: str) -> None:
    """What was judged by other settings."""
    with warehouse.write() as connection:
        for table in KEPT:
            connection.execute(
                text(f"DELETE FROM {table} WHERE model = :model"),  # noqa: S608
                {"model": model},
            )


def _damage(report: Report) -> Iterator[dict[str, Any]]:
    """The worst evidence of an episode that begins: what a message would say."""
    worst = report.judgement.damage[0]
    yield _told(report, f"damage: {worst.evidence}", worst.words, worst.window_start) | {
        "window": stored_time(worst.window_start)
    }


def _drift(report: Report) -> Iterator[dict[str, Any]]:
    for each in report.drift:
        yield _told(report, f"drift: {each.kind}", each.words, each.window_end)


def _told(report: Report, kind: str, words: str, since: datetime) -> dict[str, Any]:
    return {
        "at": stored_time(report.at),
        "month": f"{report.at:%Y-%m}",
        "kind": kind,
        "words": words,
        "delay_hours": round((report.at - since) / timedelta(hours=1), 1),
    }


def _months(
    replay: Replay, alarms: list[dict[str, Any]], news: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    counts = [Counter(each["month"] for each in told) for told in (alarms, news)]
    months = dict.fromkeys(f"{moment:%Y-%m}" for moment in moments(replay))
    return [
        {"month": month, "alarms": counts[0][month], "news": counts[1][month]} for month in months
    ]


def _weeks(
    replay: Replay, warehouse: Warehouse, alarms: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    span, marked = replay.span, {alarm.get("window") for alarm in alarms}
    found = performance_history.points(
        warehouse, replay.name, "week", span.start - timedelta(days=7), span.end + LOOK
    )
    return [point | {"damaged": point["start"] in marked} for point in found]
