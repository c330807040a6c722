"""Bins: what training fixes, once, so that all profiles of a version can be added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.model import Category, Feature, Number

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

MOST_EDGES = 15
CELLS = 1_500  # edges of all numbers together at most, so that a profile stays a few kB
MANY_AT_END = 0.05  # share of rows
KNOWN_VALUES = 50  # of a category: so many values are counted by name, the most frequent ones
MOST_KNOWN = 2_000
MOST_VALUES = 600  # of all categories together
# The ends of training's range lie at the first and the last quantile. Beyond them, in widths of it:
BEYOND = (0.1, 0.25, 1.0)
LEAST_EXPLAINED = 0.3  # share of a number's variance that others explain, to be watched for it
MOST_RELATED = 60  # numbers among which relations are looked for


@dataclass(frozen=True)
class NumberBins:
    """How one number is counted.

    Attributes:
        name: the feature; `score` for the score.
        edges: ascending; values are counted from each one on.
        low: place of the edge at which training's range begins.
        high: place of the first edge beyond its end.
        middle: the value from which others are added up.
        spread: what they are added up in.
        hard_low: whether training's range begins where many values lie, as at zero: less is news.
        hard_high: likewise of its end.
    """

    name: str
    edges: tuple[float, ...]
    low: int
    high: int
    middle: float
    spread: float
    hard_low: bool = False
    hard_high: bool = False


@dataclass(frozen=True)
class Relation:
    """A number as far as the other ones tell it, linearly; its distance from that is added up.

    Attributes:
        name: the number.
        weights: what each of the numbers counts, all of them in their spreads.
        spread: of the distance in training.
    """

    name: str
    weights: tuple[float, ...]
    spread: float


@dataclass(frozen=True)
class CategoryBins:
    """How one category is counted.

    Attributes:
        name: the feature.
        named: the values that are counted one by one.
        others: how many further values training has seen, which are counted together.
        tells_unseen: whether those never seen are counted apart from them; not if there are more
            than `MOST_KNOWN` to look each row up in.
    """

    name: str
    named: tuple[str, ...]
    others: int
    tells_unseen: bool


@dataclass(frozen=True)
class Bins:
    """How rows of a version are counted.

    Attributes:
        numbers: features of kind Number in declared order, and last the score.
        relations: numbers that others tell.
        categories: features of kind Category.
        classes: the labels that can be predicted; none of a regression.
    """

    numbers: tuple[NumberBins, ...]
    relations: tuple[Relation, ...]
    categories: tuple[CategoryBins, ...]
    classes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain values of JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Bins:
        """What `as_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            tuple(NumberBins(**(n | {"edges": tuple(n["edges"])})) for n in told["numbers"]),
            tuple(Relation(**(r | {"weights": tuple(r["weights"])})) for r in told["relations"]),
            tuple(CategoryBins(**(c | {"named": tuple(c["named"])})) for c in told["categories"]),
            tuple(told["classes"]),
        )


def bins_of(
    rows: pd.DataFrame,
    scores: NDArray[np.float64],
    features: Mapping[str, Feature],
    classes: Sequence[str] | None,
) -> Bins:
    """Fix the bins by the rows of training.

    Args:
        rows: with the features, numbers as float64.
        scores: of the rows, shape (rows,).
        features: their kinds.
        classes: what can be predicted.
    """
    names = [name for name, kind in features.items() if isinstance(kind, Number)]
    cells = max(min(MOST_EDGES, CELLS // (len(names) + 1)), 5)
    numbers = [_number(name, rows[name].to_numpy("float64"), cells) for name in names]
    numbers.append(_number("score", scores, cells))
    labelled = [name for name, kind in features.items() if isinstance(kind, Category)]
    most = max(min(KNOWN_VALUES, MOST_VALUES // max(len(labelled), 1)), 5)
    return Bins(
        tuple(numbers),
        _relations(rows, numbers[:-1]),
        tuple(_category(name, rows[name], most) for name in labelled),
        tuple(classes or ()),
    )


def _number(name: str, values: NDArray[np.float64], cells: int) -> NumberBins:
    import numpy as np

    values = values[np.isfinite(values)]
    if not len(values):
        return NumberBins(name, (), 0, 0, 0.0, 1.0)
    tails = [0.01, 0.05, 0.95, 0.99] if cells >= 13 else []
    places = np.unique([*np.linspace(0, 1, min(cells - len(tails), 11)), *tails])
    inner = np.unique(np.quantile(values, places))
    low, high = float(inner[0]), float(inner[-1])
    after = float(np.nextafter(high, np.inf))
    width = high - low
    middle = float(np.median(values))
    far = [width * share for share in BEYOND] if width > 0 else []
    edges = [*(low - each for each in reversed(far)), *inner[:-1], after]
    if width == 0:
        edges = [low, after]
    edges += [high + each for each in far]
    spread = float(values.std()) or max(abs(middle), 1.0) * 1e-3
    first = len(far)
    return NumberBins(
        name,
        tuple(map(float, edges)),
        first,
        len(edges) - 1 - len(far),
        middle,
        spread,
        hard_low=bool((values == low).mean() > MANY_AT_END),
        hard_high=bool((values == high).mean() > MANY_AT_END),
    )


def _category(name: str, values: pd.Series[Any], most: int) -> CategoryBins:
    counts = values.dropna().astype(str).value_counts()
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    named = tuple(str(value) for value, _ in ordered[:most])
    others = max(len(ordered) - most, 0)
    return CategoryBins(name, named, others, tells_unseen=len(ordered) <= MOST_KNOWN)


def _relations(rows: pd.DataFrame, numbers: Sequence[NumberBins]) -> tuple[Relation, ...]:
    """Which numbers the others tell, by least squares with a little shrinkage."""
    import numpy as np

    known = numbers[:MOST_RELATED]
    if len(known) < 2:
        return ()
    z = scaled(rows[[each.name for each in known]].to_numpy("float64"), known)
    there = ~np.isnan(z)
    z = np.where(there, z, 0.0)
    found = []
    for place, each in enumerate(known):
        others = [i for i in range(len(known)) if i != place]
        seen = there[:, place]
        if not seen.any():
            continue
        given = z[seen][:, others]
        products = given.T @ given / len(given) + 0.01 * np.eye(len(others))
        weights = np.zeros(len(known))
        weights[others] = np.linalg.solve(products, given.T @ z[seen, place] / len(given))
        left = z[seen, place] - z[seen] @ weights
        total = float(z[seen, place].std())
        if total > 0 and left.std() ** 2 < (1 - LEAST_EXPLAINED) * total**2:
            told = tuple(round(float(weight), 6) for weight in weights)
            found.append(Relation(each.name, told, max(float(left.std()), 1e-3)))
    return tuple(found)


def scaled(values: NDArray[np.float64], numbers: Sequence[NumberBins]) -> NDArray[np.float64]:
    """Values of shape (rows, numbers), in spreads from the middle of training."""
    import numpy as np

    middles = np.array([each.middle for each in numbers])
    spreads = np.array([each.spread for each in numbers])
    found: NDArray[np.float64] = (values - middles) / spreads
    return found
