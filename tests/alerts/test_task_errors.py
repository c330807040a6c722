"""What the tries of a task failed with is kept for the alert that tells of them."""

from datetime import UTC, datetime, timedelta

from batch_jobs.alerts import task_errors
from batch_jobs.alerts.task_errors import TaskTry

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
MINUTES = timedelta(minutes=1)
TRY = TaskTry("predict_iris", "scheduled__1", "score", -1, 2)


def test_error_of_a_task_is_recalled_for_the_same_try_only(warehouse):
    """A second try that is killed is not explained by the first one's exception."""
    task_errors.remember_error(warehouse, TRY, "ValueError: no\nmore", NOW)

    assert task_errors.recall_error(warehouse, TRY) == "ValueError: no"
    other = TaskTry(**{**vars(TRY), "try_number": 3})
    assert task_errors.recall_error(warehouse, other) is None


def test_newer_error_of_a_task_replaces_the_older(warehouse):
    """Only the last exception of a task is kept."""
    task_errors.remember_error(warehouse, TRY, "ValueError: one", NOW)
    task_errors.remember_error(warehouse, TRY, "ValueError: two", NOW + MINUTES)

    assert task_errors.recall_error(warehouse, TRY) == "ValueError: two"


def test_error_keeps_no_secret(warehouse):
    """What is written into the warehouse is redacted."""
    task_errors.remember_error(warehouse, TRY, "OperationalError: password=s3cr3t", NOW)

    assert task_errors.recall_error(warehouse, TRY) == "OperationalError: password=***"


def test_errors_of_a_run_are_told_in_their_order_and_since_it_was_cleared(warehouse):
    """The first is the root; those of before are of another life of the run."""
    for place, name in enumerate(("plan", "score", "publish")):
        task = TaskTry(TRY.dag_id, TRY.run_id, name, -1, 1)
        task_errors.remember_error(warehouse, task, f"Error: {name}", NOW + place * MINUTES)
    found = task_errors.errors_of(warehouse, TRY.dag_id, TRY.run_id, NOW + MINUTES)
    assert [error for _, error in found] == ["Error: score", "Error: publish"]
    assert len(task_errors.errors_of(warehouse, TRY.dag_id, TRY.run_id, None)) == 3


def test_advice_of_an_error_is_kept_whole(warehouse):
    """A command to run is of no use without its end."""
    error = f"CircuitBreakerError: {'x ' * 300}; run `batch-jobs predict iris --accept WHY`"
    task_errors.remember_error(warehouse, TRY, error, NOW)
    assert task_errors.recall_error(warehouse, TRY) == error
