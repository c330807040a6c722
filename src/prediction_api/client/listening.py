"""Server-sent events as the client hears them, line by line, without I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from prediction_api.client.exchange import no_api, require_success

SECONDS = 40.0  # without a sign of life: the server gives one every fifteen
PAUSE = 2.0  # before a server that was away is asked again


def path_of(model: str) -> str:
    """Where the publications of a model are told."""
    return f"/v1/models/{quote(model, safe='')}/events"


def timeout_of(usual: httpx.Timeout) -> httpx.Timeout:
    """The time-outs of a connection on which events come seldom."""
    return httpx.Timeout(connect=usual.connect, write=usual.write, pool=usual.pool, read=SECONDS)


@dataclass
class Ear:
    """What was heard of a stream of events.

    Attributes:
        last: the id of the last event.
    """

    last: str | None = None
    _fields: dict[str, str] = field(default_factory=dict)

    def headers(self) -> Mapping[str, str]:
        """What a stream is asked for with, so that nothing is missed."""
        return {"Accept": "text/event-stream"} | ({"Last-Event-ID": self.last} if self.last else {})

    def hear(self, line: str) -> Any:
        """Hear a line: the data of an event that it ends; None if it ends none."""
        if line:
            name, _, value = line.partition(":")
            self._fields[name] = value.removeprefix(" ")
            return None
        heard, self._fields = self._fields, {}
        if "data" not in heard:
            return None
        self.last = heard.get("id", self.last)
        return json.loads(heard["data"])


def require_stream(answer: httpx.Response) -> None:
    """Go on with a stream.

    Raises:
        PredictionApiError: it is none.
    """
    require_success(answer)
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        raise no_api(answer)
