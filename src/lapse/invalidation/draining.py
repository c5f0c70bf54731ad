"""Draining: the way of an item from the ring to the cache, and what a full ring does.

    ring ──► take ──► applying ──► the cache
      │ full, and no room in time
      ▼
    spilled ──► the policy ──► covered ──► applying, at the next drain

An item leaves none of these places before it is in the next.

Invariants
    1. Items are applied under the flush lock only. So who holds it knows that all that was taken
       before has been applied; draining by size, by time and by flush() never race.
    2. What an interrupt, or a lack of memory, leaves unapplied goes back to `spilled`. Applying
       twice does no harm. A lack of memory in one place keeps nothing else from being applied.
    3. `spilled` stays the same list, as a producer may be about to append to it. Only who holds the
       short lock removes what another thread has put there.
    4. A finalizer may overflow wherever objects are made or something is called, also where its own
       thread holds the short lock: what is read there is read again before it is replaced.
    5. The flush lock is taken before the short one and before that of `room`. Who holds one of
       those waits for nothing, but for room.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lapse._queue import FULL, KINDS, NativeQueue, Taken
from lapse.invalidation.overflow import Covered, Policy, cover
from lapse.invalidation.stats import Counts
from lapse.invalidation.targets import Groups, Outcomes, Target, apply_groups

__all__ = ["Direct", "Draining"]

log = logging.getLogger("lapse.invalidation")


@dataclass(frozen=True, eq=False)
class Direct:
    """Items that were never queued."""

    what: Groups
    count: int

    def __len__(self) -> int:
        return self.count

    def groups(self) -> Groups:
        """The targets by kind."""
        return self.what

    def record(self, queue: NativeQueue) -> None:
        """They did not wait."""


Work = Taken | Covered | Direct


class Draining(NativeQueue):
    """A native queue that can be drained into a cache. For subclassing; `_ready()` comes first."""

    # Slots: with a dict of its own a queue's methods would be looked up there first.
    __slots__ = (
        "_alarm", "_applying", "_consumer", "_counts", "_covered", "_flushing", "_overflow_wait",
        "_policy", "_room", "_short", "_spilled", "_target", "batch_size",
    )  # fmt: skip

    def _ready(self, target: Target, batch_size: int, policy: Policy, overflow_wait: float) -> None:
        """Take the arguments, and be ready for producers."""
        self.batch_size = batch_size
        self._target = target
        self._policy = policy
        self._overflow_wait = overflow_wait
        self._counts = Counts()
        self._applying: list[Work] = []
        self._spilled: list[Work] = []
        self._covered: Covered | None = None
        self._renew()

    def _renew(self) -> None:
        """Locks, and an alarm, that no other thread knows."""
        self._flushing = threading.RLock()
        self._short = threading.RLock()
        self._room = threading.Condition(threading.RLock())
        self._alarm: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._consumer = 0  # the thread that holds the flush lock

    # --- From the ring to the cache ---

    @contextmanager
    def _consuming(self, patience: float = -1) -> Iterator[bool]:
        """Hold the flush lock; False if it is not to be had in `patience` seconds (-1: any)."""
        flushing = self._flushing
        if not flushing.acquire(timeout=patience):
            yield False
            return
        outer = self._consumer
        try:
            if not outer and self._applying:  # there was no memory to put them back
                self._put_back()
            self._consumer = threading.get_ident()
            yield True
        except BaseException:
            if not outer:
                self._put_back()
            raise
        finally:
            self._consumer = outer
            flushing.release()

    def _drain(self, patience: float = -1) -> bool:
        """Apply what was queued before the call; False if the flush lock was not to be had."""
        with self._consuming(patience) as held:
            if not held:
                return False
            end = self._pushed()
            whole = self._settle_spilled()
            while self._taken() < end:
                taken = self._take(self.batch_size, self._applying)
                if taken is None:  # a producer is about to fill a cell that it has claimed
                    time.sleep(0)
                    continue
                self._tell_of_room()
                whole &= self._settles(taken)
            whole &= self._settle_spilled()  # what producers took off the ring meanwhile
            if not whole:
                raise MemoryError("lapse: no memory to apply all that is queued")
            return True

    def _settle_spilled(self) -> bool:
        """Apply what left the ring through an overflow or an interrupt; False: not all of it."""
        with self._short:
            while (covered := self._covered) is not None:
                if covered not in self._spilled:
                    self._spilled.append(covered)  # first: there may be no memory for it
                if self._covered is covered:
                    self._covered = None
                else:  # a handler has applied it, or joined it to more
                    _discard(self._spilled, covered)
            works = [work for work in list(self._spilled) if self._claims(work)]
        whole = True
        for work in works:
            while isinstance(work, Taken) and not work.ready:
                time.sleep(0)
            whole &= self._settles(work)
        return whole

    def _claims(self, work: Work) -> bool:
        """Move it from `spilled` to `applying`; False: a handler that flushes has applied it."""
        self._applying.append(work)
        mine = _discard(self._spilled, work)
        if not mine:
            _discard(self._applying, work)
        return mine

    def _settles(self, work: Work) -> bool:
        """Apply one of `applying`; False: there was no memory for all of it, and it stays there."""
        try:
            self._settle(work)
        except MemoryError:
            return False
        return True

    def _settle(self, work: Work) -> Outcomes:
        """Apply one of `applying`."""
        groups = Groups(*work.groups())
        outcomes = apply_groups(self._target, groups)
        for kind in KINDS:
            for i, error in getattr(outcomes, kind).errors.items():
                shown = _shown(getattr(groups, kind)[i])
                log.error("invalidating %s %s failed", kind, shown, exc_info=error)
        if work in self._applying:  # else a listener has forked, and this is the child
            self._count(work, groups, outcomes)
        return outcomes

    def _count(self, work: Work, groups: Groups, outcomes: Outcomes) -> None:
        self._counts.add(outcomes)
        if isinstance(work, Taken):
            self._counts.batch(len(work), groups.size)
        work.record(self)
        count = len(work)
        if work in self._applying:  # else the clock has forked
            self._counts.applied += count  # last: who sees this sees the rest
            self._applying.remove(work)  # no call comes between: none is counted twice

    def _put_back(self) -> None:
        """What was to be applied waits again."""
        with self._short:
            self._spilled.extend([work for work in self._applying if work not in self._spilled])
            self._applying.clear()
        self._alarm.put(None)

    # --- Overflow: called by the producers ---

    def _overflow(self, number: int, target: Any) -> None:
        """Queue an item that the ring has no room for: wait for some, or make it."""
        status = self._wait_for_room(number, target)
        if status == FULL:
            self._collapse(number, target)
        else:
            self._signal(status)

    def _wait_for_room(self, number: int, target: Any) -> int:
        """Offer the item until `overflow_wait` is over; the consumer itself offers it once."""
        patience = 0 if self._consumer == threading.get_ident() else self._overflow_wait
        end = time.monotonic() + patience
        with self._room:  # who makes room tells so under this lock, and after that
            while (status := self._offer(number, target)) == FULL:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._room.wait(left)
        return status

    def _tell_of_room(self) -> None:
        with self._room:
            self._room.notify_all()

    def _collapse(self, number: int, target: Any) -> None:
        """Empty the ring: what it held, and this item, give way to what covers them."""
        taken = self._take(self.capacity, self._spilled)
        self._tell_of_room()
        pairs = [*(taken.pairs() if taken else ()), (KINDS[number], target)]
        covered = cover(self._policy, pairs, taken.oldest if taken else self._now())
        with self._short:
            self._cover(covered, taken)
        self._alarm.put(None)
        if self.closed:
            self._late()

    def _cover(self, covered: Covered, taken: Taken | None) -> None:
        """Have it stand for `taken` and one item more, or for this one if `taken` was applied.

        Under the short lock. No call comes between the last look and the exchange: invariant 4.
        """
        while True:
            before, gone = self._covered, taken not in self._spilled
            mine = covered.of(1) if gone else covered
            joined = mine.joined(before, self.capacity)
            if self._covered is before and gone == (taken not in self._spilled):
                break
        self._counts.collapsed += mine.count
        self._counts.collapses += 1
        self._covered = joined
        if taken is not None and not gone:
            self._spilled.remove(taken)

    def _late(self) -> None:
        """An item came in while the queue was being closed."""
        self._drain()


def _discard(works: list[Work], work: Work) -> bool:
    """Take `work` out of the list, if it is there. Works are compared by identity."""
    try:
        works.remove(work)
    except ValueError:
        return False
    return True


def _shown(target: Any) -> str:
    """A target in a message: whatever its repr() does, the message is written."""
    try:
        return f"{target!r:.100}"
    except Exception:
        return f"a {type(target).__name__}"
