"""Losses and metrics of predictions whose labels are known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import TrainingDataError
from batch_jobs.scoring.fitted import Fitted, class_text

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray


RELIABILITY_BINS = 10
LARGEST_ERROR = 1e100  # whose square, summed over many rows, is finite


@dataclass(frozen=True)
class Evaluation:
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


def evaluate(fitted: Fitted, rows: pd.DataFrame) -> Evaluation:
    """Evaluate an estimator on labelled rows that it has not learnt from."""
    return _measured(fitted, rows, fitted.answers(fitted.inputs(rows)))


def baseline(fitted: Fitted, fit_rows: pd.DataFrame, holdout_rows: pd.DataFrame) -> Evaluation:
    """Evaluate the constant answer: the class frequencies, or the mean, of the rows learnt from."""
    import numpy as np

    constant = constant_answer(fitted, fit_rows["label"])
    return _measured(fitted, holdout_rows, np.tile(constant, (len(holdout_rows), 1)))


def constant_answer(fitted: Fitted, labels: pd.Series[Any]) -> NDArray[np.float64]:
    """What is answered by who knows the labels alone: their mean, or the share of each class."""
    import numpy as np

    if fitted.classes is None:
        return np.asarray([float(labels.mean())], dtype="float64")
    shares = labels.map(class_text).value_counts(normalize=True)
    return np.asarray(shares.reindex(fitted.classes, fill_value=0), dtype="float64")


def _measured(fitted: Fitted, rows: pd.DataFrame, answer: NDArray[np.float64]) -> Evaluation:
    place = fitted.positive_place
    return measure(rows["label"], answer, fitted.classes, 1 if place is None else place)


def measure(
    labels: pd.Series[Any] | NDArray[Any],
    answer: NDArray[np.float64],
    classes: Sequence[str] | None,
    positive: int = 1,
) -> Evaluation:
    """Losses and metrics of predictions.

    Args:
        labels: the truth, shape (rows,); of a classifier, its text is what counts.
        answer: probabilities of shape (rows, classes), or values of shape (rows, 1).
        classes: text of the classes in the order of the columns; None for a regression.
        positive: of two classes, the column of the positive one.

    Raises:
        TrainingDataError: no row, or only one class, to evaluate a classifier on, or an answer
            that is not a finite number.
    """
    import numpy as np
    import pandas as pd
    from sklearn import metrics

    wild = len(answer) - int(np.isfinite(answer).all(axis=1).sum())
    if wild:
        raise TrainingDataError(
            f"the estimator answered nan or inf for {wild:,} of {len(answer):,} rows to evaluate "
            f"on; nothing is promoted"
        )
    if classes is None:
        errors = answer[:, 0] - np.asarray(labels, "float64")
        if len(errors) and not np.abs(errors).max() < LARGEST_ERROR:
            raise TrainingDataError(
                f"an error of {np.abs(errors).max():.3g} has no finite square: let the label be in "
                f"a larger unit, or its logarithm; nothing is promoted"
            )
        return Evaluation(
            errors**2,
            {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt((errors**2).mean()))},
        )
    place, found = pd.factorize(np.asarray(labels))
    if len(found) < 2:
        raise TrainingDataError(
            f"all {len(labels):,} rows to evaluate on have the label {found.tolist()[0]!r}; "
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
    return Evaluation(losses, summary, curve)


def calibration_error(curve: Sequence[tuple[float, float, int]]) -> float:
    """How far probabilities are from what came true, less what chance alone brings.

    The expected calibration error of few rows is mostly chance: sound models have 0.10 to 0.14 in
    ten bins of 168 rows. So the variance that a bin of that size has if its mean probability is
    right is taken from its squared distance (Bröcker 2012, "Estimating reliability and resolution
    of probability forecasts through decomposition of the empirical score"; Kumar, Liang and Ma
    2019, "Verified uncertainty calibration").

    Args:
        curve: as of `Evaluation.reliability`.
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
