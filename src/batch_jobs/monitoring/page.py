"""One page of how a model is doing, for a person to look at."""

from __future__ import annotations

from datetime import timedelta

from batch_jobs.database.transactions import stored_time
from batch_jobs.monitoring import performance_history
from batch_jobs.monitoring.monitor import Report
from batch_jobs.registry.deployment import Place, opened

SHOWN = timedelta(days=366)


def monitor_page(place: Place, report: Report) -> str:
    """A self-contained HTML page: what is wrong, how past windows fared, what is unlike training.

    Args:
        place: where everything is.
        report: of the look that is shown.
    """
    from batch_jobs.reports.html import Section, page
    from batch_jobs.reports.performance import performance_section

    deployment, judgement = opened(place), report.judgement
    grain = deployment.model(report.model).monitor.performance.judged
    shown = {stored_time(each.window_start) for each in judgement.damage if each.grain == grain}
    weeks = [
        point | {"damaged": point["start"] in shown}
        for point in performance_history.points(
            deployment.warehouse, report.model, grain, report.at - SHOWN, report.at
        )
    ]
    drift: list[dict[str, object]] = [
        {"feature": each.feature, "kind": each.kind, "severity": each.severity, "what": each.words}
        for each in report.drift
    ]
    found = [each.words for each in judgement.damage] or ["Outcomes show no damage."]
    unusual = [] if drift else ["Nothing is unlike training."]
    sections = [
        Section(f"As of {report.at:%Y-%m-%d %H:%M} UTC", [*found, *report.notes]),
        performance_section(weeks, judgement.news),
        Section("Drift", unusual, rows=drift),
    ]
    return page(f"Monitoring of {report.model}", sections)
