"""The way to Slack by Airflow's connection `slack_webhook`."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from batch_jobs.redaction import redact

if TYPE_CHECKING:
    from slack_sdk import WebhookClient


log = logging.getLogger(__name__)

SLACK_CONNECTION_ID = "slack_webhook"
SENDING_SECONDS = 7.0


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


class Slack(NamedTuple):
    """The way to Slack, and what must never be seen of it."""

    client: WebhookClient
    secrets: frozenset[str]


def way_to_slack() -> Slack | None:
    """The way to Slack by the connection; None, and one line in the log, if there is none."""
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook
    from airflow.sdk import Connection
    from airflow.sdk.log import mask_secret

    from batch_jobs.alerts.slack import SILENT, webhook_url

    try:
        found = Connection.get(SLACK_CONNECTION_ID)
    except Exception:  # noqa: BLE001 - not found, and whatever a secrets backend raises
        log.warning("nothing is sent to Slack: no connection %s found", SLACK_CONNECTION_ID)
        return None
    url = webhook_url(found)
    if url is None:
        log.warning(
            "nothing is sent to Slack: connection %s has no webhook's secret path as its password",
            SLACK_CONNECTION_ID,
        )
        return None
    path = urlsplit(url).path
    parts = (url, path, path.lstrip("/"), path.partition("/services/")[2], found.password or "")
    secrets = frozenset(part for part in map(str.strip, parts) if len(part) >= 8)
    for secret in secrets:
        mask_secret(secret)
        mask_secret(quote(secret, safe=""))

    class Hook(SlackWebhookHook):
        """The provider's hook, given the connection in the one form that it always understands."""

        @classmethod
        def get_connection(cls, conn_id: str) -> Connection:
            return Connection(conn_id=conn_id, password=url, extra=found.extra)

    hook = Hook(slack_webhook_conn_id=SLACK_CONNECTION_ID, retry_handlers=[], logger=SILENT)
    client = hook.client
    if not any(name.endswith("proxy") for name in found.extra_dejson):
        # slack_sdk would use HTTPS_PROXY for every address; urllib respects NO_PROXY.
        client.proxy = None
    return Slack(client, secrets)


def post_to(slack: Slack, text: str, seconds: float) -> str | None:
    """Post a text; what was wrong if Slack did not take it."""
    from batch_jobs.alerts.slack import post

    return post(slack.client, redact(text, slack.secrets), seconds, slack.secrets)
