"""`./run bench scoring`: how fast a population is scored and published, side by side.

The floor is what no one can avoid: reading alone, predicting alone and writing alone, each as fast
as we know how. `ours` does all that the task of the DAG does; `pandas`, `orm` and `mlflow` do what
people write. Each runs alone for its time, as the floor does, and then again while two readers look
up predictions and a rival wants to publish.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from tests.benchmarks.models._datasets import prepare, publish_first
from tests.benchmarks.readers import VIEW, Watchers, computing, end_with_parent
from tests.benchmarks.report import notes, table_of
from tests.benchmarks.systems import run

ROOT = Path(__file__).resolve().parent.parent.parent
DATABASES = ("sqlite", "postgresql")
SYSTEMS = ("floor", "ours", "pandas", "orm", "mlflow")
FLOOR = ("floor_read", "floor_predict", "floor_write")
LARGE = 10_000_000
PRELOADED = [
    *("tests.benchmarks.systems", "tests.benchmarks.readers", "batch_jobs.runs.scoring"),
    *("batch_jobs.training.train", "batch_jobs.training.dataset"),
    *("batch_jobs.evaluation.gate", "batch_jobs.scoring.contract"),
    *("pandas", "pyarrow.csv", "pyarrow.compute", "sklearn.ensemble", "sqlalchemy.orm"),
    *("psycopg", "adbc_driver_postgresql.dbapi", "joblib"),
]
MLFLOW_MISSING = (
    "mlflow: not installed (python -m venv mlflow-venv; mlflow-venv/bin/pip install mlflow-skinny "
    "scikit-learn=={scikit} pandas sqlalchemy 'psycopg[binary]'; then add "
    "--mlflow-python mlflow-venv/bin/python)"
)


def main(argv=None):
    """Measure what was asked for, and print the table."""
    args = _arguments(argv)
    # As a deployment of batch-jobs has it, for all systems alike; children inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with ExitStack() as stack:
        bench = Bench(args, stack)
        records = [record for dataset in args.rows for record in bench.compare(dataset)]
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    console.print(table_of(records))
    console.print(notes(args.repeats), soft_wrap=True)
    if "mlflow" in args.systems and not bench.mlflow:
        console.print(MLFLOW_MISSING.format(scikit=version("scikit-learn")), soft_wrap=True)
    if args.json:
        sys.stdout.write(f"{json.dumps(records)}\n")


def _arguments(argv):
    parser = argparse.ArgumentParser(prog="./run bench scoring", description=__doc__)

    def choice(names):
        def chosen(text):
            words = text.split(",")
            if unknown := [word for word in words if word not in names]:
                raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(names)}")
            return words

        return chosen

    def sizes(text):
        return [
            word if word == "flights" else int(word.replace("_", "")) for word in text.split(",")
        ]

    parser.add_argument(
        "--rows",
        type=sizes,
        default=["flights", 100_000, 1_000_000],
        help="numbers of rows, or `flights` (default: flights,100000,1000000)",
    )
    parser.add_argument("--large", action="store_true", help=f"and {LARGE:,} rows")
    parser.add_argument("--database", type=choice(DATABASES), default=list(DATABASES))
    parser.add_argument("--systems", type=choice(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--orm-rows", type=int, default=5_000, help="rows of the ORM's loop")
    parser.add_argument("--repeats", type=int, default=3, help="of floor and ours; the best counts")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds that readers read before")
    parser.add_argument("--mlflow-python", default=sys.executable, help="a Python that has mlflow")
    parser.add_argument("--json", action="store_true", help="records as JSON on the last line")
    args = parser.parse_args(argv)
    args.rows += [LARGE] * args.large
    return args


class Bench:
    """Databases, trained models and processes of one run of the benchmark."""

    def __init__(self, args, stack):
        self._args = args
        self._console = Console(stderr=True, highlight=False)
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batch-jobs-")))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._server = None
        if "postgresql" in args.database:
            from tests.support.postgres_server import PostgresServer

            with self._step("starting PostgreSQL"):
                self._server = stack.enter_context(PostgresServer(fsync=True))
        self.mlflow = "mlflow" in args.systems and self._has_mlflow()

    def compare(self, dataset):
        """The records of every database and system on one dataset: `flights`, or so many rows."""
        for database in self._args.database:
            where = f"{database}, {dataset if dataset == 'flights' else f'{dataset:,} rows'}"
            with self._step(f"{where}: loading, and training on the first time"):
                job = self._child(prepare, self._url(database, dataset), dataset, self._folder)
                job = replace(job, orm_rows=min(self._args.orm_rows, job.rows))
            measured = {}
            for system in self._args.systems:
                if system != "mlflow" or self.mlflow:
                    with self._step(f"{where}: {system}"):
                        measured[system] = self._measure(system, job)
            floor = measured.get("floor", {}).get("rows_per_second")
            for system in self._args.systems:
                record = {"database": database, "dataset": str(dataset), "rows": job.rows}
                record |= {"system": system, **dict.fromkeys(FIELDS), **measured.get(system, {})}
                if floor and record["rows_per_second"]:
                    record["ratio_to_floor"] = round(floor / record["rows_per_second"], 3)
                yield record
            self._drop(database, job)

    def _measure(self, system, job):
        if system == "floor":
            return self._measure_floor(job)
        table = VIEW if system == "ours" else f"{system}_predictions"
        if system == "ours":
            self._run(system, job)  # so that there is something to read, and to be replaced
        else:
            self._child(publish_first, job, table)
        times = self._args.repeats if system == "ours" else 1
        found = [self._run(system, job) for _ in range(times)]
        best = min(took["ended"] - took["began"] for took in found)
        with Watchers(self._context, job, table) as watchers:
            began = time.monotonic()
            time.sleep(self._args.idle)
            idle = (began, time.monotonic())
            with computing(self._context, os.cpu_count()):
                began = time.monotonic()
                time.sleep(self._args.idle)
                beside = (began, time.monotonic())
            watched = [self._run(system, job) for _ in range(times)]
        spans = [watchers.seen(took["began"], took["ended"]) for took in watched]
        quiet, control = watchers.seen(*idle), watchers.seen(*beside)
        busy = replace(spans[0], latencies=sorted(ms for span in spans for ms in span.latencies))
        rows = job.orm_rows if system == "orm" else job.rows
        return _speed(rows, best) | {
            "peak_rss_mb": max(took["peak_rss_mb"] for took in found),
            "reader_p50_ms": busy.percentile(0.5),
            "reader_p99_ms": busy.percentile(0.99),
            "reader_max_ms": busy.percentile(1),
            "reader_errors": sum(span.errors for span in spans),
            "reader_idle_p50_ms": quiet.percentile(0.5),
            "reader_idle_p99_ms": quiet.percentile(0.99),
            "reader_idle_max_ms": quiet.percentile(1),
            "reader_control_p50_ms": control.percentile(0.5),
            "reader_control_p99_ms": control.percentile(0.99),
            "reader_control_max_ms": control.percentile(1),
            "wal_bytes": max(took["wal_bytes"] for took in watched),
            "writer_lock_ms": max(span.lock_ms for span in spans),
        }

    def _measure_floor(self, job):
        seconds = {}
        for part in FLOOR:
            found = [self._run(part, job) for _ in range(self._args.repeats)]
            seconds[part] = min(took["ended"] - took["began"] for took in found)
        parts = {
            f"{part.removeprefix('floor_')}_seconds": round(s, 3) for part, s in seconds.items()
        }
        return _speed(job.rows, sum(seconds.values())) | parts

    def _run(self, system, job):
        """Run a system in a new process, from a database that has nothing left to write."""
        self._checkpoint(job)
        before = self._wal(job)
        took = self._run_mlflow(job) if system == "mlflow" else self._child(run, system, job)
        return took | {"wal_bytes": self._wal(job) - before}

    def _run_mlflow(self, job):
        command = [self._args.mlflow_python, "-m", "tests.benchmarks.systems", "mlflow"]
        command.append(json.dumps(asdict(job)))
        done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads(done.stdout.splitlines()[-1])

    def _child(self, act, *arguments):
        with ProcessPoolExecutor(1, self._context, end_with_parent) as pool:
            return pool.submit(act, *arguments).result()

    def _url(self, database, dataset):
        if database == "sqlite":
            return f"sqlite:///{self._folder}/{dataset}.db"
        self._server.create_database(f"bench_{dataset}")
        return self._server.url(f"bench_{dataset}")

    def _drop(self, database, job):
        if database == "postgresql":
            self._server.drop_database(job.address.rpartition("/")[2])
        else:
            for path in self._folder.glob(f"{Path(job.address).name}*"):
                path.unlink()

    def _checkpoint(self, job):
        if job.is_sqlite:
            import sqlite3

            with closing(sqlite3.connect(job.address)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        else:
            self._server.execute("CHECKPOINT")

    def _wal(self, job):
        """Bytes of log that PostgreSQL has written so far; the size of SQLite's log."""
        if job.is_sqlite:
            log = Path(f"{job.address}-wal")
            return log.stat().st_size if log.exists() else 0
        [[written]] = self._server.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
        return int(written)

    def _has_mlflow(self):
        command = [self._args.mlflow_python, "-c", "import mlflow.pyfunc, sklearn, pandas, psycopg"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @contextmanager
    def _step(self, name):
        if self._console.is_terminal:
            with self._console.status(name):
                yield
        else:
            self._console.print(name, soft_wrap=True)
            yield


FIELDS = (
    *("seconds", "rows_per_second", "ratio_to_floor", "measured_rows", "peak_rss_mb"),
    *("reader_p50_ms", "reader_p99_ms", "reader_max_ms", "reader_errors"),
    *("reader_idle_p50_ms", "reader_idle_p99_ms", "reader_idle_max_ms"),
    *("reader_control_p50_ms", "reader_control_p99_ms", "reader_control_max_ms"),
    *("wal_bytes", "writer_lock_ms"),
)


def _speed(rows, seconds):
    return {
        "measured_rows": rows,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds),
    }


if __name__ == "__main__":
    main()
