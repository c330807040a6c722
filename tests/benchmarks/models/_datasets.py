"""What is scored: a month of real flights, or as many customers as wanted, keys in random order.

One model is trained for each, for the first warehouse, and registered in the others.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from tests.benchmarks.systems import Job

FEATURES = tuple(f"f{number:02}" for number in range(20))
HISTORY, HOLDOUT = timedelta(hours=8), timedelta(hours=2)
TRAINED = datetime(2025, 1, 1, tzinfo=UTC)
TRAINING_ROWS = 50_000
AT_ONCE = 1_000_000
# By dataset: the model, the moment it is trained at, and until when it then scores.
PLANS = {
    "flights": (
        "flight_delay",
        datetime(2013, 11, 1, tzinfo=UTC),
        datetime(2013, 12, 1, tzinfo=UTC),
    ),
    "customers": ("customers", TRAINED, TRAINED + timedelta(hours=1)),
}


def prepare(url, dataset, folder):
    """Make a warehouse with a dataset and a champion to score it; the job to do there."""
    import joblib
    from sqlalchemy import text

    from batch_jobs.catalog import load_model
    from batch_jobs.database.transactions import stored_time
    from batch_jobs.database.warehouse import Warehouse
    from batch_jobs.model import Category
    from batch_jobs.registry import promotion, versions
    from batch_jobs.registry.loading import load_version
    from batch_jobs.settings import Settings
    from batch_jobs.training import train

    name, start, end = PLANS["flights" if dataset == "flights" else "customers"]
    settings = Settings(
        url, str(folder / "models"), ("tests.benchmarks.models", "batch_jobs.models")
    )
    model = load_model(name, settings.models)
    at_training = replace(settings, warehouse=f"sqlite:///{folder}/training-{name}.db")
    trained, warehouse = Warehouse(at_training.warehouse), Warehouse(url)
    if trained.ensure_schema():
        _fill(at_training.warehouse, dataset, TRAINING_ROWS, start - HISTORY, start)
        version = train.train(at_training, name, start)
        estimator = load_version(at_training, model, version).estimator
        joblib.dump(estimator, folder / f"{name}.joblib")
    warehouse.ensure_schema()
    version = versions.newest_version(trained, name)
    version = replace(version, manifest=versions.whole_manifest(trained, version))
    versions.register(warehouse, version)
    promotion.promote(settings, name, actor="benchmark", reason="to be measured")
    _fill(url, dataset, dataset, start, end)
    job = Job(
        url=url,
        writer=url,
        model=name,
        query=model.features_query,
        start=stored_time(start),
        end=stored_time(end),
        features=tuple(model.features),
        categories=tuple(n for n, kind in model.features.items() if isinstance(kind, Category)),
        rows=0,
        orm_rows=0,
        folder=str(folder),
    )
    if not job.is_sqlite:
        job = replace(job, writer=_make_writer(warehouse, url))
    with warehouse.read() as connection:
        count = text(f"SELECT count(*) FROM (\n{job.query}\n) AS f")
        return replace(job, rows=connection.scalar(count, job.times))


def _make_writer(warehouse, url):
    """The URL of a login that may do what a writer of batch-jobs may, and read the source."""
    writer = login(warehouse, url, "bench_writer", "batch_jobs_writer")
    engine = warehouse.database.writer.execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO bench_writer")
        connection.exec_driver_sql("VACUUM ANALYZE")
    return writer


def login(warehouse, url, name, role):
    """The URL of a login that has one of the roles of `init --roles`."""
    from sqlalchemy.engine import make_url

    warehouse.ensure_roles()
    found = make_url(url).set(username=name)
    with warehouse.write() as connection:
        known = connection.exec_driver_sql(f"SELECT FROM pg_roles WHERE rolname = '{name}'")
        if not known.rowcount:
            connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN PASSWORD '{found.password}'")
            connection.exec_driver_sql(f"GRANT {role} TO {name}")
    return found.render_as_string(hide_password=False)


def publish_first(job, table):
    """Make a table of predictions as it is after somebody published them a first time."""
    from sqlalchemy import create_engine, text

    with create_engine(job.url).begin() as connection:
        connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
        rows = f"SELECT entity_id, 0.5 AS score, '1' AS label FROM (\n{job.literal_query}\n) AS f"
        connection.exec_driver_sql(f"CREATE TABLE {table} AS {rows}")
        # By the name that pandas gives it.
        connection.exec_driver_sql(f"CREATE INDEX ix_{table}_entity_id ON {table} (entity_id)")


def _fill(url, dataset, rows, start, end):
    if dataset == "flights":
        from sqlalchemy import create_engine

        from batch_jobs.samples.flights import load_flights

        with create_engine(url).begin() as connection:
            load_flights(connection, start, shift_weeks=0)
        return
    for batch in _batches(rows, start, end):
        _append(url, "customers", batch.drop_columns("bought"))
        if end == TRAINED:
            _append(url, "outcomes", batch.select(["entity_id", "as_of", "bought"]))


def _batches(rows, start, end):
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    chance = np.random.default_rng(0)
    numbers = chance.permutation(rows)
    for first in range(0, rows, AT_ONCE):
        digits = pc.utf8_lpad(pa.array(numbers[first : first + AT_ONCE]).cast(pa.string()), 7, "0")
        values = chance.normal(size=(len(FEATURES), len(digits))).clip(-9, 9)
        noise = chance.normal(size=len(digits))
        seconds = chance.integers(start.timestamp(), end.timestamp(), len(digits))
        yield pa.table(
            {
                "entity_id": pc.binary_join_element_wise("customer", digits, "-"),
                "as_of": pa.array(seconds).cast(pa.timestamp("s", "UTC")),
                **dict(zip(FEATURES, map(pa.array, values), strict=True)),
                "bought": pa.array((values[0] + values[1] * values[2] + noise > 1).astype("int64")),
            }
        )


def _append(url, table, rows):
    if url.startswith("sqlite"):
        _append_to_sqlite(url.removeprefix("sqlite:///"), table, rows)
    else:
        _append_to_postgresql(url.replace("+psycopg", ""), table, rows)


def _append_to_sqlite(path, table, rows):
    import sqlite3
    from contextlib import closing

    import pyarrow.compute as pc

    kinds = {"entity_id": "TEXT", "as_of": "TEXT", "bought": "INTEGER"}
    columns = ", ".join(f"{name} {kinds.get(name, 'REAL')} NOT NULL" for name in rows.column_names)
    place = rows.column_names.index("as_of")
    times = pc.strftime(rows["as_of"], "%Y-%m-%dT%H:%M:%S+00:00")
    values = [column.to_pylist() for column in rows.set_column(place, "as_of", times).columns]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns}) STRICT")
        marks = ", ".join("?" * len(values))
        connection.executemany(f"INSERT INTO {table} VALUES ({marks})", zip(*values, strict=True))


def _append_to_postgresql(url, table, rows):
    import adbc_driver_postgresql.dbapi as adbc

    with adbc.connect(url) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest(table, rows, mode="create_append")
        connection.commit()
