"""How published predictions fared once their outcomes were known: frames in, figures out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from batch_jobs.errors import TrainingDataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

SCORE_BINS = 20
# As people who look at a year call them.
NAMES = {"roc_auc": "auc"}


def with_ground_truth(predictions: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Each prediction with the label of its entity as `truth`, which is null if it is not known.

    Args:
        predictions: `entity_id`, `score`, `predicted` (text, or null), `model_version`,
            `interval_start` and `interval_end` (UTC).
        labels: as of `contract.check_labels`; with `as_of`, the label of an entity holds for the
            interval in which that lies.
    """
    import pandas as pd

    found = labels.rename(columns={"label": "truth"})
    if "as_of" not in found:
        return predictions.merge(found[["entity_id", "truth"]], on="entity_id", how="left")
    spans = predictions[["interval_start", "interval_end"]].drop_duplicates()
    place = pd.merge_asof(
        found.sort_values("as_of"),
        spans.sort_values("interval_start"),
        left_on="as_of",
        right_on="interval_start",
    )
    place = place[place["as_of"] < place["interval_end"]]
    keys = ["entity_id", "interval_start"]
    return predictions.merge(place[[*keys, "truth"]].drop_duplicates(keys), on=keys, how="left")


Classes = Sequence[str]  # their texts; of two, the positive one last


def classes_of(rows: pd.DataFrame, versions: Iterable[Mapping[str, Any]] = ()) -> Classes | None:
    """The classes that there are, whichever of them came; None of a regression.

    Args:
        rows: as of `with_ground_truth`.
        versions: manifests of the versions that scored them; those of old releases tell no classes,
            and the outcomes do.
    """
    from batch_jobs.scoring.fitted import class_text

    if rows["predicted"].isna().all():
        return None
    told = [version for version in versions if version.get("classes")]
    found = {name for version in told for name in version["classes"]}
    found = found or {class_text(label) for label in rows["truth"].dropna().unique()}
    positive = {version["positive"] for version in told if version.get("positive")}
    return sorted(found, key=lambda name: (name in positive, name))


def figures(rows: pd.DataFrame, classes: Classes | None) -> dict[str, Any]:
    """Counts, and the metrics that published scores allow: all of two classes or of a regression.

    Args:
        rows: as of `with_ground_truth`.
        classes: as of `classes_of`, of all rows.
    """
    known = rows.dropna(subset=["truth"])
    return {
        "rows_scored": len(rows),
        "label_coverage": round(len(known) / len(rows), 4) if len(rows) else None,
        **_metrics(known, classes),
    }


def histogram(rows: pd.DataFrame) -> dict[str, list[float]]:
    """How the scores are distributed: `edges`, one more than `counts`."""
    import numpy as np

    scores = rows["score"].to_numpy()
    low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
    within = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    counts, edges = np.histogram(scores, SCORE_BINS, within)
    return {"edges": [float(edge) for edge in edges], "counts": [int(count) for count in counts]}


def _metrics(known: pd.DataFrame, classes: Classes | None) -> dict[str, float]:
    from batch_jobs.evaluation.metrics import measure
    from batch_jobs.scoring.fitted import class_text

    scores = known["score"].to_numpy()
    if classes is not None and len(classes) != 2:
        # Of many classes, only the probability of the predicted one is published.
        said = known["predicted"].to_numpy() == known["truth"].map(class_text).to_numpy()
        return {"accuracy": float(said.mean())} if len(known) else {}
    answer = _answer(scores, classes)
    try:
        found = measure(known["truth"], answer, classes).metrics if len(known) else {}
    except TrainingDataError:  # all outcomes of a week may be alike
        return {}
    return {NAMES.get(name, name): value for name, value in found.items()}


def _answer(scores: NDArray[np.float64], classes: Classes | None) -> NDArray[np.float64]:
    """What the estimator had said, of shape (rows, 1), or (rows, 2) of two classes."""
    import numpy as np

    return scores[:, None] if classes is None else np.column_stack([1 - scores, scores])
