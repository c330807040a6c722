"""What scores promise before any outcome is known: right as far as they are calibrated.

Confidence-based performance estimation: Garg, Balakrishnan, Lipton, Neyshabur and Sedghi 2022,
"Leveraging unlabeled data to predict out-of-distribution performance" (ICLR), and NannyML's CBPE
(https://nannyml.readthedocs.io/en/stable/how_it_works/performance_estimation.html). It sees that
rows are harder than usual, and not that what they mean has changed: then only labels tell. There is
none of a regression, whose score tells nothing of its own error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_jobs.evaluation.bootstrap import Estimate, estimate
from batch_jobs.evaluation.published import Kind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def promised(
    kind: Kind,
    scores: NDArray[np.float64],
    blocks: NDArray[np.int64],
    confidence: float,
) -> dict[str, Estimate]:
    """What the metrics are expected to be if the scores are calibrated; none of a regression.

    The intervals tell of the rows alone, and not of how far the scores are off.

    Args:
        kind: of the model.
        scores: as they were published, shape (rows,).
        blocks: the block of each row, as of `bootstrap.blocks_of`.
        confidence: of each interval.
    """
    import numpy as np

    if kind == "regression" or not len(scores):
        return {}
    sure = np.clip(scores, 1e-6, 1 - 1e-6)
    if kind == "classes":
        return {"accuracy": estimate(sure, blocks, confidence)}
    entropy = -(sure * np.log(sure) + (1 - sure) * np.log(1 - sure))
    area = _area(sure)
    return {
        "log_loss": estimate(entropy, blocks, confidence),
        "brier": estimate(sure * (1 - sure), blocks, confidence),
        "base_rate": estimate(sure, blocks, confidence),
        "auc": Estimate(area, area, area),
    }


def _area(sure: NDArray[np.float64]) -> float:
    """The area under the curve of expected hits against expected misses, equal scores together."""
    import numpy as np

    values, place = np.unique(-sure, return_inverse=True)
    rows = np.bincount(place)
    hits, misses = -values * rows, (1 + values) * rows
    before = np.concatenate([[0.0], np.cumsum(hits)])
    area = float((misses * (before[:-1] + before[1:]) / 2).sum())
    return area / float(hits.sum() * misses.sum())
