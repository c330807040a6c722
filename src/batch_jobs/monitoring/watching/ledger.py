"""Ask the warehouse how its models are doing: what is published, tried, trained and promoted."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row

from batch_jobs import catalog
from batch_jobs.alerts.problems import Served
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.interval import Interval, newest_due
from batch_jobs.model import BatchModel
from batch_jobs.monitoring.watching.facts import Attempt, ModelFacts, Trained
from batch_jobs.redaction import first_line
from batch_jobs.registry.deployment import Deployment
from batch_jobs.runs import coverage, plausibility
from batch_jobs.runs.ledger import COVERS, interval_of
from batch_jobs.settings import Settings

RECENT_RUNS = 20
RECENT_VERSIONS = 20
OLDEST_GAP = timedelta(days=7)


class Files:
    """The model files, read anew when one of them has changed: the watch lives for months.

    Args:
        settings: which packages hold them.
    """

    def __init__(self, settings: Settings) -> None:
        self._packages = [each for each in settings.models if isinstance(each, str)]
        self._seen: dict[str, frozenset[tuple[str, int]]] = {}

    def refresh(self) -> None:
        """Forget what was imported of a package of models whose files have changed."""
        importlib.invalidate_caches()
        for package in self._packages:
            found = frozenset(_stamps(package))
            if self._seen.setdefault(package, found) != found:
                self._seen[package] = found
                for module in [name for name in sys.modules if name.startswith(f"{package}.")]:
                    del sys.modules[module]


def _stamps(package: str) -> list[tuple[str, int]]:
    spec = find_spec(package)
    folders = (spec.submodule_search_locations if spec else None) or []
    paths = [path for folder in folders for path in Path(folder).rglob("*.py")]
    return [(str(path), path.stat().st_mtime_ns) for path in paths if path.is_file()]


def models(settings: Settings, warehouse: Warehouse, now: datetime) -> dict[str, ModelFacts]:
    """What there is to know of each model that has a file or a row in the ledger.

    Raises:
        ConfigurationError: a package of models cannot be found.
    """
    deployment = Deployment(settings)
    files = set(catalog.model_names(settings.models))
    with warehouse.read() as connection:
        names = sorted(files | set(connection.scalars(text(_KNOWN))))
    return {name: _facts(deployment, warehouse, name, now) for name in names}


_KNOWN = "SELECT model FROM serving_heads UNION SELECT model FROM model_versions"


def _facts(deployment: Deployment, warehouse: Warehouse, name: str, now: datetime) -> ModelFacts:
    model, broken = None, None
    try:
        model = deployment.model(name)
    except BatchJobsError as error:
        broken = first_line(error)
    with warehouse.read() as connection:
        stored = _stored(connection, name, model)
    if model is None or stored.served is None or stored.champion is None or model.mode != "merge":
        return _with(stored, model=model, broken=broken)
    gaps = coverage.gaps(
        warehouse, name, model.schedule, stored.served.interval_end, now - OLDEST_GAP
    )
    silence, unjudged = None, None
    try:
        silence = _silence(deployment, warehouse, model, stored.champion, now)
    except Exception as error:  # noqa: BLE001 - whatever a source of the user's raises
        unjudged = first_line(error)
    return _with(stored, model=model, broken=broken, gaps=gaps, silence=silence, unjudged=unjudged)


def _with(facts: ModelFacts, **changed: Any) -> ModelFacts:
    return ModelFacts(**{**vars(facts), **changed})


def _stored(connection: Connection, name: str, model: BatchModel | None) -> ModelFacts:
    """What the ledger has of a model, in one snapshot."""
    status = connection.execute(
        text("SELECT * FROM serving_status WHERE model = :model"), {"model": name}
    ).first()
    promoted = connection.execute(
        text("""
            SELECT version, promoted_at FROM promotions WHERE model = :model
            ORDER BY promotion_id DESC LIMIT 1"""),
        {"model": name},
    ).first()
    return ModelFacts(
        name,
        served=None if status is None else _served(status),
        fresh_until=None if status is None else loaded_time(status.fresh_until),
        lateness=_lateness(connection, name, None if model is None else model.timeout),
        attempts=_attempts(connection, name),
        champion=None if promoted is None else promoted.version,
        promoted_at=None if promoted is None else loaded_time(promoted.promoted_at),
        trained=_trained(connection, name),
    )


def _served(status: Row[Any]) -> Served:
    return Served(
        model_version=status.model_version,
        interval_start=loaded_time(status.interval_start),
        interval_end=loaded_time(status.interval_end),
        published_at=loaded_time(status.published_at),
        row_count=status.row_count,
    )


def _lateness(connection: Connection, name: str, longest: timedelta | None) -> timedelta:
    """How long after its end an interval was published at the latest, of the last that were due."""
    rows = connection.execute(
        text(f"""
            SELECT interval_end, published_at FROM prediction_runs
            WHERE model = :model AND {COVERS} ORDER BY published_at DESC LIMIT :runs"""),  # noqa: S608
        {"model": name, "runs": RECENT_RUNS},
    )
    spans = [loaded_time(row.published_at) - loaded_time(row.interval_end) for row in rows]
    return max((span for span in spans if longest and span <= longest), default=timedelta())


def _attempts(connection: Connection, name: str) -> list[Attempt]:
    rows = connection.execute(
        text("""
            SELECT r.run_id, r.interval_start, r.interval_end, r.claimed_at AS heard,
                   f.claimed_at AS began
            FROM prediction_runs AS r
            JOIN fences AS f ON f.model = r.model AND f.interval_start = r.interval_start
             AND f.interval_end = r.interval_end AND f.token = r.token
            WHERE r.model = :model AND r.state = 'staging' ORDER BY r.interval_start"""),
        {"model": name},
    )
    return [
        Attempt(row.run_id, interval_of(row), loaded_time(row.began), loaded_time(row.heard))
        for row in rows
    ]


def _trained(connection: Connection, name: str) -> list[Trained]:
    rows = connection.execute(
        text("""
            SELECT version, as_of, created_at, gate FROM model_versions WHERE model = :model
            ORDER BY as_of DESC, created_at DESC, version DESC LIMIT :versions"""),
        {"model": name, "versions": RECENT_VERSIONS},
    )
    found = []
    for row in rows:
        gate = json.loads(row.gate) if isinstance(row.gate, str) else row.gate
        found.append(
            Trained(
                version=row.version,
                as_of=loaded_time(row.as_of),
                created_at=loaded_time(row.created_at),
                may_serve=bool(gate.get("promote")),
                undecided=bool(gate.get("undecided")),
                reasons="; ".join(map(str, gate.get("reasons", ()))),
            )
        )
    return found


def _silence(
    deployment: Deployment, warehouse: Warehouse, model: BatchModel, champion: str, now: datetime
) -> str | None:
    """What is wrong with the source of a model, if it seems to be dead."""
    due = newest_due(model.schedule, now)
    if _has_rows(warehouse, model.name, due):
        return None
    trained = partial(deployment.trained, model.name, champion)
    return plausibility.silence(warehouse, model, due, trained)


def _has_rows(warehouse: Warehouse, name: str, due: Interval) -> bool:
    runs: Sequence[Any] = coverage.volumes(warehouse, name, due.end, due.start)
    return any(volume.rows for volume in runs)
