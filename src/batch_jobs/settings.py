"""Where the warehouse, the model store and the model files are; read once, at the doors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from batch_jobs.errors import ConfigurationError
from batch_jobs.model import BatchModel

BUNDLED_MODELS = "batch_jobs.models"
HASH_ONLY = "hash-only"
LIBRARY_POLICIES = ("same", "golden")
_ADDRESS = re.compile(r"https?://[^\s/?#]+\S*", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """Where one deployment keeps its things.

    Attributes:
        warehouse: SQLAlchemy URL of the database that holds the source tables and the predictions;
            never shown, because it may hold a password.
        model_store: folder or URL that holds the trained artifacts; not shown, like the warehouse.
        models: importable packages with model files, the bundled ones last; or models themselves,
            as a replay changes them.
        signing_key: file with the private key that signs what is trained; None signs nothing.
        verify_key: file with the public key without whose signature nothing is loaded, or several
            files with a comma between them, each of which will do; `hash-only` trusts whoever can
            write the warehouse, as on one machine.
        libraries: whether a version loads only where scikit-learn and numpy are the `same` as where
            it was trained, or wherever it answers its `golden` rows alike.
        commit: of the model files, where they are no git checkout.
        model_cache: folder on this machine for copies of the artifacts that were loaded; None keeps
            none.
    """

    warehouse: str = field(repr=False)
    model_store: str = field(repr=False)
    models: tuple[str | BatchModel, ...] = (BUNDLED_MODELS,)
    signing_key: str | None = None
    verify_key: str = HASH_ONLY
    libraries: str = "same"
    commit: str | None = None
    model_cache: str | None = None

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str] = os.environ, *, warehouse: str | None = None
    ) -> Settings:
        """Read `BATCH_JOBS_WAREHOUSE`, `BATCH_JOBS_MODEL_STORE`, `BATCH_JOBS_MODELS`, and more.

        `BATCH_JOBS_SIGNING_KEY`, `BATCH_JOBS_VERIFY_KEY`, `BATCH_JOBS_LIBRARIES`,
        `BATCH_JOBS_COMMIT` and `BATCH_JOBS_MODEL_CACHE` may be missing.

        Args:
            environ: the environment to read.
            warehouse: URL that wins over the environment (an Airflow connection).

        Raises:
            ConfigurationError: a required variable is not set, or one has a value that it cannot
                have; all of them are named at once.
        """
        warehouse = warehouse or environ.get("BATCH_JOBS_WAREHOUSE", "")
        store = environ.get("BATCH_JOBS_MODEL_STORE", "")
        missing = [
            f"{name} (for example {example})"
            for name, value, example in (
                ("BATCH_JOBS_WAREHOUSE", warehouse, "sqlite:////srv/batch/warehouse.db"),
                ("BATCH_JOBS_MODEL_STORE", store, "/srv/batch/models"),
            )
            if not value
        ]
        problems = [f"not set: {', '.join(missing)}"] if missing else []
        libraries = environ.get("BATCH_JOBS_LIBRARIES") or LIBRARY_POLICIES[0]
        if libraries not in LIBRARY_POLICIES:
            problems.append(
                f"BATCH_JOBS_LIBRARIES is {libraries!r}; write {' or '.join(LIBRARY_POLICIES)}"
            )
        if problems:
            raise ConfigurationError("; ".join(problems))
        return cls(
            warehouse=warehouse,
            model_store=store,
            models=model_packages(environ),
            signing_key=environ.get("BATCH_JOBS_SIGNING_KEY") or None,
            verify_key=environ.get("BATCH_JOBS_VERIFY_KEY") or HASH_ONLY,
            libraries=libraries,
            commit=environ.get("BATCH_JOBS_COMMIT") or None,
            model_cache=environ.get("BATCH_JOBS_MODEL_CACHE") or _default_cache(store, environ),
        )


@dataclass(frozen=True)
class WatchSettings:
    """Whom the watch asks beside the warehouse, and whom it tells that it lives.

    Attributes:
        airflow_url: where Airflow's UI and REST API are, such as `https://airflow.example.com`;
            None asks nothing of Airflow.
        airflow_user: as whom to ask; one that may read DAGs, runs and import errors.
        airflow_password: of that user.
        airflow_token: a token of Airflow's REST API, instead of user and password.
        airflow_metrics: an address of Airflow's own numbers in Prometheus's format, if it has one.
        api_url: where the prediction API is; None asks nothing of it.
        api_key: one of its keys, if it has any.
        ping_url: a dead man's switch, such as a check of Healthchecks: asked after each good look,
            and with `/fail` at its end after one that could not do its work. It is a secret.
    """

    airflow_url: str | None = None
    airflow_user: str | None = None
    airflow_password: str | None = field(default=None, repr=False)
    airflow_token: str | None = field(default=None, repr=False)
    airflow_metrics: str | None = None
    api_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    ping_url: str | None = field(default=None, repr=False)

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str] = os.environ, **given: str | None
    ) -> WatchSettings:
        """Read `BATCH_JOBS_AIRFLOW_URL` and so on; what is given wins.

        Raises:
            ConfigurationError: an address is none; all of them are named at once.
        """
        found = cls(
            airflow_url=given.get("airflow_url") or environ.get("BATCH_JOBS_AIRFLOW_URL") or None,
            airflow_user=environ.get("BATCH_JOBS_AIRFLOW_USER") or None,
            airflow_password=environ.get("BATCH_JOBS_AIRFLOW_PASSWORD") or None,
            airflow_token=environ.get("BATCH_JOBS_AIRFLOW_TOKEN") or None,
            airflow_metrics=environ.get("BATCH_JOBS_AIRFLOW_METRICS") or None,
            api_url=given.get("api_url") or environ.get("BATCH_JOBS_API_URL") or None,
            api_key=environ.get("BATCH_JOBS_API_KEY") or None,
            ping_url=given.get("ping_url") or environ.get("BATCH_JOBS_PING_URL") or None,
        )
        odd = [
            f"BATCH_JOBS_{name.upper()}"
            for name in ("airflow_url", "airflow_metrics", "api_url", "ping_url")
            if not _ADDRESS.fullmatch(getattr(found, name) or "http://unset")
        ]
        if odd:  # without its value: an address may hold a secret
            raise ConfigurationError(
                f"{' and '.join(odd)} must be an address such as http://127.0.0.1:8080"
            )
        return found

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message, log or sign of life may hold."""
        parts = (self.airflow_password, self.airflow_token, self.api_key, self.ping_url)
        return tuple(part for part in parts if part)


@dataclass(frozen=True)
class AlertSettings:
    """Where alerts go, beside Airflow's connection `slack_webhook`.

    Attributes:
        alerts: addresses parted by blanks. One of `http` or `https` is a Slack webhook or what
            understands the same (Mattermost, Rocket.Chat), any other one of Apprise (mail, Teams,
            PagerDuty and more), for which `pip install 'batch-jobs[alerts]'`. Before each may stand
            what it is sent: `page`, `warn`, `news`, such as `page+warn=mailto://…`. It is a secret.
        webhooks: addresses of your own services, parted by blanks, which are told of each
            publication and each end of a request; they may hold a secret.
        webhook_secret: by which these are signed, such as `whsec_` and 32 bytes in base64; two,
            parted by a blank, while one takes the place of the other. It is a secret.
        spool: a folder for what happens while the warehouse is away; None takes one of this user.
        runbooks: an address of your own runbooks; messages link to it, with `#` and the cause.
    """

    alerts: str = field(default="", repr=False)
    webhooks: str = field(default="", repr=False)
    webhook_secret: str = field(default="", repr=False)
    spool: str | None = None
    runbooks: str | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> AlertSettings:
        """Read `BATCH_JOBS_ALERTS`, `BATCH_JOBS_SPOOL` and `BATCH_JOBS_RUNBOOKS`.

        And `BATCH_JOBS_WEBHOOKS` with `BATCH_JOBS_WEBHOOK_SECRET`.
        """
        return cls(
            alerts=environ.get("BATCH_JOBS_ALERTS", ""),
            webhooks=environ.get("BATCH_JOBS_WEBHOOKS", ""),
            webhook_secret=environ.get("BATCH_JOBS_WEBHOOK_SECRET", ""),
            spool=environ.get("BATCH_JOBS_SPOOL") or None,
            runbooks=environ.get("BATCH_JOBS_RUNBOOKS", "").strip() or None,
        )


@dataclass(frozen=True)
class KafkaSettings:
    """How Apache Kafka is reached.

    Attributes:
        kafka: addresses of its brokers, `host:port` with commas between them; or the path of a file
            with properties of librdkafka, one `name=value` a line, for TLS and passwords. What
            contains a `/` is a path.
    """

    kafka: str = field(repr=False)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> KafkaSettings:
        """Read `BATCH_JOBS_KAFKA`.

        Raises:
            ConfigurationError: it is not set.
        """
        address = environ.get("BATCH_JOBS_KAFKA", "").strip()
        if not address:
            raise ConfigurationError(
                "not set: BATCH_JOBS_KAFKA (for example kafka-1:9092,kafka-2:9092, or "
                "/run/secrets/kafka.properties)"
            )
        return cls(address)

    def properties(self) -> dict[str, str]:
        """The properties of librdkafka.

        Raises:
            ConfigurationError: the file cannot be read, or a line of it is none.
        """
        if "/" not in self.kafka:
            return {"bootstrap.servers": self.kafka}
        try:
            lines = Path(self.kafka).read_text("utf-8").splitlines()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigurationError(
                f"BATCH_JOBS_KAFKA: {self.kafka} cannot be read: {reason}"
            ) from None
        told = {
            number: line
            for number, line in enumerate(map(str.strip, lines), 1)
            if line and not line.startswith("#")
        }
        if odd := [str(number) for number, line in told.items() if "=" not in line]:
            raise ConfigurationError(
                f"BATCH_JOBS_KAFKA: line {' and '.join(odd)} of {self.kafka} is no name=value"
            )
        pairs = (line.partition("=") for line in told.values())
        return {name.strip(): value.strip() for name, _, value in pairs}


def is_url(store: str) -> bool:
    """Whether a model store is a URL, and not a folder of this machine."""
    return "://" in store and not store.startswith("file://")


def _default_cache(store: str, environ: Mapping[str, str]) -> str | None:
    """A folder of this user for the copies of a store that may be out of reach."""
    if not is_url(store):
        return None
    return f"{environ.get('XDG_CACHE_HOME') or '~/.cache'}/batch-jobs/models"


def let_threads_sleep(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep while they wait, unless the environment says otherwise.

    By default they spin, and take the processors from whatever else runs on the machine: on two
    shared cores that made a fit of scikit-learn's boosted trees seven times slower. OpenMP reads
    the variable when it is loaded, so this must come before scikit-learn is imported.
    """
    environ.setdefault("OMP_WAIT_POLICY", "passive")


def model_packages(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The packages named by `BATCH_JOBS_MODELS` (separated by commas), then the bundled one."""
    names = (part.strip() for part in environ.get("BATCH_JOBS_MODELS", "").split(","))
    return tuple(dict.fromkeys([*filter(None, names), BUNDLED_MODELS]))
