"""Prescore: predict a long interval at once; the shorter ones in it find their rows there.

The features query is additive, so that nothing changes but the time it takes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from batch_jobs.database.columns import times
from batch_jobs.database.transactions import bounds
from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ContractError
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval, due_between
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.registry.deployment import Deployment
from batch_jobs.runs import staging
from batch_jobs.runs.ledger import Part, Run
from batch_jobs.scoring.counts import Counts
from batch_jobs.scoring.predict import Predicted, Predictor, predict_chunk
from batch_jobs.scoring.profiles import Profile, Profiler
from batch_jobs.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    from numpy.typing import NDArray


PRESCORED_ROWS = 500_000  # at most: they are held in memory
PROFILED_AT_ONCE = 5_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prescored:
    """The rows of a long interval, predicted at once; shorter ones find theirs in it.

    Attributes:
        span: the long interval.
        moments: when each row could be scored, ascending, shape (rows,).
        scored: as in `Predicted`, in the same order.
        profiles: what the rows of each due interval look like, by its first and its last row.
    """

    span: Interval
    moments: NDArray[np.datetime64]
    scored: pa.Table
    profiles: Mapping[tuple[int, int], Profile]

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
        profile = self.profiles.get((first, last))
        return Predicted(Counts(len(rows), len(rows)), rows, [], extremes, profile)


class Prescorer(Deployment):
    """A deployment that may have predicted a long interval ahead of the attempts at its parts."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._prescored: tuple[str, Prescored | None] = ("", None)

    def prescore(self, name: str, version: str, span: Interval) -> None:
        """Predict a long interval at once; its intervals will be scored from that, if they can be.

        Raises:
            ArtifactError: see `Deployment.predictor`.
        """
        predictor = self.predictor(name, version, profiles=True)
        trained = self.trained(name, version)
        self._prescored = (version, _prescore(self.warehouse, trained, predictor, span))

    def prescored(self, run: Run, part: Part) -> Predicted | None:
        """What was predicted ahead for a whole run by its version, if anything was."""
        version, found = self._prescored
        whole = part.key_from is None and part.key_to is None
        if found is None or not whole or version != run.model_version:
            return None
        return found.within(run.interval)


def _prescore(
    warehouse: Warehouse, model: BatchModel, predictor: Predictor, span: Interval
) -> Prescored | None:
    """Read, check and predict a long interval at once, which an additive query allows.

    None if its intervals are better looked at one by one: a row or a key is not as it should be, or
    there are too many.
    """
    import numpy as np
    import pyarrow as pa

    scored = pa.schema({"entity_id": pa.string(), "score": pa.float64(), "label": pa.string()})
    tables, moments, frames, rows = [], [], [], 0
    with closing(warehouse.stream(model.features_query, bounds(span), model.chunk_rows)) as chunks:
        for chunk in chunks:
            try:
                predicted = predict_chunk(model, predictor, span, chunk)
            except ContractError:
                return None
            rows += len(chunk)
            if predicted.rejected or rows > PRESCORED_ROWS:
                return None
            tables.append(predicted.scored.cast(scored))
            frames.append(chunk)
            moments.append(times(chunk["as_of"]).dt.tz_localize(None).to_numpy("datetime64[us]"))
    order = np.argsort(np.concatenate(moments), kind="stable")
    sorted_moments, table = np.concatenate(moments)[order], pa.concat_tables(tables).take(order)
    profiles: Mapping[tuple[int, int], Profile] = {}
    if predictor.profiler is not None and rows:
        ticks = [
            span.start,
            *(due.end for due in due_between(model.schedule, *vars(span).values())),
        ]
        naive = [np.datetime64(tick.replace(tzinfo=None)) for tick in ticks]
        ends = np.unique(np.searchsorted(sorted_moments, naive))
        profiles = _profiles(predictor.profiler, frames, order, table, ends)
    return Prescored(span, sorted_moments, table, profiles)


def _profiles(
    profiler: Profiler,
    frames: Sequence[pd.DataFrame],
    order: NDArray[np.int64],
    scored: pa.Table,
    ends: NDArray[np.int64],
) -> Mapping[tuple[int, int], Profile]:
    """The profiles of the rows between each two ends; none if they cannot be told."""
    import pandas as pd

    try:
        rows = pd.concat(frames, ignore_index=True).iloc[order]
        scores, labels = scored["score"].to_numpy(), scored["label"].combine_chunks()
        found: dict[tuple[int, int], Profile] = {}
        left = list(pairwise(ends.tolist()))
        while left:
            start = left[0][0]
            taken = [pair for pair in left if pair[1] - start <= PROFILED_AT_ONCE] or left[:1]
            here = slice(start, taken[-1][1])
            made = profiler.each(
                rows.iloc[here], scores[here], labels[here], [first - start for first, _ in taken]
            )
            found.update(zip(taken, made, strict=True))
            left = left[len(taken) :]
    except Exception as error:  # noqa: BLE001 - whatever it is, the rows are scored
        log.warning("what was prescored has no profiles: %s", first_line(error))
        return {}
    return found


def stage_prescored(warehouse: Warehouse, part: Part, token: str, found: Predicted) -> None:
    """Stage the rows of a part that were prescored.

    Raises:
        FencedError: a newer attempt has claimed the interval, or a newer try the part.
        sqlalchemy.exc.IntegrityError: an entity comes twice.
    """
    staging.stage(warehouse, part, token, 0, found.scored)
    failpoint("score.chunk_staged")
