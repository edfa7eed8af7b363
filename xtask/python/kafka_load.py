"""Rows for a Kafka topic at a steady rate, and how far a group is behind.

kafka_load.py first BROKER TOPIC
    Makes the topic and publishes the row 0.
kafka_load.py produce BROKER TOPIC --rate ROWS_PER_S --seconds S
    Publishes rows from 1 on, and prints {"rows": …, "rate": …} once the broker has all.
kafka_load.py lag BROKER TOPIC GROUP
    Prints, twice a second until it is ended, the rows that the group has not committed.
"""

import argparse
import json
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PARTITIONS = 4
# Rows that are published between two looks at the clock.
STEP = 500


def row(n):
    # 50 characters of text: a row is 80 bytes of PostgreSQL's binary COPY.
    meter = "region-3/substation-0042/transformer-0007/m-%08d" % (n % 5000)
    return '{"n":%d,"meter_id":"%s","kwh":%.2f}' % (n, meter, n % 97 / 4)


def first(args):
    admin = AdminClient({"bootstrap.servers": args.broker})
    for made in admin.create_topics([NewTopic(args.topic, PARTITIONS, 1)]).values():
        made.result()
    producer = Producer({"bootstrap.servers": args.broker})
    producer.produce(args.topic, row(0), partition=0)
    if producer.flush(30):
        raise SystemExit("the first row was not delivered")


def produce(args):
    producer = Producer(
        {
            "bootstrap.servers": args.broker,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
        }
    )
    failed = []

    def delivered(error, _message):
        if error is not None:
            failed.append(error)

    began = time.monotonic()
    rows = args.rate * args.seconds
    for n in range(rows):
        if n % STEP == 0:
            producer.poll(0)
            wait = began + n / args.rate - time.monotonic()
            if wait > 0:
                time.sleep(wait)
        text = row(n + 1)
        while True:
            try:
                producer.produce(
                    args.topic, text, partition=n // STEP % PARTITIONS, on_delivery=delivered
                )
                break
            except BufferError:
                producer.poll(0.05)
    seconds = time.monotonic() - began
    producer.flush()
    if failed:
        raise SystemExit(f"{len(failed)} rows were not delivered: {failed[0]}")
    print(json.dumps({"rows": rows, "rate": rows / seconds}), flush=True)


def lag(args):
    consumer = Consumer(
        {"bootstrap.servers": args.broker, "group.id": args.group, "enable.auto.commit": False}
    )
    partitions = [TopicPartition(args.topic, p) for p in range(PARTITIONS)]
    while True:
        try:
            behind = 0
            for at in consumer.committed(partitions, timeout=10):
                _, high = consumer.get_watermark_offsets(at, timeout=10)
                behind += high - max(at.offset, 0)
            print(behind, flush=True)
        except KafkaException:
            # The topic is not there yet, or the broker is busy: the next look will tell.
            pass
        time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    zero = commands.add_parser("first")
    zero.add_argument("broker")
    zero.add_argument("topic")
    zero.set_defaults(run=first)
    one = commands.add_parser("produce")
    one.add_argument("broker")
    one.add_argument("topic")
    one.add_argument("--rate", type=int, required=True)
    one.add_argument("--seconds", type=int, required=True)
    one.set_defaults(run=produce)
    two = commands.add_parser("lag")
    two.add_argument("broker")
    two.add_argument("topic")
    two.add_argument("group")
    two.set_defaults(run=lag)
    args = parser.parse_args()
    args.run(args)


main()
