"""Requests of many rows and their answers over two topics of Apache Kafka.

A message becomes a request of the warehouse once, known by topic, partition and offset; the workers
of the queue answer it, by the champion. Its offset is committed when its answer is in the other
topic, so that a crash anywhere makes the message come again: it is found in the queue, scored no
second time, and its answer is sent again with the same id. Answers of a partition keep the order of
its requests.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import Any

from sqlalchemy.exc import DataError

from batch_jobs.database.warehouse import Warehouse
from batch_jobs.errors import ConfigurationError, ContractError, UnavailableError
from batch_jobs.failpoints import failpoint
from batch_jobs.model import BatchModel
from batch_jobs.redaction import first_line
from batch_jobs.requests import messages
from batch_jobs.requests.messages import Place
from batch_jobs.requests.queue import Answered
from batch_jobs.requests.submit import submit
from batch_jobs.settings import KafkaSettings

log = logging.getLogger(__name__)

MOST_PENDING = 100  # requests whose answers are waited for; each may have a megabyte of rows
TURN_SECONDS = 0.2
DELIVERY_SECONDS = 30
OURS = {"enable.auto.commit": False, "auto.offset.reset": "earliest"}
SURE = {"acks": "all", "enable.idempotence": True, "message.timeout.ms": DELIVERY_SECONDS * 1000}


@dataclass(frozen=True)
class Topics:
    """Between which topics to go, and for which model.

    Attributes:
        model: as its file has it.
        requests: the topic that requests come from.
        answers: the topic that answers go to.
        group: of the consumers that share the requests.
    """

    model: BatchModel
    requests: str
    answers: str
    group: str


@dataclass
class _Pending:
    """A message whose answer is not sent yet."""

    place: Place
    key: bytes | None
    value: bytes | None  # until it is in the queue
    request_id: int | None = None
    refused: str | None = None


def exchange(
    warehouse: Warehouse,
    kafka: KafkaSettings,
    topics: Topics,
    stop: Event,
    *,
    told: Callable[[str], None] | None = None,
    alive: Callable[[], None] = lambda: None,
) -> int:
    """Take requests and send answers until told to stop; how many answers were sent.

    What does not answer is tried again: the log tells it once.

    Args:
        warehouse: where the queue is; the rights of a requester are enough.
        kafka: how to reach the brokers.
        topics: which.
        stop: once set, this ends after its turn; what is not answered comes again next time.
        told: called with a line for each answer.
        alive: called with each turn.

    Raises:
        ConfigurationError: the client is not installed, or refuses its properties.
        UnavailableError: the client has to be begun anew.
    """
    exchanger = _Exchange(warehouse, kafka, topics, told or log.info)
    failed = ""
    try:
        while not stop.is_set():
            alive()
            try:
                exchanger.turn()
                failed = ""
            except exchanger.errors as error:
                line = first_line(error)
                if exchanger.is_fatal(error):
                    raise UnavailableError(f"Kafka: {line}") from error
                if line != failed:
                    log.warning("%s; it is tried again", line)
                failed = line
                stop.wait(1)
    finally:
        exchanger.close()
    return exchanger.sent


class _Exchange:
    """One consumer, one producer, and what is pending between them."""

    def __init__(
        self,
        warehouse: Warehouse,
        kafka: KafkaSettings,
        topics: Topics,
        told: Callable[[str], None],
    ) -> None:
        try:
            import confluent_kafka
        except ImportError as error:
            raise ConfigurationError(
                "topics need the package confluent-kafka; run `pip install 'batch-jobs[kafka]'`"
            ) from error
        self._kafka: Any = confluent_kafka
        self.errors = (confluent_kafka.KafkaException, UnavailableError)
        self._warehouse, self._topics, self._told = warehouse, topics, told
        self._client = f"kafka {topics.group}"
        self._pending: dict[int, deque[_Pending]] = {}
        self._is_paused = False
        self.sent = 0
        try:
            self._producer: Any = confluent_kafka.Producer(
                {**kafka.properties(), **SURE}, logger=log
            )
            self._consumer: Any = confluent_kafka.Consumer(
                {**kafka.properties(), "group.id": topics.group, **OURS}, logger=log
            )
        except confluent_kafka.KafkaException as error:
            raise ConfigurationError(f"BATCH_JOBS_KAFKA: {first_line(error)}") from None
        self._consumer.subscribe([topics.requests], on_revoke=self._forget, on_lost=self._forget)

    def close(self) -> None:
        """Leave the group, so that others take over at once."""
        self._consumer.close()

    def is_fatal(self, error: BaseException) -> bool:
        """Whether the client itself says that it must be made anew."""
        cause = error.args[0] if error.args else None
        return isinstance(cause, self._kafka.KafkaError) and bool(cause.fatal())

    def turn(self) -> None:
        """Take what has come, put it into the queue, and send what is answered."""
        self._take()
        for one in self._all():
            if one.value is not None:
                self._submit(one)
        waiting = [one.request_id for one in self._all() if one.request_id is not None]
        self._send(messages.finished(self._warehouse, waiting) if waiting else {})

    def _all(self) -> list[_Pending]:
        return [one for partition in self._pending.values() for one in partition]

    def _take(self) -> None:
        """Ask for messages while there is room; the group is told that we live in any case."""
        room = MOST_PENDING - len(self._all())
        if self._is_paused != (room <= 0):
            self._is_paused = room <= 0
            change = self._consumer.pause if self._is_paused else self._consumer.resume
            change(self._consumer.assignment())
        found = self._consumer.consume(max(1, room), TURN_SECONDS)
        for message in found:
            if not message.error():
                place = Place(message.topic(), message.partition(), message.offset())
                one = _Pending(place, message.key(), message.value() or b"")
                self._pending.setdefault(place.partition, deque()).append(one)
        for message in found:  # once those that came with it are kept
            if message.error():
                raise self._kafka.KafkaException(message.error())

    def _submit(self, one: _Pending) -> None:
        """Let a message be a request of the queue, unless it is one already or never will be."""
        try:
            wanted = messages.submission_of(
                self._topics.model, one.place, one.value or b"", self._client
            )
            found = submit(self._warehouse, wanted)
        except ContractError as error:
            one.refused = str(error)
        except (DataError, ValueError) as error:
            one.refused = first_line(getattr(error, "orig", None) or error)
        else:
            if found.request_sha256 == wanted.request_sha256:
                one.request_id = found.request_id
            else:
                one.refused = (
                    f"{one.place} was another request before, so the topic was made anew; let the "
                    f"consumers have another --group than {self._topics.group}"
                )
        one.value = None
        failpoint("exchange.submitted")

    def _send(self, finished: dict[int, Answered]) -> None:
        """Send the answers that are next in each partition, and only then commit the offsets."""
        offsets = []
        for partition, pending in self._pending.items():
            ready = []
            for one in pending:
                answered = finished.get(one.request_id or 0)
                if answered is None and one.refused is None:
                    break
                self._produce(one, answered)
                ready.append((one, answered))
            if ready:
                last = ready[-1][0].place.offset
                offsets.append(
                    (self._kafka.TopicPartition(self._topics.requests, partition, last + 1), ready)
                )
        if not offsets:
            return
        self._flush()
        failpoint("exchange.sent")
        self._consumer.commit(offsets=[offset for offset, _ in offsets], asynchronous=False)
        for offset, ready in offsets:
            for one, answered in ready:
                self._pending[offset.partition].remove(one)
                self.sent += 1
                self._told(f"{one.place}: {answered or one.refused}")

    def _produce(self, one: _Pending, answered: Answered | None) -> None:
        values = (
            [messages.refusal(self._topics.model.name, one.place, one.refused or "")]
            if answered is None
            else messages.answers(self._warehouse, one.place, answered)
        )
        for value in values:
            self._producer.produce(
                self._topics.answers,
                value,
                key=one.key if one.key is not None else str(one.place).encode(),
                headers={"request": str(one.place)},
                on_delivery=self._delivered,
            )

    def _delivered(self, error: Any, _: Any) -> None:
        if error is not None:
            raise self._kafka.KafkaException(error)

    def _flush(self) -> None:
        if self._producer.flush(DELIVERY_SECONDS):
            self._producer.purge()
            raise UnavailableError("Kafka took no answers")

    def _forget(self, _: Any, partitions: Any) -> None:
        """Partitions are another consumer's now, which gets their messages itself."""
        for partition in partitions:
            self._pending.pop(partition.partition, None)
