"""Predict: frames in, scores out; nothing depends on which rows share a chunk.

A version answers as it was trained: with its own features, in their order, and with the categories
that it has learnt, whichever of them the rows at hand happen to have.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from batch_jobs.errors import ContractError
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.scoring import code_cache
from batch_jobs.scoring.contract import check_features, records
from batch_jobs.scoring.counts import Counts, Reject
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.scoring.profiles import Profile, Profiler

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

FEW_REFUSED = 20  # rows, however few there are; and so many of more are tried by themselves first


def answered(
    ask: Callable[[pd.DataFrame], NDArray[np.float64]],
    rows: pd.DataFrame,
    most: int | None = None,
) -> tuple[NDArray[np.float64] | None, dict[int, str]]:
    """The answers to rows, and what the estimator raises at single ones of them.

    Rows at which it raises are found by halving, so that a few among many cost little. If it raises
    at more than a quarter of them, or at most of a few from all over, the rows are not at fault.

    Args:
        ask: gives an answer to each of some rows, or raises.
        rows: at least one.
        most: at how many of them it may raise, whatever their share.

    Returns:
        Answers to the rows that have one, in their order (None if none has), and by the place of
        each other row the first line of the error.

    Raises:
        Exception: what the estimator raised, if it does so too often; never of one row alone.
    """
    import numpy as np

    refused: dict[int, str] = {}
    found: list[NDArray[np.float64]] = []
    may_be_at_fault = most is None and len(rows) > 4 * FEW_REFUSED
    most = max(len(rows) // 4, FEW_REFUSED) if most is None else most

    left = [(0, len(rows))]  # parts, the next one last
    while left:  # a function that calls itself would keep the rows until garbage is collected
        first, last = left.pop()
        try:
            found.append(ask(rows.iloc[first:last]))
        except (MemoryError, ContractError):
            raise
        except Exception as error:
            if may_be_at_fault and last - first == len(rows) and _raises_everywhere(ask, rows):
                raise
            if last - first > 1:
                middle = (first + last) // 2
                left += [(middle, last), (first, middle)]
                continue
            refused[first] = first_line(error)
            if len(refused) > most:
                raise
    return (np.concatenate(found) if found else None), refused


def _raises_everywhere(
    ask: Callable[[pd.DataFrame], NDArray[np.float64]], rows: pd.DataFrame
) -> bool:
    """Whether the estimator raises at most of a few rows from all over, each by itself."""
    raised = 0
    for number in range(FEW_REFUSED):
        place = number * (len(rows) - 1) // (FEW_REFUSED - 1)
        try:
            ask(rows.iloc[place : place + 1])
        except (MemoryError, ContractError):
            raise
        except Exception:  # noqa: BLE001 - the estimator is the user's code
            raised += 1
    return raised > FEW_REFUSED // 2


log = logging.getLogger(__name__)

# Loading what was compiled takes half a second, which 150,000 rows save again. A chunk of the
# default size that is full will not be the last.
MANY_ROWS = 50_000
PROVED_ROWS = 10_000  # of each chunk until then: scikit-learn takes as long as ours for 50,000

# Chunks of a few rows, as a backfill or a replay has them, take long for what surrounds the trees.
MANY_CALLS = 50


@dataclass(frozen=True)
class Predicted:
    """What became of the rows of one chunk.

    Attributes:
        counts: how many there were.
        scored: `entity_id`, `score`, `label`.
        rejected: entity id, reason, the row as it was read.
        scores: the lowest and the highest score, if there is any.
        profile: what they looked like, if the predictor has a profiler and it did not fail.
    """

    counts: Counts
    scored: pa.Table
    rejected: Sequence[Reject]
    scores: tuple[float, float] | None
    profile: Profile | None = None


class Predictor:
    """A version that predicts chunk after chunk, and faster once there were many.

    Its trees are then compiled, if numba is there and they are of a kind that can be. What was
    compiled is taken only if its answers to the first rows of each chunk so far are the estimator's
    own in every bit.

    Args:
        fitted: the version.

    Attributes:
        fitted: the one that predicts.
        profiler: tells what the rows looked like, if that is wanted.
    """

    profiler: Profiler | None = None

    def __init__(self, fitted: Fitted) -> None:
        self.fitted = fitted
        self._rows_left, self._calls_left = MANY_ROWS, MANY_CALLS
        self._seen: list[tuple[pd.DataFrame, NDArray[np.float64]]] = []

    def answers(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """What the version says of each row; see `Fitted.answers`."""
        import numpy as np

        inputs = self.fitted.inputs(rows)
        if min(self._rows_left, self._calls_left) <= 0:
            return self.fitted.answers(inputs)
        self._rows_left -= len(inputs)
        self._calls_left -= 1
        head, rest = inputs[:PROVED_ROWS], inputs[PROVED_ROWS:]
        answer = self.fitted.answers(head)
        self._seen.append((head, answer))
        if min(self._rows_left, self._calls_left) <= 0:
            self.fitted = _compiled(self.fitted, self._seen)
            self._seen = []
        if rest.empty:
            return answer
        return np.concatenate([answer, self.fitted.answers(rest)])


def _compiled(fitted: Fitted, seen: Sequence[tuple[pd.DataFrame, NDArray[np.float64]]]) -> Fitted:
    """The version with its trees compiled, if that can be done and gives the same answers."""
    import numpy as np

    try:
        from batch_jobs.scoring.compiled_trees import compiled

        estimator = compiled(fitted.estimator)
        if estimator is None:
            return fitted
        if unkept := code_cache.problem():
            log.warning("%s", unkept)
        faster = replace(fitted, estimator=estimator)
        same = all(
            np.array_equal(faster.answers(inputs), answer, equal_nan=True)
            for inputs, answer in seen
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the estimator itself goes on
        log.info("trees are not compiled: %s", first_line(error))
        return fitted
    if not same:
        log.warning("trees are not compiled: another answer than the estimator's own")
    return faster if same else fitted


def _no_rows() -> pa.Table:
    import pyarrow as pa

    return pa.table({"entity_id": [], "score": [], "label": []})


def predict_chunk(
    model: BatchModel, predictor: Predictor | None, interval: Interval, chunk: pd.DataFrame
) -> Predicted:
    """Hold rows to the contract and predict those that fit.

    Args:
        model: what the rows mean.
        predictor: who predicts; None if there is no row.
        interval: where every `as_of` lies.
        chunk: rows as of the features query.

    Raises:
        ContractError: whole columns or keys are wrong, or the estimator answers other rows.
    """
    import pyarrow as pa

    checked = check_features(model, chunk, interval)
    rows, rejected = checked.rows, list(checked.rejected)
    if rows.empty or predictor is None:
        return _none_scored(predictor, chunk, rows, rejected)
    answer, refused = answered(predictor.answers, rows)
    if refused:
        bad = rows.iloc[list(refused)]
        rejected += [
            (key, f"the estimator raised {error}", row)
            for key, error, row in zip(
                bad["entity_id"], refused.values(), records(bad), strict=True
            )
        ]
        rows = rows.drop(index=bad.index)
    if answer is None:
        return _none_scored(predictor, chunk, rows, rejected)
    scores, labels = predictor.fitted.scores_and_labels(answer)
    table = pa.table(
        {
            "entity_id": pa.array(rows["entity_id"], pa.string()),
            "score": scores,
            "label": pa.array(labels, pa.string()),
        }
    )
    sound = predictor.fitted.are_sound(scores)
    if not sound.all():
        wild = rows[~sound]
        rejected += [
            (key, f"the model answered {score}", row)
            for key, score, row in zip(
                wild["entity_id"], scores[~sound], records(wild), strict=True
            )
        ]
        table, scores, rows = table.filter(pa.array(sound)), scores[sound], rows[sound]
    counts = Counts(len(chunk), table.num_rows, len(rejected))
    extremes = (float(scores.min()), float(scores.max())) if len(scores) else None
    profile = profile_of(predictor, rows, table, counts)
    return Predicted(counts, table, rejected, extremes, profile)


def _none_scored(
    predictor: Predictor | None, chunk: pd.DataFrame, rows: pd.DataFrame, rejected: Sequence[Reject]
) -> Predicted:
    counts, table = Counts(len(chunk), 0, len(rejected)), _no_rows()
    return Predicted(counts, table, rejected, None, profile_of(predictor, rows[:0], table, counts))


def profile_of(
    predictor: Predictor | None, rows: pd.DataFrame, scored: pa.Table, counts: Counts
) -> Profile | None:
    """What rows looked like; None if nobody asks, or it cannot be told: that stops no run."""
    if predictor is None or predictor.profiler is None:
        return None
    try:
        scores = scored["score"].to_numpy().astype("float64")
        labels = scored["label"].combine_chunks()
        return predictor.profiler.of(rows, scores, labels, counts)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rows are scored
        log.warning("a chunk has no profile: %s", first_line(error))
        return None
