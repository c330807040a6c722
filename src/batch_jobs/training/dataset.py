"""Honest training data: what was known when, a split by time, and metrics on the newest rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import ContractError, ModelFileError, TrainingDataError
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.scoring.predict import Fitted, are_alike, as_inputs, categories_of, class_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


GOLDEN_ROWS = 20
RELIABILITY_BINS = 10
CLASSES_SHOWN = 5
LARGEST_ERROR = 1e100  # whose square, summed over many rows, is finite


@dataclass(frozen=True)
class Split:
    """Labelled rows on both sides of the cut.

    Attributes:
        cut: rows scored before it, with labels known before it, are learnt from.
        fit: those rows.
        judge: rows scored since, whose labels are known by the time of training.
        coverage: share of the rows since the cut whose label is known.
        as_of: the moment of the training.
    """

    cut: datetime
    fit: pd.DataFrame
    judge: pd.DataFrame
    coverage: float
    as_of: datetime


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
    _require_open_outcomes(model, rows)
    fit = rows[(rows["as_of"] < cut) & (rows["known_at"] <= cut)]
    judge = rows[rows["as_of"] >= cut]
    for name, side, wanted in (
        ("to learn from", fit, 2),
        ("to judge on", judge, model.gate.min_rows),
    ):
        if len(side) < wanted:
            raise TrainingDataError(
                f"{model.name} as of {as_of:%Y-%m-%dT%H:%M:%SZ}: {len(side):,} labelled rows "
                f"{name}, at least {wanted:,} are needed; nothing is promoted"
                f"{_why_so_few(model, features, labels, as_of)}"
            )
    return Split(cut, fit, judge, len(judge) / max(int(recent.sum()), 1), as_of)


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


def _require_open_outcomes(model: BatchModel, rows: pd.DataFrame) -> None:
    early = rows.loc[rows["known_at"] <= rows["as_of"], "entity_id"]
    if len(early):
        raise TrainingDataError(
            f"{model.name}: {len(early):,} of {len(rows):,} labels were known when their row came "
            f"up for scoring, e.g. that of {early.iloc[0]}: leave such rows out of features_query, "
            f"or let known_at be the moment at which the outcome became known; nothing is promoted"
        )


def fit(model: BatchModel, rows: pd.DataFrame) -> Fitted:
    """A fitted estimator, with the categories and classes that it has seen.

    Raises:
        TrainingDataError: a classifier would see fewer than two classes, or not the positive one.
        ModelFileError: the classifier gives no probabilities.
    """
    from sklearn.base import is_classifier

    estimator = model.estimator()
    if is_classifier(estimator):
        _require_classes(model, rows)
    elif model.positive is not None:
        raise _misfit(model, f"positive: {type(estimator).__name__} is no classifier; leave it out")
    categories = categories_of(rows, model.features)
    try:
        fitted = estimator.fit(as_inputs(rows, model.features, categories), rows["label"])
    except MemoryError:
        raise
    except Exception as error:  # the estimator is the user's code
        raise _misfit(model, f"estimator: its fit fails with {first_line(error)}") from error
    if is_classifier(fitted) and not hasattr(fitted, "predict_proba"):
        name = type(estimator).__name__
        raise _misfit(
            model,
            f"estimator: {name} gives no probabilities; return "
            f"sklearn.calibration.CalibratedClassifierCV({name}())",
        )
    return Fitted.of(fitted, model.features, categories, model.positive)


def require_answers(model: BatchModel, fitted: Fitted, rows: pd.DataFrame) -> None:
    """Let a version answer before anything is kept of it.

    Raises:
        ModelFileError: its predict or predict_proba raises.
    """
    try:
        fitted.answers(fitted.inputs(rows))
    except (MemoryError, ContractError):
        raise
    except Exception as error:  # the estimator is the user's code
        raise _misfit(
            model, f"estimator: it is fitted, but its prediction fails with {first_line(error)}"
        ) from error


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
        wild = ~np.isfinite(numbers.to_numpy("float64"))
        labels = numbers
    if wild.any():
        shown = ", ".join(map(repr, rows["label"][wild].drop_duplicates().head(3)))
        raise TrainingDataError(
            f"labels_query of {model.name}: label is no finite number in {int(wild.sum()):,} of "
            f"{len(rows):,} rows (e.g. {shown}); leave such rows out, or CAST them"
        )
    return labels


def _require_classes(model: BatchModel, rows: pd.DataFrame) -> None:
    classes = sorted({class_text(label) for label in rows["label"].unique()})
    if len(classes) < 2:
        raise TrainingDataError(
            f"{model.name}: all {len(rows):,} rows to learn from have the label "
            f"{rows['label'].tolist()[0]!r}; a classifier needs two classes; nothing is promoted"
        )
    if model.positive is not None and (len(classes) > 2 or model.positive not in classes):
        shown = ", ".join(map(repr, classes[:CLASSES_SHOWN]))
        cure = "leave it out" if len(classes) > 2 else f"write one of {shown}"
        raise _misfit(
            model,
            f"positive: {model.positive!r} names one of two classes, and the labels have "
            f"{len(classes):,}: {shown}; {cure}",
        )


def _misfit(model: BatchModel, problem: str) -> ModelFileError:
    return ModelFileError(f"model file {model.name}.py", [problem])


def golden(fitted: Fitted, rows: pd.DataFrame) -> dict[str, Any]:
    """A few rows and what the estimator answers to them, as plain JSON values.

    Args:
        fitted: whose answers.
        rows: some of them are taken, evenly spaced.

    Returns:
        `inputs`, per feature a list of values, and `answers`, one list a row.
    """
    chosen = rows.iloc[:: max(len(rows) // GOLDEN_ROWS, 1)].head(GOLDEN_ROWS)
    inputs = chosen[list(fitted.features)]
    answers = fitted.answers(fitted.inputs(inputs))
    plain = inputs.astype("object").where(inputs.notna(), None)
    return {
        "inputs": {name: plain[name].tolist() for name in plain},
        "answers": answers.tolist(),
    }


def unlike_golden(fitted: Fitted, kept: Mapping[str, Any]) -> str | None:
    """What is wrong with an estimator's answers to its golden rows; None if they are alike."""
    import numpy as np
    import pandas as pd

    columns = {
        name: pd.Series(kept["inputs"][name], dtype="float64" if kind.kind == "number" else "str")
        for name, kind in fitted.features.items()
    }
    wanted = np.array(kept["answers"], "float64")
    answers = fitted.answers(fitted.inputs(pd.DataFrame(columns)))
    if answers.shape != wanted.shape:
        return f"it gives {answers.shape[1]} numbers a row where it gave {wanted.shape[1]}"
    if are_alike(answers, wanted).all():
        return None
    row = int(np.abs(answers - wanted).max(axis=1).argmax())
    return f"row {row + 1} of {len(wanted)} is answered {answers[row]} where it was {wanted[row]}"


@dataclass(frozen=True)
class Judgement:
    """How an estimator did on labelled rows.

    Attributes:
        losses: per row, log-loss of a classifier or squared error of a regressor.
        metrics: their usual summaries.
        reliability: of a classifier, per tenth of the rows by probability: the mean probability,
            the share in which it came true, and the number of rows.
    """

    losses: NDArray[np.float64]
    metrics: dict[str, float]
    reliability: list[tuple[float, float, int]] = field(default_factory=list)


def judge(fitted: Fitted, rows: pd.DataFrame) -> Judgement:
    """Judge an estimator on labelled rows that it has not learnt from."""
    return _measured(fitted, rows, fitted.answers(fitted.inputs(rows)))


def baseline(fitted: Fitted, fit_rows: pd.DataFrame, judge_rows: pd.DataFrame) -> Judgement:
    """Judge the constant answer: the class frequencies, or the mean, of the rows learnt from."""
    import numpy as np

    labels = fit_rows["label"]
    if fitted.classes is None:
        constant = np.array([labels.mean()], "float64")
    else:
        shares = labels.map(class_text).value_counts(normalize=True)
        constant = shares.reindex(fitted.classes, fill_value=0).to_numpy("float64")
    return _measured(fitted, judge_rows, np.tile(constant, (len(judge_rows), 1)))


def _measured(fitted: Fitted, rows: pd.DataFrame, answer: NDArray[np.float64]) -> Judgement:
    place = fitted.positive_place
    return measure(rows["label"], answer, fitted.classes, 1 if place is None else place)


def measure(
    labels: pd.Series[Any] | NDArray[Any],
    answer: NDArray[np.float64],
    classes: Sequence[str] | None,
    positive: int = 1,
) -> Judgement:
    """Losses and metrics of predictions.

    Args:
        labels: the truth, shape (rows,); of a classifier, its text is what counts.
        answer: probabilities of shape (rows, classes), or values of shape (rows, 1).
        classes: text of the classes in the order of the columns; None for a regression.
        positive: of two classes, the column of the positive one.

    Raises:
        TrainingDataError: no row, or only one class, to judge a classifier on, or an answer that is
            no finite number.
    """
    import numpy as np
    import pandas as pd
    from sklearn import metrics

    wild = len(answer) - int(np.isfinite(answer).all(axis=1).sum())
    if wild:
        raise TrainingDataError(
            f"the estimator answered nan or inf for {wild:,} of {len(answer):,} rows to judge on; "
            f"nothing is promoted"
        )
    if classes is None:
        errors = answer[:, 0] - np.asarray(labels, "float64")
        if len(errors) and not np.abs(errors).max() < LARGEST_ERROR:
            raise TrainingDataError(
                f"an error of {np.abs(errors).max():.3g} has no finite square: let the label be in "
                f"a larger unit, or its logarithm; nothing is promoted"
            )
        return Judgement(
            errors**2,
            {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt((errors**2).mean()))},
        )
    place, found = pd.factorize(np.asarray(labels))
    if len(found) < 2:
        raise TrainingDataError(
            f"all {len(labels):,} rows to judge on have the label {found.tolist()[0]!r}; "
            f"two classes are needed; nothing is promoted"
        )
    of_class = {label: column for column, label in enumerate(classes)}
    column = np.array([of_class.get(class_text(label), -1) for label in found])[place]
    likelihood = np.where(column >= 0, answer[np.arange(len(answer)), column], 0.0)
    losses = -np.log(np.clip(likelihood, 1e-15, 1.0))
    truth = np.equal(column[:, None], np.arange(len(classes)))
    summary = {
        "log_loss": float(losses.mean()),
        "brier": float(((answer - truth) ** 2).sum(axis=1).mean())
        / (2 if len(classes) == 2 else 1),
        "accuracy": float((answer.argmax(axis=1) == column).mean()),
    }
    sure = answer[:, positive] if len(classes) == 2 else answer.max(axis=1)
    right = truth[:, positive] if len(classes) == 2 else answer.argmax(axis=1) == column
    curve = _reliability(sure, right)
    summary["calibration_error"] = calibration_error(curve)
    if len(classes) == 2:
        summary["base_rate"] = float(right.mean())
        if 0 < summary["base_rate"] < 1:
            summary["roc_auc"] = float(metrics.roc_auc_score(right, sure))
    return Judgement(losses, summary, curve)


def calibration_error(curve: Sequence[tuple[float, float, int]]) -> float:
    """How far probabilities are from what came true, less what chance alone brings.

    The expected calibration error of few rows is mostly chance: sound models have 0.10 to 0.14 in
    ten bins of 168 rows. So the variance that a bin of that size has if its mean probability is
    right is taken from its squared distance (Bröcker 2012, "Estimating reliability and resolution
    of probability forecasts through decomposition of the empirical score"; Kumar, Liang and Ma
    2019, "Verified uncertainty calibration").

    Args:
        curve: as of `Judgement.reliability`.
    """
    total = sum(rows for *_, rows in curve)
    return sum(
        rows * math.sqrt(max(0.0, (mean - share) ** 2 - mean * (1 - mean) / rows))
        for mean, share, rows in curve
    ) / max(total, 1)


def _reliability(
    sure: NDArray[np.float64], right: NDArray[np.bool_]
) -> list[tuple[float, float, int]]:
    """Mean probability and share that came true in bins of about equal size, equal ones together.

    Their weighted mean distance would be the expected calibration error (Naeini et al., AAAI 2015).
    """
    import numpy as np

    edges = np.unique(np.quantile(sure, np.linspace(0, 1, RELIABILITY_BINS + 1))[1:-1])
    place = np.searchsorted(edges, sure, side="right")
    rows = np.bincount(place)
    means, shares = np.bincount(place, weights=sure), np.bincount(place, weights=right)
    return [
        (float(mean / size), float(share / size), int(size))
        for mean, share, size in zip(means, shares, rows, strict=True)
        if size
    ]
