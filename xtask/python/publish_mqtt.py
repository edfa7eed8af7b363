"""Publishes generated data to an MQTT broker that goes away and comes back: publish_mqtt.py DIR BROKER TOPIC RATE.

As ../shared/truth/publish.py does (its folder must be on PYTHONPATH), but a lost connection is made again, and what
is not known to be safe is sent again, in its order: what was not acknowledged, and what was less than SAFE_S before,
since a broker that is killed forgets what it has not saved yet. So some messages come twice, and of each message the
first comes in its order.
"""

import json
import sys
import time
from collections import deque
from pathlib import Path

from publish import SLICE_MS, Arrivals, Pace
from publish_error import PublishError
from to_mqtt import Mqtt

SAFE_S = 5.0
LOOK_S = 0.2
PATIENCE_S = 60.0
ANSWER_S = 10.0


class Publisher:
    """One connection at a time, and what may have to be sent again."""

    def __init__(self, to: str, topic: str):
        self.to, self.topic = to, topic
        self.kept, self.first = deque(), 0      # messages not known to be safe, and the first one's number
        self.acked_at = deque()                 # (time, all messages before this number were acknowledged)
        self.again, self.connections, self.looked = 0, 0, 0.0
        self._connect()

    def send(self, *message):
        self.kept.append(message)
        self._try(lambda: self._send(message))

    def idle(self):
        self._try(self.broker.idle)
        now = time.monotonic()
        if now - self.looked < LOOK_S:
            return
        self.looked = now
        self.acked_at.append((now, self.base + self.sent - self.broker.unacked))
        while self.acked_at and self.acked_at[0][0] <= now - SAFE_S:
            safe = self.acked_at.popleft()[1]
            while self.first < safe:
                self.kept.popleft()
                self.first += 1

    def finish(self):
        """Waits until all is safe."""
        while self.kept:
            self.idle()
            time.sleep(LOOK_S / 4)
        self._try(self.broker.finish)

    def _send(self, message):
        self.broker.send(*message)
        self.sent += 1

    def _try(self, act):
        try:
            act()
        except (PublishError, OSError) as error:
            print(f"connection lost: {error}; {len(self.kept)} messages are sent again", flush=True)
            self._connect()

    def _connect(self):
        """A connection on which everything that is kept has been sent."""
        begun = time.monotonic()
        while True:
            try:
                self.broker = Mqtt(self.to, self.topic, 1, ANSWER_S)
                self.base, self.sent = self.first, 0
                self.acked_at.clear()
                for message in self.kept:
                    self._send(message)
                self.connections += 1
                self.again += self.sent
                return
            except (PublishError, OSError) as error:
                if time.monotonic() - begun > PATIENCE_S:
                    raise PublishError(f"no connection for {PATIENCE_S:.0f} s: {error}") from error
                time.sleep(LOOK_S)


def main() -> int:
    data, to, topic, rate = Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
    made = json.loads((data / "manifest.json").read_text())
    parts = [Arrivals(data, k) for k in range(made["parameters"]["partitions"])]
    publisher, pace, total = Publisher(to, topic), Pace(rate, None), 0
    while times := [ms for part in parts if (ms := part.next_ms()) is not None]:
        slice_end = min(times) - min(times) % SLICE_MS + SLICE_MS
        for k, part in enumerate(parts):
            for message in part.before(slice_end):
                publisher.send(k, *message)
                total += 1
                pace.rows(total)
        publisher.idle()
    publisher.finish()
    if total != made["counts"]["messages"]:
        print(f"sent {total}, but the manifest says {made['counts']['messages']}")
        return 1
    print(f"{total} messages, {publisher.again} sent again, {publisher.connections} connections")
    return 0


if __name__ == "__main__":
    sys.exit(main())
