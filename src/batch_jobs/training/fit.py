"""Fit the estimator of a model file, and let it answer before anything is kept of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_jobs.errors import ContractError, ModelFileError, TrainingDataError
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.scoring.fitted import Fitted, as_inputs, categories_of, class_text

if TYPE_CHECKING:
    import pandas as pd


CLASSES_SHOWN = 5


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
        raise _misfit(
            model, f"positive: {type(estimator).__name__} is not a classifier; leave it out"
        )
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
            f"positive: {model.positive!r} names one of two classes, but the labels have "
            f"{len(classes):,}: {shown}; {cure}",
        )


def _misfit(model: BatchModel, problem: str) -> ModelFileError:
    return ModelFileError(f"model file {model.name}.py", [problem])
