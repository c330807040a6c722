"""The deployment's settings: Airflow's connection `warehouse` wins over the environment."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import unquote

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from batch_jobs.errors import ConfigurationError
from batch_jobs.settings import Settings, let_threads_sleep

WAREHOUSE_CONNECTION_ID = "warehouse"

# Extras of a connection to PostgreSQL that are Airflow's own.
NOT_FOR_LIBPQ = {
    *("cursor", "iam", "redshift", "cluster-identifier", "workgroup-name", "aws_conn_id"),
    *("azure_conn_id", "sqlalchemy_scheme", "sqlalchemy_query", "enable_log_db_messages"),
}
# How Airflow's connection types are spelled in a SQLAlchemy URL.
DRIVERS = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}


def airflow_settings() -> Settings:
    """The deployment's settings; Airflow's connection `warehouse` wins over the environment."""
    let_threads_sleep()
    return Settings.from_environ(os.environ, warehouse=connection_url())


# What the connection `warehouse` was when this process last asked for it, if it has.
_known: list[Any] = []


def _connection() -> Any:
    """Airflow's connection `warehouse`; None if it is not defined.

    Airflow that is too busy to answer is asked again, and then taken to have nothing new to tell:
    a task whose error is to be noted has asked before.
    """
    try:
        found = _looked_up()
    except Exception:  # noqa: BLE001 - whatever a server or a secrets backend raises
        try:
            found = _looked_up()
        except Exception:
            if not _known:
                raise
            return _known[0]
    _known[:] = [found]
    return found


def _looked_up() -> Connection | None:
    try:
        found: Connection = Connection.get(WAREHOUSE_CONNECTION_ID)
    except AirflowNotFoundException:
        return None
    return found


def connection_url() -> str | None:
    """The SQLAlchemy URL of Airflow's connection `warehouse`, if it is defined."""
    from sqlalchemy import URL

    connection = _connection()
    if connection is None:
        return None
    if connection.conn_type == "sqlite":
        return URL.create(
            "sqlite", database=connection.host or connection.schema
        ).render_as_string()
    query = {}
    for name, value in connection.extra_dejson.items():
        if isinstance(value, dict | list):
            raise ConfigurationError(
                f"Airflow's connection `{WAREHOUSE_CONNECTION_ID}`: the extra {name!r} is nested; "
                f"PostgreSQL takes texts and numbers, such as connect_timeout"
            )
        if name not in NOT_FOR_LIBPQ and value is not None:
            query[name] = value if isinstance(value, str) else json.dumps(value)
    host, port = connection.host, connection.port
    if host and host.startswith(("/", "%2F", "%2f")):  # the folder of a socket is no part of a URL
        query["host"] = unquote(host)
        query |= {"port": str(port)} if port else {}
        host = port = None
    return URL.create(
        DRIVERS.get(connection.conn_type, connection.conn_type),
        username=connection.login,
        password=connection.password,
        host=host,
        port=port,
        database=connection.schema,
        query=query,
    ).render_as_string(hide_password=False)
