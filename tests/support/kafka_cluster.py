"""A cluster of Kafka in this process: librdkafka's own stand-in, which speaks the protocol.

It knows no transactions and keeps nothing once it is closed
(https://github.com/confluentinc/librdkafka/blob/master/src/rdkafka_mock.h).
"""

import json
import time

from confluent_kafka import Consumer, Producer, TopicPartition

SECONDS = 60  # for what takes a tenth of one

# The newer protocol of groups: the older one waits for three seconds at the start of each group.
GROUPS = {"group.protocol": "consumer"}


class Cluster:
    """Brokers on 127.0.0.1, with topics of a few partitions that are made when they are used."""

    def __init__(self):
        self._brokers = Producer({"bootstrap.servers": "none", "test.mock.num.brokers": 1})
        found = self._brokers.list_topics(timeout=SECONDS).brokers.values()
        self.address = ",".join(f"{broker.host}:{broker.port}" for broker in found)
        self._producer = Producer({"bootstrap.servers": self.address})

    def properties(self, folder):
        """The path of a file with the properties of a client."""
        path = folder / "kafka.properties"
        lines = {"bootstrap.servers": self.address, **GROUPS}
        path.write_text("# tests\n\n" + "".join(f"{name} = {lines[name]}\n" for name in lines))
        return path

    def send(self, topic, *values, key=None):
        """Put messages into the first partition of a topic, in that order."""
        for value in values:
            self._producer.produce(topic, value, key=key, partition=0)
        assert self._producer.flush(SECONDS) == 0

    def read(self, topic, count):
        """So many messages of a topic from its beginning: `(key, headers, JSON)` each."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "tests"})
        consumer.assign([TopicPartition(topic, number, 0) for number in self._partitions(topic)])
        found, until = [], time.monotonic() + SECONDS
        while len(found) < count and time.monotonic() < until:
            found += [one for one in consumer.consume(count - len(found), 0.1) if not one.error()]
        consumer.close()
        return [(one.key(), dict(one.headers()), json.loads(one.value())) for one in found]

    def count(self, topic):
        """How many messages a topic has."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": "tests"})
        ends = [
            consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=SECONDS)[1]
            for number in self._partitions(topic)
        ]
        consumer.close()
        return sum(ends)

    def _partitions(self, topic):
        return self._brokers.list_topics(topic, timeout=SECONDS).topics[topic].partitions

    def committed(self, topic, group):
        """Up to where a group has dealt with the first partition; negative before the first."""
        consumer = Consumer({"bootstrap.servers": self.address, "group.id": group, **GROUPS})
        (found,) = consumer.committed([TopicPartition(topic, 0)], timeout=SECONDS)
        consumer.close()
        return found.offset
