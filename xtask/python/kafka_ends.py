"""Prints the end offset of each partition of a topic: kafka_ends.py BROKER TOPIC PARTITIONS.

In the form of ../shared/truth/publish.py's counts, `partition K: N`.
"""

import sys

from confluent_kafka import Consumer, TopicPartition

TIMEOUT_S = 30

broker, topic, partitions = sys.argv[1:]
reader = Consumer({"bootstrap.servers": broker, "group.id": "ends"})
for k in range(int(partitions)):
    _, end = reader.get_watermark_offsets(TopicPartition(topic, k), TIMEOUT_S)
    print(f"partition {k}: {end}")
reader.close()
