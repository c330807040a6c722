"""Damage: shown by outcomes, on the same rows, in several windows and the newest; or not at all.

The loss of a sound model swings by a fifth from week to week, because the world does. So a model is
never held to its own past: it is compared with a constant and with other versions on the very rows
that readers saw, and its mean answer with the mean outcome. Drift without any of this is news.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from statistics import median
from typing import Literal

from batch_jobs.evaluation.published import Kind
from batch_jobs.interval import require_aware
from batch_jobs.model import BatchModel
from batch_jobs.monitoring import episodes
from batch_jobs.monitoring.judged_windows import JudgedWindow, judged_windows
from batch_jobs.monitoring.performance_rows import PUBLISHED, Grain
from batch_jobs.registry.deployment import Place, opened

Evidence = Literal["constant", "since", "before", "calibration"]

QUICK_DAYS = (2, 3)  # of the last days, in which a constant would have been better
PAST = 8  # windows that the newest is told beside
TOLD: Mapping[Evidence, str] = {
    "constant": "the constant known from training",
    "since": "a version trained since",
    "before": "the version before",
}
NOUNS: Mapping[Kind, str] = {
    "binary": "log-loss",
    "classes": "error rate",
    "regression": "squared error",
}


@dataclass(frozen=True)
class Damage:
    """One thing that shows damage in the newest window and in others before it.

    Attributes:
        evidence: who would have done better (`constant`, `since`, `before`), or `calibration`.
        grain: of the windows.
        window_start: of the newest one.
        window_end: its end.
        shown_in: how many of the last windows show it.
        of: how many those are.
        excess: by how much loss or mean answer is too high in the newest one.
        low: lower bound of its interval.
        high: upper bound.
        bound: what that interval lies beyond.
        severity: `low` or `high` in multiples of the bound; where the bound is 0, of the least
            damage that counts.
        rows: with an outcome in the newest window.
        model_version: the version that served.
        words: all of it in one line.
    """

    evidence: Evidence
    grain: Grain
    window_start: datetime
    window_end: datetime
    shown_in: int
    of: int
    excess: float
    low: float
    high: float
    bound: float
    severity: float
    rows: int
    model_version: str
    words: str


@dataclass(frozen=True)
class Judgement:
    """Whether a model does damage, as far as outcomes tell.

    Attributes:
        model: its name.
        at: when that was judged.
        damage: what shows it, the worst first; empty if nothing does.
        since: when the damage was first seen, if there is any.
        retrain: whether training is wanted because of it: if `retrain_on_drift` is set, until
            `episodes.acknowledge` says that it was asked for.
        smallest: the smallest rise in loss that the newest window could have shown; None if no
            window could be judged.
        news: how the newest window did, and how that compares with others, a line each.
    """

    model: str
    at: datetime
    damage: tuple[Damage, ...] = ()
    since: datetime | None = None
    retrain: bool = False
    smallest: float | None = None
    news: tuple[str, ...] = ()


def judge(place: Place, name: str, now: datetime) -> Judgement:
    """Judge the newest windows of a model by their figures; see `performance.update`.

    Damage opens an episode, which the next look goes on with, and the first newest window without
    any closes.

    Raises:
        InputError: unknown model, or no warehouse.
        WarehouseUnavailableError: the database does not answer.
    """
    deployment, now = opened(place), require_aware(now)
    model = deployment.model(name)
    performance = model.monitor.performance
    asked: list[tuple[Grain, int, int]] = [
        (performance.judged, performance.damaged, performance.of)
    ]
    if performance.judged == "week":
        asked.append(("day", *QUICK_DAYS))
    damage: list[Damage] = []
    series: list[JudgedWindow] = []
    for grain, least, most in asked:
        windows = judged_windows(deployment, model, grain, max(most, PAST + 1), now)
        damage += _damage(model, grain, windows[-most:], least)
        series = series or windows
    damage.sort(key=lambda each: -each.severity)
    told = json.dumps([asdict(each) for each in damage], default=str)
    newest = max((each.window_start for each in damage), default=None)
    judged = bool(series)
    episode = episodes.keep(deployment.warehouse, name, newest, told, now, judged=judged)
    wanted = model.retrain_on_drift is not None and episode is not None
    return Judgement(
        model=name,
        at=now,
        damage=tuple(damage),
        since=episode.opened_at if episode else None,
        retrain=wanted and episode is not None and episode.retraining_asked_at is None,
        smallest=_smallest(model, series[-1]) if series else None,
        news=tuple(_news(model, series)),
    )


def _damage(
    model: BatchModel, grain: Grain, windows: Sequence[JudgedWindow], least: int
) -> Iterator[Damage]:
    """What shows damage in the newest of some windows, and in at least so many of them."""
    if not windows:
        return
    quick = grain != model.monitor.performance.judged
    kinds: Sequence[Evidence] = (
        ("constant",) if quick else ("constant", "since", "before", "calibration")
    )
    for evidence in kinds:
        shown = [found for each in windows if (found := _shown(model, each, evidence))]
        newest = _shown(model, windows[-1], evidence)
        if newest is None or len(shown) < least:
            continue
        excess, low, high, bound, unit = newest
        window, published = windows[-1].window, windows[-1].published
        nearest = low if excess > 0 else -high
        yield Damage(
            evidence=evidence,
            grain=grain,
            window_start=window.start,
            window_end=window.end,
            shown_in=len(shown),
            of=len(windows),
            excess=excess,
            low=low,
            high=high,
            bound=bound,
            severity=nearest / max(unit, 1e-12),
            rows=window.label_count,
            model_version=published.model_version,
            words=_words(windows[-1], evidence, (excess, low, high), len(shown), len(windows)),
        )


def _shown(
    model: BatchModel, judged: JudgedWindow, evidence: Evidence
) -> tuple[float, float, float, float, float] | None:
    """Excess, its interval, the bound and the unit of severity, if the window shows that damage."""
    performance = model.monitor.performance
    least = performance.least * judged.scale
    if evidence == "calibration":
        bias = judged.figures[PUBLISHED, "bias"]
        bound = performance.calibration
        if judged.kind == "regression":
            bound *= judged.scale**0.5
        beyond = bias.low > bound or bias.high < -bound
        return (bias.value, bias.low, bias.high, bound, bound) if beyond else None
    other = judged.compared(evidence)
    if other is None or other.worse_by is None or other.label_count < model.gate.min_rows:
        return None
    bound = 0.0 if evidence == "constant" else least
    low, high = other.worse_by_low or 0.0, other.worse_by_high or 0.0
    return (other.worse_by, low, high, bound, least) if low > bound else None


def _words(
    judged: JudgedWindow,
    evidence: Evidence,
    found: tuple[float, float, float],
    shown: int,
    windows: int,
) -> str:
    excess, low, high = found
    window, published = judged.window, judged.published
    when = f"the {window.grain} of {window.start:%Y-%m-%d}"
    interval = f"{excess:+.4f} [{low:+.4f}, {high:+.4f}]"
    repeated = f"in {shown} of the last {windows} {window.grain}s and the newest"
    rows = f"{window.label_count:,} rows of {when}"
    if evidence == "calibration":
        side = "high" if excess > 0 else "low"
        return (
            f"{published.model_version} answers too {side} on average by {interval} on the {rows}, "
            f"{repeated}"
        )
    return (
        f"{published.model_version} does worse than {TOLD[evidence]}: its {NOUNS[judged.kind]} is "
        f"higher by {interval} on the same {rows}, {repeated}"
    )


def _smallest(model: BatchModel, judged: JudgedWindow) -> float | None:
    """How much more than another version a model must lose for a window like this to show it."""
    least = model.monitor.performance.least * judged.scale
    for contender, bound in (("since", least), ("before", least), ("constant", 0.0)):
        other = judged.compared(contender)
        if other is not None and other.worse_by is not None and other.worse_by_low is not None:
            return bound + other.worse_by - other.worse_by_low
    return None


def _news(model: BatchModel, series: Sequence[JudgedWindow]) -> Iterator[str]:
    """How the newest window did, and whether it was the world or the model."""
    if not series:
        return
    newest, past = series[-1], series[:-1][-PAST:]
    window, loss = newest.window, newest.published
    metric = loss.metric.replace("_", "-")
    line = (
        f"{window.grain} of {window.start:%Y-%m-%d}: {metric} {loss.value:.4f} "
        f"[{loss.low:.4f}, {loss.high:.4f}] on {window.label_count:,} of {window.row_count:,} rows"
    )
    if past:
        usual = median(each.published.value for each in past)
        line += f", {usual:.4f} in the {len(past)} before (median)"
    yield line
    for evidence, who in TOLD.items():
        other = newest.compared(evidence)
        if other is not None and other.worse_by is not None:
            yield (
                f"its {NOUNS[newest.kind]} less that of {who}: {other.worse_by:+.4f} "
                f"[{other.worse_by_low:+.4f}, {other.worse_by_high:+.4f}]"
            )
    smallest = _smallest(model, newest)
    if smallest is not None:
        yield f"the smallest damage that a {window.grain} of these rows can show: {smallest:+.4f}"
