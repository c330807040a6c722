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

from batch_jobs import clock
from batch_jobs.catalog import load_model
from batch_jobs.database.warehouse import Warehouse, bounds, loaded_time, repeatable, stored_time
from batch_jobs.errors import (
    ArtifactError,
    ConfigurationError,
    IntervalError,
    ModelFileError,
    NoChampionError,
    UnavailableError,
)
from batch_jobs.interval import Interval, due_between, floor_to_grid, require_aware
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.registry import signing, versions
from batch_jobs.registry.loading import as_trained, load_version
from batch_jobs.registry.store import PAGE, ModelStore, libraries, name_version, serialize
from batch_jobs.registry.versions import ModelVersion
from batch_jobs.settings import HASH_ONLY, Settings

if TYPE_CHECKING:
    import pandas as pd

    from batch_jobs.evaluation.gate import Compared, GateReport
    from batch_jobs.scoring.predict import Fitted
    from batch_jobs.training.dataset import Split

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
    from batch_jobs.training import dataset

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
    fitted = dataset.fit(model, split.fit)
    dataset.require_answers(model, fitted, split.judge)
    if fitted.positive is not None:
        log.info("the score is the probability of %r", fitted.positive)
    report = _judge_against(warehouse, settings, model, split, fitted)
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
        "metrics": metrics,
        "commit": settings.commit or _commit(model),
        "golden": dataset.golden(fitted, split.judge),
    }
    if settings.signing_key:
        manifest = signing.sign(manifest, settings.signing_key)
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


def candidate(
    settings: Settings, name: str, as_of: datetime | None = None
) -> tuple[ModelVersion, bool]:
    """The version that may take over, and whether nothing but a person's word is in its way.

    Args:
        settings: where everything is.
        name: which model.
        as_of: a version that was trained as of this moment; by default the one that has seen the
            newest data.

    Raises:
        ArtifactError: there is no such version.
    """
    warehouse = Warehouse.existing(settings.warehouse)
    version = _newest(warehouse, name, as_of)
    serving = versions.champion(warehouse, name)
    is_champion = serving is not None and serving.version == version.version
    return version, not (is_champion or _obstacles(warehouse, version, serving, approved=True))


def trained_since(settings: Settings, name: str, moment: datetime) -> ModelVersion | None:
    """The version that has seen the newest data, if it was trained as of a moment after this."""
    version = versions.newest_version(Warehouse.existing(settings.warehouse), name)
    return version if version and loaded_time(version.as_of) > moment else None


def promote(
    settings: Settings,
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
        settings: where everything is.
        name: which model.
        version: which version; by default the one that has seen the newest data.
        actor: who wants it.
        reason: why, whatever is in its way.
        as_of: without a version, one that was trained as of this moment.
        approved_by: who approved a version that could not be compared with the champion.

    Raises:
        ArtifactError: no such version, its file is not loadable, or the champion has changed
            since the version was judged.
    """
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    if version:
        wanted = versions.find_version(warehouse, name, version)
    else:
        wanted = _newest(warehouse, name, as_of)
    serving = versions.champion(warehouse, name)
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
    load_version(settings, model, wanted)
    decided = approved_by and wanted.gate.get("undecided")
    approval = [f"approved by {approved_by}"] if decided else []
    why = reason or "; ".join([*approval, *wanted.gate["reasons"]])
    versions.promote(
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
    why = versions.rolled_back(warehouse, wanted.model, wanted.version)
    if why is not None:
        found.append(f"it was rolled back ({why})")
    if serving and loaded_time(serving.as_of) > loaded_time(wanted.as_of):
        found.append(
            f"it has seen data up to {wanted.as_of}, and {serving.version}, which serves, up to "
            f"{serving.as_of}"
        )
    return found


def rollback(settings: Settings, name: str, to: str, *, actor: str, reason: str) -> Promotion:
    """Make an earlier version the champion again, after proving that it loads.

    Raises:
        ArtifactError: no such version, it never served, or its file is missing, changed or unfit.
    """
    model = load_model(name, settings.models)
    warehouse = Warehouse.existing(settings.warehouse)
    wanted = require_served(settings, name, to)
    serving = versions.champion(warehouse, name)
    if serving is not None and serving.version == to:
        return Promotion(wanted, "unchanged", to, "it is the champion already")
    load_version(settings, model, wanted)
    versions.promote(
        warehouse,
        wanted,
        expected=serving.version if serving else None,
        action="rollback",
        actor=actor,
        reason=reason,
    )
    return Promotion(wanted, "promoted", to, reason)


def require_served(settings: Settings, name: str, version: str) -> ModelVersion:
    """A version that has been the champion.

    Raises:
        ArtifactError: no such version, or it never served.
    """
    warehouse = Warehouse.existing(settings.warehouse)
    found = versions.find_version(warehouse, name, version)
    served = versions.have_served(warehouse, name)
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
    version = versions.champion(warehouse, name)
    if version is None:
        raise NoChampionError(name)
    return version


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

    from batch_jobs.scoring import contract
    from batch_jobs.training import dataset

    features, labels = [], []
    for interval in _intervals(model, as_of - model.history, as_of):
        values = bounds(interval)
        for kind, query in (("features", model.features_query), ("labels", model.labels_query)):
            warehouse.require_query(f"{kind}_query of {model.name}", query, values)
        log.info("reading features and labels of %s", interval)
        rows = read_whole(warehouse, model.features_query, interval)
        checked = contract.check_features(model, rows, interval)
        if model.mode == "merge":
            _require_own_intervals(warehouse, model, rows)
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
    return dataset.split_by_time(
        model,
        pd.concat(features, ignore_index=True),
        pd.concat(labels, ignore_index=True).drop_duplicates(
            ["entity_id", *(["as_of"] if "as_of" in labels[0] else [])]
        ),
        as_of,
    )


def _require_own_intervals(warehouse: Warehouse, model: BatchModel, rows: pd.DataFrame) -> None:
    """Find out that each form of time that the source holds is found by its own interval.

    Raises:
        ContractError: the query compares texts, and one that it should return sorts elsewhere.
    """
    from batch_jobs.database.columns import texts, times
    from batch_jobs.runs.missed_rows import counted, not_found

    if rows["as_of"].dtype.kind == "M":  # the database itself compares times as times
        return
    if problem := counted(warehouse, model):
        raise problem
    told = texts(rows["as_of"])
    forms = told.str.replace(r"\d", "9", regex=True)
    for of_form in rows.groupby(forms).groups.values():
        for place in {of_form[0], of_form[len(of_form) // 2], of_form[-1]}:
            moment = times(told.loc[[place]]).iloc[0].to_pydatetime()
            start = floor_to_grid(model.schedule, moment)
            own = next(due_between(model.schedule, start, moment + model.history))
            found = read_whole(warehouse, model.features_query, own)["entity_id"]
            if rows.loc[place, "entity_id"] not in set(found):
                raise not_found(model, told.loc[place], own)


def _intervals(model: BatchModel, start: datetime, as_of: datetime) -> Iterator[Interval]:
    """The time since a start at once, or in replace mode the snapshots of training within it."""
    if model.mode == "merge":
        yield Interval(start, as_of)
        return
    due = list(due_between(model.schedule, as_of - model.history, as_of))
    step = max(len(due) // model.train_samples, 1)
    chosen = reversed(due[::-1][::step][: model.train_samples])
    yield from (interval for interval in chosen if interval.end > start)


def read_whole(warehouse: Warehouse, query: str, interval: Interval) -> pd.DataFrame:
    """All rows of a query on one interval."""
    import pandas as pd

    chunks = warehouse.stream(query, bounds(interval), 100_000)
    return pd.concat(list(chunks), ignore_index=True)


def _judge_against(
    warehouse: Warehouse, settings: Settings, model: BatchModel, split: Split, fitted: Fitted
) -> GateReport:
    from batch_jobs.evaluation import gate
    from batch_jobs.training import dataset

    serving = versions.champion(warehouse, model.name)
    return gate.decide(
        model.gate,
        split.judge["as_of"],
        challenger=dataset.judge(fitted, split.judge),
        baseline=dataset.baseline(fitted, split.fit, split.judge),
        champion=_champion_judged(warehouse, settings, model, split, serving) if serving else None,
        entities=split.judge["entity_id"] if model.mode == "replace" else None,
        slices=split.judge[list(model.gate.slices)],
    )


def _champion_judged(
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
    from batch_jobs.training import dataset

    try:
        trained = as_trained(settings, model, serving)
        champion = load_version(settings, model, serving)
        rows = _rows_of_champion(warehouse, model, trained, split)
        judged = dataset.judge(champion, rows)
    except UnavailableError:
        raise
    except Exception as error:  # noqa: BLE001 - the champion's query and estimator raise anything
        problem = first_line(error)
        log.warning("the champion %s cannot be judged: %s", serving.version, problem)
        return gate.Compared(serving.version, problem=problem)
    return gate.Compared(serving.version, judged, rows.index.to_numpy())


def _rows_of_champion(
    warehouse: Warehouse, model: BatchModel, trained: BatchModel, split: Split
) -> pd.DataFrame:
    """The labelled rows of the hold-out as the champion sees them, numbered as in the hold-out."""
    import pandas as pd

    from batch_jobs.scoring import contract

    rows = split.judge.reset_index(drop=True)
    asked = [(each.mode, each.features_query, each.features) for each in (model, trained)]
    if asked[0] == asked[1]:
        return rows
    read = []
    for interval in _intervals(model, split.cut, split.as_of):
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
