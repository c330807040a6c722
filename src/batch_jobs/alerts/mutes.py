"""Mutes: what nobody wants to be told of for a while, with the reason, a link and an end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import InputError

EVERY_MODEL = "*"
DEPLOYMENT = ""


@dataclass(frozen=True)
class Mute:
    """Somebody's word that a cause of a model is known.

    Attributes:
        model: whose; '' for the deployment as a whole, '*' for every model.
        cause: which; '*' at its end stands for any ending.
        reason: why it is muted.
        link: where it is dealt with.
        until: when it is told again, if it lasts.
        muted_by: who said so.
    """

    model: str
    cause: str
    reason: str
    link: str
    until: datetime
    muted_by: str


def fits(cause: str, pattern: str) -> bool:
    """Whether a cause is the one meant; `*` at the end of a pattern stands for any ending."""
    return cause.startswith(pattern[:-1]) if pattern.endswith("*") else cause == pattern


def mute(warehouse: Warehouse, wanted: Mute, now: datetime) -> None:
    """Tell nothing of a cause for a while; it is counted all the same.

    Raises:
        InputError: no reason, no link, no cause, or an end that is past.
    """
    problems = [
        *([] if wanted.reason.strip() else ["give a reason"]),
        *([] if wanted.link.strip() else ["give a link to where it is dealt with"]),
        *([] if wanted.cause.strip() else ["name the cause, as `batch-jobs incidents` shows it"]),
        *([f"the end, {wanted.until.isoformat()}, is past"] if wanted.until <= now else []),
    ]
    if problems:
        raise InputError("; ".join(problems))
    with warehouse.write() as connection:
        connection.execute(
            text("""
                INSERT INTO mutes (model, cause, reason, link, until, muted_by, muted_at)
                VALUES (:model, :cause, :reason, :link, :until, :muted_by, :now)
                ON CONFLICT (model, cause) DO UPDATE SET reason = excluded.reason,
                  link = excluded.link, until = excluded.until, muted_by = excluded.muted_by,
                  muted_at = excluded.muted_at"""),
            {**vars(wanted), "until": stored_time(wanted.until), "now": stored_time(now)},
        )
        connection.execute(text("DELETE FROM mutes WHERE until <= :now"), {"now": stored_time(now)})


def unmute(warehouse: Warehouse, model: str, cause: str) -> bool:
    """Tell of a cause again; False if it was not muted."""
    with warehouse.write() as connection:
        gone = connection.execute(
            text("DELETE FROM mutes WHERE model = :model AND cause = :cause"),
            {"model": model, "cause": cause},
        )
    return bool(gone.rowcount)


def mutes(warehouse: Warehouse, now: datetime) -> list[Mute]:
    """What is muted now."""
    with warehouse.read() as connection:
        return _in_force(connection, now)


def is_muted(connection: Connection, model: str | None, cause: str, now: datetime) -> bool:
    """Whether nobody wants to be told of a cause now."""
    wanted = {EVERY_MODEL, model or DEPLOYMENT}
    return any(
        each.model in wanted and fits(cause, each.cause) for each in _in_force(connection, now)
    )


def _in_force(connection: Connection, now: datetime) -> list[Mute]:
    found = connection.execute(
        text("""
            SELECT model, cause, reason, link, until, muted_by FROM mutes
            WHERE until > :now ORDER BY model, cause"""),
        {"now": stored_time(now)},
    )
    return [
        Mute(row.model, row.cause, row.reason, row.link, loaded_time(row.until), row.muted_by)
        for row in found
    ]
