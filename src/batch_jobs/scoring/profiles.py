"""Profiles: what rows looked like, in a few kB that can be added up, and never the rows themselves.

Training fixes the bins. A profile then counts, by feature, the values from each edge on, the nulls
and the categories, and adds up values and their squares in whole steps of what training saw, so
that merging is the addition of whole numbers: exact, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batch_jobs.scoring.bins import Bins, scaled
from batch_jobs.scoring.counts import Counts

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

STEPS = 256  # of one spread: values are added up in whole ones
FARTHEST = 512.0  # spreads from the middle: what lies farther off is added up as if it lay there
# Of a longer chunk so many rows are drawn, and each counts for as many as it stands for.
PROFILED_ROWS = 2_048
HEAD = ("rows", "read", "rejected", "skipped")  # `rows` are those that all else is made of


@dataclass(frozen=True)
class Profile:
    """What rows looked like, by the bins of one version.

    Attributes:
        counts: whole numbers as `Layout` places them, shape (counts,).
        lowest: the least value of each number, infinity if there is none, shape (numbers,).
        highest: the greatest, minus infinity if there is none.
    """

    counts: NDArray[np.int64]
    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]

    def __add__(self, other: Profile) -> Profile:
        import numpy as np

        return Profile(
            self.counts + other.counts,
            np.minimum(self.lowest, other.lowest),
            np.maximum(self.highest, other.highest),
        )


class Layout:
    """Where in a profile what is counted, each as a slice or a place.

    Of each number: how many values there are, their sum and the sum of their squares in steps, and
    how many lie at or beyond each edge. Of each relation the same but for edges. Of each category:
    the nulls, the values that are named, the others of training, and those never seen. And labels.

    Args:
        bins: of a version.
    """

    def __init__(self, bins: Bins) -> None:
        self.bins = bins
        at = len(HEAD)
        count, related = len(bins.numbers), len(bins.relations)
        self.width = max((len(each.edges) for each in bins.numbers), default=0)
        self.sums = slice(at, at := at + 3 * count)  # n, sum, squares: (3, numbers)
        self.edges = slice(at, at := at + self.width * count)  # (numbers, width)
        self.relations = slice(at, at := at + 3 * related)  # (3, relations)
        self.categories = []
        for each in bins.categories:
            self.categories.append(slice(at, at := at + len(each.named) + 3))
        self.labels = slice(at, at := at + len(bins.classes))
        self.size = at

    def empty(self, counts: Counts | None = None) -> Profile:
        """The profile where no row was scored, of those that were read."""
        import numpy as np

        none = np.full(len(self.bins.numbers), np.inf)
        found = np.zeros(self.size, "int64")
        if counts:
            found[1 : len(HEAD)] = counts.read, counts.rejected, counts.skipped
        return Profile(found, none, -none)


class Profiler:
    """Makes the profiles of a version's rows.

    Args:
        bins: of the version.
        known: by category all values that its fit has seen.
    """

    def __init__(self, bins: Bins, known: Mapping[str, Sequence[str]]) -> None:
        import numpy as np
        import pyarrow as pa

        self.layout = Layout(bins)
        numbers = bins.numbers
        self._names = [each.name for each in numbers[:-1]]
        self._edges = np.full((self.layout.width, len(numbers)), np.inf)
        for place, each in enumerate(numbers):
            self._edges[: len(each.edges), place] = each.edges
        self._weights = np.zeros((len(bins.relations), len(self._names)))
        for row, relation in enumerate(bins.relations):
            self._weights[row, : len(relation.weights)] = relation.weights
        self._related = [self._names.index(each.name) for each in bins.relations]
        self._spreads = np.array([each.spread for each in bins.relations]).reshape(-1, 1)
        self._values = [
            pa.array(
                dict.fromkeys(
                    [*each.named, *(known.get(each.name, ()) if each.tells_unseen else ())]
                ),
                pa.large_string(),
            )
            for each in bins.categories
        ]

    def of(
        self,
        rows: pd.DataFrame,
        scores: NDArray[np.float64],
        labels: pa.Array,
        counts: Counts,
    ) -> Profile:
        """The profile of rows that were scored, and of how many were not.

        Args:
            rows: with the features, as the contract gives them.
            scores: one a row.
            labels: likewise.
            counts: what became of all rows that were read.
        """
        import numpy as np

        layout, weight = self.layout, 1
        if not len(rows):
            return layout.empty(counts)
        if len(rows) > PROFILED_ROWS:
            weight = -(-len(rows) // PROFILED_ROWS)
            drawn = _drawn(len(rows), weight)
            rows, scores, labels = rows.iloc[drawn], scores[drawn], labels.take(drawn)
        values, null, z, left = self._numbers(rows, scores)
        found = np.zeros(layout.size, "int64")
        there = len(rows) - np.count_nonzero(null, axis=1)
        found[layout.sums] = np.concatenate([there, *(part.sum(axis=1) for part in _squared(z))])
        edges = found[layout.edges].reshape(len(values), layout.width)
        for place, edge in enumerate(self._edges):
            edges[:, place] = np.count_nonzero(values >= edge[:, None], axis=1)
        sums = [part.sum(axis=1) for part in _squared(left)]
        found[layout.relations] = np.concatenate([there[self._related], *sums])
        for where, codes in self._codes(rows, labels):
            found[where] = np.bincount(codes, minlength=where.stop - where.start)
        found[0] = len(rows)
        found *= weight
        found[1 : len(HEAD)] = counts.read, counts.rejected, counts.skipped
        least = np.where(null, np.inf, values).min(axis=1, initial=np.inf)
        most = np.where(null, -np.inf, values).max(axis=1, initial=-np.inf)
        return Profile(found, least, most)

    def each(
        self,
        rows: pd.DataFrame,
        scores: NDArray[np.float64],
        labels: pa.Array,
        firsts: Sequence[int],
    ) -> list[Profile]:
        """The profiles of groups of rows, all of which were scored; as `of` makes each of them.

        Args:
            rows: of all groups, one after another.
            scores: one a row.
            labels: likewise.
            firsts: the place of each group's first row, ascending; no group is empty.
        """
        import numpy as np

        layout = self.layout
        values, null, z, left = self._numbers(rows, scores)
        by_row = np.zeros((len(rows), layout.size), "int64")
        by_row[:, : len(HEAD)] = [1, 1, 0, 0]
        by_row[:, layout.sums] = np.concatenate([~null, *_squared(z)]).T
        compared = values[:, None, :] >= self._edges.T[:, :, None]
        by_row[:, layout.edges] = compared.reshape(-1, len(rows)).T
        by_row[:, layout.relations] = np.concatenate([~null[self._related], *_squared(left)]).T
        for where, codes in self._codes(rows, labels):
            by_row[np.arange(len(rows)), where.start + codes] = 1
        counts = np.add.reduceat(by_row, firsts, axis=0)
        least = np.minimum.reduceat(np.where(null, np.inf, values), firsts, axis=1)
        most = np.maximum.reduceat(np.where(null, -np.inf, values), firsts, axis=1)
        return [Profile(*parts) for parts in zip(counts, least.T, most.T, strict=True)]

    def _numbers(
        self, rows: pd.DataFrame, scores: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
        """Values, where they are null, both in whole steps, and how far each lies from the others.

        Of shape (numbers, rows), and (relations, rows) the last; both in steps are 0 where null.
        """
        import numpy as np

        numbers = self.layout.bins.numbers
        values = np.empty((len(numbers), len(rows)))
        values[:-1] = rows[self._names].to_numpy("float64").T
        values[-1] = scores
        null = np.isnan(values)
        z = np.clip(scaled(values.T, numbers).T, -FARTHEST, FARTHEST)
        np.copyto(z, 0.0, where=null)
        left = (z[self._related] - self._weights @ z[:-1]) / self._spreads
        left = np.clip(left, -FARTHEST, FARTHEST)
        np.copyto(left, 0.0, where=null[self._related])
        return values, null, np.rint(z * STEPS), np.rint(left * STEPS)

    def _codes(
        self, rows: pd.DataFrame, labels: pa.Array
    ) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """For each category and the labels: where they are counted, and each row's place there."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        bins = self.layout.bins
        for each, where, known in zip(
            bins.categories, self.layout.categories, self._values, strict=True
        ):
            texts = pa.array(rows[each.name], pa.large_string(), from_pandas=True)
            named, unknown = len(each.named), len(each.named) + (2 if each.tells_unseen else 1)
            codes = pc.index_in(texts, known).fill_null(unknown - 1).to_numpy() + 1
            if len(known) > named:
                codes[(codes > named) & (codes != unknown)] = named + 1
            if texts.null_count:
                codes[texts.is_null().to_numpy(zero_copy_only=False)] = 0
            yield where, codes.astype("int64", copy=False)
        if bins.classes:
            codes = pc.index_in(labels, pa.array(bins.classes, labels.type)).to_numpy()
            yield self.layout.labels, np.asarray(codes, "int64")


def _squared(steps: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole steps and their squares, as whole numbers."""
    whole = steps.astype("int64")
    return whole, whole * whole


def _drawn(count: int, weight: int) -> NDArray[np.int64]:
    """One row of each `weight` in a row, the same each time and yet of no period."""
    import numpy as np

    firsts = np.arange(0, count - weight + 1, weight)
    return firsts + np.random.default_rng(count).integers(0, weight, len(firsts))
