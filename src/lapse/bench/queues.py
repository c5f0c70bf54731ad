"""What the invalidation queue costs: a put, the application of a batch, a whole stream.

The keys of a stream are equal to those of the cache, not the same objects, as if each had been
parsed from a message.
"""

from __future__ import annotations

import queue
import random
from collections.abc import Iterable
from functools import partial
from typing import Any

from .cases import SEED, absent, equal, str_keys
from .contenders import compile_fill, compile_loop
from .contest import Contest, Trial
from .engine import Plan
from .patterns import make_cache
from .reference import ReferenceCache, ReferenceQueue

__all__ = ["QUEUES"]

BATCH_SIZE = 10_000
STREAM = 5 * BATCH_SIZE  #: invalidations in one go; whole batches, so that no timeout is waited for
STREAM_ROUNDS = 7
PATIENCE = 60.0  #: seconds until a stream that is not applied is given up
PUT = "c.invalidate_key(k)"


def make_queue(cache: Any, capacity: int, start: bool = False) -> Any:
    """A queue for `cache` with room for `capacity` items, its thread asleep unless started."""
    from lapse.invalidation.queue import OptimizedInvalidation

    return OptimizedInvalidation(cache, BATCH_SIZE, capacity=capacity, start=start)


# --- One put ---


class Put(Trial):
    """Put keys into a lapse queue; they are taken off between the rounds."""

    def __init__(self, keys: list[str], start: bool) -> None:
        self.keys = keys
        self.operations = len(keys)
        self.loop = compile_loop(PUT)
        self.queue = make_queue(make_cache(), len(keys), start)

    def call(self) -> object:
        """Put them all."""
        return self.loop(self.queue, self.keys, None)

    def finish(self, answer: object) -> None:
        """None was lost; the queue is empty again."""
        self.queue.flush()
        stats = self.queue.stats()
        assert stats.collapsed == stats.depth == 0

    def close(self) -> None:
        """End the thread."""
        self.queue.close()


class SimplePut(Trial):
    """Put keys into a `queue.SimpleQueue`, a new one each time."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.operations = len(keys)
        self.loop = compile_loop("c.put(k)")

    def prepare(self) -> None:
        """An empty queue."""
        self.queue: queue.SimpleQueue[str] = queue.SimpleQueue()

    def call(self) -> object:
        """Put them all."""
        return self.loop(self.queue, self.keys, None)


def _put_trials(plan: Plan) -> list[Trial]:
    keys = str_keys(plan.operations)
    return [SimplePut(keys), Put(keys, start=False), Put(keys, start=True)]


# --- Many applied ---


class Stream:
    """Invalidations for a cache of `entries` keys, other keys each time."""

    def __init__(self, entries: int) -> None:
        self.keys = str_keys(entries)
        self.draw = random.Random(SEED)
        self.size = min(STREAM, entries // 2)

    def next(self) -> list[str]:
        """Some stored keys."""
        return self.draw.sample(self.keys, self.size)


class Apply(Trial):
    """Apply a queued stream by flush(), in batches."""

    def __init__(self, stream: Stream, present: bool = True) -> None:
        self.stream = stream
        self.present = present
        self.operations = stream.size
        self.cache = make_cache()
        self.store(stream.keys)
        self.queue = make_queue(self.cache, stream.size)
        self.put = compile_loop(PUT)

    def store(self, keys: Iterable[str]) -> None:
        """Store these keys."""
        self.cache.set_many((key, b"") for key in keys)

    def prepare(self) -> None:
        """Queue the stream."""
        self.gone = self.stream.next()
        self.incoming = equal(self.gone) if self.present else absent(self.gone)
        self.matched = self.queue.stats().matched
        self.put(self.queue, self.incoming, None)

    def call(self) -> object:
        """Apply it."""
        return self.queue.flush()

    def finish(self, answer: object) -> None:
        """Each removed its entry, which comes back, or none."""
        matched = self.queue.stats().matched - self.matched
        assert matched == (len(self.gone) if self.present else 0)
        self.store(self.gone)

    def close(self) -> None:
        """End the queue."""
        self.queue.close()


class Flow(Apply):
    """A stream from the first put to the last removal; the queue's thread is at work meanwhile."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream)
        self.queue.start_batch_processing()

    def prepare(self) -> None:
        """Choose the stream."""
        self.gone = self.stream.next()
        self.incoming = equal(self.gone)
        self.matched = self.queue.stats().matched

    def call(self) -> object:
        """Put it, and wait until it has been applied."""
        self.put(self.queue, self.incoming, None)
        return self.queue.flush()


class ReferenceApply(Trial):
    """Apply a queued stream by the reference's queue to the reference's cache."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.operations = stream.size
        self.cache = ReferenceCache()
        self.put, self.store = compile_loop(PUT), compile_fill("c.set(k, v)")
        self.store(self.cache, stream.keys, [b""] * len(stream.keys))

    def prepare(self) -> None:
        """Queue the stream; the thread has not started."""
        self.ready()
        self.put(self.queue, self.incoming, None)

    def ready(self) -> None:
        """A stream, and an empty queue."""
        self.gone = self.stream.next()
        self.incoming = equal(self.gone)
        size = min(BATCH_SIZE, len(self.gone))
        self.queue = ReferenceQueue(self.cache, size, expected=len(self.gone))

    def call(self) -> object:
        """Start the thread and wait for it."""
        self.queue.start()
        return self.queue.done.wait(PATIENCE)

    def finish(self, answer: object) -> None:
        """All entries went, and come back; the thread ends."""
        self.queue.close()
        assert answer
        assert len(self.cache.entries) == len(self.stream.keys) - len(self.gone)
        self.store(self.cache, self.gone, [b""] * len(self.gone))


class ReferenceFlow(ReferenceApply):
    """The same from the first put on."""

    def prepare(self) -> None:
        """The thread waits for the stream."""
        self.ready()
        self.queue.start()

    def call(self) -> object:
        """Put it, and wait until it has been applied."""
        self.put(self.queue, self.incoming, None)
        return self.queue.done.wait(PATIENCE)


def _apply_trials(plan: Plan) -> list[Trial]:
    streams = [Stream(plan.large // 10), Stream(plan.large)]
    return [Apply(stream, present) for stream in streams for present in (True, False)]


def _stream_trials(reference: type[Trial], ours: type[Trial], plan: Plan) -> list[Trial]:
    make: list[Any] = [reference, ours]
    return [trial(Stream(plan.large)) for trial in make]


def _stream_contest(name: str, what: str, reference: type[Trial], ours: type[Trial]) -> Contest:
    return Contest(
        f"queue-{name}",
        f"{what} in batches of {BATCH_SIZE:,}, a key, {{large:,}} entries",
        "ns",
        ("reference", "lapse"),
        partial(_stream_trials, reference, ours),
        "reference",
        STREAM_ROUNDS,
    )


QUEUES = (
    Contest(
        "queue-put",
        "put of a key into a queue",
        "ns",
        ("SimpleQueue", "lapse", "lapse, drained meanwhile"),
        _put_trials,
        "SimpleQueue",
    ),
    Contest(
        "queue-apply",
        f"application of queued keys in batches of {BATCH_SIZE:,}, a key, by entries of the cache",
        "ns",
        ("100k, present", "100k, absent", "1m, present", "1m, absent"),
        _apply_trials,
    ),
    _stream_contest("backlog", "application of a full queue", ReferenceApply, Apply),
    _stream_contest("stream", "a stream put and applied", ReferenceFlow, Flow),
)
