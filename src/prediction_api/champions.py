"""The champions: loaded from verified bytes, followed when another is promoted, and asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import BatchJobsError, ContractError
from batch_jobs.model import BatchModel, Feature, Number
from batch_jobs.redaction import first_line
from batch_jobs.registry import versions
from batch_jobs.registry.loading import as_trained, load_version
from batch_jobs.scoring.fitted import Fitted
from batch_jobs.scoring.predict import answered
from batch_jobs.settings import Settings
from prediction_api.database import Database, Statement
from prediction_api.metrics import Metrics
from prediction_api.problems import UnavailableError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 2.0
MOST_ASKED = 40  # of one batch: three bad rows of two hundred are found, in three seconds at most
NEWEST = Statement(
    """
    SELECT p.model, p.version FROM promotions AS p
    JOIN (SELECT model, max(promotion_id) AS newest FROM promotions GROUP BY model) AS n
      ON n.newest = p.promotion_id"""
)
Values = Sequence[Any]


@dataclass(frozen=True)
class Scored:
    """What a model says of one row; None for a row to which it has no sound answer."""

    score: float
    label: str | None


class Untried:
    """In the place of an answer to a row that had no turn by itself, beside too many bad ones."""


UNTRIED = Untried()


class _TooOftenError(ContractError):
    """The estimator has been asked as often as it may be for one batch."""


@dataclass(frozen=True)
class Champion:
    """A version that serves, ready to answer.

    Attributes:
        model: its name.
        version: its own name.
        fitted: loaded from verified bytes.
    """

    model: str
    version: str
    fitted: Fitted

    def answer(self, rows: Sequence[Values]) -> list[Scored | Untried | None]:
        """What the model says of rows of features, in declared order; as it does in batch.

        Those at which the estimator raises are found by halving, by few questions: the next batch
        waits.
        """
        import numpy as np

        asked: list[Any] = []

        def ask(some: pd.DataFrame) -> NDArray[np.float64]:
            if len(asked) == MOST_ASKED:
                raise _TooOftenError(self.model, [])
            asked.append(some.index)
            answer = self.fitted.answers(self.fitted.inputs(some))
            answers.update(zip(some.index, answer, strict=True))
            return answer

        answers: dict[int, NDArray[np.float64]] = {}
        found: list[Scored | Untried | None] = [None] * len(rows)
        try:
            _, refused = answered(ask, self._frame(rows), most=len(rows))
        except _TooOftenError:
            refused = {}
            found = [UNTRIED] * len(rows)
        except Exception as error:  # noqa: BLE001 - the estimator is the user's code
            answers, refused = {}, {0: first_line(error)}
        if refused:
            log.warning("%s %s: %s", self.model, self.version, next(iter(refused.values())))
        if not answers:
            return found
        places = sorted(answers)
        scores, labels = self.fitted.scores_and_labels(
            np.stack([answers[place] for place in places])
        )
        for place, score, label, good in zip(
            places, scores.tolist(), labels.to_pylist(), self.fitted.are_sound(scores), strict=True
        ):
            found[place] = Scored(score, label) if good else None
        return found

    def _frame(self, rows: Sequence[Values]) -> pd.DataFrame:
        """The rows with the types that the contract's check gives them."""
        import pandas as pd

        columns = zip(*rows, strict=True)
        return pd.DataFrame(
            {
                name: pd.array(column, dtype="float64" if isinstance(kind, Number) else "str")
                for (name, kind), column in zip(self.fitted.features.items(), columns, strict=True)
            }
        )


def same_features(one: Mapping[str, Feature], other: Mapping[str, Feature]) -> bool:
    """Whether two contracts ask for the same features in the same order."""
    return one is other or list(one.items()) == list(other.items())


class Champions:
    """The version of each model that serves now.

    Args:
        settings: where versions are, and whose signature they need.
        models: what is asked of each, by name: at first what the model files declare.
        database: where promotions are.
        metrics: where it is noted which versions answer.
        renew: called with a model as it was when its champion was trained, if it is asked for
            other features than in `models`, where it is to be from then on.
    """

    def __init__(
        self,
        settings: Settings,
        models: Mapping[str, BatchModel],
        database: Database,
        metrics: Metrics,
        renew: Callable[[BatchModel], None],
    ) -> None:
        self._settings, self._models = settings, models
        self._database, self._metrics, self._renew = database, metrics, renew
        self._loaded: dict[str, Champion] = {}
        self._refused: dict[str, str] = {}
        self._thread = ThreadPoolExecutor(1, "load")

    def get(self, name: str) -> Champion | None:
        """The champion of a model; None if it has none, or none that can be loaded."""
        return self._loaded.get(name)

    async def follow(self) -> None:
        """Look for promotions from time to time, until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            await self.refresh()

    async def refresh(self) -> None:
        """Load what was promoted since; what cannot be loaded leaves the one before in its place.

        A warehouse that does not answer changes nothing.
        """
        try:
            rows = await self._database.fetch(NEWEST)
        except UnavailableError:
            return
        loop = asyncio.get_running_loop()
        for name, version in ((row["model"], row["version"]) for row in rows):
            known = self._loaded.get(name)
            if name in self._models and (known is None or known.version != version):
                trained = await loop.run_in_executor(self._thread, self._load, name, version)
                if trained and not same_features(trained.features, self._models[name].features):
                    self._renew(trained)
        self._metrics.champions((name, one.version) for name, one in self._loaded.items())

    def _load(self, name: str, version: str) -> BatchModel | None:
        """The model as it was when a version was trained, which answers from now on."""
        try:
            warehouse = Warehouse(self._settings.warehouse)
            found = versions.find_version(warehouse, name, version)
            trained = as_trained(self._settings, self._models[name], found)
            fitted = load_version(self._settings, trained, found)
        except BatchJobsError as error:
            if self._refused.get(name) != str(error):  # once, and not every other second
                log.warning("%s cannot be loaded: %s", name, error)
            self._refused[name] = str(error)
            return None
        log.info("%s %s answers from now on", name, version)
        self._refused.pop(name, None)
        self._loaded[name] = Champion(name, version, fitted)
        return trained

    def close(self) -> None:
        """Load nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
