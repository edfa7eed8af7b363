"""Copies the values of a topic's committed messages, a line each: kafka_rows.py BROKER TOPIC TO.

As a consumer sees them that comes anew and reads what is committed, as far as that goes now.
"""

import sys
import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

TIMEOUT_S = 60

broker, topic, to = sys.argv[1:]
consumer = Consumer({
    "bootstrap.servers": broker,
    # Nothing is committed; the library wants a name.
    "group.id": "rows",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "fetch.wait.max.ms": 10,
})
left = set(consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic].partitions)
if not left:
    raise SystemExit(f"no topic {topic}")
consumer.assign([TopicPartition(topic, k, OFFSET_BEGINNING) for k in left])
until = time.monotonic() + TIMEOUT_S
with open(to, "wb") as out:
    while left:
        if time.monotonic() > until:
            raise SystemExit(f"{topic}: partitions {sorted(left)} were not read in {TIMEOUT_S} s")
        for message in consumer.consume(1000, timeout=1):
            error = message.error()
            if error is None:
                if message.value() is None:
                    raise SystemExit(f"{topic}: a message without a value, where rows are appended")
                out.write(message.value() + b"\n")
            elif error.code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
consumer.close()
