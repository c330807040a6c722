"""Predict: frames in, scores out; nothing depends on which rows share a chunk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import ContractError
from batch_jobs.model import Category, Feature

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray


@lru_cache(4)
def _is_classifier(estimator: Any) -> bool:
    """To ask scikit-learn takes as long as to predict a row."""
    from sklearn.base import is_classifier

    return bool(is_classifier(estimator))


def as_inputs(rows: pd.DataFrame, features: Mapping[str, Feature]) -> pd.DataFrame:
    """The features alone, in declared order: numbers as float64, text as pandas categories."""
    categories = [name for name, kind in features.items() if isinstance(kind, Category)]
    return rows[list(features)].assign(
        **{name: rows[name].astype("category") for name in categories}
    )


def probabilities(estimator: Any, inputs: pd.DataFrame) -> NDArray[np.float64]:
    """What the estimator says of each row: shape (rows, classes), or (rows, 1) for a regressor.

    Raises:
        ContractError: it answers with another number of rows.
    """
    import numpy as np

    answer = estimator.predict_proba(inputs) if _is_classifier(estimator) else None
    if answer is None:
        answer = np.asarray(estimator.predict(inputs), dtype="float64").reshape(-1, 1)
    if len(answer) != len(inputs):
        raise ContractError(
            "estimator", [f"answered {len(answer):,} rows where it was given {len(inputs):,}"]
        )
    return np.asarray(answer, dtype="float64")


def scores_and_labels(
    estimator: Any, answer: NDArray[np.float64]
) -> tuple[NDArray[np.float64], pa.StringArray]:
    """What is stored of each row: scores and labels, both of shape (rows,).

    The score is the regression value, or the probability of the positive class (the second of
    two), or of the predicted one (of more); the label is the predicted class as text, or null.
    """
    import pyarrow as pa

    if not _is_classifier(estimator):
        return answer[:, 0], pa.nulls(len(answer), pa.string())
    classes = pa.array([str(label) for label in estimator.classes_], pa.string())
    labels = classes.take(pa.array(answer.argmax(axis=1)))
    return answer[:, 1] if answer.shape[1] == 2 else answer.max(axis=1), labels


def are_sound(estimator: Any, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which scores may be published: finite ones, and of a classifier only probabilities."""
    import numpy as np

    sound = np.isfinite(scores)
    return sound & (scores >= 0) & (scores <= 1) if _is_classifier(estimator) else sound


def are_alike(answers: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows were answered alike, up to the last bits, in which processors differ.

    Args:
        answers: as of `probabilities`.
        wanted: of the same shape.
    """
    import numpy as np

    alike: NDArray[np.bool_] = np.all(np.isclose(answers, wanted, rtol=1e-9, atol=1e-12), axis=1)
    return alike
