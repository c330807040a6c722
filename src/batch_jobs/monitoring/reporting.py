"""What monitoring has found, as incidents: damage is an alarm, drift is news unless it shall be.

An incident of drift is met again when other features have drifted, not each time it is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from batch_jobs.alerts import incidents
from batch_jobs.alerts.problems import Problem
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.model import BatchModel
from batch_jobs.monitoring.findings import Finding
from batch_jobs.monitoring.judgement import Damage, Judgement
from batch_jobs.monitoring.monitor import Report

DAMAGE, DRIFT = "damage", "drift"
SHOWN = 3


def tell(warehouse: Warehouse, model: BatchModel, report: Report) -> None:
    """Open, count or end the incidents of what one look has found.

    Args:
        warehouse: with the incidents.
        model: which was looked at.
        report: what was found; of what was not judged, incidents stay as they are.
    """
    now, over = report.at, []
    if report.drift:
        about = ", ".join(dict.fromkeys(finding.feature for finding in report.drift))
        key = f"monitor {model.name} {DRIFT} {about}"
        incidents.report(warehouse, drift(model, report.drift, about), key, now)
    elif report.judged is not None:
        over.append(DRIFT)
    judgement = report.judgement
    if judgement.damage:
        key = f"monitor {model.name} {DAMAGE} {judgement.damage[0].window_start.isoformat()}"
        incidents.report(warehouse, damage(model, judgement), key, now)
    elif report.has_outcomes and judgement.since is None:
        over.append(DAMAGE)
    incidents.resolve(warehouse, model.name, over, now)


def drift(model: BatchModel, findings: Sequence[Finding], about: str) -> Problem:
    """What is unlike training, the worst first."""
    worst = sorted(findings, key=lambda finding: -finding.severity)
    more = len(worst) - SHOWN
    said = [finding.words for finding in worst[:SHOWN]] + ([f"and {more} more"] if more > 0 else [])
    return Problem(
        cause=DRIFT,
        model=model.name,
        title=f"what comes in is unlike training: {about}",
        detail="; ".join(said),
        severity="page" if model.monitor.drift_alarm else "news",
        impact="Drift alone does not show that predictions are worse.",
        next_step=f"See `batch-jobs monitor {model.name}`",
        facts=(f"since {_day(min(finding.window_start for finding in findings))}",),
    )


def damage(model: BatchModel, judgement: Judgement) -> Problem:
    """What outcomes show, and what can be done about it."""
    worst: Damage = judgement.damage[0]
    cure = f"`batch-jobs train {model.name}`"
    if worst.evidence == "before":
        cure = f"`batch-jobs rollback {model.name} --to VERSION`, or {cure}"
    since = judgement.since or judgement.at
    return Problem(
        cause=DAMAGE,
        model=model.name,
        title="predictions are worse than they need be",
        detail="; ".join(each.words for each in judgement.damage[:SHOWN]),
        severity="page",
        impact=f"Judged by the outcomes of {worst.rows:,} predictions that readers have seen.",
        next_step=f"See `batch-jobs monitor {model.name}`; then {cure}",
        facts=(f"version {worst.model_version}", f"since {_day(since)}"),
    )


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"
