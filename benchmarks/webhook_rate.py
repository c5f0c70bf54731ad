"""How many signed webhooks a second does one process take, behind waitress, and with what delay?

    python benchmarks/webhook_rate.py [--rate 1000] [--seconds 10] [--window 0.0] [--bare]

A server process serves a WebhookInvalidation over a cache of 100,000 entries. This one sends signed
messages at an even rate over persistent connections, each message new, each of one key, all signed
beforehand; it counts the answers by status, and the delay of each from when it was due. Exit status
1 if an answer is not 2xx, or if the rate was not reached: which it is not if others are at work.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import socket
import sys
import threading
import time
from collections import Counter
from multiprocessing.connection import Connection

from lapse import TTLCache
from lapse.web import sign

SECRET = b"a secret of 32 bytes, for a test"
ENTRIES = 100_000
ENOUGH = 0.99  # of the rate


def serve(window: float, threads: int, bare: bool, pipe: Connection) -> None:
    """The server process: tells its address, and at the end what it has counted."""
    from lapse.web.webhook import WebhookInvalidation

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it warns of every short burst
    cache: TTLCache[str, int] = TTLCache(3600)
    cache.set_many({f"users:{i}": i for i in range(ENTRIES)})
    with WebhookInvalidation(cache, secrets=[SECRET], window=window) as hook:
        if bare:
            hook.app.view_functions = dict.fromkeys(hook.app.view_functions, lambda: "{}")
        before = time.process_time()
        pipe.send(hook.serve(port=0, threads=threads))
        pipe.recv()
        pipe.send(hook.stats()._asdict() | {"seconds": time.process_time() - before})


def signed(number: int) -> bytes:
    """The request of a message, ready to be sent."""
    message = {"type": "invalidate_key", "key": f"users:{number % ENTRIES}"}
    body = json.dumps(message).encode()
    headers = sign(SECRET, body) | {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    lines = ["POST /webhook/invalidate HTTP/1.1", *(f"{n}: {text}" for n, text in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Load:
    """Requests, evenly spaced; each thread takes the next that is due, over its own connection."""

    def __init__(self, address: tuple[str, int], rate: float, requests: list[bytes]) -> None:
        self.address, self.rate, self.requests = address, rate, requests
        self.statuses: Counter[int] = Counter()
        self.delays: list[float] = []
        self._lock = threading.Lock()
        self._numbers = iter(range(len(requests)))
        self._begin = 0.0

    def run(self, connections: int) -> float:
        """The seconds that it took."""
        threads = [threading.Thread(target=self._work) for _ in range(connections)]
        self._begin = time.perf_counter() + 0.1
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - self._begin

    def _work(self) -> None:
        statuses: Counter[int] = Counter()
        delays: list[float] = []
        with socket.create_connection(self.address, timeout=30) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (number := self._take()) is not None:
                due = self._begin + number / self.rate
                time.sleep(max(0.0, due - time.perf_counter()))
                connection.sendall(self.requests[number])
                statuses[_status(connection)] += 1
                delays.append(time.perf_counter() - due)
        with self._lock:
            self.statuses += statuses
            self.delays += delays

    def _take(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)


def _status(connection: socket.socket) -> int:
    """Read an answer; 0 if the connection was closed instead."""
    answer = b""
    while (end := answer.find(b"\r\n\r\n")) < 0 or len(answer) < end + 4 + _length(answer):
        if not (chunk := connection.recv(65536)):
            return 0
        answer += chunk
    return int(answer[9:12])


def _length(answer: bytes) -> int:
    return int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1000, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2, help="of waitress")
    parser.add_argument("--window", type=float, default=0.0, help="0: applied before the answer")
    parser.add_argument("--bare", action="store_true", help="Flask and waitress, doing nothing")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(
        target=serve, args=(options.window, options.threads, options.bare, there)
    )
    server.start()
    address = here.recv()
    requests = [signed(number) for number in range(int(options.rate * options.seconds))]
    load = Load(address, options.rate, requests)
    took = load.run(options.connections)
    here.send("stop")
    counted = here.recv()
    server.join()

    count = len(requests)
    reached = count / took
    delays = sorted(load.delays)
    p50, p99 = (1000 * delays[int(share * len(delays))] for share in (0.5, 0.99))
    print(f"{count} requests in {took:.2f} s: {reached:.0f} a second of {options.rate:.0f}")
    print(f"delay from when each was due: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"statuses: {dict(load.statuses)}")
    print(f"server: {counted['accepted']} accepted, {counted['removed']} entries removed")
    print(f"server: {1e6 * counted['seconds'] / count:.0f} µs of processor time a request")
    good = sum(n for status, n in load.statuses.items() if 200 <= status < 300)
    return 0 if good == count and reached >= ENOUGH * options.rate else 1


if __name__ == "__main__":
    sys.exit(main())
