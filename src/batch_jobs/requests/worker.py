"""The verb of requests of many rows: answer what waits, by the champion, chunk by chunk.

The rows go through the contract and the estimator as those of a prediction run do. What is
interrupted is taken up by the next attempt where it stopped, and nothing is stored twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Event
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row
from sqlalchemy.exc import DataError, DBAPIError, OperationalError

from batch_jobs import clock
from batch_jobs.catalog import model_names
from batch_jobs.database.leases import new_token
from batch_jobs.errors import ConfigurationError, FencedError, UnavailableError
from batch_jobs.failpoints import failpoint
from batch_jobs.interval import Interval
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.registry import champions
from batch_jobs.registry.deployment import Deployment, Place, opened
from batch_jobs.requests import queue
from batch_jobs.requests.cancellation import end_cancelled
from batch_jobs.requests.queue import Answered, Claimed
from batch_jobs.requests.rows import features_of, frame_of, key_columns
from batch_jobs.scoring.counts import Progress
from batch_jobs.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

    from batch_jobs.scoring.predict import Predictor

log = logging.getLogger(__name__)


def answer(
    place: Place,
    name: str,
    token: str,
    *,
    progress: Progress | None = None,
    most: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Answered]:
    """Answer the requests of a model that wait, oldest first.

    A request that the model cannot answer has failed, with the reason, and the next one is
    answered. Without a champion all of them wait on.

    Args:
        place: where everything is.
        name: which model.
        token: of this attempt; a later one has the higher one.
        progress: called with the number of rows of each chunk.
        most: answer no more requests than that.
        stop: asked before each chunk; once true, what is not answered waits for another attempt.

    Returns:
        The requests that are done, and those that have failed.

    Raises:
        UnknownModelError: there is no such model.
        ArtifactError: the champion does not load; nothing was claimed.
        UnavailableError: the warehouse or the model store does not answer; what was begun waits.
    """
    deployment = opened(place)
    deployment.model(name)  # or there is nothing to ask
    warehouse = deployment.warehouse
    answered: list[Answered] = []
    if not queue.waits(warehouse, name, token):
        return answered
    answered += queue.give_up(warehouse, name, token)
    while (most is None or len(answered) < most) and not stop():
        end_cancelled(warehouse, name)
        champion = champions.champion(warehouse, name)
        if champion is None:
            log.warning("the requests of %s wait for its first champion", name)
            break
        deployment.predictor(name, champion.version)  # or claim nothing
        claimed = queue.claim(warehouse, name, champion.version, token)
        if claimed is None:
            break
        try:
            trained = deployment.trained(name, claimed.model_version)
            found = _Attempt(deployment, trained, claimed, stop, progress).answer()
        except FencedError as error:
            log.info("%s", error)
            continue
        if found is not None:
            answered.append(found)
            log.log(logging.WARNING if found.error else logging.INFO, "%s", found)
    return answered


def answer_each(
    settings: Settings,
    names: Sequence[str] | None = None,
    *,
    told: Callable[[str, Exception], None],
    kept: dict[str, dict[tuple[str, str], Predictor]] | None = None,
    **options: Any,
) -> list[Answered]:
    """Answer the requests of several models; one that cannot be asked keeps no other one waiting.

    Args:
        settings: where everything is.
        names: which models; None for all there are files for.
        told: called with a model's name and its error.
        kept: predictors by the name of the model, from one call to the next. All else is looked at
            anew: another release may have changed the schema meanwhile.
        options: of `answer`.
    """
    answered = []
    kept = {} if kept is None else kept
    for name in model_names(settings.models) if names is None else names:
        deployment = Deployment(settings, kept.setdefault(name, {}))
        try:
            answered += answer(deployment, name, new_token(), **options)
        except Exception as error:  # noqa: BLE001 - it is told, and the others have their turn
            told(name, error)
    return answered


def follow(
    settings: Settings,
    names: Sequence[str] | None,
    stop: Event,
    wake: Event,
    *,
    every: timedelta = timedelta(seconds=2),
    told: Callable[[Answered], None] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> None:
    """Answer requests as they come, until told to stop; of each model one after the other.

    For a process of its own, or for a thread of the process that takes the requests. What fails is
    in the log, once, and tried again.

    Args:
        settings: where everything is; whoever answers needs the rights of a writer.
        names: which models; None for all there are files for.
        stop: once set, ends this after the chunk that is being scored, or when it looks next.
        wake: set it when a request was added (or to stop at once), and this looks at once.
        every: how often it looks if nobody wakes it.
        told: called with each request that is done or has failed.
        alive: called whenever this looks, and after each chunk, whatever comes of it.
    """
    kept: dict[str, dict[tuple[str, str], Predictor]] = {}
    failed: dict[str, str] = {}

    def note(name: str, error: Exception) -> None:
        line = first_line(getattr(error, "orig", None) or error)
        if failed.get(name) != line:
            log.error("requests of %s are not answered: %s", name, line)
        failed[name] = line

    while not stop.is_set():
        wake.clear()
        alive()
        answered = answer_each(
            settings,
            names,
            told=note,
            kept=kept,
            most=1,
            stop=stop.is_set,
            progress=lambda _: alive(),
        )
        for one in answered:
            failed.pop(one.model, None)
            if told:
                told(one)
        if not answered:
            wake.wait(every.total_seconds())


class _SenderFault(str):
    """Why a request cannot be answered, though the model answers other rows as ever."""

    __slots__ = ()


@dataclass(frozen=True)
class _Attempt:
    """One attempt at one request, with what its caller was given."""

    deployment: Deployment
    model: BatchModel  # as it was when the version that answers was trained
    claimed: Claimed
    stop: Callable[[], bool]
    progress: Progress | None

    def answer(self) -> Answered | None:
        """Answer it; None if it was told to stop.

        Raises:
            FencedError: the request is another attempt's now.
            UnavailableError: the warehouse or the model store does not answer; the request waits.
        """
        claimed = self.claimed
        try:
            failpoint("answer.claimed")
            for after in range(claimed.stored, claimed.counts.read, self.model.chunk_rows):
                if self.stop():
                    queue.release(self.deployment.warehouse, claimed)
                    return None
                problem = self._chunk(after)
                if problem is not None:
                    ended = queue.finish(self.deployment.warehouse, claimed, str(problem))
                    return replace(ended, of_sender=isinstance(problem, _SenderFault))
                failpoint("answer.chunk_stored")
            failpoint("answer.before_finish")
            answered = queue.finish(self.deployment.warehouse, claimed)
            failpoint("answer.finished")
        except BaseException:  # also what ends the process: another attempt need not wait for long
            with suppress(Exception):
                queue.release(self.deployment.warehouse, claimed)
            raise
        return answered

    def _chunk(self, after: int) -> str | None:
        """Score and store the rows after a number; or why the request cannot be answered."""
        sent = self.claimed.counts.read
        until = min(after + self.model.chunk_rows, sent)
        rows = queue.rows_of(self.deployment.warehouse, self.claimed.request_id, after, until)
        if len(rows) < until - after:
            return f"it has fewer rows than the {sent:,} it announced"
        try:
            queue.store(self.deployment.warehouse, self.claimed, after, *self._scored(rows))
        except (UnavailableError, ConfigurationError, FencedError, OperationalError):
            raise
        except DBAPIError as error:  # the database refuses these very rows
            told = first_line(error.orig or error)
            return _SenderFault(told) if isinstance(error, DataError) else told
        except MemoryError as error:
            return first_line(error)
        except Exception as error:  # noqa: BLE001 - whatever it is that a model raises
            version = self.claimed.model_version
            sound = self.deployment.is_sound(self.model.name, version)
            return _SenderFault(first_line(error)) if sound else first_line(error)
        if self.progress:
            self.progress(len(rows))
        return None

    def _scored(self, rows: Sequence[Row[Any]]) -> tuple[pa.Table, pa.Table]:
        """What is stored of a chunk of rows: results and rejected rows.

        The contract is asked about a row by its number, for an entity may come twice.
        """
        import pyarrow as pa

        from batch_jobs.scoring.predict import predict_chunk

        read = {str(row.row_number): features_of(self.model, row.features) for row in rows}
        rejected = [(number, found) for number, found in read.items() if isinstance(found, str)]
        sound = {number: found for number, found in read.items() if not isinstance(found, str)}
        results = pa.table({"entity_id": pa.array([], pa.string()), "score": [], "label": []})
        if sound:
            now = clock.now()
            version = self.claimed.model_version
            predicted = predict_chunk(
                self.model,
                self.deployment.predictor(self.model.name, version),
                Interval(now, now + timedelta.resolution),
                frame_of(self.model, sound).assign(as_of=now),
            )
            results = predicted.scored
            rejected += [(number, reason) for number, reason, _ in predicted.rejected]
        entities = {str(row.row_number): row.entity_id for row in rows}
        scored = results["entity_id"].to_pylist()
        stored = {"score": results["score"], "label": results["label"]}
        reasons = {"reason": pa.array([reason for _, reason in rejected], pa.string())}
        return (
            pa.table(key_columns(scored, entities) | stored),
            pa.table(key_columns([number for number, _ in rejected], entities) | reasons),
        )
