"""The champion: promote a version, or roll back to an earlier one."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from batch_jobs.database.transactions import loaded_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError, NoChampionError
from batch_jobs.registry import champions, versions
from batch_jobs.registry.deployment import Place, opened
from batch_jobs.registry.loading import load_version
from batch_jobs.registry.versions import ModelVersion


@dataclass(frozen=True)
class Promotion:
    """What became of a wish to promote.

    Attributes:
        version: the version in question.
        outcome: `promoted` now, `kept` the champion instead, or `unchanged`, being it already.
        champion: who serves now.
        reason: why so.
    """

    version: ModelVersion
    outcome: Literal["promoted", "kept", "unchanged"]
    champion: str | None
    reason: str


def candidate(place: Place, name: str, as_of: datetime | None = None) -> tuple[ModelVersion, bool]:
    """The version that may take over, and whether nothing but a person's word is in its way.

    Args:
        place: where everything is.
        name: which model.
        as_of: a version that was trained as of this moment; by default the one that has seen the
            newest data.

    Raises:
        ArtifactError: there is no such version.
    """
    warehouse = opened(place).warehouse
    version = _newest(warehouse, name, as_of)
    serving = champions.champion(warehouse, name)
    is_champion = serving is not None and serving.version == version.version
    return version, not (is_champion or _obstacles(warehouse, version, serving, approved=True))


def trained_since(place: Place, name: str, moment: datetime) -> ModelVersion | None:
    """The version that has seen the newest data, if it was trained as of a moment after this."""
    version = versions.newest_version(opened(place).warehouse, name)
    return version if version and loaded_time(version.as_of) > moment else None


def promote(
    place: Place,
    name: str,
    version: str | None = None,
    *,
    actor: str,
    reason: str = "",
    as_of: datetime | None = None,
    approved_by: str | None = None,
) -> Promotion:
    """Make a version the champion if its gate report says so and nothing else is in its way.

    A version that the gate refuses, that was rolled back, or that has seen older data than the
    champion, is promoted only by its name and with a reason, which is recorded.

    Args:
        place: where everything is.
        name: which model.
        version: which version; by default the one that has seen the newest data.
        actor: who wants it.
        reason: why, whatever is in its way.
        as_of: without a version, one that was trained as of this moment.
        approved_by: who approved a version that could not be compared with the champion.

    Raises:
        ArtifactError: no such version, its file is not loadable, or the champion has changed
            since the version was evaluated.
    """
    deployment = opened(place)
    model = deployment.model(name)
    warehouse = deployment.warehouse
    if version:
        wanted = versions.find_version(warehouse, name, version)
    else:
        wanted = _newest(warehouse, name, as_of)
    serving = champions.champion(warehouse, name)
    champion = serving.version if serving else None
    if champion == wanted.version:
        return Promotion(wanted, "unchanged", champion, "it is the champion already")
    obstacles = _obstacles(warehouse, wanted, serving, approved=bool(approved_by))
    overruled = bool(version and reason)
    if obstacles and not overruled:
        cure = (
            f"to promote it all the same: `batch-jobs promote {name} {wanted.version} --reason …`"
        )
        return Promotion(wanted, "kept", champion, f"{'; '.join(obstacles)}; {cure}")
    load_version(deployment.settings, model, wanted)
    decided = approved_by and wanted.gate.get("undecided")
    approval = [f"approved by {approved_by}"] if decided else []
    why = reason or "; ".join([*approval, *wanted.gate["reasons"]])
    champions.promote(
        warehouse,
        wanted,
        expected=champion if overruled else wanted.gate["champion"],
        action="promote",
        actor=actor,
        reason=why,
    )
    return Promotion(wanted, "promoted", wanted.version, why)


def _obstacles(
    warehouse: Warehouse, wanted: ModelVersion, serving: ModelVersion | None, *, approved: bool
) -> list[str]:
    """What is in the way of a promotion; an approval clears what the gate could not decide."""
    found: list[str] = []
    if not wanted.gate["promote"] and not (approved and wanted.gate.get("undecided")):
        found += wanted.gate["reasons"]
    why = champions.rolled_back(warehouse, wanted.model, wanted.version)
    if why is not None:
        found.append(f"it was rolled back ({why})")
    if serving and loaded_time(serving.as_of) > loaded_time(wanted.as_of):
        found.append(
            f"it has seen data up to {wanted.as_of}, and {serving.version}, which serves, up to "
            f"{serving.as_of}"
        )
    return found


def rollback(place: Place, name: str, to: str, *, actor: str, reason: str) -> Promotion:
    """Make an earlier version the champion again, after proving that it loads.

    Raises:
        ArtifactError: no such version, it never served, or its file is missing, changed or unfit.
    """
    deployment = opened(place)
    model = deployment.model(name)
    warehouse = deployment.warehouse
    wanted = require_served(deployment, name, to)
    serving = champions.champion(warehouse, name)
    if serving is not None and serving.version == to:
        return Promotion(wanted, "unchanged", to, "it is the champion already")
    load_version(deployment.settings, model, wanted)
    champions.promote(
        warehouse,
        wanted,
        expected=serving.version if serving else None,
        action="rollback",
        actor=actor,
        reason=reason,
    )
    return Promotion(wanted, "promoted", to, reason)


def require_served(place: Place, name: str, version: str) -> ModelVersion:
    """A version that has been the champion.

    Raises:
        ArtifactError: no such version, or it never served.
    """
    warehouse = opened(place).warehouse
    found = versions.find_version(warehouse, name, version)
    served = champions.have_served(warehouse, name)
    if version not in served:
        raise ArtifactError(
            f"{name} {version} never served; roll back to a version that did "
            f"({', '.join(served[1:]) or 'there is none'}), or promote it: `batch-jobs promote "
            f"{name} {version} --reason …`"
        )
    return found


def _newest(warehouse: Warehouse, name: str, as_of: datetime | None = None) -> ModelVersion:
    version = versions.newest_version(warehouse, name, as_of)
    if version is None:
        asked = "no trained version yet" if as_of is None else f"no version as of {as_of}"
        raise ArtifactError(f"{name} has {asked}; run `batch-jobs train {name} --as-of TIME`")
    return version


def require_champion(warehouse: Warehouse, name: str) -> ModelVersion:
    """The version that serves now.

    Raises:
        NoChampionError: there is none yet.
    """
    version = champions.champion(warehouse, name)
    if version is None:
        raise NoChampionError(name)
    return version
