"""The outbox loses no alert, sends none twice while a sender lives, and tells an incident once."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

from sqlalchemy import text

from batch_jobs.alerts import outbox, task_errors
from batch_jobs.alerts.outbox import Failure
from batch_jobs.alerts.task_errors import TaskTry
from batch_jobs.database.transactions import loaded_time

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
MINUTES = timedelta(minutes=1)
TRY = TaskTry("predict_iris", "scheduled__1", "score", -1, 2)


def fail(warehouse, run, now=NOW, cause="ValueError", subject="predict_iris"):
    """Report that a run failed; the message is the number of failures."""
    failure = Failure(f"{subject} {run}", subject, cause)
    return outbox.record_failure(warehouse, failure, lambda found: f"{found.failures} failed", now)


def texts(warehouse, now=NOW):
    """Send what waits, and tell what it was."""
    sent = []
    while message := outbox.claim(warehouse, now):
        outbox.mark_sent(warehouse, message, now)
        sent.append(message.text)
    return sent


def _at_once(times, act):
    """What each of so many threads answers, which begin together."""
    together = Barrier(times)

    def begin(number):
        together.wait(60)
        return act(number)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(begin, range(times)))


def test_message_is_recorded_once_for_a_key(warehouse):
    """A second report of the same thing is known."""
    assert outbox.record(warehouse, "a", "first", NOW)
    assert not outbox.record(warehouse, "a", "second", NOW)
    assert texts(warehouse) == ["first"]


def test_messages_go_out_oldest_first(warehouse):
    """A failure is told before its recovery, whenever both can be sent."""
    outbox.record(warehouse, "b", "later", NOW + MINUTES)
    outbox.record(warehouse, "a", "earlier", NOW)

    assert texts(warehouse, NOW + MINUTES) == ["earlier", "later"]


def test_of_many_senders_each_holds_another_message(warehouse):
    """They claim at once: none has what another has, and none leaves while a message waits."""
    for number in range(8):
        outbox.record(warehouse, str(number), str(number), NOW)

    held = _at_once(8, lambda _: outbox.claim(warehouse, NOW))

    assert sorted(message.text for message in held) == [str(n) for n in range(8)]
    assert outbox.claim(warehouse, NOW) is None


def test_message_of_a_sender_that_died_waits_again_after_the_lease(warehouse):
    """Claiming is not sending: nothing is lost with the claimer."""
    outbox.record(warehouse, "a", "text", NOW)
    outbox.claim(warehouse, NOW)

    assert outbox.claim(warehouse, NOW + outbox.LEASE - timedelta(seconds=1)) is None
    assert outbox.claim(warehouse, NOW + outbox.LEASE) is not None


def test_message_that_could_not_be_sent_waits_again_after_the_lease(warehouse):
    """The next run sends what this one could not, and the reason is kept without its secret."""
    outbox.record(warehouse, "a", "text", NOW)
    outbox.mark_failed(warehouse, outbox.claim(warehouse, NOW), "no https://u:s3cr3t@proxy")

    assert outbox.waiting(warehouse, NOW + outbox.LEASE) == 1
    with warehouse.read() as connection:
        row = connection.execute(text("SELECT error, attempts FROM alerts")).one()
    assert tuple(row) == ("no https://***@proxy", 1)


def test_after_a_refusal_nobody_asks_for_a_while(warehouse):
    """Twenty callbacks in a row do not each wait for a Slack that is down."""
    outbox.record(warehouse, "a", "text", NOW)
    outbox.mark_failed(warehouse, outbox.claim(warehouse, NOW), "timed out")
    outbox.record(warehouse, "b", "text", NOW)

    assert outbox.waiting(warehouse, NOW + MINUTES / 4) == 0
    assert outbox.claim(warehouse, NOW + MINUTES / 4) is None
    assert outbox.waiting(warehouse, NOW + MINUTES) == 2


def test_message_that_slack_never_takes_stands_in_nobodys_way(warehouse):
    """After ten refusals the others go first."""
    outbox.record(warehouse, "a", "bad", NOW)
    for number in range(10):
        pending = outbox.claim(warehouse, NOW + number * MINUTES)
        outbox.mark_failed(warehouse, pending, "invalid_payload")
    outbox.record(warehouse, "b", "good", NOW + 10 * MINUTES)

    assert texts(warehouse, NOW + 10 * MINUTES) == ["good", "bad"]


def test_message_is_given_up_after_three_days(warehouse):
    """A webhook that comes back after a week does not bring a week of alerts."""
    outbox.record(warehouse, "a", "text", NOW)

    assert outbox.waiting(warehouse, NOW + outbox.GIVE_UP) == 0
    assert texts(warehouse, NOW + outbox.GIVE_UP) == []


def test_same_run_reported_twice_is_counted_once(warehouse):
    """Callbacks of task and DAG, and duplicates of either, are one failure."""
    assert fail(warehouse, "run 1")
    assert not fail(warehouse, "run 1")
    assert not fail(warehouse, "run 1", cause="another")
    fail(warehouse, "run 2", NOW + timedelta(hours=2))

    assert texts(warehouse, NOW + timedelta(hours=2)) == ["1 failed", "2 failed"]


def test_night_of_failures_is_a_handful_of_messages(warehouse):
    """A failure every half hour for two days is told at once and after 1, 5 and 29 hours."""
    told = [number for number in range(96) if fail(warehouse, number, NOW + 30 * number * MINUTES)]

    assert told == [0, 2, 10, 58]


def test_another_cause_is_another_incident(warehouse):
    """A second fault does not hide behind the first."""
    assert fail(warehouse, 1, cause="ValueError")
    assert fail(warehouse, 2, cause="killed")
    assert fail(warehouse, 3, cause="ValueError", subject="train_iris")
    assert not fail(warehouse, 4, cause="ValueError")


def test_failure_after_a_success_is_another_incident(warehouse):
    """What was mended and breaks again is told again."""
    fail(warehouse, 1)
    outbox.close_incidents(warehouse, ["predict_iris"], NOW)

    assert fail(warehouse, 2, NOW + MINUTES)


def test_success_closes_all_incidents_with_one_message(warehouse):
    """The recovery is told once, with what it ends."""
    fail(warehouse, 1)
    fail(warehouse, 2, NOW + MINUTES, cause="killed")
    fail(warehouse, "import", NOW + 2 * MINUTES, subject="dags/predict.py")
    texts(warehouse, NOW + 2 * MINUTES)

    def close(key):
        return outbox.close_incidents(
            warehouse,
            ["predict_iris", "dags/predict.py"],
            NOW + 3 * MINUTES,
            (key, lambda found: f"{found.failures} since {found.since:%H:%M}"),
        )

    assert [close("run 3"), close("run 4")] == [True, False]
    assert texts(warehouse, NOW + 3 * MINUTES) == ["3 since 15:00"]


def test_of_successes_at_once_one_tells_that_the_incident_is_over(warehouse):
    """Runs that end together do not each announce it."""
    fail(warehouse, 1)
    texts(warehouse)

    def close(number):
        recovery = (f"run {number}", lambda found: f"{found.failures} over")
        return outbox.close_incidents(warehouse, ["predict_iris"], NOW + MINUTES, recovery)

    assert sorted(_at_once(8, close)) == [False] * 7 + [True]
    assert texts(warehouse, NOW + MINUTES) == ["1 over"]


def test_success_without_an_incident_writes_nothing(warehouse):
    """The common case takes no write lock."""
    with warehouse.write():
        assert not outbox.close_incidents(warehouse, ["predict_iris"], NOW)


def test_old_alerts_are_forgotten_but_not_open_ones(warehouse):
    """The table does not grow for ever, and an incident that lasts does not restart."""
    later = NOW + outbox.KEEP + MINUTES
    outbox.record(warehouse, "a", "text", NOW)
    fail(warehouse, 1, subject="train_iris")
    fail(warehouse, 2)
    outbox.close_incidents(warehouse, ["predict_iris"], later)

    with warehouse.read() as connection:
        assert connection.scalars(text("SELECT key FROM alerts")).all() == ["train_iris 1"]


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


def test_nothing_is_served_before_the_first_publication(warehouse):
    """Without a published run there is nothing to tell of."""
    assert outbox.served(warehouse, "iris") is None


def test_messages_about_successes_do_not_pile_up(warehouse):
    """Though nothing ever fails; and what is told of a failure that goes on is kept short."""
    kept = outbox.KEEP // (30 * timedelta(days=1))
    for month in range(3 * kept):
        at = NOW + month * timedelta(days=30)
        outbox.record(warehouse, f"succeeded {month}", "it works", at)
        fail(warehouse, month, at)
    counts = """SELECT count(*), min(created_at) FROM alerts
        GROUP BY subject IS NULL ORDER BY min(created_at)"""
    with warehouse.read() as connection:
        (failures, since), (successes, _) = connection.execute(text(counts)).all()
    assert (failures, successes) == (kept + 2, kept + 1)
    assert loaded_time(since) == NOW
