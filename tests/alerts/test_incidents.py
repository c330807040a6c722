"""One incident for each model and cause, told once, reminded of, and told when it is over."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest
from sqlalchemy import text

from batch_jobs.alerts import incident_words, incidents, mutes
from batch_jobs.alerts.incidents import Incident, Problem
from batch_jobs.alerts.mutes import Mute
from batch_jobs.errors import InputError

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
MINUTES = timedelta(minutes=1)
HOURS = timedelta(hours=1)


def problem(cause="predict-killed", model="iris", **more):
    """A problem, of which nothing but its cause matters here."""
    return Problem(cause, model, more.pop("title", "score was killed"), **more)


def meet(warehouse, key, now=NOW, found=None, **how):
    """Report a problem."""
    return incidents.report(warehouse, found or problem(), f"{key}", now, **how)


def silence(warehouse, model, cause):
    """Mute a cause for an hour."""
    mutes.mute(warehouse, Mute(model, cause, "known", "#7", NOW + HOURS, "ada"), NOW)


def written(warehouse):
    """The first lines of what waits to be sent, in order."""
    with warehouse.read() as connection:
        rows = connection.scalars(
            text("SELECT text FROM outbox_messages WHERE dropped_at IS NULL ORDER BY message_id")
        )
        return [row.split("\n")[0] for row in rows]


def deliver(warehouse):
    """Note that all was sent."""
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO outbox_deliveries (message_id, channel, attempts, tried_at, sent_at)
                SELECT message_id, 'slack', 1, created_at, created_at FROM outbox_messages
                WHERE dropped_at IS NULL AND message_id NOT IN
                  (SELECT message_id FROM outbox_deliveries)""")
        )


def at_once(times, act):
    """What each of so many threads answers, which begin together."""
    together = Barrier(times)

    def begin(number):
        together.wait(60)
        return act(number)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(begin, range(times)))


def test_occurrence_that_is_reported_twice_is_counted_once(warehouse):
    """Callbacks of task and DAG, and duplicates of either, are one failure."""
    assert meet(warehouse, "run 1")
    assert not meet(warehouse, "run 1")
    [found] = incidents.open_incidents(warehouse)
    assert (found.occurrences, found.opened_at) == (1, NOW)


def test_night_of_failures_is_a_handful_of_messages(warehouse):
    """A failure every ten minutes for a night: told at once and after 1 and 5 hours; then over."""
    told = []
    for number in range(72):
        if meet(warehouse, number, NOW + 10 * number * MINUTES):
            told.append(number)
            deliver(warehouse)
    incidents.resolve(warehouse, "iris", ["predict-*"], NOW + 12 * HOURS)
    assert told == [0, 6, 30]
    assert written(warehouse) == [
        ":red_circle: *iris: score was killed*",
        ":red_circle: *iris: score was killed, still: 7 times*",
        ":red_circle: *iris: score was killed, still: 31 times*",
        ":large_green_circle: *iris works again*",
    ]


def test_another_cause_or_model_is_another_incident(warehouse):
    """A second fault does not hide behind the first; nor one model behind another."""
    assert meet(warehouse, 1)
    assert meet(warehouse, 2, found=problem("predict-refused/silence"))
    assert meet(warehouse, 3, found=problem("predict-refused/rejects"))
    assert meet(warehouse, 4, found=problem(model="flights"))
    assert meet(warehouse, 5, found=problem("warehouse", model=None))
    assert not meet(warehouse, 6)
    assert len(incidents.open_incidents(warehouse)) == 5
    assert len(incidents.open_incidents(warehouse, "iris")) == 3


def test_an_error_that_reads_differently_each_time_is_a_handful_of_incidents(warehouse):
    """Three of one kind are told apart; the others are one."""
    for number in range(20):
        meet(warehouse, number, found=problem(f"predict-error/{number}"))
    causes = [found.problem.cause for found in incidents.open_incidents(warehouse)]
    assert causes == [
        "predict-error/0",
        "predict-error/1",
        "predict-error/2",
        "predict-error/other",
    ]


def test_of_reports_at_once_one_opens_the_incident(warehouse):
    """Whatever processes meet it together, it is opened once and each is counted."""
    assert sorted(at_once(8, lambda n: meet(warehouse, n))) == [False] * 7 + [True]
    [found] = incidents.open_incidents(warehouse)
    assert found.occurrences == 8


def test_of_successes_at_once_one_tells_that_it_is_over(warehouse):
    """Runs that end together do not each announce it."""
    meet(warehouse, 1)
    deliver(warehouse)
    ended = at_once(8, lambda _: incidents.resolve(warehouse, "iris", ["*"], NOW + MINUTES))
    assert sorted(map(len, ended)) == [0] * 7 + [1]
    assert written(warehouse)[1:] == [":large_green_circle: *iris works again*"]


def test_what_was_over_before_anybody_could_be_told_is_one_line(warehouse):
    """Failure, reminder and recovery that all would be stale."""
    for number in range(9):
        meet(warehouse, number, NOW + 10 * number * MINUTES)
    incidents.resolve(warehouse, "iris", ["predict-killed"], NOW + 90 * MINUTES)
    [line] = written(warehouse)
    assert line == (
        ":large_green_circle: *iris* failed 22 Nov 15:00 - 16:30 UTC and works again: "
        "score was killed; 9 failures."
    )


def test_all_that_is_over_at_once_is_one_message(warehouse):
    """The recovery is told once, with what it ends."""
    meet(warehouse, 1)
    meet(warehouse, 2, NOW + MINUTES, problem("predict-contract", title="rows do not fit"))
    meet(warehouse, 3, NOW + MINUTES, problem("train-killed"))
    deliver(warehouse)
    ended = incidents.resolve(warehouse, "iris", ["predict-*"], NOW + 3 * MINUTES)
    assert [each.problem.cause for each in ended] == ["predict-killed", "predict-contract"]
    assert len(written(warehouse)) == 4
    [left] = incidents.open_incidents(warehouse)
    assert left.problem.cause == "train-killed"


def test_success_without_an_incident_takes_no_write_lock(warehouse):
    """The common case."""
    with warehouse.write():
        assert incidents.resolve(warehouse, "iris", ["*"], NOW) == []


def test_what_is_mended_and_breaks_again_is_another_incident(warehouse):
    """And is told again."""
    meet(warehouse, 1)
    incidents.resolve(warehouse, "iris", ["*"], NOW)
    assert meet(warehouse, 2, NOW + MINUTES)


def test_what_comes_and_goes_all_night_is_a_handful_of_messages_too(warehouse):
    """Every other run fails: told twice as new, and then as the one incident that it is."""
    for number in range(36):
        meet(warehouse, number, NOW + 20 * number * MINUTES)
        deliver(warehouse)
        incidents.resolve(warehouse, "iris", ["*"], NOW + (20 * number + 10) * MINUTES)
        deliver(warehouse)
    lines = written(warehouse)
    assert len(lines) == 8
    assert lines[:4] == 2 * [
        ":red_circle: *iris: score was killed*",
        ":large_green_circle: *iris works again*",
    ]


def test_muted_cause_is_counted_and_told_when_the_mute_ends(warehouse):
    """A mute has a reason, a link and an end; nothing is forgotten meanwhile."""
    silence(warehouse, "iris", "predict-*")
    assert not meet(warehouse, 1)
    assert meet(warehouse, 2, found=problem("train-killed"))
    assert incidents.tell_due(warehouse, NOW + MINUTES) == 0
    assert incidents.tell_due(warehouse, NOW + HOURS) == 1
    assert incidents.tell_due(warehouse, NOW + HOURS) == 0
    assert [m.reason for m in mutes.mutes(warehouse, NOW)] == ["known"]
    assert mutes.mutes(warehouse, NOW + HOURS) == []


def test_end_of_what_was_muted_is_not_told(warehouse):
    """Who was not told of it need not hear that it is over."""
    silence(warehouse, "*", "predict-killed")
    meet(warehouse, 1)
    assert len(incidents.resolve(warehouse, "iris", ["*"], NOW + MINUTES)) == 1
    assert written(warehouse) == []
    assert mutes.unmute(warehouse, "*", "predict-killed")
    assert not mutes.unmute(warehouse, "*", "predict-killed")


def test_mute_without_reason_link_or_future_is_refused_at_once(warehouse):
    """All that is wrong is told together."""
    with pytest.raises(InputError, match=r"reason; .*link .*; name the cause.*; the end, .* past"):
        mutes.mute(warehouse, Mute("iris", "", " ", "", NOW, "ada"), NOW)


def test_what_is_held_back_is_told_if_it_lasts(warehouse):
    """A new model without a champion is no news, one that stays without is."""
    assert not meet(warehouse, 1, hold=20 * MINUTES)
    assert incidents.tell_due(warehouse, NOW + 19 * MINUTES) == 0
    assert incidents.tell_due(warehouse, NOW + 20 * MINUTES) == 1
    assert not meet(warehouse, 2, found=problem(model="new"), hold=20 * MINUTES)
    incidents.resolve(warehouse, "new", ["*"], NOW + MINUTES)
    assert len(written(warehouse)) == 1


def test_failures_of_a_backfill_are_one_summary_that_needs_no_end(warehouse):
    """It is told when nothing was added for a while, with the count."""
    for number in range(30):
        assert not meet(
            warehouse, number, NOW + number * MINUTES, hold=10 * MINUTES, is_passing=True
        )
    assert incidents.tell_due(warehouse, NOW + 38 * MINUTES) == 0
    assert incidents.tell_due(warehouse, NOW + 39 * MINUTES) == 1
    assert incidents.open_incidents(warehouse) == []
    [found] = incidents.open_incidents(warehouse, is_all=True)
    assert found.occurrences == 30


def test_clock_that_runs_backwards_tells_nothing_twice(warehouse):
    """Nor is anything lost."""
    assert meet(warehouse, 1)
    assert not meet(warehouse, 2, NOW - 5 * HOURS)
    incidents.resolve(warehouse, "iris", ["*"], NOW - 6 * HOURS)
    assert incidents.open_incidents(warehouse) == []


def test_incident_keeps_no_secret(warehouse):
    """Neither in the table nor in the message."""
    told = "token=s3cr3tToken"
    meet(warehouse, 1, found=problem(title=told, detail=told, next_step=told, facts=(told,)))
    with warehouse.read() as connection:
        shown = f"{connection.execute(text('SELECT * FROM incident_rows')).all()}"
        shown += f"{connection.execute(text('SELECT * FROM outbox_messages')).all()}"
    assert "s3cr3tToken" not in shown


def test_what_is_old_and_over_is_forgotten(warehouse):
    """The tables do not grow for ever, and an incident that lasts stays."""
    later = NOW + incidents.KEEP + MINUTES
    meet(warehouse, 1)
    meet(warehouse, 2, found=problem("train-killed"))
    incidents.resolve(warehouse, "iris", ["predict-*"], NOW + MINUTES / 2)
    meet(warehouse, 3, later, found=problem(model="other"))
    causes = [each.problem.cause for each in incidents.open_incidents(warehouse, is_all=True)]
    assert causes == ["train-killed", "predict-killed"]


@pytest.mark.parametrize(
    "causes", [("disk-full", "disk-full/warehouse"), ("disk-full/a", "disk-full")]
)
def test_a_cause_is_one_incident_whoever_tells_of_it_more_exactly(warehouse, causes):
    """A task knows that a disk is full, and the watch which one."""
    for cause in causes:
        meet(warehouse, cause, found=problem(cause, None))
    [incident] = incidents.open_incidents(warehouse)
    assert (incident.problem.cause, incident.occurrences) == (causes[0], 2)


def test_what_readers_see_is_not_made_up_where_nobody_could_ask():
    """While the warehouse is away."""
    met = Incident(1, problem(), 1, NOW, NOW)
    told = incident_words.told(met, None, NOW, is_known=False).text
    assert "Nothing is published yet" not in told
    assert "Readers see what was published last." in told
