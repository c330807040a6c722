# ruff: noqa: SLF001 - the trees are scikit-learn's own, and what is made of them is proved
"""Predict with scikit-learn's histogram gradient boosting several times as fast, to the same bit.

A row's way through a tree is not walked, since no processor can foresee its turns. Every split
takes the leaves that a row cannot reach any more out of a mask, and the first leaf left is the
row's: QuickScorer (Lucchese et al., 2015, https://doi.org/10.1145/2766462.2767733), here over
blocks of rows, so that a split is a few vector instructions. The comparisons are scikit-learn's,
and leaves are added in its order, so sums do not differ in any bit; everything around them
(validation, categories, the link function) stays scikit-learn's own code.

What numba compiled is kept beside this file, in the user's cache or where NUMBA_CACHE_DIR says, and
so compiled once a machine; where none of them can be written, by each process anew.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# By name, so that nothing is imported to see that an estimator is another; a subclass is another,
# since it may predict otherwise.
PIPELINE = "sklearn.pipeline.Pipeline"
BOOSTED = {
    f"sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoosting{kind}"
    for kind in ("Classifier", "Regressor")
}
MAX_LEAVES = 64  # bits of a mask
BLOCK = 128  # rows at a time: their features fit into a processor's first cache
MISSING = 256  # scikit-learn's codes of categories are smaller
EVERY = (1 << MAX_LEAVES) - 1
Found = list[tuple[int, float, NDArray[np.bool_], int]]  # as in `Splits`


class Splits(NamedTuple):
    """Splits of one kind, of all trees, one tree after the other.

    Attributes:
        ends: where each tree's splits end, shape (trees,).
        feature: what each compares, shape (splits,).
        threshold: what with, shape (splits,).
        goes_left: of splits by category, which codes go left, shape (splits, 257).
        stays: the leaves that a row can still reach if it goes right, shape (splits,).
    """

    ends: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    goes_left: NDArray[np.bool_]
    stays: NDArray[np.uint64]


def compiled(estimator: Any) -> Any:
    """An estimator of the same answers whose trees are compiled; None if it is of no known kind.

    Args:
        estimator: fitted; a pipeline's last step counts.
    """
    if _kind(estimator) == PIPELINE:
        name, last = estimator.steps[-1]
        faster = compiled(last)
        if faster is None:
            return None
        pipeline = copy.copy(estimator)
        pipeline.steps = [*estimator.steps[:-1], (name, faster)]
        return pipeline
    if _kind(estimator) not in BOOSTED:
        return None
    trees = [tree for iteration in estimator._predictors for tree in iteration]
    if not all(map(_is_usual, trees)):
        return None
    known, place = estimator._bin_mapper.make_known_categories_bitsets()
    (to_left, to_right, by_code), leaves = _flattened(trees, known, place)

    add = _machine_code()

    def add_leaves(inputs: Any, _predictors: Any, raw: NDArray[np.float64], *_: Any) -> None:
        add(np.asarray(inputs, "float64"), to_left, to_right, by_code, leaves, raw)

    faster = copy.copy(estimator)
    faster._predict_iterations = add_leaves
    if estimator._preprocessor is not None:
        faster._preprocess_X = _preprocessing(estimator)
    return faster


def _preprocessing(estimator: Any) -> Callable[..., NDArray[np.float64]]:
    """Categories as the codes they had when they were learnt, before the numbers.

    As scikit-learn's transformers do it for any input, here for a frame of the same columns, with
    pandas' categories and float64; another is left to them.
    """
    names = list(estimator.feature_names_in_)
    is_categorical = estimator.is_categorical_
    categorical = [name for name, found in zip(names, is_categorical, strict=True) if found]
    numbers = [name for name, found in zip(names, is_categorical, strict=True) if not found]
    learnt = estimator._preprocessor.named_transformers_["encoder"].categories_
    codes = [{category: code for code, category in enumerate(known)} for known in learnt]
    kinds = dict.fromkeys(categorical, "category") | dict.fromkeys(numbers, "float64")

    def preprocess(inputs: Any, *, reset: bool = False) -> NDArray[np.float64]:
        if reset or {name: str(kind) for name, kind in inputs.dtypes.items()} != kinds:
            found: NDArray[np.float64] = estimator._preprocess_X(inputs, reset=reset)
            return found
        answer = np.empty((len(inputs), len(names)))
        for place, (name, code) in enumerate(zip(categorical, codes, strict=True)):
            values = inputs[name].array
            # The last is for a missing value, whose code is -1.
            of_value = np.array([*(code.get(each, np.nan) for each in values.categories), np.nan])
            answer[:, place] = of_value[values.codes]
        answer[:, len(categorical) :] = inputs[numbers].to_numpy()
        return answer

    return preprocess


def _kind(estimator: Any) -> str:
    return f"{type(estimator).__module__}.{type(estimator).__qualname__}"


@cache
def _machine_code() -> Callable[..., None]:
    import numba

    compiler: Callable[..., Callable[..., Callable[..., None]]] = numba.njit
    try:
        return compiler(cache=True, nogil=True)(_add_leaves)
    except RuntimeError:  # it finds no folder to keep it in; see `code_cache`
        return compiler(nogil=True)(_add_leaves)


def _is_usual(tree: Any) -> bool:
    """Whether a mask holds the tree's leaves, and no threshold lies between two infinities."""
    is_unknown = np.isnan(tree.nodes["num_threshold"]) & (tree.nodes["is_categorical"] == 0)
    return tree.get_n_leaf_nodes() <= MAX_LEAVES and not is_unknown.any()


def _flattened(
    trees: Sequence[Any], known: NDArray[np.uint32], place: NDArray[np.uint32]
) -> tuple[tuple[Splits, Splits, Splits], NDArray[np.float64]]:
    """The splits that send a missing value left, those that send it right, and by category.

    Args:
        trees: scikit-learn's, in the order they are added.
        known: which codes of each categorical feature are known, as bits.
        place: where in `known` a feature is.

    Returns:
        The splits, and the values of each tree's leaves from left to right, shape (trees, 64).
    """
    to_left: Found = []
    to_right: Found = []
    by_code: Found = []
    ends = []
    leaves = np.zeros((len(trees), MAX_LEAVES))
    for number, tree in enumerate(trees):
        ordered: list[int] = []
        for node, (first, after) in _left_spans(tree.nodes, 0, ordered):
            feature = int(node["feature_idx"])
            goes_left = np.zeros(MISSING + 1, "bool")
            kind = to_left if node["missing_go_to_left"] else to_right
            if node["is_categorical"]:
                goes_left = _codes_left(node, tree.raw_left_cat_bitsets, known[place[feature]])
                kind = by_code
            gone = ((1 << (after - first)) - 1) << first
            kind.append((feature, float(node["num_threshold"]), goes_left, EVERY & ~gone))
        ends.append((len(to_left), len(to_right), len(by_code)))
        leaves[number, : len(ordered)] = tree.nodes["value"][ordered]
    left, right, code = np.array(ends, "int64").reshape(-1, 3).T.copy()
    return (_splits(left, to_left), _splits(right, to_right), _splits(code, by_code)), leaves


def _left_spans(
    nodes: NDArray[Any], at: int, ordered: list[int]
) -> Iterator[tuple[Any, tuple[int, int]]]:
    """Each split below a node, and which leaves are on its left; `ordered` gets the leaves."""
    node = nodes[at]
    if node["is_leaf"]:
        ordered.append(at)
        return
    first = len(ordered)
    yield from _left_spans(nodes, int(node["left"]), ordered)
    yield node, (first, len(ordered))
    yield from _left_spans(nodes, int(node["right"]), ordered)


def _codes_left(
    node: Any, lefts: NDArray[np.uint32], known: NDArray[np.uint32]
) -> NDArray[np.bool_]:
    """Which codes go left at a split by category; the last entry is for a missing value."""
    missing = bool(node["missing_go_to_left"])
    left, right = _bits(lefts[node["bitset_idx"]]), _bits(known)
    return np.append(left | (~right & missing), missing)


def _bits(words: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """The 256 bits of eight words, the lowest first."""
    return np.unpackbits(words.astype("<u4").view("uint8"), bitorder="little").astype("bool")


def _splits(ends: NDArray[np.int64], found: Found) -> Splits:
    return Splits(
        ends=ends,
        feature=np.array([split[0] for split in found], "int64"),
        threshold=np.array([split[1] for split in found], "float64"),
        goes_left=np.array([split[2] for split in found], "bool").reshape(-1, MISSING + 1),
        stays=np.array([split[3] for split in found], "uint64"),
    )


def _add_leaves(  # noqa: C901, PLR0912
    inputs: NDArray[np.float64],
    to_left: Splits,
    to_right: Splits,
    by_code: Splits,
    leaves: NDArray[np.float64],
    raw: NDArray[np.float64],
) -> None:
    """Add to each row of `raw` the leaf it reaches in each tree; trees by turns to its columns.

    Args:
        inputs: shape (rows, features).
        to_left: splits that send a missing value left.
        to_right: splits that send it right.
        by_code: splits by category.
        leaves: as of `_flattened`.
        raw: shape (rows, columns).
    """
    rows, features = inputs.shape
    left_ends, left_feature, left_threshold, _, left_stays = to_left
    right_ends, right_feature, right_threshold, _, right_stays = to_right
    code_ends, code_feature, _, code_goes_left, code_stays = by_code
    every = ~np.uint64(0)
    reach = np.empty(BLOCK, np.uint64)
    block = np.empty((features, BLOCK))
    for start in range(0, rows, BLOCK):
        size = min(BLOCK, rows - start)
        for row in range(size):
            for feature in range(features):
                block[feature, row] = inputs[start + row, feature]
        left, right, code = 0, 0, 0
        for tree in range(leaves.shape[0]):
            column = tree % raw.shape[1]
            for row in range(size):
                reach[row] = every
            for split in range(left, left_ends[tree]):
                values, threshold = block[left_feature[split]], left_threshold[split]
                stays = left_stays[split]
                for row in range(size):
                    reach[row] &= stays if values[row] > threshold else every
            for split in range(right, right_ends[tree]):
                values, threshold = block[right_feature[split]], right_threshold[split]
                stays = right_stays[split]
                for row in range(size):
                    reach[row] &= every if values[row] <= threshold else stays
            for split in range(code, code_ends[tree]):
                values, stays = block[code_feature[split]], code_stays[split]
                for row in range(size):
                    value = values[row]
                    known = np.int64(value) if 0 <= value < MISSING else np.int64(MISSING)
                    if not code_goes_left[split, known]:
                        reach[row] &= stays
            left, right, code = left_ends[tree], right_ends[tree], code_ends[tree]
            for row in range(size):
                word = reach[row]
                lowest = word & (~word + np.uint64(1))
                leaf = 0
                if lowest & np.uint64(0xFFFFFFFF00000000):
                    leaf += 32
                if lowest & np.uint64(0xFFFF0000FFFF0000):
                    leaf += 16
                if lowest & np.uint64(0xFF00FF00FF00FF00):
                    leaf += 8
                if lowest & np.uint64(0xF0F0F0F0F0F0F0F0):
                    leaf += 4
                if lowest & np.uint64(0xCCCCCCCCCCCCCCCC):
                    leaf += 2
                if lowest & np.uint64(0xAAAAAAAAAAAAAAAA):
                    leaf += 1
                raw[start + row, column] += leaves[tree, leaf]
