"""Honest training data: what was known when, a split by time, and metrics on the newest rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from batch_jobs.database.transactions import bounds, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import TrainingDataError
from batch_jobs.interval import Interval, due_between, floor_to_grid, period_at
from batch_jobs.model import BatchModel

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Split:
    """Labelled rows on both sides of the cut.

    Attributes:
        cut: rows scored before it, with labels known before it, are learnt from.
        fit: those rows.
        holdout: rows scored since, whose labels are known by the time of training.
        coverage: share of the rows since the cut whose label is known.
        as_of: the moment of the training.
        rows: all rows of the features query, labelled or not.
        rejected: share of the rows read that did not fit the contract.
    """

    cut: datetime
    fit: pd.DataFrame
    holdout: pd.DataFrame
    coverage: float
    as_of: datetime
    rows: pd.DataFrame
    rejected: float = 0.0


def split_by_time(
    model: BatchModel, features: pd.DataFrame, labels: pd.DataFrame, as_of: datetime
) -> Split:
    """Join labels to features by key and cut the rows in two by time.

    Only labels with `known_at <= as_of` exist at `as_of`; the rows to learn from end at the cut,
    and so do their labels, so nothing of the hold-out leaks into the fit.

    Raises:
        TrainingDataError: too few rows on one side, or labels that were known when their rows came
            up for scoring.
    """
    key = ["entity_id", "as_of"] if "as_of" in labels else ["entity_id"]
    known = labels.loc[labels["known_at"] <= as_of, [*key, "label", "known_at"]]
    cut = as_of - model.holdout
    recent = features["as_of"] >= cut
    # Databases return rows of one time in any order, and an estimator may learn otherwise by it.
    ordered = features.sort_values(["as_of", "entity_id"], ignore_index=True)
    rows = ordered.merge(known, on=key, how="inner", validate="many_to_one")
    rows = rows.assign(label=_sound_labels(model, rows))
    _require_labels_known_later(model, rows)
    fit = rows[(rows["as_of"] < cut) & (rows["known_at"] <= cut)]
    holdout = rows[rows["as_of"] >= cut]
    for name, side, wanted in (
        ("to learn from", fit, 2),
        ("to evaluate on", holdout, model.gate.min_rows),
    ):
        if len(side) < wanted:
            raise TrainingDataError(
                f"{model.name} as of {as_of:%Y-%m-%dT%H:%M:%SZ}: {len(side):,} labelled rows "
                f"{name}, at least {wanted:,} are needed; nothing is promoted"
                f"{_why_so_few(model, features, labels, as_of)}"
            )
    coverage = len(holdout) / max(int(recent.sum()), 1)
    return Split(cut, fit, holdout, coverage, as_of, ordered)


def _why_so_few(
    model: BatchModel, features: pd.DataFrame, labels: pd.DataFrame, as_of: datetime
) -> str:
    """What would give more labelled rows, as far as the rows of all labels tell."""
    import pandas as pd

    for query, found in (("features_query", features), ("labels_query", labels)):
        if found.empty:
            return (
                f"; {query} returns no row of the {_days(model.history)} before: try an --as-of at "
                f"which it does, or a longer history"
            )
    key = ["entity_id", "as_of"] if "as_of" in labels else ["entity_id"]
    rows = features.merge(labels[[*key, "known_at"]], on=key)
    if rows.empty:
        return (
            "; no row of features_query has a label with its key: do both queries give the same "
            "entity_id, and does :start bound the same time in both?"
        )
    late = pd.Timedelta((rows["known_at"] - rows["as_of"]).median()).to_pytimedelta()
    told = f"; labels become known {_days(late)} after their row (median)"
    if late >= model.holdout:
        return (
            f"{told}, and the hold-out is the last {_days(model.holdout)}: let holdout be longer "
            f"than that, and history longer still"
        )
    newest = (rows["as_of"].max() + late).ceil("min")
    if newest < as_of - model.holdout:
        return f"{told}, and the newest row is old: try --as-of {newest:%Y-%m-%dT%H:%MZ}"
    return told


def _days(span: timedelta) -> str:
    """A span in days, or in hours if it is short."""
    hours = span.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{hours:.1f} hours"


def _require_labels_known_later(model: BatchModel, rows: pd.DataFrame) -> None:
    early = rows.loc[rows["known_at"] <= rows["as_of"], "entity_id"]
    if len(early):
        raise TrainingDataError(
            f"{model.name}: {len(early):,} of {len(rows):,} labels were known when their row came "
            f"up for scoring, e.g. that of {early.iloc[0]}: leave such rows out of features_query, "
            f"or let known_at be the moment at which the outcome became known; nothing is promoted"
        )


def _sound_labels(model: BatchModel, rows: pd.DataFrame) -> pd.Series[Any]:
    """The labels, as numbers for a regression.

    Raises:
        TrainingDataError: labels are no numbers, or not all of one kind, so that a classifier would
            take some for other classes than they are.
    """
    import numpy as np
    import pandas as pd
    from sklearn.base import is_classifier

    labels = rows["label"]
    if is_classifier(model.estimator()):
        kinds = {type(label).__name__ for label in labels.unique()}
        wild = labels.map(lambda label: isinstance(label, float) and not math.isfinite(label))
        if len(kinds) > 1:
            examples = labels[~labels.map(lambda label: type(label).__name__).duplicated()]
            raise TrainingDataError(
                f"labels_query of {model.name}: labels are of several types, e.g. "
                f"{', '.join(f'{label!r} ({type(label).__name__})' for label in examples)}; CAST "
                f"them to one"
            )
    else:
        numbers = pd.to_numeric(labels, errors="coerce")
        wild = pd.Series(~np.isfinite(numbers.to_numpy("float64")), index=numbers.index)
        labels = numbers
    if wild.any():
        shown = ", ".join(map(repr, rows["label"][wild].drop_duplicates().head(3)))
        raise TrainingDataError(
            f"labels_query of {model.name}: label is not a finite number in {int(wild.sum()):,} of "
            f"{len(rows):,} rows (e.g. {shown}); leave such rows out, or CAST them"
        )
    return labels


log = logging.getLogger(__name__)


@repeatable
def read_split(warehouse: Warehouse, model: BatchModel, as_of: datetime) -> Split:
    """The labelled rows to learn from and to evaluate on, as they were known at `as_of`.

    Raises:
        InputError: queries or rows that do not fit, or too few labelled rows.
    """
    import pandas as pd

    from batch_jobs.scoring import contract

    features, labels, read, rejected = [], [], 0, 0
    for interval in training_intervals(model, as_of - model.history, as_of):
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
        read, rejected = read + len(rows), rejected + len(checked.rejected)
        features.append(checked.rows)
        labels.append(
            contract.check_labels(model, read_whole(warehouse, model.labels_query, interval))
        )
    split = split_by_time(
        model,
        pd.concat(features, ignore_index=True),
        pd.concat(labels, ignore_index=True).drop_duplicates(
            ["entity_id", *(["as_of"] if "as_of" in labels[0] else [])]
        ),
        as_of,
    )
    return replace(split, rejected=rejected / max(read, 1))


def _require_own_intervals(warehouse: Warehouse, model: BatchModel, rows: pd.DataFrame) -> None:
    """Find out that each form of time that the source holds is found by its own interval.

    Raises:
        ContractError: the query compares texts, and one that it should return sorts elsewhere.
    """
    from batch_jobs.database.columns import texts, times
    from batch_jobs.database.missed_rows import counted, not_found

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
            own = Interval(start, start + period_at(model.schedule, start))
            found = read_whole(warehouse, model.features_query, own)["entity_id"]
            if rows.loc[place, "entity_id"] not in set(found):
                raise not_found(model, told.loc[place], own)


def training_intervals(model: BatchModel, start: datetime, as_of: datetime) -> Iterator[Interval]:
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
