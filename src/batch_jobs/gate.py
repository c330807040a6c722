"""The gate: a challenger replaces the champion unless it is shown to be worse.

Challenger, champion and baseline are scored on the same hold-out rows. The mean loss difference
is bootstrapped over whole days, because errors within a day go together (Künsch 1989, "The
jackknife and the bootstrap for general stationary observations"; blocks of one day).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.model import Gate

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from batch_jobs.training import Judgement

REPLICATES = 2_000
FEWEST_DAYS = 5


@dataclass(frozen=True)
class Difference:
    """Mean loss of the challenger minus that of another, with its bootstrap interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class GateReport:
    """The verdict and what it rests on.

    Attributes:
        promote: whether the challenger may serve.
        reasons: one sentence for each ground of the verdict.
        rows: labelled hold-out rows that all three were judged on.
        champion: version that served when the verdict was given, if any did.
        to_champion: loss difference to the champion, if there is one that can score the rows.
        to_baseline: loss difference to the constant baseline.
        metrics: per contender, its metrics on the rows.
    """

    promote: bool
    reasons: list[str]
    rows: int
    champion: str | None
    to_champion: Difference | None
    to_baseline: Difference
    metrics: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def decide(
    gate: Gate,
    as_of: pd.Series[Any],
    *,
    challenger: Judgement,
    baseline: Judgement,
    champion: str | None = None,
    champion_judged: Judgement | None = None,
) -> GateReport:
    """Judge a challenger.

    Args:
        gate: the rule.
        as_of: when each hold-out row was scored; the bootstrap's blocks are its UTC days, or
            twentieths of the rows by time if there are fewer than five days.
        challenger: the new version on those rows.
        baseline: a constant answer on those rows.
        champion: the version that serves, if one does.
        champion_judged: the champion on those rows; None if it cannot be loaded or score them.
    """
    blocks = _blocks(as_of)
    to_baseline = paired_difference(challenger, baseline, blocks, gate.confidence)
    against: list[str] = []
    grounds: list[str] = []
    # All comparisons are written so that a NaN speaks against the challenger.
    if not to_baseline.mean < 0:
        against.append(
            f"its loss {challenger.losses.mean():.4f} is no better than the baseline's "
            f"{baseline.losses.mean():.4f}"
        )
    for metric, bound in gate.at_least.items():
        if not challenger.metrics.get(metric, float("-inf")) >= bound:
            against.append(f"{metric} {challenger.metrics.get(metric)} is below {bound}")
    for metric, bound in gate.at_most.items():
        if not challenger.metrics.get(metric, float("inf")) <= bound:
            against.append(f"{metric} {challenger.metrics.get(metric)} is above {bound}")
    to_champion = None
    if champion is None:
        grounds.append("there is no champion to compare with")
    elif champion_judged is None:
        grounds.append(f"the champion {champion} cannot score these rows")
    else:
        to_champion = paired_difference(challenger, champion_judged, blocks, gate.confidence)
        span = f"{to_champion.mean:+.4f} [{to_champion.low:+.4f}, {to_champion.high:+.4f}]"
        if not to_champion.low <= 0:
            against.append(f"its loss is shown to be worse than that of {champion}: {span}")
        else:
            grounds.append(f"its loss is not shown to be worse than that of {champion}: {span}")
    return GateReport(
        promote=not against,
        reasons=against or grounds,
        rows=len(blocks),
        champion=champion,
        to_champion=to_champion,
        to_baseline=to_baseline,
        metrics={
            "challenger": challenger.metrics,
            "baseline": baseline.metrics,
            **({"champion": champion_judged.metrics} if champion_judged else {}),
        },
    )


def _blocks(as_of: pd.Series[Any]) -> NDArray[np.int64]:
    """The UTC day of each row, or a twentieth of all rows by time where days are too few.

    One day resampled is always that day: its interval would be a point, and any noise a proof.
    """
    import numpy as np

    days: NDArray[np.int64] = as_of.dt.floor("D").astype("int64").to_numpy()
    if len(np.unique(days)) >= FEWEST_DAYS:
        return days
    blocks = np.empty(len(as_of), dtype="int64")
    blocks[np.argsort(as_of, kind="stable")] = np.arange(len(as_of)) * 20 // len(as_of)
    return blocks


def paired_difference(
    one: Judgement, other: Judgement, blocks: NDArray[np.int64], confidence: float
) -> Difference:
    """Mean loss difference on the same rows, with a two-sided block-bootstrap interval."""
    import numpy as np

    difference = one.losses - other.losses
    _, block = np.unique(blocks, return_inverse=True)
    sums = np.bincount(block, weights=difference)
    sizes = np.bincount(block)
    # A fixed seed: the same rows always give the same verdict.
    draws = np.random.default_rng(0).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=REPLICATES
    )
    means = (draws @ sums) / (draws @ sizes)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Difference(float(difference.mean()), float(low), float(high))
