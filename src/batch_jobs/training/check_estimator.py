"""`check`, of features and estimator: what they tell, and whether answers are the same anywhere."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from batch_jobs.model import BatchModel
from batch_jobs.training.findings import Report, Unproved

if TYPE_CHECKING:
    import pandas as pd

    from batch_jobs.scoring.fitted import Fitted
    from batch_jobs.training.dataset import Split


ROWS_ONE_BY_ONE = 100

# A feature that alone tells the label so well is, as a rule, made of it.
TELLTALE = 0.995

# Of these, people take the one that sorts last for the positive class.
PLAIN_CLASSES = {
    "0",
    "1",
    "-1",
    "false",
    "true",
    "0.0",
    "1.0",
    "-1.0",
    "no",
    "yes",
    "n",
    "y",
    "f",
    "t",
}


def check_features(report: Report, model: BatchModel, split: Split) -> None:
    """What the features tell, beyond what may be known."""
    import pandas as pd
    from sklearn.metrics import roc_auc_score

    rows = pd.concat([split.fit, split.holdout], ignore_index=True)
    with report.proof("no feature varies not at all, or is always missing"):
        flat = [name for name in model.features if rows[name].nunique(dropna=False) < 2]
        if flat:
            raise Unproved(f"{', '.join(flat)}: one value in all {len(rows):,} rows")
        report.say(f"{len(model.features)} features")
    labels = rows["label"]
    if labels.nunique() != 2:
        return
    with report.proof("no feature knows the label"):
        truth = labels == labels.max()
        told = {}
        for name, feature in model.features.items():
            # Means of the label within a category would tell every rare category's own.
            if feature.kind == "number" and rows[name].notna().any():
                values = rows[name].fillna(rows[name].median())
                area = roc_auc_score(truth, values)
                told[name] = max(area, 1 - area)
            missing = rows[name].isna()
            if 0 < missing.sum() < len(rows):
                area = roc_auc_score(truth, missing)
                told[name] = max(told.get(name, 0.5), area, 1 - area)
        telltale = [f"{name} (AUC {area:.3f})" for name, area in told.items() if area > TELLTALE]
        if telltale:
            raise Unproved(
                f"{', '.join(telltale)} alone tells the label: was it known at as_of, or is it "
                f"made of the label?"
            )
        report.say(f"at most AUC {max(told.values(), default=0.5):.3f} by one alone")


def check_estimator(report: Report, model: BatchModel, split: Split) -> None:
    """Fit, store and ask the estimator as training and scoring will."""
    from batch_jobs.evaluation import metrics
    from batch_jobs.scoring.golden import golden, unlike_golden
    from batch_jobs.training import fit

    found: list[Fitted] = []
    with report.proof("the estimator fits"):
        began = time.monotonic()
        fitted = fit.fit(model, split.fit)
        fit.require_answers(model, fitted, split.holdout)
        found.append(fitted)
        report.say(f"{time.monotonic() - began:.1f} s, {_peak_memory()} MB at most")
        if time.monotonic() - began > model.train_timeout.total_seconds() / 2:
            raise Unproved(f"{'; '.join(report.said)}: more than half of its train_timeout")
    if not found:
        return
    fitted = found[0]
    if fitted.positive is not None:
        with report.proof("it is said which class the score is the probability of"):
            report.say(f"that of {fitted.positive!r}")
            _require_named_class(model, fitted)
    with report.proof("the fitted estimator is stored and answers as before"):
        from batch_jobs.registry.store import deserialize_bytes, serialize

        content = serialize(fitted.estimator)
        kept = golden(fitted, split.holdout)
        problem = unlike_golden(replace(fitted, estimator=deserialize_bytes(content)), kept)
        if problem:
            raise Unproved(problem)
        report.say(f"{len(content) / 1e6:.1f} MB")
    with report.proof("a row's answer does not depend on the rows beside it"):
        _require_same_in_any_chunk(fitted, split.holdout)
        report.say(f"{min(len(split.holdout), ROWS_ONE_BY_ONE)} rows, one by one and turned round")
    with report.proof("it is better than the constant answer"):
        evaluated = metrics.evaluate(fitted, split.holdout)
        constant = metrics.baseline(fitted, split.fit, split.holdout)
        loss, bound = evaluated.losses.mean(), constant.losses.mean()
        report.say(", ".join(f"{name} {value:.4f}" for name, value in evaluated.metrics.items()))
        if not loss < bound:
            raise Unproved(f"its loss is {loss:.4f}, and that of a constant answer {bound:.4f}")


def _require_named_class(model: BatchModel, fitted: Fitted) -> None:
    """Numbers and truth values have a positive class by themselves, words have not."""
    classes = fitted.classes or ()
    if model.positive is None and not {label.lower() for label in classes} <= PLAIN_CLASSES:
        raise Unproved(
            f"the score is the probability of {fitted.positive!r}, only because that sorts last of "
            f"{' and '.join(map(repr, classes))}; write positive={classes[0]!r} or "
            f"positive={classes[1]!r} in the model file"
        )


def _require_same_in_any_chunk(fitted: Fitted, rows: pd.DataFrame) -> None:
    import numpy as np

    from batch_jobs.scoring.fitted import are_alike

    chosen = rows.head(ROWS_ONE_BY_ONE)

    def answers(frame: pd.DataFrame) -> Any:
        return fitted.answers(fitted.inputs(frame))

    whole = answers(chosen)
    alone = np.concatenate([answers(chosen.iloc[[place]]) for place in range(len(chosen))])
    for other, how in ((alone, "alone"), (answers(chosen[::-1])[::-1], "in another order")):
        different = ~are_alike(whole, other)
        if different.any():
            place = int(different.argmax())
            raise Unproved(
                f"{chosen['entity_id'].iloc[place]} is answered {whole[place]} among others and "
                f"{other[place]} {how}: something is computed over the rows at hand"
            )


def _peak_memory() -> int:
    """Megabytes that this process has held at most; 0 where nobody counts."""
    with suppress(ImportError):
        import resource
        import sys

        unit = 1024 * 1024 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit
    return 0
