"""Three ways in which people write predictions to a table; the reader must catch all of them.

Each one reads a tick of the population, scores it and writes it, and each one's rows are read as
people read them: `append` and `delete_insert` by the newest interval, `upsert` by the key alone.
The names of the places at which they can be broken begin with `writer`.
"""

import pandas as pd
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from batch_jobs.database.transactions import stored_time
from batch_jobs.failpoints import failpoint
from tests.fault_models._rows import tick

PLACES = ("writer.deleted", "writer.written")
COLUMNS = "entity_id, score, model_version, interval_start"
UPSERT = f"""
    INSERT INTO upsert_rows ({COLUMNS})
    VALUES (:entity_id, :score, :model_version, :interval_start)
    ON CONFLICT (entity_id) DO UPDATE SET score = excluded.score,
      model_version = excluded.model_version, interval_start = excluded.interval_start"""


def make_tables(url):
    """The tables of the three, and what apps read of them."""
    types = "score DOUBLE PRECISION, model_version TEXT, interval_start TEXT"
    with _engine(url).begin() as connection:
        connection.execute(text(f"CREATE TABLE upsert_rows (entity_id TEXT PRIMARY KEY, {types})"))
        connection.execute(text("CREATE VIEW upsert_now AS SELECT * FROM upsert_rows"))
        for name in ("append", "delete_insert"):
            connection.execute(text(f"CREATE TABLE {name}_rows (entity_id TEXT, {types})"))
            newest = f"SELECT max(interval_start) FROM {name}_rows"
            connection.execute(
                text(
                    f"CREATE VIEW {name}_now AS SELECT {COLUMNS} FROM {name}_rows "
                    f"WHERE interval_start = ({newest})"
                )
            )


def append(url, version, number):
    """Write chunk by chunk as they are scored, each with `to_sql(if_exists="append")`."""
    engine = _engine(url)
    for chunk in _scored(engine, version, number):
        chunk.to_sql("append_rows", engine, if_exists="append", index=False)
        failpoint("writer.written")


def delete_insert(url, version, number):
    """Delete the interval's rows, then write them.

    On PostgreSQL both are one transaction. On SQLite one transaction would in fact be right, for
    it has one writer at a time; there, each step commits by itself, as it does by default.
    """
    engine = _engine(url)
    rows = pd.concat(list(_scored(engine, version, number)))
    deletion = text("DELETE FROM delete_insert_rows WHERE interval_start = :start")
    start = {"start": stored_time(tick(number).start)}
    if url.startswith("sqlite"):
        with engine.begin() as connection:
            connection.execute(deletion, start)
        failpoint("writer.deleted")
        rows.to_sql("delete_insert_rows", engine, if_exists="append", index=False)
    else:
        with engine.begin() as connection:
            connection.execute(deletion, start)
            failpoint("writer.deleted")
            rows.to_sql("delete_insert_rows", connection, if_exists="append", index=False)
    failpoint("writer.written")


def upsert(url, version, number):
    """Write all rows in one transaction, over those that have the same key."""
    engine = _engine(url)
    rows = pd.concat(list(_scored(engine, version, number)))
    with engine.begin() as connection:
        connection.execute(text(UPSERT), rows.to_dict("records"))
        failpoint("writer.written")


def _engine(url):
    return create_engine(url, poolclass=NullPool)


def _scored(engine, version, number):
    query = """
        SELECT entity_id, x AS score FROM fault_rows
        WHERE model = 'population' AND at >= :start AND at < :end AND x IS NOT NULL
        ORDER BY entity_id"""
    start, end = (stored_time(time) for time in (tick(number).start, tick(number).end))
    with engine.connect() as connection:
        values = {"start": start, "end": end}
        chunks = list(pd.read_sql(text(query), connection, params=values, chunksize=4))
    for chunk in chunks:
        yield chunk.assign(model_version=version, interval_start=start)
