"""Rows at a steady rate, for hours: soak_load.py kafka|mqtt BROKER TOPIC --rate ROWS_PER_S --seconds S

Row n (from 1 on) is {"n": n, "meter_id": …, "ts": milliseconds, "kwh": …}; it goes to the partition
(with MQTT: below the topic) of its turn. When all are there, each partition gets a row of n = 0 a
minute ahead, so that the windows of all others close. Prints {"rows": …, "rate": …}.

For MQTT ../shared/truth must be on PYTHONPATH.
"""

import argparse
import json
import time

PARTITIONS = 4
# Rows between two looks at the clock.
STEP = 100
METERS = 1000
AHEAD_MS = 60_000
PATIENCE_S = 120.0


def row(n, ts):
    return b'{"n":%d,"meter_id":"meter-%05d","ts":%d,"kwh":%.2f}' % (n, n % METERS, ts, n % 97 / 4)


class Kafka:
    def __init__(self, args):
        from confluent_kafka import Producer

        self.topic, self.failed = args.topic, []
        self.producer = Producer({
            "bootstrap.servers": args.to,
            "linger.ms": 20,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 500_000,
        })

    def delivered(self, error, _message):
        if error is not None:
            self.failed.append(error)

    def send(self, partition, payload):
        while True:
            try:
                self.producer.produce(
                    self.topic, payload, partition=partition, on_delivery=self.delivered
                )
                return
            except BufferError:
                self.producer.poll(0.05)

    def idle(self):
        self.producer.poll(0)

    def flush(self):
        self.producer.flush()
        if self.failed:
            raise SystemExit(f"{len(self.failed)} rows were not delivered: {self.failed[0]}")


class Mqtt:
    def __init__(self, args):
        import to_mqtt

        self.broker = to_mqtt.Mqtt(args.to, args.topic, 1, PATIENCE_S)

    def send(self, partition, payload):
        self.broker.send(partition, None, "m", payload)

    def idle(self):
        self.broker.idle()

    def flush(self):
        while self.broker.unacked:
            self.broker.idle()
            time.sleep(0.01)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["kafka", "mqtt"])
    parser.add_argument("to")
    parser.add_argument("topic")
    parser.add_argument("--rate", type=int, required=True)
    parser.add_argument("--seconds", type=int, required=True)
    args = parser.parse_args()
    broker = Kafka(args) if args.kind == "kafka" else Mqtt(args)
    began = time.monotonic()
    rows = args.rate * args.seconds
    for n in range(1, rows + 1):
        if n % STEP == 1:
            broker.idle()
            wait = began + n / args.rate - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            ts = int(time.time() * 1e3)
        broker.send(n // STEP % PARTITIONS, row(n, ts))
    seconds = time.monotonic() - began
    broker.flush()
    for partition in range(PARTITIONS):
        broker.send(partition, row(0, int(time.time() * 1e3) + AHEAD_MS))
    broker.flush()
    print(json.dumps({"rows": rows, "rate": rows / seconds}), flush=True)


main()
