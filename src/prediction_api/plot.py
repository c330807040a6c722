"""The history of a prediction as a line of steps, drawn by the server.

All lies in a box of 1000 x 100 that the page stretches to its width; so it holds no letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

WIDTH, HEIGHT = 1000, 100


@dataclass(frozen=True)
class Point:
    """What readers saw from a moment on.

    Attributes:
        score: of the prediction.
        version: which scored it.
        since: when readers could first see it.
        until: when they no longer could; None while they can.
    """

    score: float
    version: str
    since: datetime
    until: datetime | None


@dataclass(frozen=True)
class Plot:
    """A drawing.

    Attributes:
        path: of the line, as SVG has it.
        dots: where each prediction was published.
        marks: where another version came.
        low: the score at the bottom.
        high: the score at the top.
        began: the moment at the left.
        ended: the moment at the right.
    """

    path: str
    dots: Sequence[tuple[float, float]]
    marks: Sequence[float]
    low: float
    high: float
    began: datetime
    ended: datetime


def plot(points: Sequence[Point], now: datetime) -> Plot:
    """Draw a history.

    Args:
        points: oldest first; at least one.
        now: how far what can still be seen reaches.
    """
    low, high = _bounds([point.score for point in points])
    began, last = points[0].since, points[-1]
    ended = max(_end(last, last.since - began, now), began + timedelta(seconds=1))

    def x(moment: datetime) -> float:
        share = (min(moment, ended) - began) / (ended - began)
        return round(share * WIDTH, 1)

    def y(score: float) -> float:
        return round((1 - (score / 2 - low / 2) / (high / 2 - low / 2)) * HEIGHT, 1)

    steps, pen = [], None
    for point, after in zip(points, [*points[1:], None], strict=True):
        end = point.until or (after.since if after else ended)
        here = (x(point.since), y(point.score))
        steps.append(f"{'L' if pen == here[0] else 'M'}{here[0]} {here[1]}H{x(end)}")
        pen = x(end)
    return Plot(
        path="".join(steps),
        dots=[(x(point.since), y(point.score)) for point in points],
        marks=[
            x(after.since) for before, after in pairwise(points) if before.version != after.version
        ],
        low=low,
        high=high,
        began=began,
        ended=ended,
    )


def _end(last: Point, span: timedelta, now: datetime) -> datetime:
    """How far the drawing reaches: what is long past must not become a line at its left edge."""
    if last.until is not None:
        return last.until
    return now if not span or now - last.since <= span else last.since + span / 6


def _bounds(scores: Sequence[float]) -> tuple[float, float]:
    """The span of the drawing: that of probabilities, if all could be some."""
    low, high = min(scores), max(scores)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    margin = (high / 2 - low / 2) / 5 or abs(high) / 10
    return low - margin, high + margin
