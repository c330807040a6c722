"""The outbox loses no message, sends them in their order, and none again and again."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier

from sqlalchemy import text

from batch_jobs.alerts import incidents, outbox, outbox_messages, outbox_status, parcels
from batch_jobs.alerts.incidents import Problem
from batch_jobs.alerts.problems import Message
from batch_jobs.alerts.slack import Answer

NOW = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
MINUTES = timedelta(minutes=1)
ALL = ("page", "warn", "news")
REFUSED = Answer("Slack answered 500: server_error", 0.5)
UNANSWERED = Answer("sent, and not answered in time", is_unanswered=True)


def write(warehouse, name, now=NOW, severity="news"):
    """Write a message that says its name."""
    message = Message(f"line {name}", f"text {name}")
    return outbox_messages.write_alone(warehouse, name, message, now, severity)


def send(warehouse, now=NOW, channel="slack", answers=(), severities=ALL):
    """Send what waits, as a sender does; the texts that were handed over."""
    handed, answers = [], list(answers)
    if not outbox.take_hold(warehouse, channel, severities, "me", now):
        return None
    while parcel := parcels.next_parcel(warehouse, channel, severities, now):
        handed.append(parcel.message.text)
        answer = answers.pop(0) if answers else Answer()
        if answer.problem:
            outbox.mark_failed(warehouse, channel, parcel.ids, answer, now)
            return handed
        outbox.mark_sent(warehouse, channel, parcel.ids, now)
    outbox.release(warehouse, channel, "me")
    return handed


def at_once(times, act):
    """What each of so many threads answers, which begin together."""
    together = Barrier(times)

    def begin(number):
        together.wait(60)
        return act(number)

    with ThreadPoolExecutor(times) as pool:
        return list(pool.map(begin, range(times)))


def test_message_is_written_once_for_a_key(warehouse):
    """A second report of the same thing is known."""
    assert write(warehouse, "a")
    assert not write(warehouse, "a")
    assert send(warehouse) == ["text a"]
    assert send(warehouse) == []


def test_messages_arrive_in_the_order_in_which_they_were_written(warehouse):
    """Whatever the clocks of their writers say."""
    for number in range(3):
        write(warehouse, f"{number}", NOW - number * MINUTES)
    assert send(warehouse) == ["text 0", "text 1", "text 2"]


def test_of_many_senders_one_holds_a_channel(warehouse):
    """So that a recovery cannot overtake its failure; other channels are held by others."""
    held = at_once(8, lambda n: outbox.take_hold(warehouse, "slack", ALL, f"{n}", NOW))
    assert sorted(held) == [False] * 7 + [True]
    assert outbox.take_hold(warehouse, "mail", ALL, "another", NOW)


def test_message_of_a_sender_that_died_is_sent_by_the_next_one_after_a_moment(warehouse):
    """Trying is not sending: nothing is lost with the sender."""
    write(warehouse, "a")
    assert outbox.take_hold(warehouse, "slack", ALL, "dies", NOW)
    assert parcels.next_parcel(warehouse, "slack", ALL, NOW).key == "a"
    assert send(warehouse, NOW + outbox.LEASE / 2) is None
    assert send(warehouse, NOW + outbox.LEASE) == ["text a"]


def test_after_refusals_a_channel_rests_longer_and_longer(warehouse):
    """Twenty callbacks in a row do not each wait for a Slack that is down."""
    write(warehouse, "a")
    now, tried = NOW, []
    while now < NOW + 60 * MINUTES:
        if send(warehouse, now, answers=[REFUSED]):
            tried.append((now - NOW).total_seconds() / 60)
        now += MINUTES / 2
    assert tried == [0, 0.5, 1.5, 3.5, 8.5, 18.5, 28.5, 38.5, 48.5, 58.5]
    assert parcels.waiting(warehouse, "slack", ALL, now) == 0
    assert parcels.waiting(warehouse, "slack", ALL, now + 10 * MINUTES) == 1
    assert send(warehouse, now + 10 * MINUTES)[0].startswith("text a\n_Could not be sent before")


def test_channel_that_says_for_how_long_is_left_alone_for_so_long(warehouse):
    """Retry-After is honoured, up to an hour."""
    write(warehouse, "a")
    send(warehouse, answers=[Answer("Slack answered 429", 240.0)])
    assert send(warehouse, NOW + 3.9 * MINUTES) is None
    send(warehouse, NOW + 4 * MINUTES, answers=[Answer("Slack answered 429", 1e6)])
    assert send(warehouse, NOW + 64 * MINUTES) != []


def test_message_that_may_have_arrived_is_sent_once_more_and_then_mentioned(warehouse):
    """A Slack that answers too late was told of one failure eleven times in four minutes."""
    write(warehouse, "a")
    now, handed = NOW, []
    while now < NOW + 120 * MINUTES:
        handed += send(warehouse, now, answers=[UNANSWERED] * 9) or []
        now += MINUTES
    assert [told.split("\n")[0] for told in handed] == ["text a", "text a"]
    [lacking] = outbox_status.undelivered(warehouse, now)
    assert str(lacking) == (
        "alerts to slack: 1 message waits since 22 Nov 15:00 UTC; it was last refused with: sent, "
        "and not answered in time; it is tried again from 22 Nov 15:20 UTC on"
    )
    write(warehouse, "b", now)
    assert send(warehouse, now) == ["text b\n_These may not have arrived:_\n• line a"]
    assert outbox_status.undelivered(warehouse, now) == []


def test_message_that_is_never_taken_stands_in_nobodys_way(warehouse):
    """After three refusals of what it says, or ten of any kind, the others go first."""
    write(warehouse, "bad")
    now = NOW
    for _ in range(3):
        send(warehouse, now, answers=[Answer("Slack answered 400: invalid_payload")])
        now += 11 * MINUTES
    write(warehouse, "good", now)
    assert [each.split("\n")[0] for each in send(warehouse, now)] == ["text good", "text bad"]


def test_message_is_given_up_after_three_days_for_all_to_see(warehouse):
    """A webhook that comes back after a week does not bring a week of alerts."""
    write(warehouse, "a")
    send(warehouse, answers=[REFUSED])
    later = NOW + parcels.GIVE_UP
    assert send(warehouse, later) == []
    [lacking] = outbox_status.undelivered(warehouse, later)
    assert (lacking.waiting, lacking.given_up) == (0, 1)
    assert "1 message given up after 3 days" in str(lacking)


def test_many_that_had_to_wait_arrive_as_one(warehouse):
    """What is over or was news is put together; what lasts is told in full."""
    lasting = Problem("predict-killed", "iris", "score was killed", next_step="mend it")
    for number in range(9):
        write(warehouse, f"{number}", NOW + number * MINUTES)
    incidents.report(warehouse, lasting, "run", NOW + 9 * MINUTES)
    together, alone = send(warehouse, NOW + 12 * MINUTES)
    assert together.split("\n")[:2] == [
        "*9 messages that could not be sent 22 Nov 15:00 - 15:12 UTC*",
        "• line 0",
    ]
    assert "*Next:* mend it" in alone


def test_channel_is_sent_what_it_asks_for(warehouse):
    """A pager hears no news."""
    write(warehouse, "champion")
    write(warehouse, "dead", severity="page")
    assert send(warehouse, severities=("page",), channel="pager") == ["text dead"]
    assert (
        send(warehouse, NOW + MINUTES) == []
    )  # it is new: what was written before does not concern it


def test_one_channel_that_refuses_does_not_hold_another(warehouse):
    """Nor is that one sent anything twice."""
    send(warehouse, NOW - MINUTES, channel="mail")
    send(warehouse, NOW - MINUTES)
    write(warehouse, "a")
    assert send(warehouse, answers=[REFUSED]) == ["text a"]
    assert send(warehouse, channel="mail") == ["text a"]
    assert send(warehouse, NOW + MINUTES, channel="mail") == []
    assert send(warehouse, NOW + MINUTES) == ["text a"]


def test_without_any_channel_what_waits_is_seen(warehouse):
    """And is sent as soon as there is one."""
    assert outbox_status.undelivered(warehouse, NOW) == []
    write(warehouse, "a")
    [lacking] = outbox_status.undelivered(warehouse, NOW)
    assert str(lacking).startswith("alerts, for want of a channel: 1 message waits since")
    assert send(warehouse) == ["text a"]


def test_reason_of_a_refusal_is_kept_without_its_secret(warehouse):
    """What is written into the warehouse is redacted."""
    write(warehouse, "a")
    send(warehouse, answers=[Answer("no https://u:s3cr3t@proxy")])
    with warehouse.read() as connection:
        errors = connection.scalars(
            text("SELECT error FROM outbox_deliveries UNION SELECT error FROM outbox_channels")
        )
        assert errors.all() == ["no https://***@proxy"]


def test_old_messages_are_forgotten(warehouse):
    """The table does not grow for ever."""
    for month in range(9):
        write(warehouse, f"{month}", NOW + month * timedelta(days=30))
    with warehouse.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM outbox_messages")) == 4


def test_nothing_is_served_before_the_first_publication(warehouse):
    """Without a published run there is nothing to tell of."""
    assert outbox_messages.served(warehouse, "iris") is None
