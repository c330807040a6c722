"""The figures of one window, from the rows that count and what others answer to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.evaluation.bootstrap import blocks_of, estimate, groups_of
from batch_jobs.evaluation.confidence_based import promised
from batch_jobs.evaluation.published import LOSSES, Answers, Kind, metrics_of
from batch_jobs.monitoring.contenders import Answered
from batch_jobs.monitoring.performance_rows import PUBLISHED, Figure

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MOST_SLICES = 50  # values of a category, those with most rows


@dataclass(frozen=True)
class Rules:
    """How the rows of a model are judged.

    Attributes:
        kind: of the model.
        classes: text of its classes, of two the positive one last; None of a regression.
        population: whether the same entities come again and again, so that each is a block.
        confidence: of the intervals.
        fewest: rows that a slice must have.
        brief: whether contenders are told by their loss alone.
    """

    kind: Kind
    classes: Sequence[str] | None
    population: bool
    confidence: float
    fewest: int
    brief: bool = False


def kind_of(classes: Sequence[str] | None) -> Kind:
    """What a model with these classes is."""
    if classes is None:
        return "regression"
    return "binary" if len(classes) == 2 else "classes"


def figures_of(
    rules: Rules,
    rows: pd.DataFrame,
    contenders: Mapping[str, Answered],
    slices: pd.DataFrame | None,
    version: str,
) -> list[Figure]:
    """All figures of a window.

    Args:
        rules: how to judge.
        rows: that count, as of `outcomes.Seen`; the index is their place among those of the week.
        contenders: what others answered to the rows of the week.
        slices: columns of categories of the rows of the week.
        version: the one that scored most rows of the week.
    """
    found = []
    for where, part in _parts(rules, rows, slices):
        found += _estimated(rules, where, part, version)
        found += _realised(rules, where, part, contenders, version)
    return found


def truth_of(rules: Rules, rows: pd.DataFrame) -> NDArray[np.float64]:
    """The outcome of each row as a number, as of `Answers.truth`; NaN where it is not known.

    An outcome that is none of the classes is no answer to a question with two; where there are
    more, whatever was predicted is wrong.
    """
    import numpy as np
    import pandas as pd

    from batch_jobs.scoring.fitted import class_text

    labels = rows["label"]
    known = labels.notna().to_numpy()
    if rules.classes is None:
        numbers = pd.to_numeric(labels, errors="coerce").to_numpy("float64")
        return np.where(np.isfinite(numbers), numbers, np.nan)
    texts = labels[known].map(class_text).to_numpy()
    truth = np.full(len(rows), np.nan)
    if rules.kind == "classes":
        truth[known] = texts == rows["predicted"][known].to_numpy()
        return truth
    positive, negative = rules.classes[1], rules.classes[0]
    truth[known] = np.select([texts == positive, texts == negative], [1.0, 0.0], np.nan)
    return truth


def _parts(
    rules: Rules, rows: pd.DataFrame, slices: pd.DataFrame | None
) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "", rows
    if slices is None:
        return
    values = slices.reindex(rows.index)
    for name in values:
        counts = values[name].value_counts()
        for value in sorted(counts[counts >= rules.fewest].index[:MOST_SLICES]):
            yield f"{name}={value}", rows[(values[name] == value).to_numpy()]


def _blocks(rules: Rules, rows: pd.DataFrame) -> NDArray[np.int64]:
    return groups_of(rows["entity_id"]) if rules.population else blocks_of(rows["interval_start"])


def _estimated(rules: Rules, where: str, rows: pd.DataFrame, version: str) -> list[Figure]:
    found = promised(
        rules.kind, rows["score"].to_numpy("float64"), _blocks(rules, rows), rules.confidence
    )
    return [
        Figure(
            slice=where,
            contender=PUBLISHED,
            metric=metric,
            estimated=True,
            value=each.mean,
            low=each.low,
            high=each.high,
            row_count=len(rows),
            label_count=0,
            model_version=version,
        )
        for metric, each in found.items()
    ]


def _realised(
    rules: Rules,
    where: str,
    rows: pd.DataFrame,
    contenders: Mapping[str, Answered],
    version: str,
) -> list[Figure]:
    import numpy as np

    truth = truth_of(rules, rows)
    known = np.isfinite(truth)
    total, labelled = len(rows), rows[known]
    if labelled.empty:
        return []
    published = Answers(rules.kind, labelled["score"].to_numpy("float64"), truth[known])
    told: dict[str, Any] = {"slice": where, "row_count": total, "estimated": False}
    blocks = _blocks(rules, labelled)
    found = [
        Figure(
            contender=PUBLISHED,
            metric=metric,
            value=each.mean,
            low=each.low,
            high=each.high,
            label_count=len(labelled),
            model_version=version,
            **told,
        )
        for metric, each in metrics_of(published, blocks, rules.confidence).items()
    ]
    for name, other in contenders.items():
        found += _compared(rules, labelled, published, name, other, told)
    return found


def _compared(
    rules: Rules,
    rows: pd.DataFrame,
    published: Answers,
    name: str,
    other: Answered,
    told: Mapping[str, Any],
) -> list[Figure]:
    """The metrics of a contender on the rows that it was asked, and how much less it lost there."""
    import numpy as np

    scores = other.scores[rows.index]
    asked = np.isfinite(scores)
    if not asked.any():
        return []
    part = rows[asked]
    theirs = _answers(rules, part, other)
    mine = published.part(asked)
    blocks = _blocks(rules, part)
    paired = estimate(mine.losses - theirs.losses, blocks, rules.confidence)
    metrics = {} if rules.brief else metrics_of(theirs, blocks, rules.confidence)
    loss = LOSSES[rules.kind]
    metrics.setdefault(loss, estimate(theirs.losses, blocks, rules.confidence))
    return [
        Figure(
            contender=name,
            metric=metric,
            value=each.mean,
            low=each.low,
            high=each.high,
            label_count=len(part),
            model_version=other.version,
            worse_by=paired.mean if metric == loss else None,
            worse_by_low=paired.low if metric == loss else None,
            worse_by_high=paired.high if metric == loss else None,
            **told,
        )
        for metric, each in metrics.items()
        if metric != "base_rate"
    ]


def _answers(rules: Rules, rows: pd.DataFrame, other: Answered) -> Answers:
    import numpy as np

    from batch_jobs.scoring.fitted import class_text

    scores = other.scores[rows.index]
    if rules.kind != "classes" or other.predicted is None:
        return Answers(rules.kind, scores, truth_of(rules, rows))
    theirs = rows.assign(predicted=other.predicted[rows.index])
    likelihood = None
    if other.probabilities is not None and other.classes is not None:
        of_class = {name: column for column, name in enumerate(other.classes)}
        texts = rows["label"].map(class_text)
        column = texts.map(lambda name: of_class.get(name, -1)).to_numpy("int64")
        likelihood = other.probabilities[rows.index, column]
        likelihood = np.where(column >= 0, likelihood, 0.0)
    return Answers(rules.kind, scores, truth_of(rules, theirs), likelihood)
