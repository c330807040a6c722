"""Paired differences of losses with their confidence, by bootstrap of whole days."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from batch_jobs.evaluation.metrics import Evaluation


REPLICATES = 2_000
FEWEST_DAYS = 5

MOST_GROUPS = 1_000


@dataclass(frozen=True)
class Estimate:
    """A mean loss, or how much the challenger's is above that of another, with its interval."""

    mean: float
    low: float
    high: float


def blocks_of(as_of: pd.Series[Any]) -> NDArray[np.int64]:
    """The UTC day of each row, or a twentieth of these rows by time where days are too few.

    One day resampled is always that day: its interval would be a point, and any noise a proof.
    """
    import numpy as np

    days: NDArray[np.int64] = as_of.dt.floor("D").astype("int64").to_numpy()
    if len(np.unique(days)) >= FEWEST_DAYS:
        return days
    blocks = np.empty(len(as_of), dtype="int64")
    blocks[np.argsort(as_of, kind="stable")] = np.arange(len(as_of)) * 20 // len(as_of)
    return blocks


def groups_of(entities: pd.Series[Any]) -> NDArray[np.int64]:
    """The group of each row by its entity, all of whose rows are in one (cluster bootstrap).

    Field and Welsh 2007, "Bootstrapping clustered data" (JRSS B 69). Many entities share a group by
    the hash of their key, since a thousand blocks tell as much as a million.
    """
    import pandas as pd

    groups: NDArray[np.int64] = (
        pd.util.hash_array(entities.to_numpy("object"), categorize=True) % MOST_GROUPS
    ).astype("int64")
    return groups


def paired_difference(
    one: Evaluation, other: Evaluation, blocks: NDArray[np.int64], confidence: float
) -> Estimate:
    """Mean loss difference on the same rows, with a two-sided block-bootstrap interval."""
    return estimate(one.losses - other.losses, blocks, confidence)


def estimate(values: NDArray[np.float64], blocks: NDArray[np.int64], confidence: float) -> Estimate:
    """The mean of values with its interval, by bootstrap of their blocks."""
    import numpy as np

    _, block = np.unique(blocks, return_inverse=True)
    sums = np.bincount(block, weights=values)
    sizes = np.bincount(block)
    draws = drawn(len(sums))
    means = (draws @ sums) / (draws @ sizes)
    return Estimate(float(values.mean()), *quantiles(means, confidence))


@lru_cache(maxsize=4)
def drawn(blocks: int) -> NDArray[np.int64]:
    """How often each block is drawn, shape (replicates, blocks)."""
    import numpy as np

    # A fixed seed: the same rows always give the same verdict.
    return np.random.default_rng(0).multinomial(
        blocks, np.full(blocks, 1 / blocks), size=REPLICATES
    )


def quantiles(replicates: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """The bounds of a two-sided interval of that confidence."""
    import numpy as np

    tail = (1 - confidence) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)
