"""The steps of a prediction run on the bare ledger, for tests that need no model and no rows."""

import json
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from sqlalchemy import create_engine, text

from batch_jobs.catalog import load_model
from batch_jobs.database.leases import new_token
from batch_jobs.database.transactions import loaded_time, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval
from batch_jobs.registry import champions, versions
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.runs import claims, publication, staging
from batch_jobs.runs.claims import Claim
from batch_jobs.runs.ledger import load_run
from batch_jobs.scoring.counts import Counts

MIDNIGHT = datetime(2024, 3, 1, tzinfo=UTC)
EVERYTHING = ((None, None),)


def span(start, end):
    """The interval between two minutes after midnight."""
    return Interval(MIDNIGHT + timedelta(minutes=start), MIDNIGHT + timedelta(minutes=end))


def tick(number):
    """The interval of ten minutes of that number."""
    return span(10 * number, 10 * number + 10)


def find_run(warehouse, run_id):
    """The run of that id, as the ledger has it now."""
    with warehouse.read() as connection:
        return load_run(connection, run_id)


def claim(warehouse, interval, token=None, *, mode="merge", model="orders", ranges=EVERYTHING):
    """Claim an interval for a version that is registered as far as the ledger can see."""
    version = ModelVersion(model, "v1", stored_time(MIDNIGHT), "0" * 64, {"size_bytes": 0}, {}, {})
    versions.register(warehouse, version)
    return claims.claim(warehouse, Claim(model, interval, token or new_token(), "v1", mode, ranges))


def retell(settings, name="orders"):
    """Let the champion of a model have been trained for what the model's file says now."""
    warehouse = Warehouse(settings.warehouse)
    champion = champions.champion(warehouse, name)
    contract = versions.contract_of(load_model(name, settings.models))
    with warehouse.write() as connection:
        connection.execute(
            text("UPDATE model_versions SET manifest = :manifest WHERE version = :version"),
            {
                "manifest": json.dumps({**champion.manifest, "contract": contract}),
                "version": champion.version,
            },
        )


def score(warehouse, run, rows, part=0, token=None, rejected=()):
    """Stage `{entity: score}` as one part of a run."""
    token = token or run.token
    _, opened = staging.open_part(warehouse, run.run_id, part, token)
    staging.stage(warehouse, opened, token, 0, scores(rows), rejected)
    counts = Counts(len(rows) + len(rejected), len(rows), len(rejected))
    staging.close_part(warehouse, opened, token, counts)


def scores(rows):
    """`{entity: score}` as what is staged."""
    return pa.table(
        {
            "entity_id": pa.array(rows.keys(), pa.string()),
            "score": pa.array(rows.values(), pa.float64()),
            "label": pa.nulls(len(rows), pa.string()),
        }
    )


def publish(warehouse, interval, rows, *, mode="merge", model="orders"):
    """Claim, stage and publish `{entity: score}` for an interval."""
    run = claim(warehouse, interval, mode=mode, model=model)
    score(warehouse, run, rows)
    return publication.publish(warehouse, run.run_id)


def ask(warehouse, sql, **values):
    """Rows of a query as tuples."""
    with warehouse.read() as connection:
        return [tuple(row) for row in connection.execute(text(sql), values)]


@contextmanager
def app_connections(warehouse, lock_timeout):
    """Open connections to PostgreSQL as an app has them: in a transaction, with few waits.

    Args:
        warehouse: where to.
        lock_timeout: how long a statement waits for anybody.
    """
    options = f"-c search_path=serving -c lock_timeout={lock_timeout} -c statement_timeout=5s"
    engine = create_engine(warehouse.database.url.update_query_dict({"options": options}))
    with ExitStack() as stack:
        stack.callback(engine.dispose)

        def open_one(isolation="READ COMMITTED"):
            made = engine.connect().execution_options(isolation_level=isolation)
            return stack.enter_context(made)

        yield open_one


def loaded_json(stored):
    """What a JSON column says, which SQLite gives as text; JSON has neither NaN nor infinity."""
    return json.loads(stored, parse_constant=pytest.fail) if isinstance(stored, str) else stored


def forget_promotions(warehouse):
    """Take every champion away, which the database allows nobody to do."""
    with warehouse.write() as connection:
        if warehouse.database.name == "sqlite":
            connection.execute(text("DROP TRIGGER promotions_keep_delete"))
        else:
            connection.execute(text("DROP TRIGGER promotions_keep ON promotions"))
        connection.execute(text("DELETE FROM promotions"))


def seen(warehouse):
    """What an app reads now: `{entity: score}`."""
    return dict(ask(warehouse, "SELECT entity_id, score FROM current_predictions"))


def head(warehouse, model="orders"):
    """Run, end and watermark of what serves, as minutes after midnight."""
    ((run_id, end, fresh),) = ask(
        warehouse,
        "SELECT run_id, interval_end, fresh_until FROM serving_status WHERE model = :model",
        model=model,
    )
    return run_id, minute(end), minute(fresh)


def minute(stored):
    """Minutes after midnight of a stored time."""
    return (loaded_time(stored) - MIDNIGHT) // timedelta(minutes=1)
