"""Posting to the webhook: every form of address, bounded in time and tries, silent."""

import io
import logging
from types import SimpleNamespace

import pytest
from slack_sdk import WebhookClient

from batch_jobs.alerts import slack
from batch_jobs.alerts.slack import SILENT, post, webhook_url
from tests.support.slack_endpoint import CANARY, slack_endpoint

__all__ = ["slack_endpoint"]
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
def client(slack_endpoint, monkeypatch):
    """A client of the stand-in, which pauses no longer than it is asked to."""
    monkeypatch.setattr(slack, "PAUSE", 0.0)
    return WebhookClient(slack_endpoint.url, timeout=3, retry_handlers=[], logger=SILENT)


def test_message_is_posted_once(slack_endpoint, client):
    """What Slack takes is posted once, without previews of its links."""
    assert post(client, "hello", 8) is None
    assert slack_endpoint.payloads == [
        {"text": "hello", "unfurl_links": False, "unfurl_media": False}
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
def test_only_what_may_pass_is_tried_again_and_once(slack_endpoint, client, mode, tries, problem):
    """A busy or broken Slack gets a second try; one that refuses the webhook does not."""
    slack_endpoint.mode = mode

    assert post(client, "hello", 8) == problem
    assert len(slack_endpoint.requests) == tries


def test_slack_that_recovers_gets_the_message(slack_endpoint, client, monkeypatch):
    """The second try is made after the pause that Slack asks for."""
    pauses = []

    def wait(seconds):
        pauses.append(seconds)
        slack_endpoint.mode = "ok" if seconds else "429"

    slack_endpoint.mode, slack_endpoint.retry_after = "429", "5"
    monkeypatch.setattr(slack.time, "sleep", wait)

    assert post(client, "hello", 8) is None
    assert pauses == [0.0, 5.0]


@pytest.mark.parametrize("asked", ["6", "3600", "Wed, 21 Oct 2026 07:28:00 GMT", "-1"])
def test_long_pause_is_left_to_the_next_run(slack_endpoint, client, asked):
    """A callback has 20 seconds to live, so it does not wait for a minute."""
    slack_endpoint.mode, slack_endpoint.retry_after = "429", asked

    assert post(client, "hello", 8) == "Slack answered 429: rate_limited"
    assert len(slack_endpoint.requests) == 1


def test_hanging_slack_is_left_after_two_short_tries(slack_endpoint, client, monkeypatch):
    """No try waits longer than the timeout, and there are two."""
    monkeypatch.setattr(slack, "TIMEOUT", 0.2)
    slack_endpoint.mode = "hang"

    assert "timed out" in (post(client, "hello", 8) or "")
    assert len(slack_endpoint.requests) == 2
    assert client.timeout == pytest.approx(0.2)


def test_time_of_tries_and_pause_is_bounded(slack_endpoint, client):
    """Two tries and the longest pause fit into the eight seconds; with no time, no try."""
    assert 2 * slack.TIMEOUT + slack.PAUSE <= 8
    assert post(client, "hello", 0) == "no time left"
    assert slack_endpoint.requests == []


def test_shorter_timeout_of_the_connection_is_respected(slack_endpoint):
    """A connection may ask for less than three seconds, not for more."""
    patient = WebhookClient(slack_endpoint.url, timeout=30, retry_handlers=[], logger=SILENT)
    hasty = WebhookClient(slack_endpoint.url, timeout=1, retry_handlers=[], logger=SILENT)
    post(patient, "hello", 8)
    post(hasty, "hello", 8)

    assert [patient.timeout, hasty.timeout] == [3, 1]


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
    client = WebhookClient(url, timeout=3, retry_handlers=[], logger=SILENT)
    problem = post(client, "hello", 8, [url, CANARY])

    assert problem
    assert "CANARY" not in problem.upper()


def test_tls_error_is_told(slack_endpoint, monkeypatch):
    """A server that does not speak TLS is a problem, not an exception."""
    monkeypatch.setattr(slack, "PAUSE", 0.0)
    url = slack_endpoint.url.replace("http:", "https:")
    client = WebhookClient(url, timeout=3, retry_handlers=[], logger=SILENT)

    assert (post(client, "hello", 8, [url]) or "").startswith("URLError: <urlopen error [SSL")


@pytest.mark.parametrize("mode", ["ok", "429", "500", "403", "404", "close"])
def test_slack_sdk_says_nothing_at_any_level(slack_endpoint, client, mode, caplog, capfd):
    """Slack's own client logs the URL; through us it logs nothing, even if all is turned on."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    try:
        caplog.set_level(logging.DEBUG)
        slack_endpoint.mode = mode
        post(client, "hello", 8)
    finally:
        logging.getLogger().removeHandler(handler)
    shown = "".join([stream.getvalue(), caplog.text, *capfd.readouterr()])

    assert "CANARY" not in shown.upper()
