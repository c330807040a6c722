"""Post to a Slack incoming webhook: bounded in time, and silent about its URL, which is a secret.

Slack's own client retries without a bound one may set, writes the URL into the log when it does,
and does not tell an address that was not reached from one that did not answer; so this is done with
the standard library (https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks).
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any, Protocol
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from batch_jobs.alerts.problems import Message
from batch_jobs.redaction import first_line

TRIES = 2
PAUSE = 0.5
LONGEST_PAUSE = 5.0
LONGEST_ANSWER = 1_000
ENDPOINT = "https://hooks.slack.com/services"


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


@dataclass(frozen=True)
class Answer:
    """What became of a message that was handed to a channel.

    Attributes:
        problem: why it was not taken, without secrets; None if it was.
        pause: seconds that the channel asks for before the next try; None if it asks for none.
        is_unanswered: whether it was sent and not answered in time, so that it may have arrived.
    """

    problem: str | None = None
    pause: float | None = None
    is_unanswered: bool = False


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A webhook that moved is not followed: where it leads would be told the secret."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Do not follow."""


@dataclass(frozen=True)
class Webhook:
    """A Slack incoming webhook, or what understands the same.

    Attributes:
        url: its secret address.
        proxy: by which to reach it; None as the environment says, `NO_PROXY` included.
        timeout: the longest wait for an answer, in seconds; None for all the time there is.
        secrets: what no answer may contain.
    """

    url: str = field(repr=False)
    proxy: str | None = field(default=None, repr=False)
    timeout: float | None = None
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    def send(self, message: Message, seconds: float) -> Answer:
        """Post a message, trying twice at most within so many seconds.

        A busy or broken Slack (429, 5xx) and a connection that was not made, or was closed, are
        worth a second try, after the pause that Slack asks for if that is at most 5 s; other
        answers would stay the same. A message that Slack took and did not answer in time is not
        posted again: it may have arrived. Blocks that it does not understand are left out.
        """
        payload: dict[str, Any] = {
            "text": message.text,
            "unfurl_links": False,
            "unfurl_media": False,
        }
        whole = {**payload, "blocks": list(message.blocks)} if message.blocks else payload
        deadline = time.monotonic() + seconds
        answer = self._post(whole, deadline)
        for _ in range(TRIES - 1):
            if answer.problem is None or answer.is_unanswered:
                break
            if "blocks" in whole and answer.problem.startswith("Slack answered 400"):
                whole = payload
            elif answer.pause is None or not answer.pause <= min(LONGEST_PAUSE, _left(deadline)):
                break
            else:
                time.sleep(answer.pause)
            answer = self._post(whole, deadline)
        return answer

    def _post(self, payload: Mapping[str, Any], deadline: float) -> Answer:
        left = _left(deadline)
        if left <= 0:
            return Answer("no time left")
        try:
            request = urllib.request.Request(  # noqa: S310 - the scheme is looked at
                self.url, json.dumps(payload).encode(), {"Content-Type": "application/json"}
            )
            with self._opener().open(request, timeout=min(left, self.timeout or left)) as answer:
                status, body, pause = answer.status, answer.read(LONGEST_ANSWER), None
        except HTTPError as error:
            status, pause = error.code, pause_of(error.code, dict(error.headers))
            body = _read(error)
        except TimeoutError:
            return Answer("sent, and not answered in time", is_unanswered=True)
        except (URLError, HTTPException, OSError, ValueError) as error:
            told = error.reason if isinstance(error, URLError) else error
            told = told if isinstance(told, BaseException) else str(told)
            return Answer(first_line(told, self.secrets), PAUSE)
        if 200 <= status < 300:
            return Answer()
        said = f"Slack answered {status}: {body.decode(errors='replace')}"
        return Answer(first_line(said, self.secrets), pause)

    def _opener(self) -> urllib.request.OpenerDirector:
        if urlsplit(self.url).scheme not in {"http", "https"}:
            raise ValueError("the webhook is no http or https URL")
        proxies = {"http": self.proxy, "https": self.proxy} if self.proxy else None
        return urllib.request.build_opener(urllib.request.ProxyHandler(proxies), NoRedirect)


def secrets_of(url: str, *others: str | None) -> frozenset[str]:
    """What must never be seen of a webhook: its URL, its path and the parts of it that matter."""
    path = urlsplit(url).path
    parts = (url, path, path.lstrip("/"), path.partition("/services/")[2], *others)
    found = (part.strip() for part in parts if part)
    return frozenset(part for part in found if len(part) >= 8)


def _left(deadline: float) -> float:
    return deadline - time.monotonic()


def _read(error: HTTPError) -> bytes:
    try:
        return error.read(LONGEST_ANSWER)
    except (HTTPException, OSError):
        return b""


def pause_of(status: int, headers: Mapping[str, str]) -> float | None:
    """Seconds to wait before the next try; None if it would not help."""
    if status != 429 and status < 500:
        return None
    try:
        named = {name.lower(): value for name, value in headers.items()}
        asked = float(named.get("retry-after") or PAUSE)
    except ValueError:  # a date: later than anybody here waits
        return LONGEST_PAUSE + 1
    return asked if asked >= 0 else LONGEST_PAUSE + 1
