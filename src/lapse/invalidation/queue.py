"""The one queue of invalidations: producers return at once, a thread applies in batches.

A batch is applied when `batch_size` items wait, when the oldest has waited `batch_timeout`, by
flush(), by close(), and at the interpreter's exit; draining.py says how. While nothing waits the
thread sleeps (worker.py). A queue that nobody else refers to dies, and applies what waits.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import operator
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from lapse._queue import KINDS, Taken, describe
from lapse.forks import tell_all
from lapse.invalidation.draining import Direct, Draining
from lapse.invalidation.message import Invalidation
from lapse.invalidation.metrics import WireMeter
from lapse.invalidation.overflow import policy_of
from lapse.invalidation.stats import QueueStats
from lapse.invalidation.targets import Groups, Outcomes, grouped, target_of
from lapse.invalidation.worker import Worker, await_all

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Applied", "OptimizedInvalidation", "raise_first"]

log = logging.getLogger("lapse.invalidation")
LARGEST = 1 << 26  # items of a ring: 2 GiB
JOIN = 0.9  # seconds that close() waits for the thread to end
EXIT_WAIT = 1.0  # seconds that the interpreter's exit waits for what is being applied


class Applied(NamedTuple):
    """What became of one invalidation that apply() was called with."""

    invalidation: Invalidation
    #: Live entries that it removed; 0 if another one of the batch had removed them before.
    removed: int
    #: What it raised.
    error: Exception | None


def raise_first(answers: Iterable[Applied]) -> None:
    """Raise the first error of what apply() has answered, if there is any."""
    for answer in answers:
        if answer.error is not None:
            raise answer.error


class OptimizedInvalidation(Draining):
    """A queue of invalidations for one cache, applied in batches by a thread of its own.

    Args:
        cache: a cache of lapse, or any object with `delete(key)` and `delete_pattern(pattern)`, and
            `delete_tag(tag)` and `clear()` where those are used.
        batch_size: items; as many as wait, or fewer, are applied in one batch.
        batch_timeout: seconds that an item waits at most before its batch is applied.
        capacity: items that may wait; rounded up to a power of two. 32 bytes each.
        overflow: what becomes of the items when there is no room: "all" invalidates everything,
            "table" the tables of what waits, a callable turns a list of `Invalidation` into others
            that cover them; if it raises or answers nothing, everything goes.
        overflow_wait: seconds that a producer waits for room before that.
        clock: a callable that returns monotonic seconds; None = the native coarse clock. It dates
            items; the thread sleeps in real time.
        start: start the thread at once; False = when start_batch_processing() is called.
        name: shown in statistics and in the thread's name.

    Raises:
        ValueError: for a number out of range, or an unknown overflow policy.
        TypeError: for a number of items that is not whole.

    Every method may be called by any thread. invalidate_*() take no lock and cost O(1) unless the
    ring is full; they raise RuntimeError once the queue is closed. No lock of the queue is held
    while a policy runs. The cache's own methods, and so its listeners, run under the flush lock;
    they may use the queue, but a flush() from there does not wait for the batch it is called from.

    A forked child has a ring and a thread of its own. What it inherits is applied to its copy of
    the cache before the fork returns there; if that fails, that cache is cleared.
    """

    __slots__ = ("_began", "_stopping", "_thread", "batch_timeout", "cache", "name", "wire")

    def __init__(
        self,
        cache: Any,
        batch_size: int = 100,
        batch_timeout: float = 1.0,
        *,
        capacity: int = 65_536,
        overflow: str | Callable[[list[Invalidation]], Iterable[Invalidation]] = "all",
        overflow_wait: float = 0.1,
        clock: Callable[[], float] | None = None,
        start: bool = True,
        name: str | None = None,
    ) -> None:
        if not batch_size >= 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size!r}")
        if not batch_timeout > 0:
            raise ValueError(f"batch_timeout must be positive seconds, not {batch_timeout!r}")
        if not 1 <= capacity <= LARGEST:
            raise ValueError(f"capacity must be from 1 to {LARGEST:,}, not {capacity!r}")
        if not overflow_wait >= 0:
            raise ValueError(f"overflow_wait must not be negative: {overflow_wait!r}")
        self.cache = cache
        self.batch_timeout = min(batch_timeout, threading.TIMEOUT_MAX)
        self.name = name
        #: Counts the bytes of batches that are encoded or decoded for this queue.
        self.wire = WireMeter()
        self._thread: threading.Thread | None = None
        self._stopping = False
        wait = min(overflow_wait, threading.TIMEOUT_MAX)
        self._ready(target_of(cache), operator.index(batch_size), policy_of(overflow), wait)
        self._open(operator.index(capacity), clock, self._alarm.put)
        self._began = self._now()
        _watch(self)
        if start:
            self.start_batch_processing()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        describe(cls)

    # --- At once ---

    def flush(self) -> None:
        """Apply everything that was queued before the call; a barrier.

        Raises RuntimeError if the queue is closed. What one item raises is logged and counted; but
        after MemoryError, which is raised, all that may not be applied waits again.
        """
        self._check_open()
        self._drain()

    def apply(self, batch: Iterable[Invalidation]) -> list[Applied]:
        """Apply `batch` now, behind what is queued; what became of each, in its order.

        Raises TypeError if one of them is no `Invalidation`, RuntimeError if the queue is closed.
        """
        items = list(batch)
        for item in items:
            if not isinstance(item, Invalidation):
                raise TypeError(f"apply() takes Invalidations, not {type(item).__name__}")
        groups = grouped([(item.kind, item.target) for item in items])
        return _answers(items, groups, self._apply_now(Direct(groups, len(items))))

    def apply_groups(self, groups: Groups) -> Outcomes:
        """apply() of targets that are grouped by kind: for a hundred thousand at a time.

        Raises RuntimeError if the queue is closed; what a target raises is in the answer.
        """
        return self._apply_now(Direct(groups, groups.size))

    def _apply_now(self, work: Direct) -> Outcomes:
        with self._consuming():
            self._check_open()
            try:
                self._drain()
            except MemoryError:  # that waits again, and does not keep this from being applied
                self._put_back()
            count = len(work)
            self._counts.direct += count
            self._applying.append(work)
            return self._settle(work)

    # --- The thread ---

    def start_batch_processing(self) -> None:
        """Start the thread that applies what is queued, unless it runs. RuntimeError if closed."""
        with self._short:
            self._check_open()
            if self._thread is not None:
                return
            alarm = self._alarm
            ref = weakref.ref(self, lambda _: alarm.put(None))
            name = "lapse-invalidation" + (f"-{self.name}" if self.name else "")
            thread = Worker(ref, alarm, name)
            thread.start()
            self._thread = thread

    def _turn(self) -> float | None:
        """Drain what is due; the seconds to sleep then if no alarm comes, None for any time."""
        while not self._stopping:
            if self._is_due():
                self._drain()
            age = self._age()
            if self._arm(1 if age is None else self.batch_size):
                return None if age is None else max(0.0, self.batch_timeout - age)
            time.sleep(0)
        return None

    def _is_due(self) -> bool:
        full = min(self.batch_size, self.capacity)
        if self._spilled or self._covered or self._applying or self._waiting() >= full:
            return True
        age = self._age()
        return age is not None and age >= self.batch_timeout

    def _waiting(self) -> int:
        """Items that wait, in the ring or outside."""
        covered = self._covered  # which a drain may take away meanwhile
        outside = len(covered) if covered else 0
        return self._pushed() - self._taken() + outside + sum(map(len, self._spilled))

    # --- The end ---

    def close(self) -> None:
        """Refuse what comes from now on, apply what is queued, and end the thread. Idempotent."""
        self._finish(-1)

    def _finish(self, patience: float) -> None:
        """close(), but wait at most `patience` seconds for the flush lock (-1: any time)."""
        self._close()
        self._stopping = True
        self._alarm.put(None)
        if not self._drain(patience):
            log.error("%s: %d items are not applied", type(self).__name__, self.stats().depth)
            return
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN)

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self.closed and (self._applying or self._waiting()):
            self._drain()

    def _restart_in_child(self) -> None:
        """In a forked child: apply what it inherited, whoever was at work on it."""
        started, self._thread = self._thread is not None, None
        self._renew()
        self._after_fork(self._alarm.put)
        for work in [*self._applying, *self._spilled]:
            if isinstance(work, Taken):
                work.give_up()
        self._put_back()
        try:
            self._drain()
        except Exception:
            log.exception("what a forked child inherited failed: its cache is cleared")
            self._target.clear()
        self._counts.applied = self._enqueued()  # the fork may have fallen into some counting
        if started and not self._stopping:
            self.start_batch_processing()

    # --- Figures ---

    def stats(self) -> QueueStats:
        """Figures of nearly one instant. O(1)."""
        counts, wire = self._counts, self.wire
        applied = counts.applied
        enqueued = self._enqueued()
        lived = (self._now() - self._began) / 1e9
        return QueueStats(
            enqueued=enqueued,
            applied=applied,
            depth=enqueued - applied,
            batches=counts.batches,
            batch_mean=counts.batched / max(1, counts.batches),
            batch_max=counts.batch_max,
            matched=counts.matched,
            noops=counts.noops,
            duplicates=counts.duplicates,
            collapsed=counts.collapsed,
            collapses=counts.collapses,
            errors=counts.errors,
            latency_p50=self._latency(0.5),
            latency_p99=self._latency(0.99),
            latency_max=self._latency(1.0),
            throughput=applied / lived if lived > 0 else 0.0,
            memory=self.__sizeof__(),
            raw_out=wire.raw_out,
            wire_out=wire.wire_out,
            raw_in=wire.raw_in,
            wire_in=wire.wire_in,
        )

    def _enqueued(self) -> int:
        """Items accepted: those of the ring, one for each collapse, and those of apply()."""
        return self._pushed() + self._counts.collapses + self._counts.direct

    def get_stats(self) -> dict[str, Any]:
        """The same as a JSON-ready dict, with the name and the class."""
        return self.stats()._asdict() | {"name": self.name, "class": type(self).__name__}

    def __repr__(self) -> str:
        if self.closed:
            return f"{type(self).__name__}(closed)"
        name = f"{self.name!r}, " if self.name else ""
        return f"{type(self).__name__}({name}waiting={self._waiting()}, capacity={self.capacity})"


describe(OptimizedInvalidation)


def _answers(items: list[Invalidation], groups: Groups, outcomes: Outcomes) -> list[Applied]:
    """The outcomes in the order of the items. Of equal ones the first has removed what went."""
    if len(groups.key) == len(items):
        removed, errors = outcomes.key
        return [Applied(item, removed[i], errors.get(i)) for i, item in enumerate(items)]
    places = {(kind, t): i for kind in KINDS[1:] for i, t in enumerate(getattr(groups, kind))}
    key_places = itertools.count()
    seen = set()
    answers = []
    for item in items:
        removed, errors = getattr(outcomes, item.kind)
        is_key = item.kind == "key"
        place = next(key_places) if is_key else places[item.kind, item.target]
        first = is_key or (item.kind, place) not in seen
        seen.add((item.kind, place))
        answers.append(Applied(item, removed[place] if first else 0, errors.get(place)))
    return answers


# --- The process ---

_queues: dict[int, weakref.ref[OptimizedInvalidation]] = {}


def _watch(owner: OptimizedInvalidation) -> None:
    """Remember a queue, weakly, for the children of this process, and for its end."""
    number = id(owner)
    _queues[number] = weakref.ref(owner, lambda ref: _forget(number, ref))


def _forget(number: int, ref: weakref.ref[OptimizedInvalidation]) -> None:
    if _queues.get(number) is ref:  # the number may belong to another queue by now
        del _queues[number]


def _all() -> list[OptimizedInvalidation]:
    found = [ref() for ref in list(_queues.values())]
    return [each for each in found if each is not None]


@atexit.register
def _finish_at_exit() -> None:
    for each in _all():
        try:
            each._finish(EXIT_WAIT)
        except MemoryError:
            log.exception("%s: not all is applied", type(each).__name__)
    await_all(EXIT_WAIT)


def _restart_after_fork() -> None:
    tell_all(_all(), "_restart_in_child")


if hasattr(os, "register_at_fork"):
    # The caches' own hooks are there already, so their locks are free when this one runs.
    os.register_at_fork(after_in_child=_restart_after_fork)
