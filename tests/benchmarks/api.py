"""What a prediction costs over HTTP, beside the same server's constant and beside a bare handler.

    python -m tests.benchmarks.api [--json] [--rows 1000000] [--seconds 3] [--repeats 3]
        [--connections 16] [--databases sqlite postgresql]

One prediction of a million current ones is looked up at random, while nothing else happens, while
four clients export the population, and while one as large is published again and again; and, for
comparison, beside a process that only computes and touches no database. A thousand are looked up in
one request, too. `POST /predict` computes the iris of the
README and keeps it; the bare handler calls `predict_proba` on one row and keeps nothing. Whoever is
compared takes turns within one run, so trust the ratios: the machine has other things to do, and
the callers take a part of it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.pool import Pool
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.registry import promotion
from batch_jobs.runs import publication, staging
from batch_jobs.samples.iris import load_iris
from batch_jobs.scoring.counts import Counts
from batch_jobs.settings import Settings, let_threads_sleep
from batch_jobs.training import train
from demo.local import ROOT
from tests.benchmarks.caller import Seen, call
from tests.benchmarks.models._datasets import login
from tests.benchmarks.readers import computing
from tests.support.attempts import claim, tick
from tests.support.postgres_server import PostgresServer

DATABASES = ("sqlite", "postgresql")
MODEL, CHUNK = "population", 50_000
PATIENCE = 120
CONSTANT = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LOOK_UP = "GET /models/{}/predictions/{} HTTP/1.1\r\nHost: localhost\r\n\r\n"
EXPORT = (
    "GET /v1/models/{}/predictions?limit=10000 HTTP/1.1\r\nHost: localhost\r\n"
    "Accept-Encoding: gzip\r\n\r\n"
)
EXPORTERS, AT_ONCE, FOR_EVER = 4, 1000, 86_400
FLOWER = json.dumps({"features": [5.1, 3.5, 1.4, 0.2]})
POST = (
    "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    "Content-Length: {}\r\n\r\n{}"
)


def publish(warehouse: Warehouse, number: int, rows: int) -> None:
    """Publish a population of so many rows."""
    run = claim(warehouse, tick(number), mode="replace", model=MODEL)
    _, opened = staging.open_part(warehouse, run.run_id, 0, run.token)
    for chunk, start in enumerate(range(0, rows, CHUNK)):
        size = min(CHUNK, rows - start)
        table = pa.table(
            {
                "entity_id": [f"entity-{place:07}" for place in range(start, start + size)],
                "score": pa.array([number % 2 / 2] * size, pa.float64()),
                "label": pa.nulls(size, pa.string()),
            }
        )
        staging.stage(warehouse, opened, run.token, chunk, table, [])
    staging.close_part(warehouse, opened, run.token, Counts(rows, rows, 0))
    publication.publish(warehouse, run.run_id)


def publish_for_ever(url: str, rows: int) -> None:
    """Publish one population after another, until this process is ended."""
    warehouse, number = Warehouse(url), 1
    while True:
        publish(warehouse, number, rows)
        number += 1


def prepare(settings: Settings, rows: int) -> None:
    """Publish the population, and train the model that computes."""
    warehouse, now = Warehouse(settings.warehouse), datetime.now(UTC)
    warehouse.ensure_schema()
    publish(warehouse, 0, rows)
    with warehouse.write_source() as connection:
        load_iris(connection, now)
    train.train(settings, "iris", now)
    promotion.promote(settings, "iris", actor="benchmark")


@contextmanager
def serving(settings: Settings, module: str) -> Iterator[int]:
    """A server in a process of its own; its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    environ = os.environ | {
        "BATCH_JOBS_WAREHOUSE": settings.warehouse,
        "BATCH_JOBS_MODEL_STORE": settings.model_store,
        "PREDICTION_API_PORT": str(port),
        "PREDICTION_API_RATE": "100000000/second",
    }
    with subprocess.Popen(
        [sys.executable, "-m", module], env=environ, cwd=ROOT, stderr=subprocess.PIPE
    ) as server:
        try:
            _wait_for(server, port)
            yield port
        finally:
            server.terminate()
            server.communicate()


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the server did not start") from None
            time.sleep(0.1)
        else:
            return


@contextmanager
def publishing(url: str, rows: int) -> Iterator[None]:
    """Somebody publishes the population again and again meanwhile."""
    process = multiprocessing.get_context("spawn").Process(
        target=publish_for_ever, args=(url, rows), daemon=True
    )
    process.start()
    try:
        yield
        if not process.is_alive():
            raise SystemExit("whoever publishes has ended; its error is above")
    finally:
        process.kill()
        process.join()


@contextmanager
def exporting(port: int) -> Iterator[None]:
    """Four clients export the population meanwhile, page after page."""
    process = multiprocessing.get_context("spawn").Process(
        target=call, args=(port, [EXPORT.format(MODEL)], EXPORTERS, FOR_EVER), daemon=True
    )
    process.start()
    try:
        time.sleep(1)  # until it has begun: the first turn only warms up
        yield
        if not process.is_alive():
            raise SystemExit("whoever exports has ended; its error is above")
    finally:
        process.kill()
        process.join()


def _in_bulk(keys: Sequence[str]) -> str:
    body = json.dumps({"entity_ids": list(keys)})
    return POST.format(f"/v1/models/{MODEL}/predictions:lookup", len(body), body)


def by_turns(
    pool: Pool, asked: argparse.Namespace, whom: dict[str, tuple[int, list[str]]]
) -> dict[str, Any]:
    """What callers see of each, by turns: medians of requests a second, p50 and p99.

    Args:
        pool: a process for the callers.
        asked: how often, for how long, and by how many.
        whom: the port and what is asked there, by name.
    """
    seen: dict[str, list[Seen]] = {name: [] for name in whom}
    for turn in range(asked.repeats + 1):
        for name, (port, requests) in whom.items():
            seconds = asked.seconds if turn else min(1, asked.seconds)
            answer = pool.apply(call, (port, requests, asked.connections, seconds))
            if turn:  # the first only warms up
                seen[name].append(answer)
    return {
        name: {
            "requests_per_second": round(median(one.per_second for one in all_of)),
            "p50_ms": round(median(one.percentile(0.5) for one in all_of), 2),
            "p99_ms": round(median(one.percentile(0.99) for one in all_of), 2),
            "failed": sum(one.failed for one in all_of),
        }
        for name, all_of in seen.items()
    }


def measure(
    pool: Pool, asked: argparse.Namespace, database: str, settings: Settings
) -> list[dict[str, Any]]:
    """The records of one database; on PostgreSQL, publisher and server have logins of their own."""
    prepare(settings, asked.rows)
    writer = settings.warehouse
    if database == "postgresql":
        warehouse = Warehouse(writer)
        writer = login(warehouse, writer, "bench_writer", "batch_jobs_writer")
        app = login(warehouse, settings.warehouse, "bench_app", "batch_jobs_requester")
        settings = replace(settings, warehouse=app)
    keys = [f"entity-{random.randrange(asked.rows):07}" for _ in range(5000)]
    look_ups = [LOOK_UP.format(MODEL, key) for key in keys]
    with serving(settings, "prediction_api") as port:
        readers = {"constant": (port, [CONSTANT]), "look-up": (port, look_ups)}
        bulk = [_in_bulk(keys[first : first + AT_ONCE]) for first in range(0, len(keys), AT_ONCE)]
        one = Namespace(**{**vars(asked), "connections": 1})
        found = {"idle": by_turns(pool, asked, readers)}
        found["one by one"] = by_turns(
            pool, one, {"constant": readers["constant"], "1,000 keys": (port, bulk)}
        )
        with exporting(port):
            found["exporting"] = by_turns(pool, asked, readers)
        with publishing(writer, asked.rows):
            found["publishing"] = by_turns(pool, asked, readers)
        with computing(multiprocessing.get_context("spawn"), 1):
            found["beside another"] = by_turns(pool, asked, readers)
        with serving(settings, "tests.benchmarks.bare_api") as bare:
            asked_to_compute = {
                "bare handler": (bare, [POST.format("/bare", len(FLOWER), FLOWER)]),
                "POST /predict": (port, [POST.format("/predict", len(FLOWER), FLOWER)]),
            }
            found["computing"] = by_turns(pool, asked, asked_to_compute)
    return [
        {"database": database, "while": when, "what": what, **numbers}
        for when, all_of in found.items()
        for what, numbers in all_of.items()
    ]


def add_ratios(records: list[dict[str, Any]]) -> None:
    """Requests a second beside the constant or the bare handler; p99 beside an idle time's."""
    by_key = {(one["database"], one["while"], one["what"]): one for one in records}
    floors = {"look-up": "constant", "1,000 keys": "constant", "POST /predict": "bare handler"}
    for (database, when, what), one in by_key.items():
        floor = by_key[database, when, floors.get(what, what)]
        one["ratio"] = round(one["requests_per_second"] / floor["requests_per_second"], 2)
        idle = by_key.get((database, "idle", what), one)
        one["p99_ratio"] = round(one["p99_ms"] / idle["p99_ms"], 2)


def show(records: Sequence[dict[str, Any]]) -> None:
    """Print the records as a table."""
    table = Table(box=None)
    for heading in ("database", "while", "what"):
        table.add_column(heading)
    for heading in ("requests/s", "x floor", "p50 ms", "p99 ms", "x idle p99", "failed"):
        table.add_column(heading, justify="right")
    for one in records:
        table.add_row(
            *(one[name] for name in ("database", "while", "what")),
            f"{one['requests_per_second']:,}",
            f"{one['ratio']:.2f}",
            f"{one['p50_ms']:.2f}",
            f"{one['p99_ms']:.2f}",
            f"{one['p99_ratio']:.2f}",
            f"{one['failed']:,}",
        )
    console = Console(width=100)
    console.print(table)
    load = f"{os.cpu_count()} processors, load average {os.getloadavg()[2]:.1f} (15 minutes)"
    console.print(f"x floor: beside the constant, or the bare handler. {load}", style="dim")


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="api", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print the records as the last line")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    asked = parser.parse_args(arguments)
    let_threads_sleep()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    records = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="batch-jobs-api-"))
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        for database in asked.databases:
            url = f"sqlite:///{folder}/warehouse.db"
            if database == "postgresql":
                server = stack.enter_context(PostgresServer())
                server.create_database("api")
                url = server.url("api")
            settings = Settings(url, str(Path(folder, f"models-{database}")))
            records += measure(pool, asked, database, settings)
    add_ratios(records)
    show(records)
    if asked.json:
        sys.stdout.write(json.dumps(records) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
