"""The queue that the invalidation strategies guide describes, as a measure for lapse's own.

Written from the description, with the same structure: a `queue.Queue` of dicts with a timestamp,
one thread that waits 0.1 s at a time and collects a batch by size or by timeout, a batch grouped
by type, and single deletes, each under the lock of a dict with a dict of times beside it. What is
added is an end: `close()`, and an event once as many items as expected have been applied.
"""

from __future__ import annotations

import fnmatch
import queue
import threading
import time
from collections.abc import Hashable
from typing import Any

__all__ = ["ReferenceCache", "ReferenceQueue"]

POLL = 0.1  #: seconds


class ReferenceCache:
    """A dict and the time of each entry, behind one lock."""

    def __init__(self) -> None:
        self.entries: dict[Hashable, Any] = {}
        self.stored_at: dict[Hashable, float] = {}
        self.lock = threading.RLock()

    def set(self, key: Hashable, value: Any) -> None:
        """Store a value."""
        with self.lock:
            self.entries[key] = value
            self.stored_at[key] = time.time()

    def delete(self, key: Hashable) -> bool:
        """Remove a key; True if it was there."""
        with self.lock:
            if key not in self.entries:
                return False
            del self.entries[key]
            del self.stored_at[key]
            return True

    def delete_pattern(self, pattern: str) -> int:
        """Remove every str key that the glob matches; how many."""
        with self.lock:
            names = [key for key in self.entries if isinstance(key, str)]
            return sum(map(self.delete, fnmatch.filter(names, pattern)))


class ReferenceQueue:
    """Invalidations on their way to a cache, applied in batches by a thread of its own.

    `done` is set when `expected` items have been applied.
    """

    def __init__(
        self, cache: Any, batch_size: int = 100, batch_timeout: float = 1.0, *, expected: int
    ) -> None:
        self.cache = cache
        self.batch_size = batch_size
        self.batch_timeout = batch_timeout
        self.expected = expected
        self.done = threading.Event()
        self._closed = False
        self._waiting: queue.Queue[dict[str, Any]] = queue.Queue()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._collect, daemon=True).start()

    def close(self) -> None:
        """Let the thread end when it next finds nothing."""
        self._closed = True

    def invalidate_key(self, key: Hashable) -> None:
        """Queue the removal of a key."""
        self._waiting.put({"type": "key", "key": key, "timestamp": time.time()})

    def invalidate_pattern(self, pattern: str) -> None:
        """Queue the removal of what a pattern matches."""
        self._waiting.put({"type": "pattern", "pattern": pattern, "timestamp": time.time()})

    def _collect(self) -> None:
        batch: list[dict[str, Any]] = []
        applied_at = time.time()
        while True:
            try:
                batch.append(self._waiting.get(timeout=POLL))
                due = len(batch) >= self.batch_size
            except queue.Empty:
                if self._closed:
                    return
                due = False
            if batch and (due or time.time() - applied_at >= self.batch_timeout):
                self._apply(batch)
                batch, applied_at = [], time.time()

    def _apply(self, batch: list[dict[str, Any]]) -> None:
        keys, patterns = [], []
        for item in batch:
            if item["type"] == "key":
                keys.append(item["key"])
            elif item["type"] == "pattern":
                patterns.append(item["pattern"])
        for key in keys:
            self.cache.delete(key)
        for pattern in patterns:
            self.cache.delete_pattern(pattern)
        self.expected -= len(batch)
        if self.expected <= 0:
            self.done.set()
