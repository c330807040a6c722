"""A night against a Slack that misbehaves in every way: nothing is lost, hardly anything twice."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from batch_jobs.alerts import incidents, outbox_status, slack
from batch_jobs.alerts.channels import Channel
from batch_jobs.alerts.incidents import Problem
from batch_jobs.alerts.problems import Message
from batch_jobs.alerts.reporter import Reporter
from batch_jobs.alerts.slack import Webhook
from batch_jobs.database.warehouse import Warehouse
from tests.support.slack_endpoint import slack_endpoint

__all__ = ["slack_endpoint"]
EVENING = datetime(2026, 11, 22, 18, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
# For half an hour each, with half an hour of peace between, but in the end.
MISBEHAVIOUR = ("429", "500", "hang", "slow", "close", "refused", "404", "hang", "slow")
# By model: from which minute of the night on its runs fail, and when they work again.
TROUBLE = {
    "early": (0, 25),
    "hourly": (30, 45),
    "long": (40, 500),
    "hidden": (63, 78),
    "late": (190, 300),
    "short": (240, 250),
    "last": (500, 600),
}


def mode_at(minute):
    """How Slack behaves at a minute of the night."""
    place, inside = divmod(minute, 60)
    return MISBEHAVIOUR[place] if place < len(MISBEHAVIOUR) and inside >= 30 else "ok"


def the_night(endpoint, warehouse, tmp_path, monkeypatch):
    """Live through ten and a half hours, minute by minute, as several processes would."""
    monkeypatch.setattr(slack, "PAUSE", 0.0)
    endpoint.delay = 0.25
    now = [EVENING]
    good = Webhook(endpoint.url, timeout=0.1)
    gone = Webhook("http://127.0.0.1:1/services/T/B/X")
    minute = 0

    def channels():
        return [Channel("slack", gone if mode_at(minute) == "refused" else good)]

    environ = {"BATCH_JOBS_SPOOL": str(tmp_path / "spool")}
    for minute in range(630):
        endpoint.mode = "ok" if mode_at(minute) == "refused" else mode_at(minute)
        reporter = Reporter(warehouse, channels, lambda: now[0], environ)
        if minute % 10 == 0:
            for model, (begins, ends) in TROUBLE.items():
                if begins <= minute < ends:
                    found = Problem("predict-error", model, f"trouble of {model}")
                    reporter.report(found, f"{model} {minute}")
                elif minute >= ends:
                    reporter.resolve(model, ["predict-*"])
        if minute % 100 == 50:
            reporter.write(Message(f"news {minute}", f"news {minute}"), f"news {minute}")
        reporter.flush()
        now[0] += MINUTE
    endpoint.release()
    return now[0]


@pytest.mark.slow
def test_nothing_is_lost_in_a_night_in_which_slack_misbehaves(
    slack_endpoint, tmp_path, monkeypatch
):
    """Drops, 429, 500, hangs, is slow, refuses, and has no service: sent, received, twice, lost."""
    warehouse = Warehouse(f"sqlite:///{tmp_path}/warehouse.db")
    warehouse.ensure_schema()
    morning = the_night(slack_endpoint, warehouse, tmp_path, monkeypatch)

    told = [each for each in incidents.open_incidents(warehouse, is_all=True) if each.told]
    texts = slack_endpoint.texts
    expected = {f"trouble of {each.problem.model}" for each in told}
    expected |= {f"news {minute}" for minute in range(50, 630, 100)}
    lost = {what for what in expected if not any(what in text for text in texts)}
    bodies = Counter(text.partition("\n_")[0] for text in texts)
    twice = sum(count - 1 for count in bodies.values())
    written = sum(each.told for each in told) + len(told) + 6
    figures = {
        "failures": sum(each.occurrences for each in told),
        "incidents": len(told),
        "written": written,
        "requests": len(slack_endpoint.requests),
        "received": len(texts),
        "twice": twice,
        "lost": len(lost),
    }
    assert figures["failures"] > 3 * figures["received"], figures
    assert lost == set()
    assert twice <= 2  # one for each time that Slack was slow
    assert max(bodies.values()) <= 2
    assert len(texts) <= written + twice
    assert outbox_status.undelivered(warehouse, morning) == []
    for model in TROUBLE:
        ends = [n for n, text in enumerate(texts) if model in text and "works again" in text]
        begins = [n for n, text in enumerate(texts) if f"_circle: *{model}: trouble" in text]
        assert ends, model
        assert not begins or begins[0] < ends[-1], model
