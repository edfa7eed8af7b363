"""How long a row takes from the broker to a reader.

latency.py load BROKER TOPIC --rate ROWS_PER_S --seconds S
    Publishes rows at a steady rate, and prints how many.
latency.py table URL TABLE ROWS WARM_S
    Looks at the table as fast as it can (a SELECT of the greatest offset of each partition) until
    ROWS rows are there; then prints, as JSON, how many there are, how many different ones, and
    percentiles of the time from the broker's timestamp of a row until a SELECT has shown it; rows
    of the first WARM_S seconds do not count.
latency.py topic BROKER TOPIC ROWS WARM_S
    The same of a consumer that reads what is committed.

Times in milliseconds; with WEIR_LATENCY_SECONDS set, the median of each second goes to stderr.
The broker stamps what it appends (LogAppendTime), on this machine's clock.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import datetime

from confluent_kafka import Consumer, Producer, TopicPartition

PARTITIONS = 4
PATIENCE = 60
# The client's default.
LINGER_MS = 5
# Seconds between two looks at the table; they count as latency.
LOOK = 0.003


def load(args):
    producer = Producer({"bootstrap.servers": args.broker, "linger.ms": LINGER_MS})
    failed = []

    def delivered(error, _message):
        if error is not None:
            failed.append(error)

    began = time.monotonic()
    rows = args.rate * args.seconds
    for n in range(rows):
        if n % 10 == 0:
            producer.poll(0)
            wait = began + n / args.rate - time.monotonic()
            if wait > 0:
                time.sleep(wait)
        text = '{"n":%d,"meter_id":"m-%05d","kwh":%.2f}' % (n, n % 5000, n % 97 / 4)
        producer.produce(args.topic, text, partition=n % PARTITIONS, on_delivery=delivered)
    producer.flush()
    if failed:
        raise SystemExit(f"{len(failed)} rows were not delivered: {failed[0]}")
    print(json.dumps({"rows": rows, "rate": rows / (time.monotonic() - began)}), flush=True)


def report(rows, different, latencies):
    latencies.sort()
    at = lambda share: latencies[min(len(latencies) - 1, int(len(latencies) * share))]
    answer = {"rows": rows, "different": different, "counted": len(latencies)}
    answer.update({"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": latencies[-1]})
    print(json.dumps(answer), flush=True)


def millis(text):
    """Milliseconds since 1970 of `2026-01-02 03:04:05.678Z`."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1e3


def by_second(pairs):
    """Prints the median of each second, where WEIR_LATENCY_SECONDS is set."""
    if os.environ.get("WEIR_LATENCY_SECONDS") is None:
        return
    seconds = {}
    for arrival, latency in pairs:
        seconds.setdefault(int(arrival / 1e3), []).append(latency)
    for second, all_of_it in sorted(seconds.items()):
        all_of_it.sort()
        middle = all_of_it[len(all_of_it) // 2]
        print(f"{second}: {len(all_of_it)} rows, median {middle:.0f} ms", file=sys.stderr)


def table(args):
    psql = subprocess.Popen(
        ["psql", args.url, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )

    def ask(sql):
        psql.stdin.write(sql + "\n")
        psql.stdin.flush()
        line = psql.stdout.readline()
        if not line:
            raise SystemExit("psql has ended")
        return line.strip()

    greatest = ",".join(
        f"COALESCE((SELECT MAX(off) FROM {args.table} WHERE part='{p}'),-1)"
        for p in range(PARTITIONS)
    )
    sql = f"SELECT concat_ws(' ', {greatest});"
    seen = [[] for _ in range(PARTITIONS)]
    last = [-1] * PARTITIONS
    began = time.monotonic()
    while sum(last) + PARTITIONS < args.rows and time.monotonic() - began < PATIENCE + args.rows / 5e3:
        now = [int(word) for word in ask(sql).split()]
        at = time.time() * 1e3
        for p in range(PARTITIONS):
            if now[p] > last[p]:
                seen[p].append((now[p], at))
        last = now
        # A reader that never rests would take a processor from those that it looks at.
        time.sleep(LOOK)
    psql.stdin.close()
    psql.wait()
    rows = subprocess.run(
        ["psql", args.url, "-X", "-q", "-A", "-t", "-F", " ", "-c",
         f"SELECT part, off, floor(extract(epoch from arrival) * 1000) FROM {args.table}"
         " ORDER BY part, off"],
        check=True, capture_output=True, text=True,
    ).stdout.split("\n")
    rows = [tuple(int(word) for word in row.split()) for row in rows if row]
    first = min(arrival for _, _, arrival in rows)
    latencies, pairs, place = [], [], [0] * PARTITIONS
    for part, off, arrival in rows:
        while place[part] < len(seen[part]) and seen[part][place[part]][0] < off:
            place[part] += 1
        if place[part] < len(seen[part]):
            latency = seen[part][place[part]][1] - arrival
            pairs.append((arrival, latency))
            if arrival >= first + args.warm * 1e3:
                latencies.append(latency)
    by_second(pairs)
    report(len(rows), len({row[:2] for row in rows}), latencies)


def topic(args):
    consumer = Consumer({
        "bootstrap.servers": args.broker,
        "group.id": "latency",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "fetch.wait.max.ms": 5,
        "auto.offset.reset": "earliest",
    })
    parts = consumer.list_topics(args.topic, timeout=30).topics[args.topic].partitions
    consumer.assign([TopicPartition(args.topic, p, 0) for p in parts])
    rows, began = [], time.monotonic()
    while len(rows) < args.rows and time.monotonic() - began < PATIENCE + args.rows / 5e3:
        for message in consumer.consume(500, timeout=0.005):
            if message.error() is None:
                rows.append((time.time() * 1e3, message.value()))
    # One that comes twice comes soon.
    rows += [(time.time() * 1e3, m.value()) for m in consumer.consume(500, timeout=1)]
    parsed = [(at, json.loads(text)) for at, text in rows]
    pairs = [(millis(row["arrival"]), at - millis(row["arrival"])) for at, row in parsed]
    first = min(arrival for arrival, _ in pairs)
    latencies = [latency for arrival, latency in pairs if arrival >= first + args.warm * 1e3]
    by_second(pairs)
    report(len(parsed), len({(row["part"], row["off"]) for _, row in parsed}), latencies)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("load")
    one.add_argument("broker")
    one.add_argument("topic")
    one.add_argument("--rate", type=int, required=True)
    one.add_argument("--seconds", type=int, required=True)
    one.set_defaults(run=load)
    for name, run in [("table", table), ("topic", topic)]:
        two = commands.add_parser(name)
        two.add_argument("url" if name == "table" else "broker")
        two.add_argument("table" if name == "table" else "topic")
        two.add_argument("rows", type=int)
        two.add_argument("warm", type=float)
        two.set_defaults(run=run)
    args = parser.parse_args()
    args.run(args)


main()
