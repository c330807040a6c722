"""Look-ups: what is fresh, the last good, or a default, as a policy has it; without any I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any, Literal
from urllib.parse import quote

import httpx

from prediction_api.client.errors import (
    AwayError,
    MisconfiguredError,
    NoPredictionError,
    PredictionApiError,
    RefusedError,
)
from prediction_api.client.exchange import Ask, Call, exchange, posting, told_by
from prediction_api.client.keys import Key, fits_a_path, text_of
from prediction_api.client.records import CurrentPrediction, Many, PastPrediction, Status

REMEMBERED = 10_000
AT_ONCE = 1000
NEVER = timedelta(0)


@dataclass(frozen=True)
class Policy:
    """What may be given in place of what is fresh.

    Attributes:
        last_good_for: how old a prediction may be, since its `fresh_until`, and still be given
            where the model is stale or the API does not answer; by default not at all.
        default: the score to give where the server is away or there is no prediction; None raises.
            A wrong URL, key or model is an error all the same.
    """

    last_good_for: timedelta = NEVER
    default: float | None = None


STRICT = Policy()


@dataclass(frozen=True)
class Given:
    """What a caller is given.

    Attributes:
        score: of the prediction, or the default.
        label: of the prediction; None with the default.
        source: `fresh`, `last_good` or `default`.
        age: time since every due interval was published; None with the default.
        prediction: all that the API tells of it; None with the default.
    """

    score: float
    label: str | None
    source: Literal["fresh", "last_good", "default"]
    age: timedelta | None
    prediction: CurrentPrediction | None


@dataclass(frozen=True)
class LookedUp:
    """What came of many keys.

    Attributes:
        given: by key, in the order in which they were asked for; without those for which the
            policy gives nothing.
        missing: the keys that have no prediction, in the same order.
    """

    given: Mapping[str, Given]
    missing: Sequence[str]


@dataclass(frozen=True)
class _Known:
    etag: str
    told: CurrentPrediction


class Memory:
    """The last answers, the eldest of which goes first; threads may share it."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], _Known] = OrderedDict()
        self._lock = Lock()

    def get(self, model: str, key: str) -> _Known | None:
        """What was told last of an entity; None if nothing, or not lately."""
        with self._lock:
            return self._known.get((model, key))

    def put(self, told: CurrentPrediction, etag: str = "") -> _Known:
        """Remember what was told."""
        known = _Known(etag, told)
        with self._lock:
            self._known[told.model, told.entity_id] = known
            self._known.move_to_end((told.model, told.entity_id))
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return known

    def forget(self, model: str, key: str) -> None:
        """Remember an entity no longer."""
        with self._lock:
            self._known.pop((model, key), None)


class LookUps:
    """The calls that read predictions.

    Args:
        policy: what may be given in place of what is fresh.
        retries: how often a server that is away is asked again.
    """

    def __init__(self, policy: Policy, retries: int) -> None:
        self._policy, self._retries = policy, retries
        self._memory = Memory()

    def one(self, model: str, entity_id: Key) -> Call[Given]:
        """The prediction of an entity, or what the policy gives in its place."""
        key = text_of(entity_id)
        if not fits_a_path(key):
            found = yield from self.many(model, [key])
            if key not in found.given:
                raise NoPredictionError(f"no prediction of {key!r} that the policy lets be given")
            return found.given[key]
        known = self._memory.get(model, key)
        headers = {"If-None-Match": known.etag} if known and known.etag else {}
        ask = Ask("GET", f"{predictions_of(model)}/{quote(key, safe='')}", {}, headers)
        try:
            answer = yield from exchange(ask, self._retries)
            told = self._told(known, answer)
        except AwayError as error:
            return self._instead_of(known, error, default=True)
        except RefusedError as error:
            if error.status != httpx.codes.TOO_MANY_REQUESTS and error.status < 500:
                raise
            return self._instead_of(known, error, default=False)
        except NoPredictionError as error:
            self._memory.forget(model, key)
            return self._default(error)
        return self._as_good_as(told)

    def _told(self, known: _Known | None, answer: httpx.Response) -> CurrentPrediction:
        if answer.status_code == httpx.codes.NOT_MODIFIED:
            if known is None:
                raise MisconfiguredError(
                    "the answer is 304, and nothing was asked for conditionally; is there a cache "
                    "of another's between?"
                )
            return known.told
        told = CurrentPrediction.from_json(told_by(answer))
        return self._memory.put(told, answer.headers.get("ETag", "")).told

    def many(self, model: str, entity_ids: Iterable[Key]) -> Call[LookedUp]:
        """The predictions of entities; each thousand of them is of one moment."""
        keys = list(dict.fromkeys(map(text_of, entity_ids)))
        given: dict[str, Given] = {}
        missing: list[str] = []
        for first in range(0, len(keys), AT_ONCE):
            some = keys[first : first + AT_ONCE]
            try:
                found = yield from self._current(model, some)
            except AwayError as error:
                given |= self._remembered(model, some, error)
                continue
            for key in some:
                if (told := found.get(key)) is None:
                    missing.append(key)
                    self._memory.forget(model, key)
                try:
                    given[key] = self._as_good_as(told) if told else self._default(_none_of(key))
                except NoPredictionError:
                    continue
        return LookedUp(given, missing)

    def _current(self, model: str, keys: Sequence[str]) -> Call[Mapping[str, CurrentPrediction]]:
        ask = posting(f"{predictions_of(model)}:lookup", {"entity_ids": list(keys)})
        try:
            answer = yield from exchange(ask, self._retries)
        except NoPredictionError:  # nothing is published yet
            return {}
        whole = Many.from_json(told_by(answer))
        shared = {"fresh_until": str(whole.fresh_until), "stale": whole.stale}
        rows = [row for row in whole.predictions if row is not None]
        found = [CurrentPrediction.from_json(row, shared) for row in rows]
        return {told.entity_id: self._memory.put(told).told for told in found}

    def _remembered(self, model: str, keys: Sequence[str], error: AwayError) -> Mapping[str, Given]:
        """What is remembered of keys whose server is away.

        Raises:
            AwayError: nothing may be given of any.
        """
        given = {}
        for key in keys:
            try:
                known = self._memory.get(model, key)
                given[key] = self._instead_of(known, error, default=True)
            except NoPredictionError:
                continue
        if not given:
            raise error
        return given

    def past(self, model: str, entity_id: Key, as_of: datetime) -> Call[PastPrediction]:
        """What readers saw of an entity at a moment."""
        if as_of.tzinfo is None:
            raise ValueError(f"as_of {as_of} has no offset; write it with one, such as UTC")
        key, moment = text_of(entity_id), as_of.isoformat()
        if not fits_a_path(key):
            body = {"entity_ids": [key], "as_of": moment}
            answer = yield from exchange(
                posting(f"{predictions_of(model)}:lookup", body), self._retries
            )
            return _of_the_past(told_by(answer), key)
        ask = Ask("GET", f"{predictions_of(model)}/{quote(key, safe='')}", {"as_of": moment})
        answer = yield from exchange(ask, self._retries)
        return PastPrediction.from_json(told_by(answer))

    def status(self, model: str) -> Call[Status]:
        """How fresh a model is."""
        ask = Ask("GET", f"/v1/models/{quote(model, safe='')}/status")
        answer = yield from exchange(ask, self._retries)
        return Status.from_json(told_by(answer))

    def _as_good_as(self, told: CurrentPrediction) -> Given:
        if not told.stale:
            return _as(told, "fresh")
        return self._last_good(told, NoPredictionError("the model is stale"), default=True)

    def _instead_of(
        self, known: _Known | None, error: PredictionApiError, *, default: bool
    ) -> Given:
        if known is not None:
            return self._last_good(known.told, error, default=default)
        return self._default(error, default=default)

    def _last_good(
        self, told: CurrentPrediction, error: PredictionApiError, *, default: bool
    ) -> Given:
        found = _as(told, "last_good")
        if found.age is not None and found.age <= self._policy.last_good_for:
            return found
        if isinstance(error, RefusedError):
            raise error
        why = NoPredictionError(f"{error}, and the last good prediction is {found.age} old")
        return self._default(why, default=default)

    def _default(self, error: PredictionApiError, *, default: bool = True) -> Given:
        if default and self._policy.default is not None:
            return Given(self._policy.default, None, "default", None, None)
        if isinstance(error, AwayError):
            raise NoPredictionError(str(error)) from error
        raise error


def predictions_of(model: str) -> str:
    """Where the predictions of a model are."""
    return f"/v1/models/{quote(model, safe='')}/predictions"


def _of_the_past(whole: Any, key: str) -> PastPrediction:
    if not isinstance(whole, dict) or whole.get("missing"):
        raise _none_of(key)
    return PastPrediction.from_json(whole["predictions"][0], {"as_of": whole["as_of"]})


def _none_of(key: str) -> NoPredictionError:
    return NoPredictionError(f"no prediction of {key!r}")


def _as(told: CurrentPrediction, source: Literal["fresh", "last_good"]) -> Given:
    age = max(NEVER, datetime.now(UTC) - told.fresh_until)
    return Given(told.score, told.label, source, age, told)
