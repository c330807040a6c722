"""What monitoring finds is told once: damage as an alarm, drift as news."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from batch_jobs import Monitor
from batch_jobs.alerts import incidents
from batch_jobs.monitoring import reporting
from batch_jobs.monitoring.findings import Finding
from batch_jobs.monitoring.judgement import Damage, Judgement
from batch_jobs.monitoring.monitor import Report
from tests.example_models.orders import model as orders

NOW = datetime(2026, 11, 23, 5, tzinfo=UTC)
MODEL = orders.model_copy(update={"name": "orders"})
FINDING = Finding(
    *("v1", NOW - timedelta(days=1), NOW, "range", "amount", "", 1, 56, 0.01, 0.96, 0.0, 0.1),
    *(3.0, 0.96, "amount: 96 % of rows below anything seen in training"),
)
DAMAGE = Damage(
    *("since", "week", NOW - timedelta(days=7), NOW, 2, 3, 0.2, 0.1, 0.3, 0.0, 4.0, 900, "v1"),
    "v1 does worse than a version trained since: its log-loss is higher by +0.2000",
)


def report(at=NOW, drift=(), damage=(), *, judged=True):
    """What one look has found."""
    judgement = Judgement("orders", at, damage, since=at if damage else None)
    return Report("orders", at, drift, (), judgement, judged=at, has_outcomes=judged)


def lasting(warehouse):
    """The open incidents: cause, severity and how often they were met."""
    return [
        (each.problem.cause, each.problem.severity, each.occurrences)
        for each in incidents.open_incidents(warehouse)
    ]


def test_damage_is_an_alarm_with_what_shows_it_and_the_next_step(warehouse):
    """One incident, however often it is looked at within a week."""
    for hours in (0, 24):
        at = NOW + timedelta(hours=hours)
        reporting.tell(warehouse, MODEL, report(at, damage=(DAMAGE,)))
    assert lasting(warehouse) == [("damage", "page", 1)]
    [incident] = incidents.open_incidents(warehouse)
    assert "worse than a version trained since" in incident.problem.detail
    assert "batch-jobs train orders" in incident.problem.next_step


def test_damage_is_over_when_a_judgement_says_so(warehouse):
    """A look that judged nothing leaves it as it is."""
    reporting.tell(warehouse, MODEL, report(damage=(DAMAGE,)))
    reporting.tell(warehouse, MODEL, report(judged=False))
    unsure = replace(report(), judgement=Judgement("orders", NOW, since=NOW))
    reporting.tell(warehouse, MODEL, unsure)
    assert lasting(warehouse) == [("damage", "page", 1)]
    reporting.tell(warehouse, MODEL, report())
    assert lasting(warehouse) == []


@pytest.mark.parametrize(("is_alarm", "severity"), [(False, "news"), (True, "page")])
def test_drift_is_news_unless_the_model_file_wants_an_alarm(warehouse, is_alarm, severity):
    """It is met again when other features have drifted, and not at each look."""
    model = MODEL.model_copy(update={"monitor": Monitor(drift_alarm=is_alarm)})
    other = replace(FINDING, feature="country", words="country: us is gone")
    for found in ((FINDING,), (FINDING,), (FINDING, other)):
        reporting.tell(warehouse, model, report(drift=found))
    assert lasting(warehouse) == [("drift", severity, 2)]
    [incident] = incidents.open_incidents(warehouse)
    assert "amount: 96 % of rows below anything seen in training" in incident.problem.detail
    reporting.tell(warehouse, model, report())
    assert lasting(warehouse) == []
