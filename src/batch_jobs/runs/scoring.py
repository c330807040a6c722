"""Score one part of a run: reading, predicting and staging overlap, chunk by chunk.

At any time a few chunks have been read, one is predicted and one staged, so memory is bounded by
the chunk and not by the table. Threads are enough: Arrow, scikit-learn and the database drivers let
go of Python's lock while they work.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from batch_jobs.database.columns import times
from batch_jobs.database.connections import text
from batch_jobs.database.warehouse import Warehouse, bounds, repeatable
from batch_jobs.errors import ContractError
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.runs import staging
from batch_jobs.runs.ledger import Counts, Part, Run
from batch_jobs.scoring.contract import CURE_OF_DUPLICATES, check_features, records
from batch_jobs.scoring.predict import Fitted, answered

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray

log = logging.getLogger(__name__)
Progress = Callable[[int], None]

# Chunks that are read before they are asked for; compiling takes as long as reading so many.
AHEAD = 8
# Loading what was compiled takes half a second, which 150,000 rows save again. A chunk of the
# default size that is full will not be the last.
MANY_ROWS = 50_000
PROVED_ROWS = 10_000  # of each chunk until then: scikit-learn takes as long as ours for 50,000
# Chunks of a few rows, as a backfill or a replay has them, take long for what surrounds the trees.
MANY_CALLS = 50
FORESEEN_ROWS = 500_000  # at most: they are held in memory


@dataclass(frozen=True)
class Predicted:
    """What became of the rows of one chunk.

    Attributes:
        counts: how many there were.
        scored: `entity_id`, `score`, `label`.
        rejected: entity id, reason, the row as it was read.
        scores: the lowest and the highest score, if there is any.
    """

    counts: Counts
    scored: pa.Table
    rejected: Sequence[staging.Reject]
    scores: tuple[float, float] | None


@dataclass(frozen=True)
class Foreseen:
    """The rows of a long interval, predicted at once; shorter ones find theirs in it.

    Attributes:
        span: the long interval.
        moments: when each row could be scored, ascending, shape (rows,).
        scored: as in `Predicted`, in the same order.
    """

    span: Interval
    moments: NDArray[np.datetime64]
    scored: pa.Table

    def within(self, interval: Interval) -> Predicted | None:
        """What the rows of an interval get; None if it does not lie in the span."""
        import numpy as np

        if interval.start < self.span.start or interval.end > self.span.end:
            return None
        ends = [np.datetime64(moment.replace(tzinfo=None)) for moment in vars(interval).values()]
        first, last = (int(place) for place in np.searchsorted(self.moments, ends))
        rows = self.scored.slice(first, last - first)
        scores = rows["score"].to_numpy()
        extremes = (float(scores.min()), float(scores.max())) if len(scores) else None
        return Predicted(Counts(len(rows), len(rows)), rows, [], extremes)


def foresee(
    warehouse: Warehouse, model: BatchModel, predictor: Predictor, span: Interval
) -> Foreseen | None:
    """Read, check and predict a long interval at once, which an additive query allows.

    None if its intervals are better looked at one by one: a row or a key is not as it should be, or
    there are too many.
    """
    import numpy as np
    import pyarrow as pa

    scored = pa.schema({"entity_id": pa.string(), "score": pa.float64(), "label": pa.string()})
    tables, moments, rows = [], [], 0
    with closing(warehouse.stream(model.features_query, bounds(span), model.chunk_rows)) as chunks:
        for chunk in chunks:
            try:
                predicted = predict_chunk(model, predictor, span, chunk)
            except ContractError:
                return None
            rows += len(chunk)
            if predicted.rejected or rows > FORESEEN_ROWS:
                return None
            tables.append(predicted.scored.cast(scored))
            moments.append(times(chunk["as_of"]).dt.tz_localize(None).to_numpy("datetime64[us]"))
    order = np.argsort(np.concatenate(moments), kind="stable")
    return Foreseen(span, np.concatenate(moments)[order], pa.concat_tables(tables).take(order))


def stage_foreseen(warehouse: Warehouse, part: Part, token: str, found: Predicted) -> None:
    """Stage the rows of a part that were predicted before.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        sqlalchemy.exc.IntegrityError: an entity comes twice.
    """
    staging.stage(warehouse, part, token, 0, found.scored)
    failpoint("score.chunk_staged")


def score_part(
    warehouse: Warehouse,
    model: BatchModel,
    load: Callable[[], Predictor],
    run: Run,
    part: Part,
    token: str,
    progress: Progress | None = None,
) -> tuple[Counts, tuple[float, float] | None]:
    """Read, check, predict and stage the rows of a part.

    Args:
        warehouse: where the rows are and go.
        model: what they mean.
        load: called before the first row is predicted: while rows are being read, if the run has a
            table of its own, and else not at all if there is none.
        run: the run that claimed the interval.
        part: the part of it to score.
        token: the token that opened the part.
        progress: called with the number of rows of each chunk.

    Returns:
        The counts, and the lowest and the highest score.

    Raises:
        ContractError: the rows are not what the model declares.
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        sqlalchemy.exc.IntegrityError: an entity comes twice.
    """
    counts, lows, highs = Counts(), [], []
    predictor: Predictor | None = None
    with ThreadPoolExecutor(1, "stage") as writer:
        has_many = run.rows_table != warehouse.database.shared_rows
        loading = writer.submit(load) if has_many else None
        staged: Future[None] | None = None
        numbers = count()
        for chunk in _ahead(_read(warehouse, model, run, part), model.chunk_rows):
            failpoint("score.before_chunk")
            if predictor is None and len(chunk):
                predictor = loading.result() if loading else load()
            predicted = predict_chunk(model, predictor, run.interval, chunk)
            if staged is not None:
                staged.result()
                failpoint("score.chunk_staged")
            stage = partial(_stage, warehouse, part, token, numbers, predicted)
            if len(chunk) < model.chunk_rows:  # the last: there is nothing to overlap with
                staged = None
                stage()
                failpoint("score.chunk_staged")
            else:
                staged = writer.submit(stage)
            counts += predicted.counts
            if predicted.scores is not None:
                lows.append(predicted.scores[0])
                highs.append(predicted.scores[1])
            if progress:
                progress(len(chunk))
        if staged is not None:
            staged.result()
            failpoint("score.chunk_staged")
    return counts, (min(lows), max(highs)) if lows else None


def _stage(
    warehouse: Warehouse, part: Part, token: str, numbers: Iterator[int], predicted: Predicted
) -> None:
    """Stage a chunk in as many transactions as keep no other writer waiting for long."""
    most = warehouse.database.rows_at_once
    rows = max(predicted.scored.num_rows, len(predicted.rejected), 1)
    for first in range(0, rows, most):
        if first:
            warehouse.database.give_way(briefly=True)
        scored = predicted.scored.slice(first, most)
        rejected = predicted.rejected[first : first + most]
        staging.stage(warehouse, part, token, next(numbers), scored, rejected)


class Predictor:
    """A version that predicts chunk after chunk, and faster once there were many.

    Its trees are then compiled, if numba is there and they are of a kind that can be. What was
    compiled is taken only if its answers to the first rows of each chunk so far are the estimator's
    own in every bit.

    Args:
        fitted: the version.

    Attributes:
        fitted: the one that predicts.
    """

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


def _ahead(chunks: Generator[pd.DataFrame], full: int) -> Generator[pd.DataFrame]:
    """Each chunk, while the next ones are being read by a thread of its own.

    Args:
        chunks: at least one.
        full: rows of a chunk that others may follow; a smaller one takes no thread.
    """
    first = next(chunks)
    if len(first) < full:
        with closing(chunks):
            yield first
            yield from chunks
        return
    end = object()
    with ThreadPoolExecutor(1, "read") as reader:
        coming: deque[Future[Any]] = deque(reader.submit(next, chunks, end) for _ in range(AHEAD))
        try:
            yield first
            while (chunk := coming.popleft().result()) is not end:
                coming.append(reader.submit(next, chunks, end))
                yield chunk
        finally:  # by the same thread, which may still be reading
            for future in coming:
                future.cancel()
            reader.submit(chunks.close).result()


def _read(warehouse: Warehouse, model: BatchModel, run: Run, part: Part) -> Generator[pd.DataFrame]:
    query, values = model.features_query, dict(bounds(run.interval))
    wanted = {}
    if part.key_from is not None:
        wanted["key_from"] = (part.key_from, "CAST(entity_id AS text) >= :key_from")
    if part.key_to is not None:
        # A key that is NULL belongs to the first range: it must be read to be refused.
        null = " OR entity_id IS NULL" if part.key_from is None else ""
        wanted["key_to"] = (part.key_to, f"(CAST(entity_id AS text) < :key_to{null})")
    if wanted:
        condition = " AND ".join(sql for _, sql in wanted.values())
        query = f"SELECT * FROM (\n{query}\n) AS f WHERE {condition}"  # noqa: S608
        values |= {name: key for name, (key, _) in wanted.items()}
    yield from warehouse.stream(query, values, model.chunk_rows)


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
        return Predicted(Counts(len(chunk), 0, len(rejected)), _no_rows(), rejected, None)
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
        return Predicted(Counts(len(chunk), 0, len(rejected)), _no_rows(), rejected, None)
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
        table, scores = table.filter(pa.array(sound)), scores[sound]
    return Predicted(
        Counts(len(chunk), table.num_rows, len(rejected)),
        table,
        rejected,
        (float(scores.min()), float(scores.max())) if len(scores) else None,
    )


@repeatable
def duplicates(warehouse: Warehouse, model: BatchModel, interval: Interval) -> ContractError:
    """Which keys of an interval come more than once, as the error to raise."""
    with warehouse.source() as connection:
        found = connection.execute(
            text(f"""
                SELECT entity_id, count(*) AS times FROM (\n{model.features_query}\n) AS f
                GROUP BY entity_id HAVING count(*) > 1 ORDER BY entity_id"""),  # noqa: S608
            bounds(interval),
        ).all()
    samples = ", ".join(repr(row.entity_id) for row in found[:3])
    rows, cure = sum(row.times for row in found), CURE_OF_DUPLICATES[model.mode]
    return ContractError(
        f"features_query of {model.name}",
        [f"entity_id is duplicated in {rows:,} rows (e.g. {samples}){cure}"],
    )
