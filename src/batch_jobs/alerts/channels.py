"""Channels: where messages go, by configuration alone.

`BATCH_JOBS_ALERTS` holds addresses, parted by blanks. One that begins with `http` is a Slack
webhook, or of what understands the same (Mattermost, Rocket.Chat); any other is one of Apprise
(https://appriseit.com/services/): mail, Teams, Telegram, PagerDuty and a hundred more. Before an
address may stand what it is sent, such as `page+warn=`; without that it is sent everything.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Protocol, get_args
from urllib.parse import unquote, urlsplit

from batch_jobs.alerts import webhooks
from batch_jobs.alerts.mrkdwn import unescaped
from batch_jobs.alerts.problems import EVENT, Event, Message, Severity
from batch_jobs.alerts.slack import Answer, Webhook, secrets_of, webhook_url
from batch_jobs.errors import ConfigurationError
from batch_jobs.redaction import first_line, redact
from batch_jobs.settings import AlertSettings

VARIABLE = "BATCH_JOBS_ALERTS"
SLACK = "slack"
SEVERITIES: frozenset[Severity] = frozenset(get_args(Severity))
_ENTRY = re.compile(r"(?:([a-z]+(?:\+[a-z]+)*)=)?(\S+)")


class Way(Protocol):
    """What can send a message."""

    def send(self, message: Message, seconds: float) -> Answer:
        """Send it within so many seconds; it raises nothing."""


@dataclass(frozen=True)
class Channel:
    """Where messages go.

    Attributes:
        name: by which the outbox knows it; no secret.
        way: how they get there.
        severities: which messages it is sent.
    """

    name: str
    way: Way = field(repr=False)
    severities: frozenset[Severity | Event] = SEVERITIES


@dataclass(frozen=True)
class Apprise:
    """An address of Apprise, if that is installed."""

    url: str = field(repr=False)

    def send(self, message: Message, seconds: float) -> Answer:  # noqa: ARG002 - it has its own
        """Send a message as plain text; Apprise answers no more than whether it was taken."""
        try:
            apprise = importlib.import_module("apprise")
            sender = apprise.Apprise()
            if not sender.add(self.url):
                return Answer("Apprise does not understand this address")
            title, _, body = plain(message.text).partition("\n")
            taken = sender.notify(title=title, body=body or title)
        except Exception as error:  # noqa: BLE001 - a hundred services of others
            return Answer(first_line(error, {self.url}))
        return Answer() if taken else Answer("Apprise could not send it")


def plain(text: str) -> str:
    """Slack's mrkdwn as it reads where it is not understood."""
    text = re.sub(r"<([^|<>]+)\|([^<>]*)>", r"\2: \1", text)
    text = re.sub(r":(?:large_)?\w+_circle:", "", text)
    return unescaped(text.replace("*", "")).strip()


def configured(
    environ: Mapping[str, str] = os.environ, slack: Webhook | None = None
) -> list[Channel]:
    """The channels that the environment names, and Slack's; services that are told of events, too.

    Args:
        environ: with `BATCH_JOBS_ALERTS`, `BATCH_JOBS_WEBHOOKS` and `AIRFLOW_CONN_SLACK_WEBHOOK`,
            which may be missing.
        slack: the webhook of Airflow's connection, which wins over the environment's.

    Raises:
        ConfigurationError: an address is none, or needs what is not installed; all at once.
    """
    slack = slack or _slack_of(environ.get("AIRFLOW_CONN_SLACK_WEBHOOK", ""))
    found = [Channel(SLACK, slack)] if slack else []
    problems = []
    settings = AlertSettings.from_environ(environ)
    try:
        hooks = webhooks.configured(settings.webhooks, settings.webhook_secret)
    except ConfigurationError as error:
        problems.append(str(error))
    else:
        found += [Channel(name, hook, frozenset({EVENT})) for name, hook in hooks.items()]
    for place, entry in enumerate(settings.alerts.split(), 1):
        try:
            found.append(_channel(entry))
        except ConfigurationError as error:
            problems.append(f"address {place} of {VARIABLE} {error}")
    if problems:
        raise ConfigurationError("; ".join(problems))
    return list({channel.name: channel for channel in found}.values())


def _channel(entry: str) -> Channel:
    match = _ENTRY.fullmatch(entry)
    named = set(match[1].split("+")) if match and match[1] else set(SEVERITIES)
    url = match[2] if match else entry
    scheme = url.partition("://")[0].lower()
    if match is None or "://" not in url or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise ConfigurationError("is no address, such as https://hooks.slack.com/services/…")
    wanted = frozenset(each for each in SEVERITIES if each in named)
    if unknown := sorted(named - SEVERITIES):
        raise ConfigurationError(
            f"asks for {', '.join(unknown)}; there are {', '.join(sorted(SEVERITIES))}"
        )
    # Two addresses of one service differ in what is secret, and so in nothing that is shown.
    name = f"{scheme}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    if scheme in {"http", "https"}:
        return Channel(name, Webhook(url, secrets=secrets_of(url)), wanted)
    if importlib.util.find_spec("apprise") is None:
        raise ConfigurationError(
            f"({scheme}) is one of Apprise's; run `pip install 'batch-jobs[alerts]'`"
        )
    return Channel(name, Apprise(url), wanted)


def _slack_of(connection: str) -> Webhook | None:
    """The webhook of a connection as Airflow's environment variable writes it; None of none."""
    if not connection.strip():
        return None
    try:
        fields = json.loads(connection)
    except ValueError:
        fields = _of_uri(connection)
    if not isinstance(fields, dict):
        return None
    names = ("conn_type", "host", "port", "schema", "password")
    address = SimpleNamespace(**{name: fields.get(name) for name in names})
    url = webhook_url(address)
    return Webhook(url, secrets=secrets_of(url, address.password)) if url else None


def _of_uri(uri: str) -> dict[str, str | int | None]:
    parts = urlsplit(uri)
    try:
        port = parts.port
    except ValueError:
        port = None
    host = parts.netloc.rpartition("@")[2]
    host = host[: -len(f":{port}")] if port else host
    return {
        "conn_type": parts.scheme,
        "host": unquote(host),
        "port": port,
        "schema": unquote(parts.path.lstrip("/")),
        "password": unquote(parts.password or ""),
    }


def names(channels: Collection[Channel]) -> str:
    """The channels, for a person."""
    return ", ".join(redact(channel.name) for channel in channels) or "none"
