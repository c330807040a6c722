"""Claim an interval: an attempt opens a run, and every older attempt is fenced off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError, FencedError
from batch_jobs.interval import Interval
from batch_jobs.runs.ledger import Run, load_run, span

# From so many rows on, a population is cheaper to publish from a table of its own.
LARGE = 100_000
# To read them by another process saves more than it takes from so many rows on.
MANY = 100_000


@dataclass(frozen=True)
class Claim:
    """What an attempt wants to score.

    Attributes:
        model: whose interval.
        interval: which.
        token: the attempt's; a later attempt has the higher one.
        model_version: which version scores.
        mode: `merge` or `replace`.
        key_ranges: the range of keys of each part.
        hindsight: the version was trained after the interval.
        accepted: why its rows may be published whatever the circuit breaker says.
    """

    model: str
    interval: Interval
    token: str
    model_version: str
    mode: str
    key_ranges: Sequence[tuple[str | None, str | None]]
    hindsight: bool = False
    accepted: str | None = None


@repeatable
def claim(warehouse: Warehouse, wanted: Claim) -> Run:
    """Claim the interval for this attempt and open its run.

    Attempts with a lower token that were still staging are failed. Claiming again with the same
    token answers with the same run.

    Raises:
        FencedError: an attempt with a higher token has claimed the interval.
        ConfigurationError: the model has been published in the other mode.
    """
    key = {
        **span(wanted.model, wanted.interval),
        "token": wanted.token,
        "now": stored_time(clock.now()),
    }
    with warehouse.write() as connection:
        large = _is_large(connection, wanted)
        claimed = connection.execute(
            text("""
                INSERT INTO fences (model, interval_start, interval_end, token, claimed_at)
                VALUES (:model, :start, :end, :token, :now)
                ON CONFLICT (model, interval_start, interval_end)
                DO UPDATE SET token = excluded.token, claimed_at = excluded.claimed_at
                WHERE fences.token <= excluded.token
                RETURNING token"""),
            key,
        ).first()
        if claimed is None:
            raise FencedError(
                f"{wanted.model} {wanted.interval}: a newer attempt has claimed this interval"
            )
        connection.execute(
            text("""
                UPDATE prediction_runs SET state = 'failed', error = 'fenced off by a newer attempt'
                WHERE model = :model AND interval_start = :start AND interval_end = :end
                  AND state = 'staging' AND token < :token"""),
            key,
        )
        run_id = connection.scalar(
            text("""
                SELECT run_id FROM prediction_runs
                WHERE model = :model AND interval_start = :start AND interval_end = :end
                  AND token = :token"""),
            key,
        )
        if run_id is None:
            run_id = _open_run(warehouse, connection, wanted, key, large=large)
        return load_run(connection, run_id)


def _is_large(connection: Connection, wanted: Claim) -> bool:
    """Whether to expect many rows: of a whole population, as many as last time, or unknown."""
    served = connection.execute(
        text("""
            SELECT h.mode, r.rows_scored FROM serving_heads AS h
            JOIN prediction_runs AS r ON r.run_id = h.run_id WHERE h.model = :model"""),
        {"model": wanted.model},
    ).first()
    if served is not None and served.mode != wanted.mode:
        raise ConfigurationError(
            f"{wanted.model} has been published in {served.mode} mode and its model file now says "
            f"{wanted.mode}; readers would see both kinds of rows: give the model file another name"
        )
    return wanted.mode == "replace" and (served is None or served.rows_scored >= LARGE)


@repeatable
def expects_many(warehouse: Warehouse, run: Run) -> bool:
    """Whether the newest run that is published had so many rows that another has as many."""
    with warehouse.read() as connection:
        rows = connection.scalar(
            text("SELECT row_count FROM serving_status WHERE model = :model"), {"model": run.model}
        )
    return rows is not None and rows >= MANY


def _open_run(
    warehouse: Warehouse,
    connection: Connection,
    wanted: Claim,
    key: Mapping[str, Any],
    *,
    large: bool,
) -> int:
    run_id = connection.scalar(
        text("""
            INSERT INTO prediction_runs
              (model, interval_start, interval_end, state, model_version, mode, token, claimed_at,
               hindsight, accepted, rows_table)
            VALUES (:model, :start, :end, 'staging', :version, :mode, :token, :now,
               :hindsight, :accepted, '')
            RETURNING run_id"""),
        {
            **key,
            "version": wanted.model_version,
            "mode": wanted.mode,
            "hindsight": int(wanted.hindsight),
            "accepted": wanted.accepted,
        },
    )
    table = warehouse.database.rows.new_table(connection, int(run_id), large=large)
    connection.execute(
        text("UPDATE prediction_runs SET rows_table = :rows_table WHERE run_id = :run_id"),
        {"run_id": run_id, "rows_table": table},
    )
    connection.execute(
        text("""
            INSERT INTO run_parts (run_id, part, key_from, key_to)
            VALUES (:run_id, :part, :key_from, :key_to)"""),
        [
            {"run_id": run_id, "part": part, "key_from": low, "key_to": high}
            for part, (low, high) in enumerate(wanted.key_ranges)
        ],
    )
    return int(run_id)
