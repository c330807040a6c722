"""For how long a person is waited for, however often the task that asks is tried."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import TaskAwaitingInput

from batch_jobs import clock
from batch_jobs.registry import promotion
from batch_jobs.registry.versions import ModelVersion
from batch_jobs_airflow import approval

NOON = datetime(2026, 11, 19, 12, tzinfo=UTC)
PATIENCE = timedelta(hours=2)


class Store(dict):
    """What Airflow keeps for a task from one try to the next."""

    def set(self, key, value, *, retention):
        """Keep a value."""
        assert retention > PATIENCE
        self[key] = value


@pytest.fixture
def ask(monkeypatch):
    """Let the task ask so many minutes after noon: how long it then waits, or why it does not."""
    version = ModelVersion(
        **dict.fromkeys(ModelVersion.__dataclass_fields__, "x")
        | {"version": "v1", "gate": {"promote": True, "reasons": [], "metrics": {}}}
    )
    monkeypatch.setattr(promotion, "candidate", lambda *_, **__: (version, True))
    monkeypatch.setattr(approval, "airflow_settings", lambda: None)
    monkeypatch.setattr(approval, "trained_as_of", lambda *_: NOON)
    monkeypatch.setattr(approval, "_body", lambda _: "")
    monkeypatch.setattr(approval.ApprovalOperator, "_tell_slack", lambda *_: None)
    monkeypatch.setattr("airflow.providers.standard.operators.hitl.upsert_hitl_detail", dict)
    store = Store()

    def once(minutes, clear_number=0):
        task = approval.ApprovalOperator(task_id="approve", model="churn", patience=PATIENCE)
        context = {
            "task_state_store": store,
            "dag_run": SimpleNamespace(clear_number=clear_number),
            "task_instance": SimpleNamespace(id="x"),
        }
        with clock.set_to(NOON + timedelta(minutes=minutes)):
            try:
                return task.execute(context)["refused"]
            except TaskAwaitingInput as waits:
                return waits.timeout

    return once


def test_a_task_that_is_tried_again_keeps_its_deadline(ask):
    """The person was told how long there is; once that is over, the champion stays."""
    waits = [ask(minutes) for minutes in (0, 30, 119)]
    assert waits == [PATIENCE, PATIENCE - timedelta(minutes=30), timedelta(minutes=1)]
    assert ask(121) == "nobody approved it within 2 h 0 min"


def test_a_run_that_is_cleared_asks_anew(ask):
    """Somebody wants the question to be asked."""
    ask(0)
    assert ask(200, clear_number=1) == PATIENCE
