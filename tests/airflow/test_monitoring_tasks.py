"""The tasks that look how a model is doing: never in the way, and asking for a training once."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from batch_jobs.errors import UnknownModelError
from batch_jobs.monitoring import episodes
from batch_jobs_airflow import monitoring_tasks

NOW = datetime(2026, 11, 23, 5, tzinfo=UTC)
FOUND = {"damage": ["v1 does worse than a constant"], "retrain": True}


@pytest.fixture(autouse=True)
def airflow(shop, monkeypatch):
    """Airflow's part of the tasks: where the warehouse is, and the way to Slack."""
    monkeypatch.setattr(monitoring_tasks, "airflow_settings", lambda: shop)
    monkeypatch.setattr(monitoring_tasks, "flush_alerts", lambda: None)


def test_a_look_that_fails_fails_no_run_of_predictions():
    """What is published is published; the daily look fails for the same reason, and is told."""
    with pytest.raises(
        AirflowSkipException, match=f"^nobody is not monitored: {UnknownModelError.__name__}"
    ):
        monitoring_tasks.monitor("nobody")
    with pytest.raises(AirflowFailException, match="nobody"):
        monitoring_tasks.judge("nobody")


def test_a_model_that_has_published_nothing_is_looked_at():
    """There is nothing to find."""
    assert monitoring_tasks.monitor("orders") == {"drift": 0}
    assert monitoring_tasks.judge("orders") == {
        "drift": 0,
        "restated": 0,
        "damage": [],
        "retrain": False,
    }


def test_damage_asks_for_a_training_once(warehouse, shop, monkeypatch):
    """The event of the asset carries what shows the damage; after that the task is skipped."""
    monkeypatch.setattr(
        monitoring_tasks, "airflow_settings", lambda: SimpleNamespace(warehouse=_url(warehouse))
    )
    episodes.keep(warehouse, "orders", NOW, "[]", NOW, judged=True)
    event = SimpleNamespace(extra=None)
    ti = SimpleNamespace(task=SimpleNamespace(outlets=["drift"]))
    monitoring_tasks.drifted("orders", FOUND, ti, {"drift": event})
    assert event.extra == {"damage": FOUND["damage"]}
    episode = episodes.keep(warehouse, "orders", NOW, "[]", NOW, judged=True)
    assert episode.retraining_asked_at is not None
    with pytest.raises(AirflowSkipException, match="no damage"):
        monitoring_tasks.drifted("orders", FOUND | {"retrain": False}, ti, {"drift": event})


def _url(warehouse):
    return warehouse._url.render_as_string(hide_password=False)
