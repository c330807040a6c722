"""The gate: a challenger replaces the champion unless it is shown to be worse.

Challenger, champion and baseline are scored on the same hold-out rows. The mean loss difference
is bootstrapped over whole days, because errors within a day go together (Künsch 1989, "The
jackknife and the bootstrap for general stationary observations"; blocks of one day).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from batch_jobs.evaluation.bootstrap import (
    Estimate,
    blocks_of,
    estimate,
    groups_of,
    paired_difference,
)
from batch_jobs.model import Gate

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from batch_jobs.evaluation.metrics import Evaluation


@dataclass(frozen=True)
class Compared:
    """The version that serves, and how it did on the hold-out rows.

    Attributes:
        version: its name.
        evaluation: it on the rows that it can score; None if that could not be found out.
        rows: the places of those rows among the challenger's; None for all.
        problem: why it could not.
    """

    version: str
    evaluation: Evaluation | None = None
    rows: NDArray[np.int64] | None = None
    problem: str = ""


@dataclass(frozen=True)
class GateReport:
    """The verdict and what it rests on.

    Attributes:
        promote: whether the challenger may serve.
        reasons: one sentence for each ground of the verdict.
        rule: the gate's; it says where the bound of the differences lies.
        confidence: of each interval but those of the slices, which share it among all of them.
        rows: labelled hold-out rows that all three were evaluated on.
        champion: version that served when the verdict was given, if any did.
        to_champion: loss difference to the champion, if there is one that can score the rows.
        to_baseline: loss difference to the constant baseline.
        losses: per contender, its mean loss.
        metrics: per contender, its metrics on the rows.
        reliability: per contender, its reliability curve; see `metrics.Evaluation`.
        slices: per `feature=value`, the loss difference to the champion among its rows.
        undecided: whether nothing speaks against the challenger but that it could not be compared
            with the champion, so that a person has to decide.
    """

    promote: bool
    reasons: list[str]
    rule: str
    confidence: float
    rows: int
    champion: str | None
    to_champion: Estimate | None
    to_baseline: Estimate
    losses: dict[str, Estimate]
    metrics: dict[str, dict[str, float]]
    reliability: dict[str, list[tuple[float, float, int]]]
    slices: dict[str, Estimate]
    undecided: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def decide(
    gate: Gate,
    as_of: pd.Series[Any],
    *,
    challenger: Evaluation,
    baseline: Evaluation,
    champion: Compared | None = None,
    entities: pd.Series[Any] | None = None,
    slices: pd.DataFrame | None = None,
) -> GateReport:
    """Evaluate a challenger.

    Args:
        gate: the rule.
        as_of: when each hold-out row was scored; the bootstrap's blocks are its UTC days, or
            twentieths of the rows by time if there are fewer than five days.
        challenger: the new version on those rows.
        baseline: a constant answer on those rows.
        champion: the version that serves, on those of the rows that it can score; None if nothing
            serves.
        entities: in replace mode, whose each row is: they are then the bootstrap's blocks, since
            the same entity in each snapshot is no new evidence.
        slices: the columns of `gate.slices` on those rows.
    """
    import numpy as np

    blocks = blocks_of(as_of) if entities is None else groups_of(entities)
    to_baseline = paired_difference(challenger, baseline, blocks, gate.confidence)
    unknown = _not_compared(gate, champion, len(blocks))
    to_champion, by_slice, other, shared = None, {}, None, blocks
    if champion is not None and champion.evaluation is not None and not unknown:
        other = champion.evaluation
        rows = np.arange(len(blocks)) if champion.rows is None else champion.rows
        shared, mine = blocks[rows], replace(challenger, losses=challenger.losses[rows])
        to_champion = paired_difference(mine, other, shared, gate.confidence)
        if slices is not None:
            moments = as_of.iloc[rows] if entities is None else None
            by_slice = _by_slice(gate, slices.iloc[rows], shared, moments, mine, other)
    version = champion.version if champion else None
    against = _out_of_bounds(gate, challenger)
    if gate.rule != "always":
        against += _worse_than_nothing(challenger, baseline, to_baseline)
        against += _miscalibrated(gate, challenger, other)
        against += _worse_than_champion(gate, version, to_champion, by_slice)
    undecided = bool(unknown) and gate.rule != "always" and not against
    against += [unknown] if unknown and gate.rule != "always" else []
    evaluated = {"challenger": (challenger, blocks), "baseline": (baseline, blocks)}
    if other is not None:
        evaluated["champion"] = (other, shared)
    return GateReport(
        promote=not against,
        reasons=against or [_ground(gate, version, to_champion, len(shared), len(blocks))],
        rule=gate.rule,
        confidence=gate.confidence,
        rows=len(blocks),
        champion=version,
        to_champion=to_champion,
        to_baseline=to_baseline,
        losses={
            name: estimate(each.losses, of_each, gate.confidence)
            for name, (each, of_each) in evaluated.items()
        },
        metrics={name: each.metrics for name, (each, _) in evaluated.items()},
        reliability={name: each.reliability for name, (each, _) in evaluated.items()},
        slices=by_slice,
        undecided=undecided,
    )


def _not_compared(gate: Gate, champion: Compared | None, rows: int) -> str:
    """Why challenger and champion cannot be compared; None if they can be."""
    if champion is None:
        return ""
    problem = champion.problem
    if champion.rows is not None and len(champion.rows) < gate.min_rows:
        problem = f"it can score {len(champion.rows):,} of the {rows:,} rows"
    if not problem:
        return ""
    return (
        f"it cannot be compared with the champion {champion.version}: {problem}; a person has to "
        f"decide"
    )


def _ground(
    gate: Gate, champion: str | None, difference: Estimate | None, shared: int, rows: int
) -> str:
    """The sentence of a challenger that nothing speaks against."""
    if champion is None:
        return "there is no champion to compare with"
    if difference is None:
        return f"it was not compared with the champion {champion}"
    shown = "shown to be better" if difference.high < 0 else "not shown to be worse"
    part = "" if shared == rows else f" on the {shared:,} of {rows:,} rows that both can score"
    if gate.rule == "always":
        return (
            f"its rule promotes it whatever a comparison says; its loss less that of {champion} is "
            f"{_told(difference)}{part}"
        )
    return f"its loss is {shown} than that of {champion}{part}: {_told(difference)}"


def _out_of_bounds(gate: Gate, challenger: Evaluation) -> list[str]:
    """Which of the model's own bounds the challenger breaks; a metric that is NaN breaks each."""
    low = [
        f"{metric} {challenger.metrics.get(metric)} is below {bound}"
        for metric, bound in gate.at_least.items()
        if not challenger.metrics.get(metric, float("-inf")) >= bound
    ]
    return low + [
        f"{metric} {challenger.metrics.get(metric)} is above {bound}"
        for metric, bound in gate.at_most.items()
        if not challenger.metrics.get(metric, float("inf")) <= bound
    ]


def _worse_than_nothing(
    challenger: Evaluation, baseline: Evaluation, difference: Estimate
) -> list[str]:
    if difference.mean < 0:
        return []
    losses = f"{challenger.losses.mean():.4f} is no better than the baseline's"
    return [f"its loss {losses} {baseline.losses.mean():.4f}"]


def _miscalibrated(gate: Gate, challenger: Evaluation, champion: Evaluation | None) -> list[str]:
    """What is wrong with the challenger's probabilities, if it is more than with the champion's."""
    error = challenger.metrics.get("calibration_error")
    if gate.calibration is None or error is None or error <= gate.calibration:
        return []
    other = champion.metrics.get("calibration_error") if champion else None
    if other is not None and error <= other:
        return []
    beside = "" if other is None else f", and the champion's by {other:.3f}"
    return [
        f"its probabilities are off by {error:.3f} on average, more than {gate.calibration}{beside}"
    ]


def _worse_than_champion(
    gate: Gate, champion: str | None, difference: Estimate | None, slices: dict[str, Estimate]
) -> list[str]:
    """Shown to be worse, on the whole or in a slice, or not shown to be better if it must be."""
    if difference is None:
        return []
    worse = []
    # Comparisons are written so that a NaN speaks against the challenger.
    if not difference.low <= 0:
        worse.append(f"its loss is shown to be worse than that of {champion}: {_told(difference)}")
    elif gate.rule == "significant_gain" and not difference.high < 0:
        worse.append(
            f"its loss is not shown to be better than that of {champion}: {_told(difference)}"
        )
    return worse + [
        f"its loss is shown to be worse where {where}: {_told(found)}"
        for where, found in slices.items()
        if not found.low <= 0
    ]


def _told(difference: Estimate) -> str:
    return f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _by_slice(
    gate: Gate,
    slices: pd.DataFrame,
    blocks: NDArray[np.int64],
    as_of: pd.Series[Any] | None,
    challenger: Evaluation,
    champion: Evaluation,
) -> dict[str, Estimate]:
    """The loss difference among the rows of each value, the confidence shared among all of them.

    Of twenty comparisons one would else be shown to be worse by chance (Bonferroni). A slice that
    lies on a few days has blocks of its own: its interval would else be a point.
    """
    members = {
        f"{name}={value}": (slices[name] == value).to_numpy()
        for name in gate.slices
        for value, rows in slices[name].value_counts().sort_index().items()
        if rows >= gate.min_rows
    }
    confidence = 1 - (1 - gate.confidence) / max(len(members), 1)
    difference = challenger.losses - champion.losses
    return {
        where: estimate(
            difference[rows], blocks[rows] if as_of is None else blocks_of(as_of[rows]), confidence
        )
        for where, rows in members.items()
    }
