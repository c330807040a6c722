"""Posting to the webhook: every form of address, bounded in time and tries, silent."""

from types import SimpleNamespace

import pytest

from batch_jobs.alerts import slack
from batch_jobs.alerts.problems import Message
from batch_jobs.alerts.slack import Webhook, secrets_of, webhook_url
from tests.support.slack_endpoint import CANARY, slack_endpoint

__all__ = ["slack_endpoint"]
HELLO = Message("hello", "hello", ({"type": "divider"},))
SLACK = "https://hooks.slack.com/services/T/B/X"


def address(conn_type="slackwebhook", host=None, port=None, schema=None, password=None):
    """An Airflow connection's fields."""
    return SimpleNamespace(
        conn_type=conn_type, host=host, port=port, schema=schema, password=password
    )


@pytest.mark.parametrize(
    ("fields", "url"),
    [
        pytest.param({"password": SLACK}, SLACK, id="whole URL in the password"),
        pytest.param({"password": f" {SLACK}\n"}, SLACK, id="pasted with blanks"),
        pytest.param({"password": "T/B/X"}, SLACK, id="token only"),
        pytest.param({"password": "/T/B/X"}, SLACK, id="token with a slash"),
        pytest.param(
            {"conn_type": "http", "host": "https://hooks.slack.com/services", "password": "/T/B/X"},
            SLACK,
            id="the HTTP connection of the tutorials",
        ),
        pytest.param(
            {"conn_type": "http", "host": "https://hooks.slack.com/services/", "password": "T/B/X"},
            SLACK,
            id="HTTP connection, slashes swapped",
        ),
        pytest.param(
            {"host": "hooks.slack.com/services", "schema": "https", "password": "T/B/X"},
            SLACK,
            id="scheme as the schema",
        ),
        pytest.param(
            {"host": "hooks.slack.com", "schema": "services", "password": "T/B/X"},
            SLACK,
            id="URI whose path Airflow takes for the scheme",
        ),
        pytest.param(
            {"conn_type": "https", "host": "hooks.slack.com", "schema": "services/T/B/X"},
            SLACK,
            id="the bare URL of the webhook",
        ),
        pytest.param(
            {"host": "http://127.0.0.1", "port": 8065, "schema": "hooks", "password": "abc"},
            "http://127.0.0.1:8065/hooks/abc",
            id="another server, with a port",
        ),
        pytest.param(
            {"host": "chat.example", "port": 8065, "schema": "http", "password": "abc"},
            "http://chat.example:8065/abc",
            id="another server, port and scheme",
        ),
        pytest.param({"password": None}, None, id="no password"),
        pytest.param({"password": "  "}, None, id="blank password"),
        pytest.param({"host": "hooks.slack.com/services"}, None, id="host only"),
        pytest.param({"conn_type": "http", "host": "https://x"}, None, id="HTTP, host only"),
    ],
)
def test_url_is_understood_in_every_form_of_the_connection(fields, url):
    """However the connection was written, the webhook is found; without a secret there is none."""
    assert webhook_url(address(**fields)) == url


@pytest.fixture
def webhook(slack_endpoint, monkeypatch):
    """The stand-in as a webhook, which pauses no longer than it is asked to."""
    monkeypatch.setattr(slack, "PAUSE", 0.0)
    return Webhook(slack_endpoint.url, secrets=secrets_of(slack_endpoint.url))


def test_message_is_posted_once(slack_endpoint, webhook):
    """What Slack takes is posted once, with its blocks and without previews of its links."""
    assert webhook.send(HELLO, 8).problem is None
    assert slack_endpoint.payloads == [
        {
            "text": "hello",
            "blocks": list(HELLO.blocks),
            "unfurl_links": False,
            "unfurl_media": False,
        }
    ]


def test_blocks_that_slack_does_not_understand_are_left_out(slack_endpoint, webhook):
    """A message without its looks is better than none."""
    slack_endpoint.mode = "400"
    assert webhook.send(HELLO, 8).problem is None
    assert [list(payload) for payload in slack_endpoint.payloads] == [
        ["text", "unfurl_links", "unfurl_media"]
    ]


@pytest.mark.parametrize(
    ("mode", "tries", "problem"),
    [
        ("429", 2, "Slack answered 429: rate_limited"),
        ("500", 2, "Slack answered 500: server_error"),
        ("403", 1, "Slack answered 403: action_prohibited"),
        ("404", 1, "Slack answered 404: no_service"),
        ("close", 2, "RemoteDisconnected: Remote end closed connection without response"),
    ],
)
def test_only_what_may_pass_is_tried_again_and_once(slack_endpoint, webhook, mode, tries, problem):
    """A busy or broken Slack gets a second try; one that refuses the webhook does not."""
    slack_endpoint.mode = mode

    answer = webhook.send(HELLO, 8)

    assert (answer.problem, answer.is_unanswered) == (problem, False)
    assert len(slack_endpoint.requests) == tries


def test_slack_that_recovers_gets_the_message(slack_endpoint, webhook, monkeypatch):
    """The second try is made after the pause that Slack asks for."""
    pauses = []

    def wait(seconds):
        pauses.append(seconds)
        slack_endpoint.mode = "ok"

    slack_endpoint.mode, slack_endpoint.retry_after = "429", "5"
    monkeypatch.setattr(slack.time, "sleep", wait)

    assert webhook.send(HELLO, 8).problem is None
    assert pauses == [5.0]


@pytest.mark.parametrize("asked", ["6", "3600", "Wed, 21 Oct 2026 07:28:00 GMT", "-1"])
def test_long_pause_is_left_to_the_next_run(slack_endpoint, webhook, asked):
    """A callback has 20 seconds to live, so it does not wait for a minute; but the outbox does."""
    slack_endpoint.mode, slack_endpoint.retry_after = "429", asked

    answer = webhook.send(HELLO, 8)

    assert answer.problem == "Slack answered 429: rate_limited"
    assert answer.pause == (float(asked) if asked.isdecimal() else 6.0)
    assert len(slack_endpoint.requests) == 1


def test_slow_slack_is_waited_for(slack_endpoint, webhook):
    """As long as there is time; it took the message at once."""
    slack_endpoint.mode, slack_endpoint.delay = "slow", 0.4
    assert webhook.send(HELLO, 7).problem is None
    assert len(slack_endpoint.payloads) == 1


@pytest.mark.parametrize("mode", ["hang", "slow"])
def test_message_that_may_have_arrived_is_not_posted_again(slack_endpoint, webhook, mode):
    """Nobody knows whether a Slack that does not answer in time has the message."""
    slack_endpoint.mode = mode
    answer = webhook.send(HELLO, 0.2)
    slack_endpoint.release()

    assert (answer.problem, answer.is_unanswered) == ("sent, and not answered in time", True)
    assert len(slack_endpoint.requests) == 1


def test_slack_that_was_not_reached_has_nothing(monkeypatch):
    """Nobody listens: it is not answered, and was not sent."""
    monkeypatch.setattr(slack, "PAUSE", 0.0)
    answer = Webhook(f"http://127.0.0.1:1/services/{CANARY}").send(HELLO, 2)
    assert answer.is_unanswered is False
    assert "ConnectionRefusedError" in answer.problem


def test_no_time_left_is_told(webhook):
    """A callback that has no time left leaves the message to the next one."""
    assert webhook.send(HELLO, 0).problem == "no time left"


def test_address_stays_secret(slack_endpoint, webhook, caplog, capfd):
    """Whatever Slack answers, and whatever the webhook is printed as."""
    slack_endpoint.mode = "500"
    shown = f"{webhook.send(HELLO, 8)} {webhook!r} {caplog.text} {capfd.readouterr()}"
    assert CANARY.rpartition("/")[2] not in shown


@pytest.mark.parametrize(
    "url",
    [
        f"http://127.0.0.1:1/services/{CANARY}",
        f"http://no-such-host.invalid/services/{CANARY}",
        f"ftp://127.0.0.1/{CANARY}",
        f"http://127.0.0.1:notaport/{CANARY}",
        f"http://127.0.0.1:1/ {CANARY}",
        CANARY,
    ],
)
def test_broken_address_is_told_without_the_secret(slack_endpoint, url, monkeypatch):
    """Refused, unknown, of another scheme or no URL at all: a line that does not show it."""
    monkeypatch.setattr(slack, "PAUSE", 0.0)
    answer = Webhook(url, secrets=secrets_of(url, CANARY)).send(HELLO, 8)

    assert answer.problem
    assert not answer.is_unanswered
    assert "CANARY" not in answer.problem.upper()


def test_tls_error_is_told(slack_endpoint, monkeypatch):
    """A server that does not speak TLS is a problem, not an exception."""
    monkeypatch.setattr(slack, "PAUSE", 0.0)
    url = slack_endpoint.url.replace("http:", "https:")

    assert "SSL" in (Webhook(url).send(HELLO, 8).problem or "")
