"""A fitted estimator and what it needs to answer rows: nothing depends on which share a chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.database.columns import text_of
from batch_jobs.errors import ContractError
from batch_jobs.model import Category, Feature

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray


Categories = Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A fitted estimator, and what it is asked and answers.

    Attributes:
        estimator: fitted.
        features: name and kind of every feature, in the order of the fit.
        categories: of each feature of kind Category, the values that the fit has seen, sorted; one
            that is not named gets those of the rows at hand, as versions of old releases do.
        classes: text of the classes, in the order of the answers; None of a regression.
        positive: of two classes, the one whose probability is the score.
    """

    estimator: Any
    features: Mapping[str, Feature]
    categories: Categories
    classes: tuple[str, ...] | None
    positive: str | None

    @classmethod
    def of(
        cls,
        estimator: Any,
        features: Mapping[str, Feature],
        categories: Categories | None = None,
        positive: str | None = None,
    ) -> Fitted:
        """An estimator with the classes that it says it has.

        Without a positive class it is the last of two, as scikit-learn sorts them.
        """
        from sklearn.base import is_classifier

        classes = None
        if is_classifier(estimator):
            classes = tuple(class_text(label) for label in estimator.classes_)
            positive = positive or (classes[1] if len(classes) == 2 else None)
        return cls(estimator, features, categories or {}, classes, positive)

    @property
    def positive_place(self) -> int | None:
        """The column of the positive class; None if there are not two classes."""
        if self.classes is None or self.positive is None:
            return None
        return self.classes.index(self.positive)

    def inputs(self, rows: pd.DataFrame) -> pd.DataFrame:
        """What the estimator is given of rows; see `as_inputs`."""
        return as_inputs(rows, self.features, self.categories)

    def answers(self, inputs: pd.DataFrame) -> NDArray[np.float64]:
        """What the estimator says of each row: shape (rows, classes), or (rows, 1) of a regression.

        Args:
            inputs: as of `inputs`.

        Raises:
            ContractError: it answers with another number of rows.
        """
        import numpy as np

        if self.classes is None:
            answer = np.asarray(self.estimator.predict(inputs), dtype="float64").reshape(-1, 1)
        else:
            answer = np.asarray(self.estimator.predict_proba(inputs), dtype="float64")
        if len(answer) != len(inputs):
            raise ContractError(
                "estimator", [f"answered {len(answer):,} rows where it was given {len(inputs):,}"]
            )
        return answer

    def scores_and_labels(
        self, answer: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], pa.StringArray]:
        """What is stored of each row: scores and labels, both of shape (rows,).

        The score is the regression value, or the probability of the positive class (of two), or of
        the predicted one (of more); the label is the predicted class as text, or null.
        """
        import pyarrow as pa

        if self.classes is None:
            return answer[:, 0], pa.nulls(len(answer), pa.string())
        labels = pa.array(self.classes, pa.string()).take(pa.array(answer.argmax(axis=1)))
        place = self.positive_place
        return answer.max(axis=1) if place is None else answer[:, place], labels

    def are_sound(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which scores may be published: finite ones, and of a classifier only probabilities."""
        import numpy as np

        sound = np.isfinite(scores)
        return sound if self.classes is None else sound & (scores >= 0) & (scores <= 1)


def class_text(label: Any) -> str:
    """A class as text, as it is published and named."""
    plain = label.item() if hasattr(label, "item") else label
    text = text_of(plain)
    return str(plain) if text is None else text


def categories_of(rows: pd.DataFrame, features: Mapping[str, Feature]) -> dict[str, list[str]]:
    """The values that rows have of each feature of kind Category, sorted."""
    return {
        name: sorted(rows[name].dropna().unique().tolist())
        for name, kind in features.items()
        if isinstance(kind, Category)
    }


def as_inputs(
    rows: pd.DataFrame, features: Mapping[str, Feature], categories: Categories
) -> pd.DataFrame:
    """The features alone, in declared order: numbers as float64, text as pandas categories.

    A value that is none of the categories stays what it is, and comes after them: an estimator
    tells for itself what it does with one that it has never seen.
    """
    columns = {
        name: _as_category(rows[name], categories.get(name))
        for name, kind in features.items()
        if isinstance(kind, Category)
    }
    return rows[list(features)].assign(**columns)


def _as_category(column: pd.Series[Any], known: Sequence[str] | None) -> pd.Series[Any]:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    if known is None:
        return column.astype("category")
    texts = pa.array(column, pa.large_string(), from_pandas=True)
    place = pc.index_in(texts, pa.array(known, pa.large_string()))
    if place.null_count > texts.null_count:
        unseen = set(pc.unique(texts.filter(place.is_null())).to_pylist()) - {None}
        return _as_category(column, [*known, *sorted(unseen)])
    kind = pd.CategoricalDtype(pd.Index(list(known), dtype="str"))
    codes = place.fill_null(-1).to_numpy()
    # Not validated, which takes as long as all the rest.
    return pd.Series(pd.Categorical.from_codes(codes, dtype=kind, validate=False), column.index)


def are_alike(answers: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows were answered alike, up to the last bits, in which processors differ.

    Args:
        answers: as of `Fitted.answers`.
        wanted: of the same shape.
    """
    import numpy as np

    alike: NDArray[np.bool_] = np.all(np.isclose(answers, wanted, rtol=1e-9, atol=1e-12), axis=1)
    return alike
