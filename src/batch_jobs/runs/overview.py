"""What readers see of each model, and what will serve them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_jobs import clock
from batch_jobs.database.connections import text
from batch_jobs.database.transactions import loaded_time, repeatable, stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError
from batch_jobs.interval import Interval, newest_due
from batch_jobs.registry import champions
from batch_jobs.registry import versions as registry
from batch_jobs.registry.deployment import Deployment, Place, opened
from batch_jobs.runs import coverage
from batch_jobs.scoring import code_cache


def gaps(place: Place, name: str) -> list[Interval]:
    """The due intervals of a model that were never published, oldest first."""
    deployment = opened(place)
    schedule = deployment.model(name).schedule
    newest = newest_due(schedule, clock.now())
    return coverage.gaps(deployment.warehouse, name, schedule, newest.end)


def status(place: Place, name: str | None = None) -> list[dict[str, Any]]:
    """What readers see of each model, and what will serve them: a row a model.

    Args:
        place: where everything is.
        name: which model; None for all that have a version or predictions.

    Returns:
        The columns of the view `serving_status`, of which all but the model's name are None before
        the first publication; with `champion`, `versions` (how many can be loaded) and `notes`
        (what a person should know, or do next).

    Raises:
        UnknownModelError: there is no such model.
    """
    deployment = opened(place)
    names = [deployment.model(name).name] if name else None
    warehouse = deployment.warehouse
    columns, published = _published(warehouse)
    counts = registry.counts(warehouse)
    return [
        dict.fromkeys(columns)
        | {"model": each, **published.get(each, {}), "versions": counts.get(each, 0)}
        | _serving(deployment, each, published.get(each), counts.get(each, 0))
        for each in names or sorted({*published, *counts})
    ]


@repeatable
def _published(warehouse: Warehouse) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The columns of `serving_status`, and its rows by model; times are text."""
    with warehouse.read() as connection:
        found = connection.execute(text("SELECT * FROM serving_status"))
        columns, rows = list(found.keys()), found.mappings().all()
    times = ("interval_start", "interval_end", "published_at", "fresh_until")
    return columns, {
        row["model"]: {**row, **{name: stored_time(loaded_time(row[name])) for name in times}}
        for row in rows
    }


def _serving(
    deployment: Deployment,
    name: str,
    published: Mapping[str, Any] | None,
    versions: int,
) -> dict[str, Any]:
    """The champion of a model, and what there is to say about it."""
    champion = champions.champion(deployment.warehouse, name)
    if champion is None:
        said = f"no version is promoted: `batch-jobs promote {name}`"
        if not versions:
            said = f"no version is trained: `batch-jobs train {name}`"
        return {"champion": None, "notes": [said]}
    notes = []
    if published is None:
        notes.append(f"nothing is published yet; {champion.version} serves from the first run on")
    elif published["model_version"] != champion.version:
        notes.append(f"{champion.version} was promoted, and serves from the next run on")
    try:
        differs = registry.file_differs(deployment.model(name), champion)
    except BatchJobsError as error:
        differs = str(error)
    notes += [note for note in (differs, code_cache.problem()) if note]
    return {"champion": champion.version, "notes": notes}
