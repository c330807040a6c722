"""Post to a Slack incoming webhook: bounded in time, and silent about its URL, which is a secret.

Slack's own client retries without a bound one may set and writes the URL into the log when it does,
so the retries are here (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

from batch_jobs.redaction import first_line

if TYPE_CHECKING:
    from slack_sdk import WebhookClient
    from slack_sdk.webhook import WebhookResponse

TIMEOUT = 3.0
TRIES = 2
PAUSE = 0.5
LONGEST_PAUSE = 5.0
ENDPOINT = "https://hooks.slack.com/services"

# Belongs to no hierarchy and has no handler, so nothing can turn it on.
SILENT = logging.Logger("slack_webhook", logging.CRITICAL + 1)  # noqa: LOG001


class Address(Protocol):
    """The fields of an Airflow connection."""

    conn_type: str | None
    host: str | None
    port: int | None
    schema: str | None
    password: str | None


def webhook_url(address: Address) -> str | None:
    """The URL that a connection means, in whatever form it was written; None if there is no secret.

    Accepts what Airflow's Slack provider accepts, and forms that it reads wrongly: the path of a
    URI (`slackwebhook://:TOKEN@hooks.slack.com/services`), which Airflow takes for the scheme, a
    port, and the bare URL of the webhook.
    """
    token, host, schema = (
        (value or "").strip() for value in (address.password, address.host, address.schema)
    )
    port = f":{address.port}" if address.port else ""
    if "://" in token:
        return token
    is_scheme = schema in {"", "http", "https"}
    if not token:
        # The bare URL: Airflow reads https://HOST/PATH as type, host and schema.
        is_url = address.conn_type in {"http", "https"} and host and schema.count("/") >= 2
        return f"{address.conn_type}://{host}{port}/{schema}" if is_url else None
    if not host:
        base = ENDPOINT
    elif "://" in host:
        base = f"{host.rstrip('/')}{port}"
    else:
        base = f"{schema if is_scheme and schema else 'https'}://{host.rstrip('/')}{port}"
    path = "" if is_scheme else f"/{schema.strip('/')}"
    return f"{base}{path}/{token.lstrip('/')}"


def post(
    client: WebhookClient, text: str, seconds: float, secrets: Collection[str] = ()
) -> str | None:
    """Post a message, trying twice at most; None if Slack took it, else why not, without secrets.

    A busy or broken Slack (429, 5xx) and a broken connection are worth a second try, after the
    pause that Slack asks for if that is at most 5 s; other answers would stay the same.

    Args:
        client: made with `retry_handlers=[]` and the logger `SILENT`.
        text: Slack's mrkdwn.
        seconds: how long both tries and the pause may take.
        secrets: what no answer of this function may contain.
    """
    deadline = time.monotonic() + seconds
    timeout = min(client.timeout, TIMEOUT)
    problem = "no time left"
    pause: float | None = 0.0
    for _ in range(TRIES):
        if pause is None or time.monotonic() + pause >= deadline:
            break
        time.sleep(pause)
        # slack_sdk declares whole seconds, and hands them to urllib, which takes any.
        client.timeout = min(timeout, deadline - time.monotonic())  # type: ignore[assignment]
        try:
            answer = client.send(text=text, unfurl_links=False, unfurl_media=False)
        except Exception as error:  # noqa: BLE001 - urllib, ssl, http.client and slack_sdk
            problem, pause = first_line(error, secrets), PAUSE
        else:
            if 200 <= answer.status_code < 300:
                return None
            problem = first_line(f"Slack answered {answer.status_code}: {answer.body}", secrets)
            pause = _pause(answer)
    return problem


def _pause(answer: WebhookResponse) -> float | None:
    """Seconds to wait before the next try; None if there should be none."""
    if answer.status_code != 429 and answer.status_code < 500:
        return None
    headers = {name.lower(): value for name, value in dict(answer.headers).items()}
    try:
        asked = float(headers.get("retry-after", PAUSE))
    except ValueError:  # a date: nothing that is worth waiting for
        return None
    return asked if 0 <= asked <= LONGEST_PAUSE else None
