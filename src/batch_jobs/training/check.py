"""`check`: all that can be proved about a model file before it is deployed, all findings at once.

Nothing is written, neither to the warehouse nor to the model store.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from batch_jobs import clock
from batch_jobs.database.transactions import bounds, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.interval import Interval, newest_due
from batch_jobs.model import BatchModel
from batch_jobs.registry import champions, versions
from batch_jobs.registry.deployment import Place, opened
from batch_jobs.training import dataset
from batch_jobs.training.check_estimator import check_estimator, check_features
from batch_jobs.training.findings import Finding, Report, Unproved

if TYPE_CHECKING:
    import pandas as pd

    from batch_jobs.training.dataset import Split

SAMPLES = 3
HOUR = timedelta(hours=1)
# Where a history is cut, beside each hour of its last day.
PARTS = (0.07, 0.19, 0.37, 0.58, 0.81, 0.93)


def check(place: Place, name: str, as_of: datetime | None = None) -> list[Finding]:
    """Try everything that training and scoring will do, on the real source.

    Args:
        place: where everything is.
        name: the model.
        as_of: as if it were that time; now by default.

    Raises:
        InputError: unknown model, a model file that is none (all its problems are told at once), or
            no warehouse.
    """
    deployment = opened(place)
    model = deployment.model(name)
    warehouse = deployment.warehouse
    report = Report()
    now = as_of or clock.now()
    _tell_of_the_champion(report, warehouse, model)
    _check_queries(report, warehouse, model, now)
    _check_rows(report, warehouse, model, now)
    split: Split | None = None
    with report.proof("training has enough rows whose labels are known"):
        split = dataset.read_split(warehouse, model, now)
        report.say(
            f"{len(split.fit):,} to learn from, {len(split.holdout):,} to evaluate on, "
            f"{split.coverage:.0%} of the newest labelled"
        )
    if split is not None:
        check_features(report, model, split)
        check_estimator(report, model, split)
    return report.findings


def _tell_of_the_champion(report: Report, warehouse: Warehouse, model: BatchModel) -> None:
    """An edit is no fault, but does not serve before the next training."""
    serving = champions.champion(warehouse, model.name)
    if serving is not None:
        with report.proof("it is known what serves"):
            same = f"{serving.version}, trained from this very file"
            report.say(versions.file_differs(model, serving) or same)


def _check_queries(report: Report, warehouse: Warehouse, model: BatchModel, now: datetime) -> None:
    values = bounds(newest_due(model.schedule, now))
    for kind, query in (("features", model.features_query), ("labels", model.labels_query)):
        with report.proof(f"the database understands the {kind} query"):
            warehouse.require_query(f"{kind}_query of {model.name}", query, values)
            report.say("compiles")


def _check_rows(report: Report, warehouse: Warehouse, model: BatchModel, now: datetime) -> None:
    from batch_jobs.scoring import contract

    newest = newest_due(model.schedule, now)
    with report.proof("one interval is read and held to its contract in time"):
        began = time.monotonic()
        checked = contract.check_features(
            model, _read(warehouse, model.features_query, newest), newest
        )
        seconds = time.monotonic() - began
        report.say(f"{len(checked.rows):,} rows of {newest} in {seconds:.2f} s")
        if seconds > (newest.end - newest.start).total_seconds() / 2:
            raise Unproved(f"{'; '.join(report.said)}: that is more than half of its time")
    span = Interval(now - model.history, now) if model.mode == "merge" else newest
    read: list[pd.DataFrame] = []
    with report.proof("the rows of the whole history keep the contract"):
        whole = _read(warehouse, model.features_query, span)
        checked = contract.check_features(model, whole, span)
        read.append(whole)
        report.say(f"{len(whole):,} rows")
        if checked.rejected:
            shown = "; ".join(f"{key}: {why}" for key, why, _ in checked.rejected[:SAMPLES])
            raise Unproved(
                f"{len(checked.rejected):,} of {len(whole):,} rows would be set aside, e.g. {shown}"
            )
    if read and model.mode == "merge":
        with report.proof("a long interval has the very rows of its parts"):
            _require_additive(warehouse, model, span, read[0])
            report.say("uneven parts, and each hour of the last day")
    with report.proof("labels become known after their rows could be scored"):
        _require_later_labels(report, warehouse, model, span, next(iter(read), None))


def _require_additive(
    warehouse: Warehouse, model: BatchModel, span: Interval, whole: pd.DataFrame
) -> None:
    import pandas as pd

    length = span.end - span.start
    shares = {span.start + length * share for share in PARTS}
    hours = {span.end - number * HOUR for number in range(1, 25)}
    cuts = sorted({span.start, span.end, *(cut for cut in shares | hours if cut > span.start)})
    parts = pd.concat(
        [
            _read(warehouse, model.features_query, Interval(start, end))
            for start, end in pairwise(cuts)
        ],
        ignore_index=True,
    )
    names = ["entity_id", "as_of", *model.features]
    one, other = (
        frame[names].astype("object").set_index("entity_id").sort_index(kind="stable")
        for frame in (whole, parts)
    )
    if missing := sorted(set(one.index) ^ set(other.index), key=str):
        raise Unproved(
            f"{len(missing):,} keys are in one and not in the other, e.g. {_some(missing)}: the "
            f"query may use :start and :end only to bound as_of"
        )
    different = ~((one == other) | (one.isna() & other.isna()))
    if different.any().any():
        column = different.any().idxmax()
        keys = different.index[different[column]]
        place = different[column].to_numpy().nonzero()[0][0]
        raise Unproved(
            f"{column} differs in {len(keys):,} rows, e.g. {_some(keys)}: of {keys[0]!r} it is "
            f"{one[column].iloc[place]!r} in the whole and {other[column].iloc[place]!r} in a "
            f"part; it depends on :start or :end, so training would see other values than scoring"
        )


def _require_later_labels(
    report: Report,
    warehouse: Warehouse,
    model: BatchModel,
    span: Interval,
    whole: pd.DataFrame | None,
) -> None:
    import pandas as pd

    from batch_jobs.database.columns import texts, times
    from batch_jobs.scoring import contract

    labels = contract.check_labels(model, _read(warehouse, model.labels_query, span))
    report.say(f"{len(labels):,} labels")
    if whole is None or labels.empty:
        return
    key = ["entity_id", "as_of"] if "as_of" in labels else ["entity_id"]
    rows = pd.DataFrame({"entity_id": texts(whole["entity_id"]), "as_of": times(whole["as_of"])})
    both = rows.merge(labels, on=key, how="inner", suffixes=("", "_label"))
    early = both[both["known_at"] <= both["as_of"]]
    if len(early):
        raise Unproved(
            f"{len(early):,} of {len(both):,} labels were known when the row came up for scoring, "
            f"e.g. that of {_some(early['entity_id'])}: then there is nothing to predict, or "
            f"known_at is not the moment at which the label became known"
        )
    if not len(both):
        raise Unproved("no label has the key of a row: do both queries give the same entity_id?")
    waits = (both["known_at"] - both["as_of"]).dt.round("s")
    report.say(f"half of them within {waits.median()}")


@repeatable
def _read(warehouse: Warehouse, query: str, span: Interval) -> pd.DataFrame:
    return dataset.read_whole(warehouse, query, span)


def _some(keys: Any) -> str:
    return ", ".join(map(str, list(keys)[:SAMPLES]))
