"""Channels are configured, and not coded."""

import sys
from types import ModuleType

import pytest

from batch_jobs.alerts import channels
from batch_jobs.alerts.channels import configured
from batch_jobs.alerts.problems import Message
from batch_jobs.errors import ConfigurationError
from tests.support.slack_endpoint import CANARY, slack_endpoint

__all__ = ["slack_endpoint"]
WEBHOOK = f"https://hooks.slack.com/services/{CANARY}"


@pytest.fixture
def apprise(monkeypatch):
    """A stand-in for Apprise; what it was asked to send."""
    sent, module = [], ModuleType("apprise")

    class Apprise:
        def add(self, url):
            self.url = url
            return "odd" not in url

        def notify(self, title, body):
            sent.append((self.url, title, body))
            return "down" not in self.url

    module.Apprise = Apprise
    module.__spec__ = ModuleType("x").__spec__ or True
    monkeypatch.setitem(sys.modules, "apprise", module)
    monkeypatch.setattr(channels.importlib.util, "find_spec", lambda _: True)
    return sent


def test_without_any_address_there_is_no_channel():
    """Which is no error: alerts wait."""
    assert configured({}) == []


@pytest.mark.parametrize(
    "connection",
    [
        f'{{"conn_type": "slackwebhook", "password": "{WEBHOOK}"}}',
        f"slackwebhook://:{CANARY.replace('/', '%2F')}@hooks.slack.com/services",
        WEBHOOK,
    ],
)
def test_slacks_connection_is_read_as_airflow_writes_it(connection):
    """So that command line and watch tell the same channel as Airflow does."""
    [channel] = configured({"AIRFLOW_CONN_SLACK_WEBHOOK": connection})
    assert (channel.name, channel.way.url) == ("slack", WEBHOOK)
    assert CANARY not in repr(channel)


def test_each_address_is_sent_what_it_asks_for(apprise):
    """By severity; without a word, everything."""
    [hook, mail] = configured({"BATCH_JOBS_ALERTS": f"{WEBHOOK} page+warn=mailto://u:p@x.example"})
    assert hook.severities == {"page", "warn", "news"}
    assert mail.severities == {"page", "warn"}
    assert hook.name.startswith("https-")
    assert CANARY not in hook.name


def test_apprise_is_sent_plain_text(apprise):
    """Marks and links of Slack are put plainly; what was wrong is told without the address."""
    [mail, odd, down] = configured(
        {"BATCH_JOBS_ALERTS": "mailto://secret odd://secret2 down://secret3"}
    )
    message = Message("x", ":red_circle: *a &amp; b*\n<https://x/y|Open the log>")
    assert mail.way.send(message, 5).problem is None
    assert apprise == [("mailto://secret", "a & b", "Open the log: https://x/y")]
    assert odd.way.send(message, 5).problem == "Apprise does not understand this address"
    assert down.way.send(message, 5).problem == "Apprise could not send it"


def test_all_that_is_wrong_with_the_addresses_is_told_at_once(monkeypatch):
    """And none of them is shown, for each is a secret."""
    monkeypatch.setattr(channels.importlib.util, "find_spec", lambda _: None)
    addresses = f"{CANARY} loud={WEBHOOK} mailto://u:{CANARY}@x.example"
    with pytest.raises(ConfigurationError) as raised:
        configured({"BATCH_JOBS_ALERTS": addresses})
    told = str(raised.value)
    assert "address 1 of BATCH_JOBS_ALERTS is no address" in told
    assert "address 2 of BATCH_JOBS_ALERTS asks for loud; there are news, page, warn" in told
    assert "(mailto) is one of Apprise's; run `pip install 'batch-jobs[alerts]'`" in told
    assert CANARY not in told
