"""What a run of few rows costs the database: it is paid every ten minutes for each model."""

from dataclasses import replace

import pytest
from sqlalchemy import event, text

from batch_jobs import Interval
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.registry.deployment import Deployment
from batch_jobs.runs import jobs
from tests.conftest import TRAINED
from tests.example_models import orders
from tests.example_models._tables import STEP

ORDERS = orders.model.model_copy(update={"name": "orders", "chunk_rows": 50_000})

# Claim, open, stage, close, seal and publish are a transaction each, since somebody else may take
# the run over in between. On PostgreSQL those that read are counted, too.
STATEMENTS = 60
COMMITS = {"sqlite": 6, "postgresql": 14}
LOG_BYTES = {"sqlite": 150_000, "postgresql": 30_000}


def count(warehouse):
    """Count from now on what is executed and what is committed: `[statements, commits]`."""
    counted = [0, 0]

    def executed(*_):
        counted[0] += 1

    def committed(*_):
        counted[1] += 1

    for engine in {warehouse.database.writer, warehouse.database.reader}:
        event.listen(engine, "before_cursor_execute", executed)
    event.listen(warehouse.database.writer, "commit", committed)
    return counted


def log_bytes(warehouse):
    """How much has been written to the write-ahead log."""
    if warehouse.database.name == "sqlite":
        log = warehouse.database._path.with_name(f"{warehouse.database._path.name}-wal")
        return log.stat().st_size if log.exists() else 0
    with warehouse.read() as connection:
        return int(connection.scalar(text("SELECT pg_current_wal_insert_lsn() - '0/0'")))


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_a_small_run_takes_so_many_statements_and_no_more(shop, rows):
    """However many rows it has, up to a chunk."""
    warehouse = Warehouse(shop.warehouse)
    deployment = Deployment(replace(shop, models=(ORDERS,)))
    first, own = (Interval(TRAINED + n * STEP, TRAINED + (n + 1) * STEP) for n in (0, 1))
    with warehouse.write_source() as connection:
        connection.execute(
            text("DELETE FROM orders WHERE placed_at >= :start AND placed_at < :end"),
            {"start": own.start.isoformat(), "end": own.end.isoformat()},
        )
        if rows:
            connection.execute(
                text(
                    "UPDATE orders SET placed_at = :at WHERE entity_id IN (SELECT entity_id FROM "
                    "orders WHERE placed_at >= :later ORDER BY placed_at LIMIT :rows)"
                ),
                {"at": own.start.isoformat(), "later": own.end.isoformat(), "rows": rows},
            )
    jobs.predict(deployment, "orders", first)
    counted, before = count(warehouse), log_bytes(warehouse)
    run = jobs.predict(deployment, "orders", own)
    assert run.counts.read == rows
    assert counted[0] <= STATEMENTS
    assert counted[1] <= COMMITS[warehouse.database.name]
    assert log_bytes(warehouse) - before <= LOG_BYTES[warehouse.database.name]
