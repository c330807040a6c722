"""Webhooks: services of the operator are told of each publication and each end of a request.

Signed as https://www.standardwebhooks.com has it, so that its libraries verify them. They wait in
the outbox like alerts, each alone, and are sent until they are taken, for three days: at least
once, and by an id that stays the same. Where they go is a setting: no client of the API names an
address, no redirect is followed, and of an answer nothing but its status is told.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from uuid import uuid4

from batch_jobs import clock
from batch_jobs.alerts import outbox_messages
from batch_jobs.alerts.parcels import GIVE_UP
from batch_jobs.alerts.problems import EVENT, Message
from batch_jobs.alerts.slack import Answer, NoRedirect, pause_of
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError
from batch_jobs.redaction import first_line

VARIABLE, SECRET = "BATCH_JOBS_WEBHOOKS", "BATCH_JOBS_WEBHOOK_SECRET"
VARIABLES = (VARIABLE, SECRET)
PREFIX = "whsec_"
SHORTEST, LONGEST = 24, 64  # bytes of a secret, as the standard has it
SECONDS = 5.0
PAUSE = 0.5
HOW = f"make one with `echo {PREFIX}$(openssl rand -base64 32)`"


@dataclass(frozen=True)
class SignedWebhook:
    """A service that is told of events.

    Attributes:
        url: its address, which may hold a secret.
        keys: by each of which is signed; more than one while one takes the place of another.
        secrets: what no log may contain.
    """

    url: str = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)
    secrets: frozenset[str] = field(default=frozenset(), repr=False)

    def send(self, message: Message, seconds: float) -> Answer:
        """Post an event once; any answer of 2xx has taken it."""
        body = message.text.encode()
        request = urllib.request.Request(self.url, body, self.headers(body, clock.now()))  # noqa: S310
        opener = urllib.request.build_opener(NoRedirect)
        try:
            with opener.open(request, timeout=min(seconds, SECONDS)) as answer:
                status, pause = answer.status, None
        except HTTPError as error:
            with error:
                status, pause = error.code, pause_of(error.code, dict(error.headers))
        except (URLError, HTTPException, OSError, ValueError) as error:
            told = error.reason if isinstance(error, URLError) else error
            told = told if isinstance(told, BaseException) else str(told)
            return Answer(first_line(told, self.secrets), PAUSE)
        return Answer() if 200 <= status < 300 else Answer(f"it answered {status}", pause)

    def headers(self, body: bytes, now: datetime) -> dict[str, str]:
        """The id of an event, which every try has alike, and the signatures of this try."""
        name, moment = f"msg_{hashlib.sha256(body).hexdigest()[:32]}", str(int(now.timestamp()))
        return {
            "Content-Type": "application/json",
            "User-Agent": "batch-jobs",
            "webhook-id": name,
            "webhook-timestamp": moment,
            "webhook-signature": self.signed(name, moment, body),
        }

    def signed(self, name: str, moment: str, body: bytes) -> str:
        """The signatures of an event by its id and the time of a try, one by each key."""
        told = b".".join((name.encode(), moment.encode(), body))
        made = (hmac.digest(key, told, "sha256") for key in self.keys)
        return " ".join(f"v1,{base64.b64encode(each).decode()}" for each in made)


def configured(addresses: str, secret: str) -> dict[str, SignedWebhook]:
    """The services by the names that the outbox knows them by.

    Args:
        addresses: parted by blanks.
        secret: one or several, parted by blanks, each as the standard writes it.

    Raises:
        ConfigurationError: an address or a secret is none; its value is not told.
    """
    urls = addresses.split()
    if not urls:
        return {}
    keys = tuple(map(_key, secret.split()))
    if not keys:
        raise ConfigurationError(f"{VARIABLE} needs {SECRET}, to sign by: {HOW}")
    found = {}
    for place, url in enumerate(urls, 1):
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(
                f"address {place} of {VARIABLE} is none, such as https://app.example.com/hooks"
            )
        name = f"webhook-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        hidden = {part for part in (url, parts.path, parts.query, parts.password) if part}
        secrets = frozenset(part for part in hidden if len(part) >= 8)
        found[name] = SignedWebhook(url, keys, secrets | set(secret.split()))
    return found


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not SHORTEST <= len(key) <= LONGEST:
        raise ConfigurationError(
            f"{SECRET} is no {PREFIX} with {SHORTEST} to {LONGEST} bytes in base64; {HOW}"
        )
    return key


def write_events(warehouse: Warehouse, now: datetime) -> int:
    """Write an event for what has happened and has none yet; how many those were.

    It is read from the ledger and the requests, whoever published and answered, by whatever door.
    """
    # An event is of when it happened, and a new address is not told of what is long past.
    return sum(
        outbox_messages.write_alone(warehouse, key, message, at, EVENT)
        for key, message, at in list(_news(warehouse, now))
    )


def _news(warehouse: Warehouse, now: datetime) -> Iterator[tuple[str, Message, datetime]]:
    values = {"fresh": stored_time(now - GIVE_UP + timedelta(hours=1))}
    with warehouse.read() as connection:
        for row in connection.execute(text(_PUBLISHED), values):
            told = _of_row(row, "run_id", "model", "model_version", "row_count")
            times = {
                name: _spelled(getattr(row, name)) for name in ("interval_start", "interval_end")
            }
            at = loaded_time(row.published_at)
            yield f"publication {row.run_id}", event("predictions.published", at, told | times), at
        for row in connection.execute(text(_ENDED), values):
            told = _of_row(row, "request_id", "model", "model_version")
            told["rows"] = _of_row(row, "rows_read", "rows_scored", "rows_rejected", "rows_skipped")
            at = loaded_time(row.finished_at)
            told["url"] = f"/v1/requests/{row.request_id}"
            yield f"request {row.request_id}", event(f"request.{row.state}", at, told), at


def event(kind: str, at: datetime, data: Mapping[str, Any]) -> Message:
    """An event, as the standard writes its payload."""
    payload = {"type": kind, "timestamp": _spelled(at), "data": dict(data)}
    return Message(kind, json.dumps(payload, ensure_ascii=False))


def trial() -> Message:
    """An event that is sent to try the way."""
    return event("test", clock.now(), {"try": str(uuid4())})


def _of_row(row: Any, *names: str) -> dict[str, Any]:
    return {name.removeprefix("rows_"): getattr(row, name) for name in names}


def _spelled(at: Any) -> str:
    """A time as the API's JSON has it."""
    return loaded_time(at).isoformat().replace("+00:00", "Z")


_PUBLISHED = """
    SELECT r.run_id, r.model, r.model_version, r.interval_start, r.interval_end, r.published_at,
           r.rows_scored AS row_count
    FROM prediction_runs AS r
    WHERE r.published_at > :fresh AND NOT EXISTS (
      SELECT 1 FROM outbox_messages AS m WHERE m.key = 'publication ' || CAST(r.run_id AS text))
    ORDER BY r.published_at, r.run_id"""
_ENDED = """
    SELECT r.request_id, r.model, r.model_version, r.rows_read, r.rows_scored, r.rows_rejected,
           r.rows_skipped, r.finished_at,
           CASE WHEN c.request_id IS NOT NULL AND r.state = 'failed'
                THEN 'cancelled' ELSE r.state END AS state
    FROM requests AS r LEFT JOIN cancelled_requests AS c ON c.request_id = r.request_id
    WHERE r.state IN ('done', 'failed') AND r.finished_at > :fresh AND NOT EXISTS (
      SELECT 1 FROM outbox_messages AS m WHERE m.key = 'request ' || CAST(r.request_id AS text))
    ORDER BY r.finished_at, r.request_id"""
