"""How published scores fared: each metric with its interval, by bootstrap of whole blocks.

A metric is a function of sums over blocks of rows, so that a replicate costs no look at the rows:
means are ratios of sums, and the area under the curve is a ratio of quadratic forms in how often
each block was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from batch_jobs.evaluation.bootstrap import Estimate, drawn, estimate, quantiles
from batch_jobs.evaluation.metrics import LARGEST_ERROR, RELIABILITY_BINS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["binary", "classes", "regression"]

LOSSES: Mapping[Kind, str] = {"binary": "log_loss", "classes": "error_rate", "regression": "mse"}
SMALLEST_LIKELIHOOD = 1e-15


@dataclass(frozen=True)
class Answers:
    """What somebody answered to rows whose outcomes are known.

    Attributes:
        kind: of the model.
        scores: probability of the positive class (of two) or of the predicted one (of more), or the
            value of a regression; shape (rows,).
        truth: of two classes, whether it was the positive one; of more, whether it was the
            predicted one; of a regression, the outcome. As floats of shape (rows,).
        likelihood: of more than two classes, the probability of the true one, where all that was
            answered is known; published scores do not tell it.
    """

    kind: Kind
    scores: NDArray[np.float64]
    truth: NDArray[np.float64]
    likelihood: NDArray[np.float64] | None = None

    @property
    def losses(self) -> NDArray[np.float64]:
        """Per row: log-loss of two classes, 0 or 1 of more, squared error of a regression."""
        import numpy as np

        if self.kind == "regression":
            errors = np.clip(self.scores - self.truth, -LARGEST_ERROR, LARGEST_ERROR)
            return errors**2
        if self.kind == "classes":
            return 1 - self.truth
        return _log_losses(np.where(self.truth == 1, self.scores, 1 - self.scores))

    def part(self, rows: NDArray[np.bool_]) -> Answers:
        """Those of some rows."""
        told = None if self.likelihood is None else self.likelihood[rows]
        return Answers(self.kind, self.scores[rows], self.truth[rows], told)


def metrics_of(
    answers: Answers, blocks: NDArray[np.int64], confidence: float
) -> dict[str, Estimate]:
    """Each metric that the answers allow, by its name; none of no row.

    Args:
        answers: to rows whose outcomes are known.
        blocks: the block of each row, as of `bootstrap.blocks_of`.
        confidence: of each interval.

    Returns:
        Of two classes `log_loss`, `brier`, `auc` (if both came), `calibration_error`, `base_rate`
        and `bias` (the mean probability less the share that came true: calibration in the large);
        of more `accuracy`, `calibration_error` and `bias` of the predicted class, and `log_loss` if
        its likelihood is known; of a regression `mae`, `rmse` and `bias`.
    """
    import numpy as np

    if not len(answers.scores):
        return {}

    def mean(values: NDArray[np.float64]) -> Estimate:
        return estimate(values, blocks, confidence)

    bias = mean(answers.scores - answers.truth)
    if answers.kind == "regression":
        square = mean(answers.losses)
        roots = [math.sqrt(each) for each in (square.mean, square.low, square.high)]
        absolute = mean(np.abs(answers.scores - answers.truth))
        return {"mae": absolute, "rmse": Estimate(*roots), "bias": bias}
    found = {"bias": bias, "calibration_error": _calibration_error(answers, blocks, confidence)}
    if answers.kind == "classes":
        found["accuracy"] = mean(answers.truth)
        if answers.likelihood is not None:
            found["log_loss"] = mean(_log_losses(answers.likelihood))
        return found
    found["log_loss"] = mean(answers.losses)
    found["brier"] = mean((answers.scores - answers.truth) ** 2)
    found["base_rate"] = mean(answers.truth)
    if 0 < found["base_rate"].mean < 1:
        found["auc"] = _area(answers, blocks, confidence)
    return found


def _log_losses(likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    losses: NDArray[np.float64] = -np.log(np.clip(likelihood, SMALLEST_LIKELIHOOD, 1.0))
    return losses


def _area(answers: Answers, blocks: NDArray[np.int64], confidence: float) -> Estimate:
    """The area under the ROC curve: the share of pairs of both kinds that are in order.

    Of the pairs of a positive row in one block and a negative one in another, how many are in order
    is counted once; a replicate weighs these counts by how often both blocks were drawn.
    """
    import numpy as np

    _, block = np.unique(blocks, return_inverse=True)
    count = int(block.max()) + 1
    order = np.argsort(answers.scores, kind="stable")
    scores, block, positive = answers.scores[order], block[order], answers.truth[order] == 1
    one_hot = np.zeros((len(scores) + 1, count))
    one_hot[1:][~positive, block[~positive]] = 1
    below = one_hot.cumsum(axis=0)  # negative rows of each block among the first so many rows
    first = np.searchsorted(scores, scores[positive], side="left")
    last = np.searchsorted(scores, scores[positive], side="right")
    in_order = (below[first] + below[last]) / 2
    pairs = np.zeros((count, count))
    np.add.at(pairs, block[positive], in_order)
    positives = np.bincount(block[positive], minlength=count)
    negatives = np.bincount(block[~positive], minlength=count)
    draws = drawn(count)
    all_pairs = (draws @ positives) * (draws @ negatives)
    areas = ((draws @ pairs) * draws).sum(axis=1)[all_pairs > 0] / all_pairs[all_pairs > 0]
    area = float(pairs.sum() / (positives.sum() * negatives.sum()))
    return Estimate(area, *(quantiles(areas, confidence) if len(areas) else (area, area)))


def _calibration_error(answers: Answers, blocks: NDArray[np.int64], confidence: float) -> Estimate:
    """How far probabilities are from what came true in bins of like ones, less what chance brings.

    As `metrics.calibration_error` has it, whose sources it names; the bins are those of all rows.
    """
    import numpy as np

    _, block = np.unique(blocks, return_inverse=True)
    inner = np.linspace(0, 1, RELIABILITY_BINS + 1)[1:-1]
    edges = np.unique(np.quantile(answers.scores, inner))
    place = np.searchsorted(edges, answers.scores, side="right")
    shape = (int(block.max()) + 1, len(edges) + 1)
    cell = block * shape[1] + place

    def sums(weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
        counted = np.bincount(cell, weights, minlength=shape[0] * shape[1])
        return counted.astype("float64").reshape(shape)

    said, came, rows = sums(answers.scores), sums(answers.truth), sums(None)

    def error(draws: NDArray[np.int64]) -> NDArray[np.float64]:
        size = np.maximum(draws @ rows, 1)
        mean, share = (draws @ said) / size, (draws @ came) / size
        chance = np.clip(mean * (1 - mean), 0, None) / size
        distance = np.sqrt(np.maximum(0.0, (mean - share) ** 2 - chance))
        found = (distance * (draws @ rows)).sum(axis=1) / np.maximum((draws @ rows).sum(axis=1), 1)
        return np.asarray(found, "float64")

    whole = float(error(np.ones((1, shape[0]), "int64"))[0])
    return Estimate(whole, *quantiles(error(drawn(shape[0])), confidence))
