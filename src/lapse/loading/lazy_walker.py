"""The walker: a thread that removes what is marked and nobody asks for.

    oldest mark ──► the keys that it covers ──► the entry, if its stamp is below the mark's number
         ▲                                          and it is still the value that was judged
         └──────────── then the mark goes ◄─────────────┘

A walk goes in steps: STEP keys, and at most one listing of what a pattern or a tag covers, which
the cache does in bounded steps of its own. The thread sleeps while there is no mark, and pauses
between steps. It holds the cache and the marks, but not the object that they belong to: when that
is gone, or the thread is told to stop, it ends.

Why a mark may go then: what it covers was stored before it was made, because it outdated the loads
that were under way. The walk comes after that, and meets all of it that has stayed.
"""

from __future__ import annotations

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from lapse.loading.lazy_marks import KEY, PATTERN, TAG, Mark, Marks
from lapse.loading.lazy_stamps import Stamps

__all__ = ["Walk", "Walker"]

log = logging.getLogger("lapse.lazy")
STEP = 1000  # keys that a step looks at
JOIN = 0.9  # seconds that stop() waits for the thread to end
ERROR_PAUSE = 1.0  # seconds before a walk that has failed begins anew
MISSING: Any = object()


class Walk:
    """A walk over the live marks, oldest first. One thread uses one walk; several may go at once.

    Args:
        stamps: what is known of the cache's keys.
        last: marks above this number are left alone; None = as long as there are any.
    """

    __slots__ = ("_cache", "_keys", "_last", "_mark", "_marks", "_stamps", "reclaimed")

    def __init__(self, cache: Any, marks: Marks, stamps: Stamps, last: int | None = None) -> None:
        self._cache, self._marks, self._stamps, self._last = cache, marks, stamps, last
        self._mark: Mark | None = None
        self._keys: Iterator[Any] | None = None
        #: Entries that it has removed.
        self.reclaimed = 0

    def step(self) -> bool:
        """Go on a little; False if no mark is left. What a key's `__eq__` raises ends the step."""
        left = STEP
        while left > 0 and self.has_more():
            left = self._go_on(left)
        return self.has_more()

    def finish(self) -> int:
        """Go on to the end; how many entries went in all."""
        while self.step():
            continue
        return self.reclaimed

    def has_more(self) -> bool:
        """Is there a mark at hand, or another one to be taken up?"""
        if self._cache.closed:
            return False
        if self._mark is None:
            mark = self._marks.oldest()
            if mark is not None and (self._last is None or mark.number <= self._last):
                self._mark, self._keys = mark, None
        return self._mark is not None

    def _go_on(self, limit: int) -> int:
        """Look at `limit` keys under the mark at hand; at how many the step may still look."""
        mark = self._mark
        assert mark is not None
        try:
            if self._keys is None:
                self._keys = iter(self._covered(mark))
            keys = list(islice(self._keys, limit))
            gone = sum(self._reclaim(key, mark.number) for key in keys)
        except BaseException:
            self._mark = None  # it begins anew
            raise
        self.reclaimed += gone
        self._marks.tally("reclaimed", gone)
        if len(keys) < limit:
            self._retire(mark)
        return limit - len(keys) if mark.kind == KEY else 0

    def _covered(self, mark: Mark) -> Iterable[Any]:
        """The keys under a mark."""
        if mark.kind == KEY:
            return mark.target  # type: ignore[no-any-return]
        if mark.kind == PATTERN:
            return self._cache._kept_matching(mark.name)  # type: ignore[no-any-return]
        if mark.kind == TAG:
            return self._cache._kept_with_tag(mark.name)  # type: ignore[no-any-return]
        return self._cache._kept()  # type: ignore[no-any-return]

    def _reclaim(self, key: Any, number: int) -> bool:
        """Remove an entry that is older than the mark of this number; was there a live one?

        The value comes before the stamp, which speaks of what is there when it is read, and later.
        """
        value = self._cache._look_kept(key, MISSING)
        if value is MISSING or self._stamps.of(key) >= number:
            return False
        return self._cache._drop(key, value)  # type: ignore[no-any-return]

    def _retire(self, mark: Mark) -> None:
        self._mark = None
        self._marks.retire(mark)
        if not self._marks.count:
            self._stamps.clear()  # nobody asks for them until there is another mark


class Walker:
    """The thread that walks for one object, which holds it and which it does not hold.

    Args:
        new_walk: makes a walk.
        pause: seconds between two steps.
    """

    __slots__ = ("__weakref__", "_alarm", "_asleep", "_name", "_new_walk", "_pause", "_starting",
                 "_thread", "errors", "stopping")  # fmt: skip

    def __init__(self, new_walk: Callable[[], Walk], pause: float, name: str) -> None:
        self._new_walk, self._pause, self._name = new_walk, pause, name
        self._thread: threading.Thread | None = None
        self._renew()
        self.stopping = False
        #: Steps that have failed.
        self.errors = 0

    def _renew(self) -> None:
        """An alarm and a lock that no other thread knows."""
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._asleep = False
        self._starting = threading.RLock()

    def start(self) -> None:
        """Start the thread, unless it runs."""
        with self._starting:
            if self._thread is not None:
                return
            alarm = self._alarm
            ref = weakref.ref(self, lambda _: alarm.put(None))
            args = ref, alarm, self._new_walk()
            thread = threading.Thread(target=_patrol, args=args, name=self._name, daemon=True)
            thread.start()
            self._thread = thread

    def restart_in_child(self) -> None:
        """In a forked child: start the thread again, if there was one."""
        started, self._thread = self._thread is not None, None
        self._renew()
        if started and not self.stopping:
            self.start()

    def wake(self) -> None:
        """There is a mark. O(1); nobody waits."""
        if self._asleep:
            self._asleep = False
            self._alarm.put(None)

    def stop(self) -> None:
        """End the thread, and wait for it, but not long."""
        self.stopping = True
        self._alarm.put(None)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN)

    def turn(self, walk: Walk) -> float | None:
        """One step; the seconds to sleep after it, None for as long as there is no mark."""
        try:
            if walk.step():
                return self._pause
        except Exception:
            log.exception("removing what is marked failed")
            self.errors += 1
            return ERROR_PAUSE
        self._asleep = True  # whoever marks from now on wakes; who did so before is seen here
        return self._pause if walk.has_more() else None


def _patrol(ref: weakref.ref[Walker], alarm: queue.SimpleQueue[None], walk: Walk) -> None:
    """The thread, which holds the walker for a step at a time.

    When its object is gone, what was marked is still removed: others may hold the cache.
    """
    while (walker := ref()) is not None and not walker.stopping:
        seconds = walker.turn(walk)
        del walker
        with suppress(queue.Empty):
            alarm.get(timeout=seconds)
    if walker is None:
        try:
            walk.finish()
        except Exception:
            log.exception("removing what is marked failed")
