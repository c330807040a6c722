"""What each session of PostgreSQL is told, and each transaction behind a pooler.

A pooler in transaction mode gives each transaction whatever session is free, and does not pass on
what a client asks for when it connects: PgBouncer refuses it, or drops it in silence
(https://www.pgbouncer.org/features.html). So every connection is asked whether it has arrived;
where it has not, each transaction begins by asking again, for itself alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL

from batch_jobs.errors import ConfigurationError

# The last one is ours, and tells that the others have arrived.
OPTIONS = (
    "-c timezone=UTC -c lock_timeout=5s -c idle_in_transaction_session_timeout=15s "
    "-c batch_jobs.session=on"
)
ARRIVED = "SELECT current_setting('batch_jobs.session', true) = 'on'"
OPTION_PATTERN = re.compile(r"(?:-c\s*|--)([\w.]+)=((?:\\.|[^\s\\])*)")
# What a session has for the transactions to come, and a transaction for itself.
OF_TRANSACTION = {"default_transaction_read_only": "transaction_read_only"}
REFUSED_BY_POOLER = "unsupported startup parameter"
# What PgBouncer says in `pool_mode = statement`, and PostgreSQL where a transaction did not last.
NO_TRANSACTIONS = "transaction blocks not allowed in statement pooling mode"
POOLER = (
    "a pooler stands before it that gives each statement another session, so that no transaction "
    "holds: let PgBouncer have `pool_mode = transaction`, or give the address of PostgreSQL itself"
)
# A server that went away without a word is noticed after this long.
CONNECTING = {
    "connect_timeout": "10",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "application_name": "batch-jobs",
}
KEPT = 2  # connections of a process
# What PostgreSQL or PgBouncer says before there is a connection that could carry a code.
REFUSALS = (
    "authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
    "not permitted to log in",
    "no password supplied",
    "unrecognized configuration parameter",
    "invalid connection option",
    "invalid sslmode value",
    "server does not support SSL",
    "no such database",
    "no such user",
)

_sessions: WeakKeyDictionary[Engine, _Sessions] = WeakKeyDictionary()


class _Sessions:
    """The sessions at one address, and whether a pooler stands before them."""

    def __init__(self, url: URL, shown: str) -> None:
        self._url, self._shown = url, shown
        self.are_pooled: bool | None = None  # until one was opened
        self._told = for_transaction(settings_in(str(url.query.get("options", ""))))

    def open(self) -> Any:
        """A connection of psycopg that has, or whose transactions will have, the settings.

        Raises:
            ConfigurationError: it will be refused again.
        """
        import psycopg

        try:
            if not self.are_pooled:
                try:
                    return self._asked(with_options=True)
                except psycopg.OperationalError as error:
                    if REFUSED_BY_POOLER not in str(error):
                        raise
            return self._asked(with_options=False)
        except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
            if NO_TRANSACTIONS in str(error):
                raise ConfigurationError(f"the warehouse {self._shown}: {POOLER}") from None
            if any(refusal in str(error) for refusal in REFUSALS):
                raise ConfigurationError(
                    f"the warehouse {self._shown} refuses the connection: {last_line(error)}"
                ) from None
            raise

    def _asked(self, *, with_options: bool) -> Any:
        """A new connection, once it has said whether the settings have arrived."""
        import psycopg

        given = arguments(self._url)
        if not with_options:
            del given["options"]
        # A statement that is prepared by itself would outlive the table it was made for.
        made = psycopg.connect(**given, prepare_threshold=None, autocommit=True)
        try:
            with made.cursor() as cursor:
                arrived = cursor.execute(ARRIVED).fetchone()
            made.autocommit = False
            self.are_pooled = arrived != (True,)
            if self.are_pooled:
                self._try_a_transaction(made)
        except BaseException:
            made.close()
            raise
        return made

    def _try_a_transaction(self, made: Any) -> None:
        """Find out whether a transaction keeps what it is told to its end."""
        made.execute(self._told)
        arrived = made.execute(ARRIVED).fetchone()
        made.rollback()
        if arrived != (True,):
            raise ConfigurationError(f"the warehouse {self._shown}: {POOLER}")

    def begin(self, connection: Connection) -> None:
        """Tell a transaction of a pooled session what it needs to know."""
        if self.are_pooled:
            connection.exec_driver_sql(self._told.replace("%", "%%"))


def open_engine(url: URL, shown: str) -> Engine:
    """An engine whose kept connections are asked for a sign of life before they are used.

    Args:
        url: with the settings of a session in `options`.
        shown: how a message names it.
    """
    sessions = _Sessions(url, shown)
    engine = create_engine(
        "postgresql+psycopg://",
        creator=sessions.open,
        pool_size=KEPT,
        max_overflow=-1,
        pool_pre_ping=True,
    )
    event.listen(engine, "begin", sessions.begin)
    _sessions[engine] = sessions
    return engine


def is_pooled(engine: Engine) -> bool:
    """Whether a pooler stands before the database of an engine; connects if none has yet."""
    sessions = _sessions[engine]
    if sessions.are_pooled is None:
        engine.connect().close()
    return bool(sessions.are_pooled)


def arguments(url: URL) -> dict[str, Any]:
    """What psycopg connects with."""
    from sqlalchemy.dialects.postgresql.psycopg import dialect

    found: dict[str, Any] = dialect().create_connect_args(url)[1]  # type: ignore[no-untyped-call]
    return found


def settings_in(options: str) -> dict[str, str]:
    """The settings that `options` give to a session; of one that is given twice, the last."""
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in OPTION_PATTERN.findall(options)}


def for_transaction(settings: Mapping[str, str]) -> str:
    """A statement that gives a transaction the settings of a session, until it ends."""
    own = {OF_TRANSACTION.get(name, name): value for name, value in settings.items()}
    calls = (f"set_config({_quoted(name)}, {_quoted(value)}, true)" for name, value in own.items())
    return f"SELECT {', '.join(calls)}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "''")
    return f"E'{escaped}'" if "\\" in value else f"'{escaped}'"


def last_line(error: BaseException) -> str:
    """What a server said, without the address that comes before it."""
    return str(error).strip().splitlines()[-1]
