"""The features of a replay: read once, kept in a file, and read from there by every interval."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from tempfile import TemporaryFile
from typing import IO, Any

from croniter import croniter
from sqlalchemy import Connection

from batch_jobs.backtest.process import require_staying
from batch_jobs.backtest.replay import FEATURES, Replay, replayed_columns
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import bounds, loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.interval import Interval, floor_to_grid
from batch_jobs.model import BatchModel

FETCHED_AT_ONCE = 20_000


def read_features(replay: Replay, week: Interval) -> None:
    """Keep the features of a week, in the other process, unless they are kept already."""
    require_staying()
    model = replay.model
    if model.mode == "merge":
        source = Warehouse(replay.settings.warehouse)
        source.require_query(f"features_query of {model.name}", model.features_query, bounds(week))
        _keep_features(source, model, week)


def _keep_features(warehouse: Warehouse, model: BatchModel, week: Interval) -> None:
    """Read the features of a week, and then keep them: no transaction waits for another one."""
    query = f"""
        SELECT {warehouse.database.moment("as_of")} AS replay_moment, {replayed_columns(model)}
        FROM (\n{model.features_query}\n) AS f ORDER BY replay_moment, entity_id"""  # noqa: S608
    if _is_kept(warehouse, week):
        return
    with TemporaryFile() as file:
        _spool(warehouse, model, week, query, file)
        _keep(warehouse, model, week, query, file)


@repeatable
def _is_kept(warehouse: Warehouse, week: Interval) -> bool:
    known = "SELECT 1 FROM replay_weeks WHERE week_start = :start"
    with warehouse.read() as connection:
        return connection.scalar(text(known), {"start": stored_time(week.start)}) is not None


@repeatable
def _spool(
    warehouse: Warehouse, model: BatchModel, week: Interval, query: str, file: IO[bytes]
) -> None:
    """Write the rows of a week to a file, by chunks, as they should be."""
    file.seek(0)
    file.truncate()
    with warehouse.source() as source:
        rows = source.execution_options(stream_results=True).execute(text(query), bounds(week))
        chunk = rows.fetchmany(FETCHED_AT_ONCE)
        _require_within(model, week, chunk)
        _require_additive(source, query, model, week, chunk)
        while chunk:
            pickle.dump([tuple(row) for row in chunk], file, pickle.HIGHEST_PROTOCOL)
            chunk = rows.fetchmany(FETCHED_AT_ONCE)
            _require_within(model, week, chunk)


@repeatable
def _keep(
    warehouse: Warehouse, model: BatchModel, week: Interval, query: str, file: IO[bytes]
) -> None:
    """Keep the rows of a file as the features of a week."""
    file.seek(0)
    key = {"start": stored_time(week.start)}
    with warehouse.write() as connection:
        if connection.scalar(text("SELECT 1 FROM replay_weeks WHERE week_start = :start"), key):
            return  # by a COMMIT whose answer was lost
        _make_table(warehouse, connection, model, query, week)
        for rows in _spooled(file):
            names = ", ".join(f":c{place}" for place in range(len(rows[0])))
            connection.execute(
                text(f"INSERT INTO replay_features VALUES ({names})"),  # noqa: S608
                [{f"c{n}": value for n, value in enumerate(row)} for row in rows],
            )
        connection.execute(text("INSERT INTO replay_weeks VALUES (:start)"), key)


def _spooled(file: IO[bytes]) -> Iterator[list[tuple[Any, ...]]]:
    """The chunks of a file that this process has written itself."""
    with suppress(EOFError):
        while True:
            yield pickle.load(file)  # noqa: S301


def _make_table(
    warehouse: Warehouse, connection: Connection, model: BatchModel, query: str, week: Interval
) -> None:
    """Make the table of features, if it is not there; its columns are what the query gives."""
    if warehouse.database.has_table(connection, "replay_features"):
        return
    literal = text(query).bindparams(**bounds(week))
    sql = literal.compile(connection, compile_kwargs={"literal_binds": True}).string
    columns = ["replay_moment", "entity_id", "as_of", *model.features]
    warehouse.database.make_like(connection, FEATURES, sql, columns)
    connection.execute(text("CREATE INDEX replay_features_at ON replay_features (replay_moment)"))


def _require_within(model: BatchModel, week: Interval, rows: Any) -> None:
    start, end = bounds(week)["start"], bounds(week)["end"]
    outside = [
        row.entity_id
        for row in rows
        if row.replay_moment is None
        or not start <= stored_time(loaded_time(row.replay_moment)) < end
    ]
    if outside:
        raise ContractError(
            f"features_query of {model.name}",
            [f"as_of is outside {week} in {len(outside):,} rows (e.g. {outside[0]!r})"],
        )


def _require_additive(
    source: Connection, query: str, model: BatchModel, week: Interval, rows: Any
) -> None:
    """Read the interval of the middle row by itself: it must be as in the week's."""
    if not rows:
        return
    moments = [loaded_time(row.replay_moment) for row in rows]
    start = floor_to_grid(model.schedule, moments[len(moments) // 2])
    end = min(croniter(model.schedule, start).get_next(datetime), week.end)
    start = max(start, week.start)
    if len(rows) == FETCHED_AT_ONCE and moments[-1] < end:
        return  # more rows of the interval are to come
    alone = source.execute(text(query), bounds(Interval(start, end))).all()
    among = [row for row, moment in zip(rows, moments, strict=True) if start <= moment < end]
    if sorted(map(repr, alone)) != sorted(map(repr, among)):
        problem = (
            f"is not additive: the interval from {start.isoformat()} on has other rows if it is "
            f"read by itself; `batch-jobs check {model.name}` tells which"
        )
        raise ContractError(f"features_query of {model.name}", [problem])
