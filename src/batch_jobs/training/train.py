"""The verbs of a model version's life: train, promote, roll back."""

from __future__ import annotations

import hashlib
import inspect
import logging
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batch_jobs import clock
from batch_jobs.database.transactions import stored_time
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import (
    ConfigurationError,
    IntervalError,
    ModelFileError,
    UnavailableError,
)
from batch_jobs.interval import require_aware
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.registry import belonging, champions, signing, versions
from batch_jobs.registry.deployment import Place, opened
from batch_jobs.registry.loading import as_trained, load_version
from batch_jobs.registry.references import MANIFEST_FIELD, as_stored
from batch_jobs.registry.store import PAGE, libraries, name_version, serialize
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.settings import HASH_ONLY, Settings
from batch_jobs.training.dataset import read_split, read_whole, training_intervals

if TYPE_CHECKING:
    import pandas as pd

    from batch_jobs.evaluation.gate import Compared, GateReport
    from batch_jobs.scoring.fitted import Fitted
    from batch_jobs.training.dataset import Split

log = logging.getLogger(__name__)


def train(place: Place, name: str, as_of: datetime) -> ModelVersion:
    """Train a challenger from what was known at `as_of`, evaluate it and register it.

    Nothing is registered unless the whole training succeeded; the champion goes on serving.

    Raises:
        InputError: unknown model, future `as_of`, unwritable store, queries or rows that do not
            fit, too few labelled rows.
        StoreUnavailableError: the model store does not answer.
    """
    deployment = opened(place)
    from batch_jobs.evaluation.metrics import constant_answer
    from batch_jobs.scoring import golden
    from batch_jobs.training import fit

    as_of = require_aware(as_of)
    if as_of > clock.now():
        raise IntervalError(f"cannot train as of {as_of.isoformat()}: that is in the future")
    model = deployment.model(name)
    warehouse = deployment.warehouse
    store = deployment.store
    store.require_writable()
    belonging.require(warehouse, store)
    _require_signer(deployment.settings)
    split = read_split(warehouse, model, as_of)
    log.info("fitting on %s rows, holding out %s", f"{len(split.fit):,}", f"{len(split.holdout):,}")
    fitted = fit.fit(model, split.fit)
    fit.require_answers(model, fitted, split.holdout)
    if fitted.positive is not None:
        log.info("the score is the probability of %r", fitted.positive)
    report = _evaluate_against(warehouse, deployment.settings, model, split, fitted)
    metrics = report.metrics["challenger"]
    log.info("hold-out: %s", ", ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    for reason in report.reasons:
        log.info("gate: %s: %s", "promote" if report.promote else "keep the champion", reason)
    artifact = _serialized(model, fitted)
    version = name_version(as_of, artifact, versions.contract_of(model))
    manifest = {
        **_manifest(model, version, as_of, split, artifact),
        "categories": dict(fitted.categories),
        "classes": fitted.classes,
        "positive": fitted.positive,
        "constant": constant_answer(fitted, split.fit["label"]).tolist(),
        "metrics": metrics,
        "commit": deployment.settings.commit or _commit(model),
        "golden": golden.golden(fitted, split.holdout),
        **_referenced(model, split, fitted),
    }
    if deployment.settings.signing_key:
        manifest = signing.sign(manifest, deployment.settings.signing_key)
    store.write(model.name, version, artifact, manifest, _drawn(manifest, report))
    if page := store.page(model.name, version):
        log.info("the gate's report is drawn in %s", page)
    registered = versions.register(
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


def _referenced(model: BatchModel, split: Split, fitted: Fitted) -> dict[str, Any]:
    """What the rows looked like; a training that cannot tell is none the worse for it."""
    from batch_jobs.training.reference import reference

    try:
        found = reference(model, split, fitted)
    except Exception as error:  # noqa: BLE001 - the estimator is asked for rows without a label, too
        log.warning("%s: drift will not be found: %s", model.name, first_line(error))
        return {}
    return {MANIFEST_FIELD: as_stored(found)}


def _serialized(model: BatchModel, fitted: Fitted) -> bytes:
    try:
        return serialize(fitted.estimator)
    except MemoryError:
        raise
    except Exception as error:  # what cannot be pickled raises what it likes
        problem = (
            f"estimator: it cannot be stored: {first_line(error)}; name its functions at the top "
            f"of a module, instead of a lambda"
        )
        raise ModelFileError(f"model file {model.name}.py", [problem]) from error


def _require_signer(settings: Settings) -> None:
    """Find out before training whether what is trained could be loaded."""
    if settings.signing_key:
        signer = signing.key_id(signing.private_key(settings.signing_key).public_key())
        if settings.verify_key != HASH_ONLY:
            accepted = signing.public_keys(settings.verify_key)
            if signer not in accepted:
                raise ConfigurationError(
                    f"BATCH_JOBS_SIGNING_KEY signs as {signer}, and BATCH_JOBS_VERIFY_KEY accepts "
                    f"{' and '.join(accepted)} alone: nobody could load what is trained; add the "
                    f"public half of the one that signs, with a comma"
                )
    elif settings.verify_key != HASH_ONLY:
        raise ConfigurationError(
            "BATCH_JOBS_VERIFY_KEY asks for signatures, and there is no BATCH_JOBS_SIGNING_KEY to "
            "sign with; train where the private key is"
        )


def _evaluate_against(
    warehouse: Warehouse, settings: Settings, model: BatchModel, split: Split, fitted: Fitted
) -> GateReport:
    from batch_jobs.evaluation import gate
    from batch_jobs.evaluation.metrics import baseline, evaluate

    serving = champions.champion(warehouse, model.name)
    return gate.decide(
        model.gate,
        split.holdout["as_of"],
        challenger=evaluate(fitted, split.holdout),
        baseline=baseline(fitted, split.fit, split.holdout),
        champion=_champion_evaluated(warehouse, settings, model, split, serving)
        if serving
        else None,
        entities=split.holdout["entity_id"] if model.mode == "replace" else None,
        slices=split.holdout[list(model.gate.slices)],
    )


def _champion_evaluated(
    warehouse: Warehouse,
    settings: Settings,
    model: BatchModel,
    split: Split,
    serving: ModelVersion,
) -> Compared:
    """The champion on the entities of the hold-out, each with the features that it was trained for.

    Whatever ails it may not stop its successor from being trained; the gate tells of it.
    """
    from batch_jobs.evaluation import gate
    from batch_jobs.evaluation.metrics import evaluate

    try:
        trained = as_trained(settings, model, serving)
        champion = load_version(settings, model, serving)
        rows = _rows_of_champion(warehouse, model, trained, split)
        evaluated = evaluate(champion, rows)
    except UnavailableError:
        raise
    except Exception as error:  # noqa: BLE001 - the champion's query and estimator raise anything
        problem = first_line(error)
        log.warning("the champion %s cannot be evaluated: %s", serving.version, problem)
        return gate.Compared(serving.version, problem=problem)
    return gate.Compared(serving.version, evaluated, rows.index.to_numpy())


def _rows_of_champion(
    warehouse: Warehouse, model: BatchModel, trained: BatchModel, split: Split
) -> pd.DataFrame:
    """The labelled rows of the hold-out as the champion sees them, numbered as in the hold-out."""
    import pandas as pd

    from batch_jobs.scoring import contract

    rows = split.holdout.reset_index(drop=True)
    asked = [(each.mode, each.features_query, each.features) for each in (model, trained)]
    if asked[0] == asked[1]:
        return rows
    read = []
    for interval in training_intervals(model, split.cut, split.as_of):
        values = read_whole(warehouse, trained.features_query, interval)
        read.append(contract.check_features(trained, values, interval).rows)
    key = ["entity_id"] if model.mode == "merge" else ["entity_id", "as_of"]
    own = pd.concat(read, ignore_index=True)[[*key, *trained.features]]
    place = rows[[*key, "label"]].assign(place=rows.index)
    return place.merge(own, on=key, validate="one_to_one").set_index("place").sort_index()


def _drawn(manifest: Mapping[str, Any], report: GateReport) -> dict[str, bytes]:
    """The gate's report as a file; a drawing that fails is no reason to lose a training."""
    from batch_jobs.reports.gate import gate_page

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
        "features": {name: feature.kind for name, feature in model.features.items()},
        "contract": versions.contract_of(model),
        "file_sha256": versions.file_sha256(model),
        "history_start": (as_of - model.history).isoformat(),
        "cut": split.cut.isoformat(),
        "rows_fit": len(split.fit),
        "rows_judged": len(split.holdout),
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
