"""The verbs of a model version's life: train, promote, roll back."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from batch_jobs import registry
from batch_jobs.artifacts import ModelStore, deserialize, libraries, name_version, serialize
from batch_jobs.catalog import load_model
from batch_jobs.errors import ArtifactError, IntervalError, NoChampionError
from batch_jobs.interval import Interval, due_between, require_aware
from batch_jobs.model import BatchModel
from batch_jobs.registry import ModelVersion
from batch_jobs.settings import Settings
from batch_jobs.warehouse import Warehouse, bounds, repeatable, stored_time

if TYPE_CHECKING:
    import pandas as pd

    from batch_jobs.gate import GateReport
    from batch_jobs.training import Split

log = logging.getLogger(__name__)


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


def train(settings: Settings, name: str, as_of: datetime) -> ModelVersion:
    """Train a challenger from what was known at `as_of`, judge it and register it.

    Nothing is registered unless the whole training succeeded; the champion goes on serving.

    Raises:
        InputError: unknown model, future `as_of`, unwritable store, queries or rows that do not
            fit, too few labelled rows.
    """
    from batch_jobs import training

    as_of = require_aware(as_of)
    if as_of > datetime.now(UTC):
        raise IntervalError(f"cannot train as of {as_of.isoformat()}: that is in the future")
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    store = ModelStore(settings.model_store)
    store.require_writable()
    split = _read_split(warehouse, model, as_of)
    log.info("fitting on %s rows, holding out %s", f"{len(split.fit):,}", f"{len(split.judge):,}")
    estimator = training.fit(model, split.fit)
    report = _judge_against(warehouse, store, model, split, estimator)
    metrics = report.metrics["challenger"]
    log.info("hold-out: %s", ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    for reason in report.reasons:
        log.info("gate: %s: %s", "promote" if report.promote else "keep the champion", reason)
    artifact = serialize(estimator)
    version = name_version(as_of, artifact)
    manifest = _manifest(model, version, as_of, split, artifact)
    store.write(model.name, version, artifact, manifest)
    registered = registry.register(
        warehouse,
        ModelVersion(
            model=model.name,
            version=version,
            as_of=stored_time(as_of),
            sha256=manifest["sha256"],
            manifest=manifest,
            metrics=metrics,
            gate=report.as_dict(),
        ),
    )
    log.info("registered %s %s", model.name, version)
    return registered


def promote(
    settings: Settings, name: str, version: str | None = None, *, actor: str, reason: str = ""
) -> Promotion:
    """Make a version the champion if its gate report says so.

    Without a version, the newest one is meant. A reason overrules the gate, and is recorded.

    Raises:
        ArtifactError: no such version, its file is not loadable, or the champion has changed
            since the version was judged.
    """
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    if version:
        wanted: ModelVersion | None = registry.find_version(warehouse, name, version)
    else:
        wanted = registry.newest_version(warehouse, name)
    if wanted is None:
        raise ArtifactError(f"{name} has no trained version yet; run `batch-jobs train {name}`")
    serving = registry.champion(warehouse, name)
    champion = serving.version if serving else None
    if champion == wanted.version:
        return Promotion(wanted, "unchanged", champion, "it is the champion already")
    if not wanted.gate["promote"] and not reason:
        return Promotion(wanted, "kept", champion, "; ".join(wanted.gate["reasons"]))
    load_estimator(ModelStore(settings.model_store), model, wanted)
    why = reason or "; ".join(wanted.gate["reasons"])
    registry.promote(
        warehouse,
        wanted,
        expected=champion if reason else wanted.gate["champion"],
        action="promote",
        actor=actor,
        reason=why,
    )
    return Promotion(wanted, "promoted", wanted.version, why)


def rollback(settings: Settings, name: str, to: str, *, actor: str, reason: str) -> Promotion:
    """Make an earlier version the champion again, after proving that it loads.

    Raises:
        ArtifactError: no such version, or its file is missing, changed or unfit.
    """
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    wanted = registry.find_version(warehouse, name, to)
    serving = registry.champion(warehouse, name)
    if serving is not None and serving.version == to:
        return Promotion(wanted, "unchanged", to, "it is the champion already")
    load_estimator(ModelStore(settings.model_store), model, wanted)
    registry.promote(
        warehouse,
        wanted,
        expected=serving.version if serving else None,
        action="rollback",
        actor=actor,
        reason=reason,
    )
    return Promotion(wanted, "promoted", to, reason)


def require_champion(warehouse: Warehouse, name: str) -> ModelVersion:
    """The version that serves now.

    Raises:
        NoChampionError: there is none yet.
    """
    version = registry.champion(warehouse, name)
    if version is None:
        raise NoChampionError(name)
    return version


def load_estimator(store: ModelStore, model: BatchModel, version: ModelVersion) -> Any:
    """The estimator of a version, from verified bytes.

    Raises:
        ArtifactError: the file is missing, changed or unfit, or the model file has since declared
            other features than the version was trained with.
    """
    trained = version.manifest["features"]
    declared = _kinds(model)
    if list(trained.items()) != list(declared.items()):
        raise ArtifactError(
            f"{model.name} {version.version} was trained with the features {_listed(trained)}, "
            f"but the model file now declares {_listed(declared)}; train again"
        )
    return deserialize(store.read(version), version)


@repeatable
def _read_split(warehouse: Warehouse, model: BatchModel, as_of: datetime) -> Split:
    import pandas as pd

    from batch_jobs import contract, training

    features, labels = [], []
    for interval in _training_intervals(model, as_of):
        values = bounds(interval)
        for kind, query in (("features", model.features_query), ("labels", model.labels_query)):
            warehouse.require_query(f"{kind}_query of {model.name}", query, values)
        log.info("reading features and labels of %s", interval)
        rows = _whole(warehouse, model.features_query, values)
        checked = contract.check_features(model, rows, interval)
        if checked.rejected:
            log.warning(
                "%s rows do not fit the contract and are left out, e.g. %s: %s",
                f"{len(checked.rejected):,}",
                *checked.rejected[0][:2],
            )
        features.append(checked.rows)
        labels.append(contract.check_labels(model, _whole(warehouse, model.labels_query, values)))
    return training.split_by_time(
        model,
        pd.concat(features, ignore_index=True),
        pd.concat(labels, ignore_index=True).drop_duplicates(
            ["entity_id", *(["as_of"] if "as_of" in labels[0] else [])]
        ),
        as_of,
    )


def _training_intervals(model: BatchModel, as_of: datetime) -> Iterator[Interval]:
    """The whole history at once, or in replace mode evenly spaced snapshots of it."""
    history = Interval(as_of - model.history, as_of)
    if model.mode == "merge":
        yield history
        return
    due = list(due_between(model.schedule, history.start, history.end))
    step = max(len(due) // model.train_samples, 1)
    yield from reversed(due[::-1][::step][: model.train_samples])


def _whole(warehouse: Warehouse, query: str, values: Any) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(list(warehouse.stream(query, values, 100_000)), ignore_index=True)


def _judge_against(
    warehouse: Warehouse,
    store: ModelStore,
    model: BatchModel,
    split: Split,
    estimator: Any,
) -> GateReport:
    from batch_jobs import gate, training

    serving = registry.champion(warehouse, model.name)
    judged = None
    if serving is not None:
        try:
            judged = training.judge(model, load_estimator(store, model, serving), split.judge)
        except Exception as error:  # noqa: BLE001 - whatever ails it, it may not stop its successor
            log.warning("the champion cannot be judged: %s: %s", type(error).__name__, error)
    return gate.decide(
        model.gate,
        split.judge["as_of"],
        challenger=training.judge(model, estimator, split.judge),
        baseline=training.baseline(estimator, split.fit, split.judge),
        champion=serving.version if serving else None,
        champion_judged=judged,
    )


def _manifest(
    model: BatchModel, version: str, as_of: datetime, split: Split, artifact: bytes
) -> dict[str, Any]:
    return {
        "model": model.name,
        "version": version,
        "as_of": as_of.isoformat(),
        "sha256": hashlib.sha256(artifact).hexdigest(),
        "size_bytes": len(artifact),
        "libraries": libraries(),
        "features": _kinds(model),
        "history_start": (as_of - model.history).isoformat(),
        "cut": split.cut.isoformat(),
        "rows_fit": len(split.fit),
        "rows_judged": len(split.judge),
        "label_coverage": round(split.coverage, 4),
    }


def _kinds(model: BatchModel) -> dict[str, str]:
    return {name: feature.kind for name, feature in model.features.items()}


def _listed(features: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in features.items())
