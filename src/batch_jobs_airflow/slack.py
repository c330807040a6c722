"""The channels inside Airflow: Slack by its connection, others by the environment."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

from batch_jobs.errors import ConfigurationError

if TYPE_CHECKING:
    from batch_jobs.alerts.channels import Channel
    from batch_jobs.alerts.slack import Webhook

log = logging.getLogger(__name__)

SLACK_CONNECTION_ID = "slack_webhook"


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def channels() -> list[Channel]:
    """Where messages go; none, and one line in the log, if nowhere."""
    from batch_jobs.alerts.channels import configured

    slack, problem = _webhook()
    try:
        found = configured({}, slack) + _others()
    except ConfigurationError as error:
        log.warning("alerts go to Slack alone: %s", error)
        found = configured({}, slack)
    if not found and problem:
        log.warning("nothing is sent to Slack: %s", problem)
    return found


def _others() -> list[Channel]:
    import os

    from batch_jobs.alerts import webhooks
    from batch_jobs.alerts.channels import VARIABLE, configured

    found = configured({name: os.environ.get(name, "") for name in (VARIABLE, *webhooks.VARIABLES)})
    for channel in found:
        _mask(getattr(channel.way, "secrets", ()))
    return found


def _webhook() -> tuple[Webhook | None, str | None]:
    """Slack's webhook by the connection; or why there is none."""
    from airflow.sdk import Connection

    from batch_jobs.alerts.slack import Webhook, secrets_of, webhook_url

    try:
        found = Connection.get(SLACK_CONNECTION_ID)
    except Exception:  # noqa: BLE001 - not found, and whatever a secrets backend raises
        return None, f"no connection {SLACK_CONNECTION_ID} found"
    url = webhook_url(found)
    if url is None:
        return None, (
            f"connection {SLACK_CONNECTION_ID} has no webhook's secret path as its password"
        )
    secrets = secrets_of(url, found.password)
    _mask(secrets)
    extra = found.extra_dejson
    timeout = extra.get("timeout")
    return Webhook(
        url,
        proxy=extra.get("proxy"),
        timeout=float(timeout) if isinstance(timeout, int | float) and timeout > 0 else None,
        secrets=secrets,
    ), None


def _mask(secrets: frozenset[str] | tuple[()]) -> None:
    from airflow.sdk.log import mask_secret

    for secret in secrets:
        mask_secret(secret)
        mask_secret(quote(secret, safe=""))
