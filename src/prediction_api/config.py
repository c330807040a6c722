"""How one server is set up; read once from the environment, at the door."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address

from limits import RateLimitItem, parse

from batch_jobs.errors import ConfigurationError
from batch_jobs.settings import Settings

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "0.0.0.0")  # noqa: S104 # as curl may call it
SHORTEST_KEY = 16


@dataclass(frozen=True)
class Config:
    """The settings of one server.

    Attributes:
        settings: the warehouse, the model store and the model files.
        host: address to listen on.
        port: port to listen on.
        keys: who may ask; none are needed on 127.0.0.1, where only this machine can ask.
        hosts: names in the header Host that are answered; all of them with keys, else those of
            this machine, so that no web page can let a browser ask for it.
        model: who answers `POST /predict`.
        rate: how many requests one client has.
        body_bytes: the largest body.
        seconds: the longest time a request may take.
        upload_bytes: the largest body of a request of many rows.
        upload_rows: the most rows it may have.
        upload_seconds: the longest time it may take to send and to take in.
        answer: whether this process answers requests of many rows; else `batch-jobs answer` does,
            or the model's DAG.
    """

    settings: Settings
    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = LOOPBACK_NAMES
    model: str = "iris"
    rate: RateLimitItem = field(default_factory=lambda: parse("6000/minute"))
    body_bytes: int = 1_000_000
    seconds: float = 5.0
    upload_bytes: int = 10_000_000
    upload_rows: int = 100_000
    upload_seconds: float = 60.0
    answer: bool = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Config:
        """Read `PREDICTION_API_…`, and what `Settings` reads.

        Raises:
            ConfigurationError: a variable has a value that it cannot have, all of them named at
                once; or the server is to listen to other machines without a key.
        """
        problems: list[str] = []

        def read(name: str, default: str, make: Callable[[str], object], right: str) -> object:
            given = environ.get(f"PREDICTION_API_{name}") or default
            try:
                return make(given)
            except (KeyError, ValueError):
                shown = f" is {given!r}" if name != "KEYS" else " has a key that is too short"
                problems.append(f"PREDICTION_API_{name}{shown}; write {right}")
                return make(default)

        keys = read("KEYS", "", _keys, f"keys of {SHORTEST_KEY} characters or more, with commas")
        values = {
            "host": environ.get("PREDICTION_API_HOST") or "127.0.0.1",
            "port": read("PORT", "8000", _port, "a port, such as 8000"),
            "keys": keys,
            "hosts": _names(environ.get("PREDICTION_API_HOSTS", ""))
            or (("*",) if keys else LOOPBACK_NAMES),
            "model": environ.get("PREDICTION_API_MODEL") or "iris",
            "rate": read("RATE", "6000/minute", parse, "a rate, such as 6000/minute"),
            "body_bytes": read("BODY_BYTES", "1000000", _positive, "a number of bytes"),
            "seconds": read("SECONDS", "5", _seconds, "a number of seconds, such as 5"),
            "upload_bytes": read("UPLOAD_BYTES", "10000000", _positive, "a number of bytes"),
            "upload_rows": read("UPLOAD_ROWS", "100000", _positive, "a number of rows"),
            "upload_seconds": read(
                "UPLOAD_SECONDS", "60", _seconds, "a number of seconds, such as 60"
            ),
            "answer": read("ANSWER", "auto", _answer, "yes or no"),
        }
        if not keys and not _is_loopback(str(values["host"])):
            problems.append(
                f"PREDICTION_API_KEYS is not set, and PREDICTION_API_HOST {values['host']} lets "
                f"other machines ask; set keys, or listen on 127.0.0.1"
            )
        if problems:
            raise ConfigurationError("; ".join(problems))
        settings = Settings.from_environ(environ)
        if values["answer"] is None:  # on SQLite whoever can ask can write
            values["answer"] = settings.warehouse.startswith("sqlite")
        return cls(settings=settings, **values)  # type: ignore[arg-type]


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _keys(text: str) -> tuple[str, ...]:
    keys = _names(text)
    if any(len(key) < SHORTEST_KEY or not key.isascii() for key in keys):
        raise ValueError
    return keys


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 65536:
        raise ValueError
    return port


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError
    return number


def _answer(text: str) -> bool | None:
    return {"yes": True, "no": False, "auto": None}[text]


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= 600:
        raise ValueError
    return number


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
