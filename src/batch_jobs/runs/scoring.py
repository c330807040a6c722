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
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from batch_jobs.database.connections import text
from batch_jobs.database.transactions import bounds, repeatable
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.runs import staging
from batch_jobs.runs.claims import expects_many
from batch_jobs.runs.ledger import Part, Run
from batch_jobs.scoring.contract import CURE_OF_DUPLICATES
from batch_jobs.scoring.counts import Counts, Progress
from batch_jobs.scoring.predict import Predicted, Predictor, predict_chunk
from batch_jobs.scoring.profile_bytes import encoded_sum

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

# Chunks that are read before they are asked for; compiling takes as long as reading so many.
AHEAD = 8


def score_part(
    warehouse: Warehouse,
    model: BatchModel,
    load: Callable[[], Predictor],
    run: Run,
    part: Part,
    token: str,
    progress: Progress | None = None,
) -> tuple[Counts, tuple[float, float] | None, bytes | None]:
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
        The counts, the lowest and the highest score, and the profile as bytes, if there is any.

    Raises:
        ContractError: the rows are not what the model declares.
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        sqlalchemy.exc.IntegrityError: an entity comes twice.
    """
    counts, lows, highs, profiles = Counts(), [], [], []
    predictor: Predictor | None = None
    with ThreadPoolExecutor(1, "stage") as writer:
        most = warehouse.database.rows_to_sort
        has_many = run.has_own_table or (most > 0 and expects_many(warehouse, run))
        most = most if has_many else 0
        loading = writer.submit(load) if has_many else None
        staged: Future[None] | None = None
        numbers = count()
        held: list[Predicted] = []
        rows = _read(warehouse, model, run, part, many=has_many)
        for chunk in _ahead(rows, model.chunk_rows):
            failpoint("score.before_chunk")
            if predictor is None and len(chunk):
                predictor = loading.result() if loading else load()
            predicted = predict_chunk(model, predictor, run.interval, chunk)
            held.append(predicted)
            is_last = len(chunk) < model.chunk_rows
            if is_last or sum(each.counts.read for each in held) >= most:
                if staged is not None:
                    staged.result()
                    failpoint("score.chunk_staged")
                stage = partial(_stage, warehouse, part, token, numbers, held)
                held = []
                if is_last:  # there is nothing to overlap with
                    staged = None
                    stage()
                    failpoint("score.chunk_staged")
                else:
                    staged = writer.submit(stage)
            counts += predicted.counts
            profiles.append(predicted.profile)
            if predicted.scores is not None:
                lows.append(predicted.scores[0])
                highs.append(predicted.scores[1])
            if progress:
                progress(len(chunk))
        if staged is not None:
            staged.result()
            failpoint("score.chunk_staged")
        if held:
            _stage(warehouse, part, token, numbers, held)
            failpoint("score.chunk_staged")
    return counts, (min(lows), max(highs)) if lows else None, encoded_sum(profiles)


def _stage(
    warehouse: Warehouse,
    part: Part,
    token: str,
    numbers: Iterator[int],
    chunks: Sequence[Predicted],
) -> None:
    """Stage chunks in as many transactions as keep no other writer waiting for long."""
    import pyarrow as pa

    table = pa.concat_tables([chunk.scored for chunk in chunks], promote_options="permissive")
    rejects = [reject for chunk in chunks for reject in chunk.rejected]
    most = warehouse.database.rows_at_once
    if len(chunks) > 1:
        table, most = table.sort_by("entity_id"), most * len(chunks)
    rows = max(table.num_rows, len(rejects), 1)
    for first in range(0, rows, most):
        if first:
            warehouse.database.give_way(briefly=True)
        scored, rejected = table.slice(first, most), rejects[first : first + most]
        staging.stage(warehouse, part, token, next(numbers), scored, rejected)


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


def _read(
    warehouse: Warehouse, model: BatchModel, run: Run, part: Part, *, many: bool
) -> Generator[pd.DataFrame]:
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
    yield from warehouse.stream(query, values, model.chunk_rows, many=many)


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
