"""What is compared, each run in a process of its own: `run(system, job)`.

Only what is between `begin` and `end` is timed; libraries are imported before. Nothing of
batch-jobs is needed but for `ours`, so that MLflow may live in an environment of its own.
"""

import importlib.util
import json
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

CHUNK_ROWS = 50_000  # as ours
IN_MEMORY = 1_000_000
ORM_BATCH = 1_000  # rows a commit


@dataclass(frozen=True)
class Job:
    """What to score.

    Attributes:
        url: of the warehouse; on PostgreSQL, of a superuser.
        writer: the same with the rights that ours needs.
        model: name of the model file.
        query: the features query, with `:start` and `:end`.
        start: first moment of the interval, ISO.
        end: the moment after it, ISO.
        features: names, in the order the estimator sees them.
        categories: those of them that are text.
        rows: how many rows the query gives.
        orm_rows: how many of them the row-by-row loop scores.
        folder: with the model store, and the estimator as a file of joblib.
    """

    url: str
    writer: str
    model: str
    query: str
    start: str
    end: str
    features: tuple
    categories: tuple
    rows: int
    orm_rows: int
    folder: str

    @property
    def times(self):
        """The values of the query's parameters."""
        return {"start": self.start, "end": self.end}

    @property
    def is_sqlite(self):
        """Whether the warehouse is a file."""
        return self.url.startswith("sqlite")

    @property
    def address(self):
        """What the database's own driver connects with."""
        return self.url.removeprefix("sqlite:///").replace("+psycopg", "")

    @property
    def literal_query(self):
        """The query with its values in it."""
        return self.query.replace(":start", f"'{self.start}'").replace(":end", f"'{self.end}'")

    def estimator(self):
        """The fitted estimator, as people store it."""
        import joblib

        return joblib.load(Path(self.folder) / f"{self.model}.joblib")

    def inputs(self, frame):
        """The features of a frame as the estimator wants them."""
        kinds = dict.fromkeys(self.features, "float64") | dict.fromkeys(self.categories, "category")
        return frame[list(self.features)].astype(kinds)


def run(system, job):
    """Run a system; when it began and ended (`time.monotonic`), and its peak memory in MB."""
    try:
        act = SYSTEMS[system](job)
        began = time.monotonic()
        act()
    except Exception:  # noqa: BLE001 - its own class may not travel to another process
        raise RuntimeError(traceback.format_exc()) from None
    return {"began": began, "ended": time.monotonic(), "peak_rss_mb": _peak_rss_mb()}


def _peak_rss_mb():
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024))


def floor_read(job):
    """The fastest way we know into Arrow: ADBC, which on PostgreSQL is binary COPY."""
    if job.is_sqlite and not importlib.util.find_spec("adbc_driver_sqlite"):
        return lambda: _read_sqlite(job)
    if job.is_sqlite:
        import adbc_driver_sqlite.dbapi as adbc

        options = {"adbc.sqlite.query.batch_rows": "65536"}
    else:
        import adbc_driver_postgresql.dbapi as adbc

        options = {}

    def act():
        with adbc.connect(job.address) as connection, connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**options)
            cursor.execute(job.literal_query)
            read = sum(batch.num_rows for batch in cursor.fetch_record_batch())
        assert read == job.rows

    return act


def _read_sqlite(job):
    import sqlite3
    from contextlib import closing

    import pyarrow as pa

    read = 0
    with closing(sqlite3.connect(job.address)) as connection:
        cursor = connection.execute(job.query, job.times)
        while rows := cursor.fetchmany(CHUNK_ROWS):
            arrays = [pa.array(column) for column in zip(*rows, strict=True)]
            read += len(arrays[0])
    assert read == job.rows


def floor_predict(job):
    """`predict_proba` on an array in memory, of at most a million rows, as often as needed."""
    import pandas as pd

    estimator = job.estimator()
    rows = min(job.rows, IN_MEMORY)
    frame = job.inputs(_frame(job, ", ".join(job.features), rows))
    if not job.categories:  # one block, which scikit-learn takes as it is
        frame = pd.DataFrame(frame.to_numpy(), columns=list(job.features))
    whole, rest = divmod(job.rows, rows)

    def act():
        for _ in range(whole):
            estimator.predict_proba(frame)
        if rest:
            estimator.predict_proba(frame[:rest])

    return act


def floor_write(job):
    """Key, score and label into a bare table: no index, and on PostgreSQL no log."""
    import numpy as np
    import pyarrow as pa

    keys = pa.array(_frame(job, "entity_id", job.rows)["entity_id"], pa.string())
    scores = np.random.default_rng(0).random(job.rows)
    labels = pa.array(["0", "1"]).take(pa.array((scores > 0.5).astype("int8")))
    columns = "(entity_id TEXT, score DOUBLE PRECISION, label TEXT)"
    if job.is_sqlite:
        import sqlite3
        from contextlib import closing

        rows = list(zip(keys.to_pylist(), scores.tolist(), labels.to_pylist(), strict=True))
        with closing(sqlite3.connect(job.address)) as connection:
            connection.execute("DROP TABLE IF EXISTS floor_predictions")
            connection.execute(f"CREATE TABLE floor_predictions {columns}")

        def act():
            with closing(sqlite3.connect(job.address)) as connection, connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.executemany("INSERT INTO floor_predictions VALUES (?, ?, ?)", rows)

        return act

    import adbc_driver_postgresql.dbapi as adbc
    import psycopg

    table = pa.table({"entity_id": keys, "score": scores, "label": labels})
    with psycopg.connect(job.address, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS floor_predictions")
        connection.execute(f"CREATE UNLOGGED TABLE floor_predictions {columns}")
        connection.execute("CHECKPOINT")

    def act():
        with adbc.connect(job.address) as connection, connection.cursor() as cursor:
            cursor.adbc_ingest("floor_predictions", table, mode="append")
            connection.commit()

    return act


def _frame(job, columns, rows):
    """Some columns of the first rows, in a transaction that is over when they are there."""
    import pandas as pd
    from sqlalchemy import create_engine, text

    query = f"SELECT {columns} FROM (\n{job.query}\n) AS f LIMIT {rows}"
    with create_engine(job.url).connect() as connection:
        stream = connection.execution_options(stream_results=True)
        chunks = pd.read_sql(text(query), stream, params=job.times, chunksize=CHUNK_ROWS)
        return pd.concat(chunks, ignore_index=True)


def ours(job):
    """Claim, read, check, predict, stage, audit, publish: all that a task of the DAG does."""
    from datetime import datetime

    # Libraries are there before any system begins; numba imports most of its own when it refreshes.
    import pandas as pd  # noqa: F401
    import sklearn.ensemble  # noqa: F401
    from numba.core.registry import cpu_target

    from batch_jobs.interval import Interval
    from batch_jobs.runs import jobs
    from batch_jobs.settings import Settings

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    store = str(Path(job.folder) / "models")
    settings = Settings(job.writer, store, ("tests.benchmarks.models", "batch_jobs.models"))
    interval = Interval(datetime.fromisoformat(job.start), datetime.fromisoformat(job.end))
    return lambda: jobs.predict(settings, job.model, interval, force=True)


def pandas_script(job):
    """The script that people write: `read_sql`, predict, `to_sql`, all by chunks."""
    estimator = None

    def predict(inputs):
        nonlocal estimator
        estimator = estimator or job.estimator()
        return estimator.predict_proba(inputs)

    return lambda: _read_predict_write(job, "pandas_predictions", predict)


def mlflow_script(job):
    """The same with a model of MLflow's."""
    import mlflow

    path = str(Path(job.folder) / f"mlflow-{time.time_ns()}")
    mlflow.sklearn.save_model(
        job.estimator(),
        path,
        serialization_format="cloudpickle",
        pyfunc_predict_fn="predict_proba",
    )
    model = None

    def predict(inputs):
        nonlocal model
        model = model or mlflow.pyfunc.load_model(path)
        return model.predict(inputs)

    return lambda: _read_predict_write(job, "mlflow_predictions", predict)


def _read_predict_write(job, table, predict):
    import pandas as pd
    from sqlalchemy import create_engine, text

    engine = create_engine(job.url)
    with engine.connect() as source, engine.begin() as target:
        stream = source.execution_options(stream_results=True)
        how = "replace"
        for chunk in pd.read_sql(text(job.query), stream, params=job.times, chunksize=CHUNK_ROWS):
            answer = predict(job.inputs(chunk))
            label = answer.argmax(axis=1).astype(str)
            rows = pd.DataFrame({"entity_id": chunk["entity_id"], "score": answer[:, 1]})
            rows = rows.assign(label=label).set_index("entity_id")  # to_sql makes an index of it
            rows.to_sql(table, target, if_exists=how, chunksize=10_000)
            how = "append"


def orm_loop(job):
    """A loop over rows: predict one, merge one object, commit every thousand."""
    import pandas as pd
    from sqlalchemy import create_engine, delete, text
    from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

    class Base(DeclarativeBase):
        pass

    class Prediction(Base):
        __tablename__ = "orm_predictions"
        entity_id: Mapped[str] = mapped_column(primary_key=True)
        score: Mapped[float]
        label: Mapped[str]

    engine = create_engine(job.url)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:  # what is merged as it was would not be written
        connection.execute(delete(Prediction))

    def act():
        estimator = job.estimator()
        with engine.connect() as source, Session(engine) as session:
            stream = source.execution_options(stream_results=True)
            for number, row in enumerate(stream.execute(text(job.query), job.times).mappings(), 1):
                [[no, yes]] = estimator.predict_proba(job.inputs(pd.DataFrame([dict(row)])))
                label = str(int(yes > no))
                session.merge(Prediction(entity_id=row["entity_id"], score=yes, label=label))
                if number % ORM_BATCH == 0:
                    session.commit()
                if number == job.orm_rows:
                    break
            session.commit()

    return act


SYSTEMS = {
    "floor_read": floor_read,
    "floor_predict": floor_predict,
    "floor_write": floor_write,
    "ours": ours,
    "pandas": pandas_script,
    "orm": orm_loop,
    "mlflow": mlflow_script,
}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(sys.argv[1], Job(**json.loads(sys.argv[2])))))
