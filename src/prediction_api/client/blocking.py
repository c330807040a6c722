"""The client for code that waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

import httpx

from prediction_api.client import exports, jobs
from prediction_api.client.drivers import BlockingDriver
from prediction_api.client.errors import AwayError
from prediction_api.client.exchange import Ask, failure
from prediction_api.client.exports import Form, Wanted
from prediction_api.client.jobs import Features
from prediction_api.client.keys import Key
from prediction_api.client.listening import PAUSE, Ear, path_of, require_stream
from prediction_api.client.lookups import Given, LookedUp
from prediction_api.client.records import (
    Computed,
    PastPrediction,
    Prediction,
    Progress,
    Publication,
    Result,
    Status,
    Submitted,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


class PredictionClient(BlockingDriver):
    """A client for code that waits; threads may share it. To be closed, or used in a `with`.

    Args:
        url: of the API.
        key: one of its keys, if it has any.
        policy: what may be given in place of what is fresh.
        timeout: how long to wait, in seconds or as httpx has it.
        retries: how often a server that is away is asked again, after longer and longer pauses.
        transport: another way to the API.

    Raises:
        MisconfiguredError: the URL is none, or no header can carry the key.
    """

    def get(self, model: str, entity_id: Key) -> Given:
        """The prediction of an entity, or what the policy gives in its place.

        Raises:
            NoPredictionError: it gives nothing.
            MisconfiguredError: the URL, the key or the model is wrong, whatever the policy.
            RefusedError: the server does not do it.
        """
        return self._run(self._look_ups.one(model, entity_id))

    def get_many(self, model: str, entity_ids: Iterable[Key]) -> LookedUp:
        """The predictions of many entities in one request a thousand, each of one moment.

        Raises:
            MisconfiguredError: the URL, the key or the model is wrong, whatever the policy.
            AwayError: the server is away, and the policy gives nothing.
            RefusedError: the server does not do it.
        """
        return self._run(self._look_ups.many(model, entity_ids))

    def get_past(self, model: str, entity_id: Key, as_of: datetime) -> PastPrediction:
        """What readers saw of an entity at a moment, which knows its offset.

        Raises:
            NoPredictionError: they saw nothing, or the model no longer keeps it.
            PredictionApiError: there is no answer.
        """
        return self._run(self._look_ups.past(model, entity_id, as_of))

    def status(self, model: str) -> Status:
        """How fresh a model is.

        Raises:
            NoPredictionError: it has published nothing yet.
            PredictionApiError: there is no answer.
        """
        return self._run(self._look_ups.status(model))

    def predict(
        self, model: str, features: Features, *, idempotency_key: str | None = None
    ) -> Computed:
        """A prediction that is computed now, and kept; of features by name or as declared.

        Raises:
            RefusedError: a feature does not fit, or the model has no champion.
            PredictionApiError: there is no answer.
        """
        return self._run(jobs.computed(model, features, idempotency_key, self._retries))

    def submit(
        self,
        model: str,
        rows: Iterable[Mapping[str, Any]] | bytes,
        kind: str = "csv",
        *,
        idempotency_key: str | None = None,
    ) -> Submitted:
        """Ask for predictions of many rows, which come later.

        Args:
            model: who is asked.
            rows: each with its features and perhaps `entity_id`; or the bytes of a file.
            kind: of the file: `csv` or `parquet`.
            idempotency_key: of the request; one is made unless it is given.

        Raises:
            RefusedError: the rows do not fit.
            PredictionApiError: there is no answer.
        """
        return self._run(jobs.submitted(model, rows, kind, idempotency_key, self._retries))

    def progress(self, request_id: int) -> Progress:
        """How far a request of many rows is.

        Raises:
            PredictionApiError: there is none of this id and key, or no answer.
        """
        return self._run(jobs.progress(request_id, self._retries))

    def wait(
        self,
        request_id: int,
        seconds: float = 3600,
        told: Callable[[Progress], None] | None = None,
    ) -> Progress:
        """Wait until a request of many rows is over.

        Args:
            request_id: which.
            seconds: for how long.
            told: called with its progress now and then.

        Raises:
            TimeoutError: it is not over yet.
            PredictionApiError: there is none of this id and key, or no answer.
        """
        return self._run(jobs.waited(request_id, seconds, told, self._retries))

    def results(self, request_id: int) -> Iterator[Result]:
        """What came of each row of a request that is done, in their order.

        Raises:
            PredictionApiError: there is none of this id and key, or no answer.
        """
        after, more = 0, True
        while more:
            found, more = self._run(jobs.results_page(request_id, after, self._retries))
            after += jobs.LARGEST_PAGE
            yield from found

    def requests(self, limit: int = 100) -> list[Progress]:
        """The requests of many rows of this key, the newest first.

        Raises:
            PredictionApiError: there is no answer.
        """
        return self._run(jobs.mine(limit, self._retries))

    def cancel(self, request_id: int) -> Progress:
        """Take a request of many rows back that is not over yet.

        Raises:
            RefusedError: it is over.
            PredictionApiError: there is none of this id and key, or no answer.
        """
        return self._run(jobs.cancelled(request_id, self._retries))

    def pages(self, model: str, form: Form = "ndjson", **wanted: Unpack[Wanted]) -> Iterator[bytes]:
        """All that is current of a model, in pages of 10,000 rows; all are of one moment.

        Raises:
            NoPredictionError: nothing is published yet.
            PredictionApiError: there is no answer, or the export took more than an hour.
        """
        ask: Ask | None = exports.first_page(model, form, wanted)
        while ask is not None:
            page = self._run(exports.page(ask, self._retries))
            yield page.content
            ask = None if "top" in wanted else page.following

    def export(self, model: str, **wanted: Unpack[Wanted]) -> Iterator[Prediction]:
        """All that is current of a model, row by row; see `pages`."""
        for content in self.pages(model, **wanted):
            yield from exports.rows_in(content)

    def to_arrow(self, model: str, **wanted: Unpack[Wanted]) -> pa.Table:
        """All that is current of a model as a table; needs pyarrow. See `pages`."""
        return exports.as_arrow(self.pages(model, "arrow", **wanted))

    def to_pandas(self, model: str, **wanted: Unpack[Wanted]) -> pd.DataFrame:
        """All that is current of a model as a frame; needs pyarrow and pandas. See `pages`."""
        return exports.as_pandas(self.pages(model, "arrow", **wanted))

    def publications(self, model: str, after: str | None = None) -> Iterator[Publication]:
        """Each publication of a model as it happens, for ever; none is missed between two.

        A server that is away is asked again until it is back.

        Args:
            model: whose.
            after: the `published_at` of the last one that is known, ISO 8601; None for now.

        Raises:
            MisconfiguredError: the URL, the key or the model is wrong.
            RefusedError: the server does not do it.
        """
        ear = Ear(after)
        while True:
            try:
                with self._http.stream(
                    "GET", path_of(model), headers=ear.headers(), timeout=self._listening
                ) as answer:
                    if not answer.is_success:
                        answer.read()
                    require_stream(answer)
                    for line in answer.iter_lines():
                        if (told := ear.hear(line)) is not None:
                            yield Publication.from_json(told)
            except httpx.RequestError as error:
                if not isinstance(found := failure(error), AwayError):
                    raise found from error
                time.sleep(PAUSE)
            except AwayError:
                time.sleep(PAUSE)
