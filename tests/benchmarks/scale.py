"""`./run bench scale`: what rows, parts and workers cost, and what much more of each would.

Runs of a population on PostgreSQL are planned, scored and published, each part in a process of its
own. A model of a few numbers is fitted to the runs by one worker; it foretells those by more, and a
larger one that it was not fitted to, beside what these took. Last, what it says of far larger ones,
and a simulation of many models that share slots.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from tests.benchmarks.models._datasets import prepare
from tests.benchmarks.queueing import Fleet, simulate
from tests.benchmarks.readers import end_with_parent
from tests.benchmarks.scoring import PRELOADED
from tests.support.postgres_server import PostgresServer

MILLION = 1_000_000
NOTES = """\
part: seconds of one part, the start of its process (libraries imported) left out; score: from the
  first one's start to the last one's end. In bold what the model was fitted to; the others it
  foretells, as the slower of two: the parts that come one after the other in a slot, and all
  processors' seconds over {cores} processors, which workers and PostgreSQL share here.
cpu: seconds of processors. stored: the table of predictions with its index. xacts: transactions.
machine: {cores} processors, load average {load:.1f} over a minute, {busy}"""


@dataclass(frozen=True)
class Cell:
    """One run: what was asked, and what it took (seconds, unless it says otherwise)."""

    rows: int
    parts: int
    workers: int
    plan: float = 0.0
    score: float = 0.0
    publish: float = 0.0
    part: float = 0.0
    worker_cpu: float = 0.0
    server_cpu: float = 0.0
    publish_cpu: float = 0.0
    wal_mb: float = 0.0
    stored_mb: float = 0.0
    transactions: int = 0


def main(argv=None):
    """Measure, fit, foretell, and print it all."""
    args = _arguments(argv)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    load = os.getloadavg()[0]
    with ExitStack() as stack:
        bench = _Bench(stack)
        cells = [
            cell for rows in args.rows for cell in bench.measure(rows, args.grid, args.repeats)
        ]
        apart = [bench.measure(one.rows, [(one.parts, one.workers)], 1)[0] for one in args.foretell]
    model = Model.fitted([cell for cell in cells if cell.workers == 1], os.cpu_count())
    console.print(_runs(model, cells, apart))
    busy = "which was busy: repeat it on a quiet one" if load > 0.5 else "quiet at the start"
    told = NOTES.format(cores=os.cpu_count(), load=load, busy=busy)
    console.print(told, soft_wrap=True, markup=False)
    console.print(str(model), soft_wrap=True, markup=False)
    console.print(_larger(model))
    console.print(_many_models())
    if args.json:
        record = {"cells": [asdict(cell) for cell in [*cells, *apart]], "model": asdict(model)}
        sys.stdout.write(f"{json.dumps(record)}\n")


def _arguments(argv):
    parser = argparse.ArgumentParser(prog="./run bench scale", description=__doc__)

    def rows(text):
        return [int(word.replace("_", "")) for word in text.split(",")]

    def grid(text):
        return [tuple(map(int, word.split("x"))) for word in text.split(",")]

    def cells(text):
        return [
            Cell(*map(int, word.replace("_", "").split("x"))) for word in text.split(",") if word
        ]

    parser.add_argument(
        "--rows", type=rows, default=[100_000, 400_000], help="of the runs fitted to"
    )
    parser.add_argument(
        "--grid",
        type=grid,
        default=[(1, 1), (4, 1), (2, 2), (4, 2)],
        help="PARTSxWORKERS of each (default: 1x1,4x1,2x2,4x2); by one worker is fitted to",
    )
    parser.add_argument(
        "--foretell",
        type=cells,
        default=[Cell(1_000_000, 3, 2)],
        help="ROWSxPARTSxWORKERS that are not fitted to (default: 1_000_000x3x2)",
    )
    parser.add_argument("--repeats", type=int, default=2, help="of each run; the fastest counts")
    parser.add_argument("--json", action="store_true", help="all figures on the last line")
    return parser.parse_args(argv)


# --- What is measured


class _Bench:
    """A server, trained models and processes."""

    def __init__(self, stack):
        self._console = Console(stderr=True, highlight=False)
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="batch-jobs-")))
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._say("starting PostgreSQL")
        self._server = stack.enter_context(PostgresServer(fsync=True))

    def measure(self, rows, grid, repeats):
        """A population of so many rows, by each pair of parts and workers."""
        self._say(f"{rows:,} rows: loading, and training on the first time")
        self._server.create_database(f"scale_{rows}")
        job = self._child(prepare, self._server.url(f"scale_{rows}"), rows, self._folder)
        self._run(job, Cell(rows, 1, 1))  # so that trees are compiled, and there is what to replace
        found = []
        for parts, workers in grid:
            self._say(f"{rows:,} rows in {parts} parts by {workers} workers")
            tries = [self._run(job, Cell(rows, parts, workers)) for _ in range(repeats)]
            found.append(min(tries, key=lambda cell: cell.score + cell.publish))
        self._server.drop_database(f"scale_{rows}")
        return found

    def _run(self, job, asked):
        self._server.execute("CHECKPOINT")
        before = self._counted(job)
        began = time.monotonic()
        run_id, token, numbers = self._child(plan, job, asked.parts)
        planned, cpu = time.monotonic(), self._server_cpu()
        with self._pool(asked.workers) as pool:
            parts = list(pool.map(partial(score, job, run_id, token), numbers))
        scored, cpu_scored = time.monotonic(), self._server_cpu()
        self._child(publish, job, run_id)
        ended, cpu_ended = time.monotonic(), self._server_cpu()
        wal, transactions = self._counted(job)
        stored = f"SELECT pg_total_relation_size(to_regclass('serving.predictions_r{run_id}'))"
        [[size]] = self._server.execute(stored, job.address.rpartition("/")[2])
        return Cell(
            *(asked.rows, asked.parts, asked.workers),
            plan=round(planned - began, 3),
            score=round(scored - planned, 3),
            publish=round(ended - scored, 3),
            part=round(sum(seconds for seconds, _ in parts) / len(parts), 3),
            worker_cpu=round(sum(cpu for _, cpu in parts), 3),
            server_cpu=round(cpu_scored - cpu, 3),
            publish_cpu=round(cpu_ended - cpu_scored, 3),
            wal_mb=round((wal - before[0]) / 2**20, 1),
            stored_mb=round((size or 0) / 2**20, 1),
            transactions=transactions - before[1],
        )

    def _counted(self, job):
        """Bytes of log that the server has written, and transactions of the database."""
        [[wal]] = self._server.execute("SELECT pg_current_wal_insert_lsn() - '0/0'")
        name = job.address.rpartition("/")[2]
        [[transactions]] = self._server.execute(
            f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
        )
        return int(wal), int(transactions)

    def _server_cpu(self):
        """Seconds of processors of the server, those of sessions that have ended too."""
        import psutil

        server = psutil.Process(self._server.pid)
        times = [server.cpu_times(), *(one.cpu_times() for one in _alive(server))]
        own = sum(each.user + each.system for each in times)
        return own + times[0].children_user + times[0].children_system

    def _pool(self, workers):
        return ProcessPoolExecutor(workers, self._context, end_with_parent, max_tasks_per_child=1)

    def _child(self, act, *arguments):
        with self._pool(1) as pool:
            return pool.submit(act, *arguments).result()

    def _say(self, line):
        self._console.print(f"... {line}", soft_wrap=True)


def _alive(server):
    import psutil

    for child in server.children(recursive=True):
        try:
            child.cpu_times()
        except psutil.Error:
            continue
        yield child


def plan(job, parts):
    """Claim the interval for so many parts: the run, its token and the numbers of its parts."""
    from datetime import datetime

    from batch_jobs.database.leases import new_token
    from batch_jobs.interval import Interval
    from batch_jobs.runs import ledger
    from batch_jobs.runs.planning import Planner

    interval = Interval(datetime.fromisoformat(job.start), datetime.fromisoformat(job.end))
    planner = Planner(_settings(job), job.model, new_token(), parts=parts)
    run = planner.claim(interval, force=True)
    return run.run_id, run.token, list(ledger.parts_of(planner.warehouse, run.run_id))


def score(job, run_id, token, part):
    """Score a part in this process: its seconds, and the processor's since the process began."""
    from numba.core.registry import cpu_target

    from batch_jobs.runs import jobs

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()
    began = time.monotonic()
    jobs.score(_settings(job), job.model, run_id, part, token)
    return time.monotonic() - began, time.process_time()


def publish(job, run_id):
    """Publish a run that is scored."""
    from batch_jobs.runs import jobs

    jobs.publish(_settings(job), run_id)


def _settings(job):
    from batch_jobs.settings import Settings

    return Settings(
        job.writer,
        str(Path(job.folder) / "models"),
        ("tests.benchmarks.models", "batch_jobs.models"),
    )


# --- What is concluded


@dataclass(frozen=True)
class Model:
    """Seconds, and seconds a million rows (`_rows`), none of them negative.

    A part reads its own rows; where the source has no index on the key, it scans all of them
    (`part_all`). `start` is the start of its process.
    """

    cores: int
    plan: float
    plan_rows: float
    start: float
    part: float
    part_rows: float
    part_all: float
    publish: float
    publish_rows: float
    worker_cpu: float
    worker_cpu_rows: float
    server_cpu: float
    server_cpu_rows: float
    server_cpu_all: float
    publish_cpu_rows: float
    wal_mb_rows: float
    stored_mb_rows: float

    @classmethod
    def fitted(cls, cells, cores):
        """The model that is nearest to these runs, whose parts ran one after the other."""

        def solve(figures, *columns):
            import numpy as np
            from scipy.optimize import nnls

            # Each run counts by how far it is off in proportion, or the largest would decide alone.
            matrix = np.array([[column(cell) for column in columns] for cell in cells], float)
            wanted = np.array([max(figures(cell), 1e-3) for cell in cells])
            return [
                round(float(x), 3) for x in nnls(matrix / wanted[:, None], np.ones(len(cells)))[0]
            ]

        def one(_):
            return 1

        def rows(cell):
            return cell.rows / MILLION

        def own(cell):
            return cell.rows / MILLION / cell.parts

        def cut(cell):  # one part needs no ranges of keys
            return cell.rows / MILLION * (cell.parts > 1)

        def parts(cell):
            return cell.parts

        def scanned(cell):
            return cell.parts * cell.rows / MILLION

        return cls(
            cores,
            *solve(lambda cell: cell.plan, one, cut),
            *solve(lambda cell: cell.score - cell.parts * cell.part, parts),
            *solve(lambda cell: cell.part, one, own, rows),
            *solve(lambda cell: cell.publish, one, rows),
            *solve(lambda cell: cell.worker_cpu, parts, rows),
            *solve(lambda cell: cell.server_cpu, parts, rows, scanned),
            *solve(lambda cell: cell.publish_cpu, rows),
            *solve(lambda cell: cell.wal_mb, rows),
            *solve(lambda cell: cell.stored_mb, rows),
        )

    def part_seconds(self, rows, parts):
        """Of one part by a worker alone, with the start of its process."""
        millions = rows / MILLION
        return self.start + self.part + self.part_rows * millions / parts + self.part_all * millions

    def server_seconds(self, rows, parts):
        """Of PostgreSQL's processors, while it is scored."""
        millions = rows / MILLION
        scanned = self.server_cpu_all * millions * parts
        return self.server_cpu * parts + self.server_cpu_rows * millions + scanned

    def score(self, rows, parts, workers, cores=None, apart=False):
        """Seconds from the first part's start to the last one's end, and what bounds them.

        Args:
            rows: of the run.
            parts: of the run.
            workers: slots that are free for it.
            cores: of the machine, or of PostgreSQL's if the workers have machines of their own.
            apart: whether they have.
        """
        cores = cores or self.cores
        in_slots = math.ceil(parts / workers) * self.part_seconds(rows, parts)
        server = self.server_seconds(rows, parts)
        work = 0 if apart else self.worker_cpu * parts + self.worker_cpu_rows * rows / MILLION
        shared = (server + work) / cores
        return max(in_slots, shared), "slots" if in_slots >= shared else "processors"

    def published(self, rows):
        """Seconds to publish."""
        return self.publish + self.publish_rows * rows / MILLION

    def planned(self, rows, parts):
        """Seconds to plan."""
        return self.plan + self.plan_rows * rows / MILLION * (parts > 1)

    def __str__(self):
        return (
            f"model, M = millions of rows of the run, P = parts:\n"
            f"  plan    {self.plan:.2f} + {self.plan_rows:.2f} M if P > 1\n"
            f"  a part  {self.start:.2f} to start its process + {self.part:.2f} "
            f"+ {self.part_rows:.2f} M/P + {self.part_all:.2f} M\n"
            f"  publish {self.publish:.2f} + {self.publish_rows:.2f} M\n"
            f"  cpu     workers {self.worker_cpu:.2f} P + {self.worker_cpu_rows:.2f} M; "
            f"PostgreSQL {self.server_cpu:.2f} P + {self.server_cpu_rows:.2f} M + "
            f"{self.server_cpu_all:.2f} P M, publishing {self.publish_cpu_rows:.2f} M\n"
            f"  a million rows are {self.stored_mb_rows:.0f} MB with their index, and "
            f"{self.wal_mb_rows:.0f} MB of PostgreSQL's log"
        )


def _runs(model, cells, apart):
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title="Measured", title_justify="left")
    for name in (
        *("rows", "parts", "workers", "plan", "part", "score", "foretold", "off", "publish"),
        *("foretold", "cpu workers", "cpu PostgreSQL", "WAL MB", "stored MB", "xacts"),
    ):
        table.add_column(name, justify="right")
    for cell in [*cells, *apart]:
        told, _ = model.score(cell.rows, cell.parts, cell.workers)
        table.add_row(
            *(f"{cell.rows:,}", str(cell.parts), str(cell.workers), f"{cell.plan:.2f}"),
            *(f"{cell.part:.2f}", f"{cell.score:.2f}", f"{told:.2f}"),
            f"{told / cell.score - 1:+.0%}",
            *(f"{cell.publish:.2f}", f"{model.published(cell.rows):.2f}", f"{cell.worker_cpu:.2f}"),
            *(f"{cell.server_cpu + cell.publish_cpu:.2f}", f"{cell.wal_mb:,.0f}"),
            *(f"{cell.stored_mb:,.0f}", f"{cell.transactions}"),
            style="bold" if cell.workers == 1 and cell not in apart else None,
            end_section=cell in (cells[-1], apart[-1] if apart else cells[-1]),
        )
    return table


# Rows, parts, slots, processors of PostgreSQL.
LARGER = (
    (10 * MILLION, 16, 16, 8),
    (100 * MILLION, 16, 16, 16),
    (100 * MILLION, 64, 64, 16),
    (1000 * MILLION, 64, 64, 32),
    (1000 * MILLION, 256, 256, 32),
)


def _larger(model):
    indexed = replace(model, part_all=0.0, server_cpu_all=0.0)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Foretold: workers on machines of their own, PostgreSQL with all in memory",
        title_justify="left",
    )
    for name in (
        *("rows", "parts = slots", "PostgreSQL's cpus", "plan", "score, each part scans all"),
        *(
            "bound by",
            "score, by an index on the key",
            "bound by",
            "publish",
            "WAL GB",
            "stored GB",
        ),
    ):
        table.add_column(name, justify="right")
    for rows, parts, slots, cores in LARGER:
        scanning, bound = model.score(rows, parts, slots, cores, apart=True)
        reading, bound_indexed = indexed.score(rows, parts, slots, cores, apart=True)
        table.add_row(
            *(f"{rows:,}", str(parts), str(cores), _clock(model.planned(rows, parts))),
            *(_clock(scanning), bound, _clock(reading), bound_indexed),
            *(_clock(model.published(rows)), f"{model.wal_mb_rows * rows / MILLION / 1024:,.0f}"),
            f"{model.stored_mb_rows * rows / MILLION / 1024:,.0f}",
        )
    return table


def _clock(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


FLEETS = (
    Fleet(models=70, slots=4),
    Fleet(models=70, slots=16),
    Fleet(models=1000, slots=12),
    Fleet(models=1000, slots=16),
    Fleet(models=1000, slots=32),
    Fleet(models=1000, slots=32, spread=True),
    Fleet(models=1000, slots=32, spread=True, large=10),
    Fleet(models=1000, slots=32, spread=True, large=10, pooled=8),
    Fleet(models=1000, slots=32, spread=True, large=20, pooled=12),
)


def _many_models():
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title="Simulated: models every ten minutes that share slots, for six hours",
        title_justify="left",
    )
    for name in (
        *("models", "of them large", "slots", "ticks", "intervals a day", "slots busy"),
        *("fresh after p50", "p95", "worst", "before the next"),
    ):
        table.add_column(name, justify="right")
    for fleet in FLEETS:
        found = simulate(fleet)
        pool = f" ({fleet.pooled} of them in a pool)" if fleet.pooled else ""
        table.add_row(
            *(f"{fleet.models:,}", f"{fleet.large}{pool}", str(fleet.slots)),
            *("spread" if fleet.spread else "at once", f"{fleet.models * 144:,}"),
            *(f"{found.busy:.0%}", _clock(found.p50), _clock(found.p95), _clock(found.worst)),
            "yes" if found.keeps_up else "no",
        )
    return table


if __name__ == "__main__":
    main()
