"""Load versions: each as it was trained, from verified bytes, whatever its file says by now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ArtifactError
from batch_jobs.model import BatchModel, Feature
from batch_jobs.redaction import first_line
from batch_jobs.registry import signing
from batch_jobs.registry.store import ModelStore, deserialize
from batch_jobs.registry.versions import GOLDEN, ModelVersion, contract_of, whole_manifest
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.settings import HASH_ONLY, Settings

_FEATURES = TypeAdapter(dict[str, Feature])


def as_trained(settings: Settings, model: BatchModel, version: ModelVersion) -> BatchModel:
    """The model as it was when a version was trained: with its queries, mode and features.

    How it is served stays what the model file says now: schedule, limits, chunks and the like.

    Args:
        settings: whose signature the manifest needs.
        model: as its file has it now.
        version: of the model.

    Raises:
        ArtifactError: the manifest is unsigned, changed or another version's; or an older release
            trained the version, and the file has since declared other features.
    """
    return _as_told(_verified(settings, version), model, version)


def _as_told(manifest: Mapping[str, Any], model: BatchModel, version: ModelVersion) -> BatchModel:
    contract = manifest.get("contract")
    if contract is None:
        _require_same_features(model, version)
        return model
    try:
        features = _FEATURES.validate_python(contract["features"])
        known = {name: contract[name] for name in contract_of(model)}
    except (KeyError, TypeError, ValidationError) as error:
        raise ArtifactError(
            f"the manifest of {model.name} {version.version} has no readable contract; roll back "
            f"to another version, or train again"
        ) from error
    return model.model_copy(update={**known, "features": features})


def load_version(settings: Settings, model: BatchModel, version: ModelVersion) -> Fitted:
    """The estimator of a version, from verified bytes, that answers its golden rows as ever.

    Args:
        settings: where everything is.
        model: as its file has it now.
        version: of the model.

    Raises:
        ArtifactError: the manifest or the file is missing, changed, unsigned or unfit.
        StoreUnavailableError: the model store does not answer, and there is no copy.
    """
    from batch_jobs.scoring.golden import unlike_golden

    subject = f"{model.name} {version.version}"
    manifest = _verified(settings, version, golden=True)
    trained, golden = _as_told(manifest, model, version), manifest.get(GOLDEN)
    content = ModelStore(settings.model_store, settings.model_cache).read(version)
    estimator = deserialize(content, version, settings.libraries)
    try:
        fitted = Fitted.of(
            estimator, trained.features, manifest.get("categories"), manifest.get("positive")
        )
        problem = unlike_golden(fitted, golden) if golden else None
    except Exception as error:  # noqa: BLE001 - it is the user's code that predicts
        problem = first_line(error)
    if problem:
        raise ArtifactError(
            f"{subject} does not answer its golden rows as it did when it was trained: "
            f"{problem}; roll back to another version, or train again"
        )
    return fitted


def _verified(
    settings: Settings, version: ModelVersion, *, golden: bool = False
) -> Mapping[str, Any]:
    """The manifest of a version, signed if that is asked for; then, or if asked for, golden too."""
    manifest = version.manifest
    if golden or settings.verify_key != HASH_ONLY:
        manifest = whole_manifest(Warehouse(settings.warehouse), version)
    if settings.verify_key != HASH_ONLY:
        subject = f"{version.model} {version.version}"
        signing.verify(manifest, settings.verify_key, subject)
        named = (manifest["model"], manifest["version"], manifest["sha256"])
        if named != (version.model, version.version, version.sha256):
            raise ArtifactError(
                f"the manifest of {subject} is that of {named[0]} {named[1]}; roll back to another "
                f"version, or train again"
            )
    return manifest


def _require_same_features(model: BatchModel, version: ModelVersion) -> None:
    trained = version.manifest["features"]
    declared = {name: feature.kind for name, feature in model.features.items()}
    if list(trained.items()) != list(declared.items()):
        shown = [
            ", ".join(f"{name} ({kind})" for name, kind in features.items())
            for features in (trained, declared)
        ]
        raise ArtifactError(
            f"{model.name} {version.version} was trained by an older release with the features "
            f"{shown[0]}, but the model file now declares {shown[1]}; train again"
        )
