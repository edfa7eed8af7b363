"""Counts the committed messages of topics, as they come: kafka_follow.py BROKER FILE TOPIC….

FILE says how many there are so far, a line a topic; before the first there is none. It ends with
its parent. A broker that goes away is waited for.
"""

import os
import sys
from pathlib import Path

from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

TIMEOUT_S = 30
LOOK_S = 0.05

broker, to, *topics = sys.argv[1:]
parent = os.getppid()
consumer = Consumer({
    "bootstrap.servers": broker,
    "group.id": "follow",
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "reconnect.backoff.max.ms": 500,
})
known = consumer.list_topics(timeout=TIMEOUT_S).topics
lacking = [topic for topic in topics if topic not in known or not known[topic].partitions]
if lacking:
    raise SystemExit(f"no topics {lacking}")
consumer.assign([
    TopicPartition(topic, k, OFFSET_BEGINNING) for topic in topics for k in known[topic].partitions])
counts = dict.fromkeys(topics, 0)
draft = Path(to + ".draft")
while os.getppid() == parent:
    rows = [message for message in consumer.consume(1000, timeout=LOOK_S) if not message.error()]
    for row in rows:
        counts[row.topic()] += 1
    if rows:
        draft.write_text("".join(f"{topic} {count}\n" for topic, count in counts.items()))
        draft.replace(to)
