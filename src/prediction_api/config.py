"""How one server is set up; read once from the environment, at the door."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Annotated, Any

from limits import RateLimitItem, parse
from pydantic import BeforeValidator, Field, InstanceOf, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError
from batch_jobs.settings import Settings

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]", "0.0.0.0")  # noqa: S104 # as curl may call it
SHORTEST_KEY = 16
PREFIX = "PREDICTION_API_"


def _parts(given: object) -> object:
    """The parts of a text between commas."""
    if not isinstance(given, str):
        return given
    return tuple(filter(None, (part.strip() for part in given.split(","))))


def _rate(given: object) -> object:
    return parse(given) if isinstance(given, str) else given


def _yes_or_no(given: object) -> object:
    return {"yes": True, "no": False}.get(given, given) if isinstance(given, str) else given


Key = Annotated[str, Field(min_length=SHORTEST_KEY, pattern=r"^[\x00-\x7f]*$")]
Origin = Annotated[str, Field(pattern=r"^https?://[^/*\s]+$")]
Texts = BeforeValidator(_parts)
Bytes = Annotated[int, Field(gt=0, description="a number of bytes, such as 1000000")]
Rows = Annotated[int, Field(gt=0, description="a number of rows, such as 100000")]
Connections = Annotated[int, Field(gt=0, description="a number of connections, such as 1000")]
Seconds = Annotated[
    float, Field(gt=0, le=600, description="a number of seconds up to 600, such as 5")
]


class Config(BaseSettings):
    """The settings of one server; the description of a field says what may be written for it.

    Attributes:
        settings: the warehouse, the model store and the model files.
        host: address to listen on.
        port: port to listen on.
        keys: who may ask; none are needed on 127.0.0.1, where only this machine can ask.
        hosts: names in the header Host that are answered; all of them with keys, else those of
            this machine, so that no web page can let a browser ask for it.
        origins: sites whose pages may ask from a browser, by CORS; none unless they are named.
        model: who answers `POST /predict`.
        rate: how many requests one client has.
        rate_store: where all replicas count them together; else each counts for itself, as it does
            while this one does not answer.
        proxies: those in front of the server, whose X-Forwarded-For tells who asks; without them
            whoever comes through a proxy is one client.
        body_bytes: the largest body.
        seconds: the longest time a request may take.
        upload_bytes: the largest body of a request of many rows.
        upload_rows: the most rows it may have.
        upload_seconds: the longest time it may take to send and to take in.
        connections: how many there may be at once. What waits to be asked gives way to what comes.
        connections_of_one: how many one address may have, so that there is room for others; one of
            `proxies` may have all.
        answer: whether this process answers requests of many rows; else `batch-jobs answer` does,
            or the model's DAG.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, hide_input_in_errors=True
    )

    settings: Annotated[InstanceOf[Settings], NoDecode]
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=65536, description="a port, such as 8000")] = 8000
    keys: Annotated[
        tuple[Key, ...],
        NoDecode,
        Texts,
        Field(
            repr=False,
            description=f"keys of {SHORTEST_KEY} or more ASCII characters, separated by commas",
        ),
    ] = ()
    hosts: Annotated[tuple[str, ...], NoDecode, Texts] = LOOPBACK_NAMES
    origins: Annotated[
        tuple[Origin, ...],
        NoDecode,
        Texts,
        Field(description="sites such as https://app.example.com, separated by commas"),
    ] = ()
    model: str = "iris"
    rate: Annotated[
        InstanceOf[RateLimitItem],
        NoDecode,
        BeforeValidator(_rate),
        Field(description="a rate, such as 6000/minute"),
    ] = parse("6000/minute")
    body_bytes: Bytes = 1_000_000
    seconds: Seconds = 5.0
    upload_bytes: Bytes = 10_000_000
    upload_rows: Rows = 100_000
    upload_seconds: Seconds = 60.0
    rate_store: Annotated[
        str | None,
        Field(
            repr=False,
            pattern=r"^rediss?://[^\s/]+",
            description="the address of a Redis, such as redis://redis:6379/1",
        ),
    ] = None
    proxies: Annotated[
        tuple[IPv4Network | IPv6Network, ...],
        NoDecode,
        Texts,
        Field(description="addresses or networks such as 10.0.0.0/8, separated by commas"),
    ] = ()
    connections: Connections = 1000
    connections_of_one: Connections = 500
    answer: Annotated[
        bool, Field(strict=True, description="yes or no"), BeforeValidator(_yes_or_no)
    ] = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 # pydantic's signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take what is given and nothing else: only `from_environ` reads the environment."""
        return (init_settings,)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Config:
        """Read `PREDICTION_API_…`, and what `Settings` reads.

        Raises:
            ConfigurationError: a variable has a value that it cannot have, all of them named at
                once; or the server is to listen to other machines without a key.
        """
        values, problems = _given(cls, environ), []
        settings: Settings | None = None
        try:
            settings = Settings.from_environ(environ)
            Warehouse(settings.warehouse)  # opens nothing, and tells of a URL that is none
        except ConfigurationError as error:
            problems.append(str(error))
        if "keys" in values:
            values.setdefault("hosts", "*")
        elif not _is_loopback(host := str(values.get("host", "127.0.0.1"))):
            problems.append(
                f"{PREFIX}KEYS is not set, and {PREFIX}HOST {host} lets other machines ask; set "
                f"keys, or listen on 127.0.0.1"
            )
        if values.get("rate_store") and find_spec("redis") is None:
            problems.append(f"{PREFIX}RATE_STORE needs the package redis; run `pip install redis`")
        if settings and values.get("answer", "auto") == "auto":
            # On SQLite whoever can ask can write.
            values["answer"] = settings.warehouse.startswith("sqlite")
        try:
            made = cls.model_validate({**values, "settings": settings})
        except ValidationError as error:
            problems = [*_wrong(error, values), *problems]
        if problems:
            raise ConfigurationError("; ".join(problems))
        return made


def _given(kind: type[Config], environ: Mapping[str, str]) -> dict[str, Any]:
    """What an environment has for each field, as text; what is empty counts as missing."""
    source = EnvSettingsSource(kind)
    source.env_vars = {name.lower(): value for name, value in environ.items() if value.strip(" ,")}
    return source()


def _wrong(error: ValidationError, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with each field, once, and what would be right; never what a key is."""
    names = dict.fromkeys(str(found["loc"][0]) for found in error.errors(include_input=False))
    told = []
    for name in names:
        if name == "settings":
            continue
        short = "has a key that is too short or not ASCII"
        secret = {"keys": short, "rate_store": "is no such address"}
        shown = secret.get(name) or f"is {values[name]!r}"
        right = Config.model_fields[name].description
        told.append(f"{PREFIX}{name.upper()} {shown}; write {right}")
    return told


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
