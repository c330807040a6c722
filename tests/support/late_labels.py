"""A model whose scores and labels a test makes up, published on the ledger without a model."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from sqlalchemy import text

from batch_jobs import BatchModel, Gate, Monitor, Number, clock
from batch_jobs.database.leases import new_token
from batch_jobs.database.transactions import stored_time
from batch_jobs.interval import Interval
from batch_jobs.monitor import Performance
from batch_jobs.registry import champions, versions
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.runs import claims, publication, staging
from batch_jobs.runs.claims import Claim
from batch_jobs.scoring.counts import Counts
from batch_jobs.settings import Settings

MONDAY = datetime(2024, 3, 4, tzinfo=UTC)
DAY = timedelta(days=1)
TWO = {"classes": ["no", "yes"], "positive": "yes", "constant": [0.7, 0.3]}
MANY = {"classes": ["a", "b", "c"], "positive": None, "constant": [0.5, 0.3, 0.2]}
VALUE = {"classes": None, "positive": None, "constant": [0.0]}


def open_world(warehouse, tmp_path, manifest=TWO, **performance):
    """Settings of a deployment of the model `late`, whose version v1 was trained before Monday."""
    with warehouse.write_source() as connection:
        real = "double precision" if warehouse.database.name == "postgresql" else "REAL"
        time = "timestamptz" if warehouse.database.name == "postgresql" else "TEXT"
        kind = "text" if manifest["classes"] else real
        for statement in (
            f"CREATE TABLE things (entity_id TEXT, at {time}, x {real})",
            f"CREATE TABLE outcomes (entity_id TEXT, at {time}, label {kind}, known_at {time})",
        ):
            connection.execute(text(statement))
    between = "WHERE at >= :start AND at < :end"
    model = BatchModel(
        description="Made up.",
        name="late",
        features_query=f"SELECT entity_id, at AS as_of, x FROM things {between}",
        labels_query=f"SELECT entity_id, label, known_at FROM outcomes {between}",
        features={"x": Number()},
        estimator=dict,
        schedule="0 * * * *",
        gate=Gate(min_rows=20),
        retrain_on_drift=DAY,
        monitor=Monitor(performance=Performance(**performance)),
    )
    register(warehouse, "v1", MONDAY - DAY, manifest)
    return Settings(
        warehouse._url.render_as_string(hide_password=False),
        str(tmp_path / "models"),
        (model,),
    )


def register(warehouse, name, as_of, manifest):
    """A version without an artifact, that serves from then on."""
    told = {"size_bytes": 0, "cut": stored_time(as_of - DAY), "label_coverage": 1.0, **manifest}
    version = ModelVersion("late", name, stored_time(as_of), "0" * 64, told, {}, {})
    before = champions.champion(warehouse, "late")
    with clock.set_to(as_of):
        versions.register(warehouse, version)
        champions.promote(
            warehouse,
            version,
            expected=before.version if before else None,
            action="promote",
            actor="tests",
            reason="first",
        )


def publish(warehouse, start, rows, *, version="v1", at=None, hours=1, hindsight=False):
    """Publish `{entity: (score, predicted)}` for an interval at its end, or at another time."""
    interval = Interval(start, start + timedelta(hours=hours))
    with clock.set_to(at or interval.end):
        claim = Claim(
            "late", interval, new_token(), version, "merge", ((None, None),), hindsight=hindsight
        )
        run = claims.claim(warehouse, claim)
        _, part = staging.open_part(warehouse, run.run_id, 0, run.token)
        table = pa.table(
            {
                "entity_id": pa.array(list(rows), pa.string()),
                "score": pa.array([score for score, _ in rows.values()], pa.float64()),
                "label": pa.array([label for _, label in rows.values()], pa.string()),
            }
        )
        staging.stage(warehouse, part, run.token, 0, table, ())
        staging.close_part(warehouse, part, run.token, Counts(len(rows), len(rows), 0))
        publication.publish(warehouse, run.run_id)


def label(warehouse, rows):
    """Make outcomes known: `[(entity, at, label, known_at)]`."""
    with warehouse.write_source() as connection:
        connection.execute(
            text("INSERT INTO outcomes VALUES (:entity, :at, :label, :known)"),
            [
                {
                    "entity": entity,
                    "at": stored_time(at),
                    "label": told,
                    "known": stored_time(known),
                }
                for entity, at, told, known in rows
            ],
        )


def outcomes_of(days, per_day, kind=TWO, seed=0, flipped_from=None, first=MONDAY):
    """Made-up rows of so many days: `[(start, entity, score, predicted, label, known_at)]`.

    Scores are calibrated until the day from which labels are turned round.
    """
    chance = np.random.default_rng(seed)
    found = []
    for number in range(days * per_day):
        start = first + number * DAY / per_day
        known = start + DAY + timedelta(hours=1 + float(chance.exponential(6)))
        score = float(chance.beta(1, 2))
        if kind is VALUE:
            value = float(chance.normal())
            found.append((start, f"e{number}", value, None, value + chance.normal() / 2, known))
            continue
        if kind is MANY:
            score = 0.4 + 0.6 * score
            right = chance.random() < score
            names = kind["classes"]
            said = names[number % 3]
            told = said if right else names[(number + 1) % 3]
            found.append((start, f"e{number}", score, said, told, known))
            continue
        yes = chance.random() < score
        if flipped_from is not None and start >= flipped_from:
            yes = not yes
        said = "yes" if score > 0.5 else "no"
        found.append((start, f"e{number}", score, said, "yes" if yes else "no", known))
    return found


def publish_all(warehouse, found, **options):
    """Publish made-up rows, an interval for each day that has any, oldest first."""
    by_day = {}
    for start, entity, score, said, *_ in found:
        by_day.setdefault(start.date(), {})[entity] = (score, said)
    for day, rows in sorted(by_day.items()):
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        publish(warehouse, start, rows, hours=24, **options)


def label_all(warehouse, found):
    """Make the outcomes of made-up rows known."""
    label(warehouse, [(entity, start, told, known) for start, entity, _, _, told, known in found])


def loaded(stored):
    """JSON of either database."""
    return json.loads(stored) if isinstance(stored, str) else stored
