"""The verbs of a model version's life: train, promote, roll back."""

from __future__ import annotations

import hashlib
import inspect
import logging
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from batch_jobs import clock, registry, signing
from batch_jobs.artifacts import PAGE, ModelStore, deserialize, libraries, name_version, serialize
from batch_jobs.catalog import load_model
from batch_jobs.errors import (
    ArtifactError,
    ConfigurationError,
    IntervalError,
    NoChampionError,
)
from batch_jobs.interval import Interval, due_between, require_aware
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.registry import ModelVersion
from batch_jobs.settings import HASH_ONLY, Settings
from batch_jobs.warehouse import Warehouse, bounds, loaded_time, repeatable, stored_time

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
        StoreUnavailableError: the model store does not answer.
    """
    from batch_jobs import training

    as_of = require_aware(as_of)
    if as_of > clock.now():
        raise IntervalError(f"cannot train as of {as_of.isoformat()}: that is in the future")
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    store = ModelStore(settings.model_store, settings.model_cache)
    store.require_writable()
    _require_signer(settings)
    split = read_split(warehouse, model, as_of)
    log.info("fitting on %s rows, holding out %s", f"{len(split.fit):,}", f"{len(split.judge):,}")
    estimator = training.fit(model, split.fit)
    report = _judge_against(warehouse, settings, model, split, estimator)
    metrics = report.metrics["challenger"]
    log.info("hold-out: %s", ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    for reason in report.reasons:
        log.info("gate: %s: %s", "promote" if report.promote else "keep the champion", reason)
    artifact = serialize(estimator)
    version = name_version(as_of, artifact)
    manifest = {
        **_manifest(model, version, as_of, split, artifact),
        "metrics": metrics,
        "commit": settings.commit or _commit(model),
        "golden": training.golden(model, estimator, split.judge),
    }
    if settings.signing_key:
        manifest = signing.sign(manifest, settings.signing_key)
    store.write(model.name, version, artifact, manifest, _drawn(manifest, report))
    if page := store.page(model.name, version):
        log.info("the gate's report is drawn in %s", page)
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


def candidate(settings: Settings, name: str) -> tuple[ModelVersion, bool]:
    """The version trained last, and whether the gate would let it take over from the champion.

    Raises:
        ArtifactError: there is no version yet.
    """
    warehouse = Warehouse.existing(settings.warehouse)
    version = _newest(warehouse, name)
    serving = registry.champion(warehouse, name)
    is_champion = serving is not None and serving.version == version.version
    return version, version.gate["promote"] and not is_champion


def trained_since(settings: Settings, name: str, moment: datetime) -> ModelVersion | None:
    """The version trained last, if it was trained as of a moment after this one."""
    version = registry.newest_version(Warehouse.existing(settings.warehouse), name)
    return version if version and loaded_time(version.as_of) > moment else None


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
        wanted = registry.find_version(warehouse, name, version)
    else:
        wanted = _newest(warehouse, name)
    serving = registry.champion(warehouse, name)
    champion = serving.version if serving else None
    if champion == wanted.version:
        return Promotion(wanted, "unchanged", champion, "it is the champion already")
    if not wanted.gate["promote"] and not reason:
        return Promotion(wanted, "kept", champion, "; ".join(wanted.gate["reasons"]))
    load_estimator(settings, model, wanted)
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
    load_estimator(settings, model, wanted)
    registry.promote(
        warehouse,
        wanted,
        expected=serving.version if serving else None,
        action="rollback",
        actor=actor,
        reason=reason,
    )
    return Promotion(wanted, "promoted", to, reason)


def _newest(warehouse: Warehouse, name: str) -> ModelVersion:
    version = registry.newest_version(warehouse, name)
    if version is None:
        raise ArtifactError(f"{name} has no trained version yet; run `batch-jobs train {name}`")
    return version


def require_champion(warehouse: Warehouse, name: str) -> ModelVersion:
    """The version that serves now.

    Raises:
        NoChampionError: there is none yet.
    """
    version = registry.champion(warehouse, name)
    if version is None:
        raise NoChampionError(name)
    return version


def load_estimator(settings: Settings, model: BatchModel, version: ModelVersion) -> Any:
    """The estimator of a version, from verified bytes, that answers its golden rows as ever.

    Raises:
        ArtifactError: the manifest or the file is missing, changed, unsigned or unfit; or the model
            file has since declared other features than the version was trained with.
        StoreUnavailableError: the model store does not answer, and there is no copy.
    """
    from batch_jobs import training

    subject = f"{model.name} {version.version}"
    manifest = version.manifest
    if settings.verify_key != HASH_ONLY:
        signing.verify(manifest, settings.verify_key, subject)
        named = (manifest["model"], manifest["version"], manifest["sha256"])
        if named != (version.model, version.version, version.sha256):
            raise ArtifactError(
                f"the manifest of {subject} is that of {named[0]} {named[1]}; roll back to another "
                f"version, or train again"
            )
    trained = manifest["features"]
    declared = _kinds(model)
    if list(trained.items()) != list(declared.items()):
        raise ArtifactError(
            f"{subject} was trained with the features {_listed(trained)}, "
            f"but the model file now declares {_listed(declared)}; train again"
        )
    content = ModelStore(settings.model_store, settings.model_cache).read(version)
    estimator = deserialize(content, version, settings.libraries)
    if golden := manifest.get("golden"):  # older versions have none
        try:
            problem = training.unlike_golden(model, estimator, golden)
        except Exception as error:  # noqa: BLE001 - it is the user's code that predicts
            problem = first_line(error)
        if problem:
            raise ArtifactError(
                f"{subject} does not answer its golden rows as it did when it was trained: "
                f"{problem}; roll back to another version, or train again"
            )
    return estimator


def _require_signer(settings: Settings) -> None:
    """Find out before training whether what is trained could be loaded."""
    if settings.signing_key:
        signing.private_key(settings.signing_key)
    elif settings.verify_key != HASH_ONLY:
        raise ConfigurationError(
            "BATCH_JOBS_VERIFY_KEY asks for signatures, and there is no BATCH_JOBS_SIGNING_KEY to "
            "sign with; train where the private key is"
        )


@repeatable
def read_split(warehouse: Warehouse, model: BatchModel, as_of: datetime) -> Split:
    """The labelled rows to learn from and to judge on, as they were known at `as_of`.

    Raises:
        InputError: queries or rows that do not fit, or too few labelled rows.
    """
    import pandas as pd

    from batch_jobs import contract, training

    features, labels = [], []
    for interval in _training_intervals(model, as_of):
        values = bounds(interval)
        for kind, query in (("features", model.features_query), ("labels", model.labels_query)):
            warehouse.require_query(f"{kind}_query of {model.name}", query, values)
        log.info("reading features and labels of %s", interval)
        rows = read_whole(warehouse, model.features_query, interval)
        checked = contract.check_features(model, rows, interval)
        if checked.rejected:
            log.warning(
                "%s rows do not fit the contract and are left out, e.g. %s: %s",
                f"{len(checked.rejected):,}",
                *checked.rejected[0][:2],
            )
        features.append(checked.rows)
        labels.append(
            contract.check_labels(model, read_whole(warehouse, model.labels_query, interval))
        )
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


def read_whole(warehouse: Warehouse, query: str, interval: Interval) -> pd.DataFrame:
    """All rows of a query on one interval."""
    import pandas as pd

    chunks = warehouse.stream(query, bounds(interval), 100_000)
    return pd.concat(list(chunks), ignore_index=True)


def _judge_against(
    warehouse: Warehouse,
    settings: Settings,
    model: BatchModel,
    split: Split,
    estimator: Any,
) -> GateReport:
    from batch_jobs import gate, training

    serving = registry.champion(warehouse, model.name)
    judged = None
    if serving is not None:
        try:
            judged = training.judge(model, load_estimator(settings, model, serving), split.judge)
        except Exception as error:  # noqa: BLE001 - whatever ails it, it may not stop its successor
            log.warning("the champion cannot be judged: %s: %s", type(error).__name__, error)
    return gate.decide(
        model.gate,
        split.judge["as_of"],
        challenger=training.judge(model, estimator, split.judge),
        baseline=training.baseline(estimator, split.fit, split.judge),
        champion=serving.version if serving else None,
        champion_judged=judged,
        slices=split.judge[list(model.gate.slices)],
    )


def _drawn(manifest: Mapping[str, Any], report: GateReport) -> dict[str, bytes]:
    """The gate's report as a file; a drawing that fails is no reason to lose a training."""
    from batch_jobs.gate_page import gate_page

    try:
        page = gate_page(manifest["model"], manifest["version"], report.as_dict(), manifest)
    except Exception as error:  # noqa: BLE001 - whatever ails it, the verdict stands
        log.warning("the gate's report is not drawn: %s", first_line(error))
        return {}
    return {PAGE: page.encode()}


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
        "data_digest": _digest(split.fit),
    }


def _digest(rows: pd.DataFrame) -> str:
    """The sha256 of the rows learnt from: equal ones were learnt from equally."""
    import pandas as pd

    hashed = pd.util.hash_pandas_object(rows, index=False).to_numpy()
    return hashlib.sha256(hashed.astype("<u8").tobytes()).hexdigest()


def _commit(model: BatchModel) -> str | None:
    """Which commit the model file is of, as git says; None if it is in no checkout."""
    folder = Path(inspect.getfile(model.estimator)).parent
    with suppress(OSError, subprocess.SubprocessError):
        asked = ["git", "-C", str(folder), "rev-parse", "HEAD"]
        return subprocess.run(
            asked, check=True, capture_output=True, text=True, timeout=10
        ).stdout.strip()
    return None


def _kinds(model: BatchModel) -> dict[str, str]:
    return {name: feature.kind for name, feature in model.features.items()}


def _listed(features: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in features.items())
