"""Makes an empty topic for ../shared/truth/publish.py: kafka_topic.py BROKER TOPIC PARTITIONS [K=V]….

With the settings that publish.py would give it, so that the reader can be there first.
"""

import sys

from confluent_kafka.admin import AdminClient, NewTopic

FOREVER = str(2**63 - 1)

broker, topic, partitions, *more = sys.argv[1:]
# Arrival times lie anywhere in the past or future: brokers must neither refuse nor expire.
config = {
    "retention.ms": "-1",
    "message.timestamp.after.max.ms": FOREVER,
    "message.timestamp.before.max.ms": FOREVER,
}
config.update(word.split("=", 1) for word in more)
admin = AdminClient({"bootstrap.servers": broker})
for made in admin.create_topics([NewTopic(topic, int(partitions), config=config)]).values():
    made.result()
