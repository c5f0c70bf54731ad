"""The thread that iterates one source and puts what it brings in force.

    source ──► Batch ──► translate ──► queue.apply() ──► after(batch) ──► commit
           ──► Resync ──► the policy: everything goes, or softly, or what a callable says

Invariants
    1. Nothing but the queue applies. With a `window` items only wait there, unless the batch has a
       commit: that one waits until they are in force.
    2. What fails, be it in the cache, is owed a resync, which comes before anything else is taken.
       A resync that fails stays owed. What failed in the queue, behind a `window`, is noticed with
       the next batch, an empty one at the latest.
    3. The thread outlives every error of source, cache and callbacks. It ends within a second of
       close(), and soon after the last reference to its receiver is gone.
    4. No lock is held while a source, a cache or a callback is at work.
    5. A forked child owes a resync: it does not know what the parent's thread had in hand.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal

from lapse.invalidation.alerts import Alert, Alerts
from lapse.invalidation.message import Invalidation
from lapse.invalidation.process import watch
from lapse.invalidation.queue import OptimizedInvalidation, raise_first
from lapse.invalidation.receiver_stats import ReceiverCounts, ReceiverStats, figures
from lapse.invalidation.source import Batch, Resync, Source

__all__ = ["OnResync", "Receiver"]

OnResync = Literal["clear", "soft"] | Callable[[Resync], Iterable[Invalidation] | None]

log = logging.getLogger("lapse.invalidation")

ALL = Invalidation("all")
FAILED, RESTARTED = Resync("failed"), Resync("restarted")  # to be owed where memory is short
FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0  # seconds after a source has raised
JOIN = 0.9  # seconds that close() waits for the thread
MOST_REASONS = 32  # kinds of resync that are told apart


class Receiver:
    """Applies what a source brings, through a queue.

    Args:
        source: iterated by the thread; closed with the receiver.
        queue: applies; its `cache` is the one that a soft resync softens.
        name: of the thread (`lapse-<name>`), in alerts and statistics.
        on_resync: "clear": everything goes. "soft": `cache.soft_clear(soft_ttl)` where the cache
            has that, else everything goes. A callable gets the `Resync` and answers the
            invalidations that make it good, None if it has done so itself; if it raises, everything
            goes.
        soft_ttl: seconds that a softly cleared entry may still be served.
        alerts: told of each resync, of a source that raises, and of a queue that is full.
        translate: the invalidations that follow from a batch beside its own. If it raises,
            that is a resync.
        after: called with each batch that is not empty, once it is in force, or waits in the queue.
        window: 0: apply at once. More: let the queue gather items for so many seconds.
        clock, wall: monotonic and Unix seconds.

    Raises ValueError for another policy or a negative number. Any thread may call any method.
    """

    def __init__(
        self,
        source: Source,
        queue: OptimizedInvalidation,
        *,
        name: str,
        on_resync: OnResync = "clear",
        soft_ttl: float = 60.0,
        alerts: Alerts | None = None,
        translate: Callable[[Batch], Iterable[Invalidation]] | None = None,
        after: Callable[[Batch], object] | None = None,
        window: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        if on_resync not in ("clear", "soft") and not callable(on_resync):
            raise ValueError(f"on_resync must be 'clear', 'soft' or callable, not {on_resync!r}")
        if not soft_ttl >= 0 or not window >= 0:
            raise ValueError("soft_ttl and window must not be negative")
        self.source = source
        self.queue = queue
        self.name = name
        self.alerts = alerts or Alerts()
        self._on_resync = on_resync
        self._soft_ttl = soft_ttl
        self._translate = translate
        self._after = after
        self._window = window
        self._clock = clock
        self._wall = wall
        self._owed: Resync | None = None
        self._failures = 0  # of the queue's items, that a resync has made good
        self._collapses = 0  # of the queue, that were told
        self._counts = ReceiverCounts()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._renew_in_child()
        watch(self)

    def start(self) -> None:
        """Start the thread, unless it runs. RuntimeError if closed, or where no thread is free."""
        with self._short:
            if self._closed:
                raise RuntimeError(f"{self.name} is closed")
            if self._thread is None:
                args = (weakref.ref(self), self.source, self._stop, self.name)
                name = f"lapse-{self.name}"
                self._thread = threading.Thread(target=_run, args=args, name=name, daemon=True)
                try:
                    self._thread.start()
                except BaseException:  # there is none to be had: the next call tries again
                    self._thread = None
                    raise

    def close(self) -> None:
        """Close the source and end the thread. Idempotent; takes less than a second."""
        self._finish_at_exit()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(JOIN)

    @property
    def closed(self) -> bool:
        """Whether close() was called."""
        return self._closed

    def is_current(self) -> bool:
        """Whether the calling thread is the receiver's."""
        return self._thread is threading.current_thread()

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None and self._thread.is_alive()

    def stats(self) -> ReceiverStats:
        """Figures of nearly one instant."""
        return figures(self._counts, self.source, self.queue.wire, self._clock())

    # --- In the thread ---

    def _take(self, event: Batch | Resync) -> None:
        """Put it in force, or owe a resync."""
        if self.queue.closed:
            return
        try:
            self._look_behind_window()
            self._settle()
            if isinstance(event, Resync):
                self._owed = event
                self._settle()
            else:
                self._apply(event)
                self._look_behind_window()  # it is not committed before a resync is
                self._settle()
        except Exception:
            if self.queue.closed:
                return
            self._owed = self._owed or FAILED
            self._counts.errors += 1
            log.exception("%s: applying failed", self.name)
            return
        if event.commit is not None:
            self._call(event.commit)

    def _apply(self, batch: Batch) -> None:
        items = list(batch.invalidations)
        if items or batch.changes:
            self._counts.last_at = self._clock()
            self._counts.received += len(items)
            if self._translate is not None:
                items.extend(self._translate(batch))
        if items:
            self._put(items)
        if batch.commit is not None and self._window:
            self.queue.flush()  # of an acknowledgement, too, that brings no items itself
        if self._after is not None and (items or batch.changes):
            self._call(self._after, batch)

    def _put(self, items: list[Invalidation]) -> None:
        if self._window:
            for item in items:
                _push(self.queue, item)
        else:
            answers = self.queue.apply(items)
            self._counts.removed += sum(answer.removed for answer in answers)
            raise_first(answers)
        self._counts.applied += len(items)
        if items[0].sent_at is not None:
            self._counts.latencies.append(max(0.0, self._wall() - items[0].sent_at))

    def _call(self, callback: Callable[..., object], *args: Any) -> None:
        try:
            callback(*args)
        except Exception:
            self._counts.errors += 1
            log.exception("%s: a callback failed", self.name)

    def _look_behind_window(self) -> None:
        """Owe a resync for items that failed in the queue, and tell if it had no room."""
        if not self._window:
            return
        stats = self.queue.stats()
        if stats.errors > self._failures:
            self._owed = self._owed or FAILED
        if stats.collapses > self._collapses:
            self._collapses = stats.collapses
            reason = f"{stats.collapsed} invalidations so far gave way to what covers them"
            self.alerts.tell(Alert("full", self.name, reason))

    def _settle(self) -> None:
        """Make good a resync that is owed."""
        resync = self._owed
        if resync is None:
            return
        failures = self.queue.stats().errors
        raise_first(self.queue.apply(self._cover(resync)))
        self._owed, self._failures = None, failures
        resyncs = self._counts.resyncs
        known = resync.reason in resyncs or len(resyncs) < MOST_REASONS
        resyncs[resync.reason if known else "other"] += 1
        self.alerts.tell(Alert("resync", self.name, resync.reason))

    def _cover(self, resync: Resync) -> list[Invalidation]:
        """What makes a resync good, as the policy says; everything if that fails."""
        try:
            if callable(self._on_resync):
                return _checked(self._on_resync(resync) or ())
            soften = getattr(self.queue.cache, "soft_clear", None)
            if self._on_resync == "soft" and soften is not None:
                soften(self._soft_ttl)
                return []
        except Exception:
            self._counts.errors += 1
            log.exception("%s: the resync policy failed, everything goes", self.name)
        return [ALL]

    def _died(self, error: Exception) -> None:
        """The source has raised."""
        if not self.source.replay:
            self._owed = self._owed or RESTARTED
        self._counts.errors += 1
        log.error("%s: the source failed", self.name, exc_info=error)
        self.alerts.tell(Alert("dead", self.name, "the source failed", error))

    # --- Fork and exit ---

    def _renew_in_child(self) -> None:
        self._short = threading.Lock()
        self._stop = threading.Event()
        if self._closed:
            self._stop.set()

    def _restart_in_child(self) -> None:
        if self._thread is not None and not self.closed:
            self._thread = None
            self._owed = Resync("fork")
            try:
                self.start()
            except Exception as error:
                self.alerts.tell(Alert("dead", self.name, "no thread in a forked child", error))
                raise

    def _finish_at_exit(self) -> None:
        """Close without waiting; the queue, which is asked next, sees to what is being applied."""
        self._closed = True
        self._stop.set()
        self.source.close()


def _checked(items: Iterable[Invalidation]) -> list[Invalidation]:
    found = list(items)
    for each in found:
        if not isinstance(each, Invalidation):
            raise TypeError(f"a resync policy answers Invalidations, not a {type(each).__name__}")
    return found


def _push(queue: OptimizedInvalidation, item: Invalidation) -> None:
    if item.kind == "all":
        queue.invalidate_all()
    else:
        getattr(queue, f"invalidate_{item.kind}")(item.target)


def _run(ref: weakref.ref[Receiver], source: Source, stop: threading.Event, name: str) -> None:
    """The thread of one receiver, which it holds only while it takes something.

    It outlives a shortage of memory, in which it may not even be told what has failed.
    """
    pause = FIRST_PAUSE
    with suppress(MemoryError):
        _on(ref, Receiver._take, Batch())  # what a fork owes
    while not stop.is_set():
        try:
            for event in source:
                owner = ref()
                if owner is None or stop.is_set():
                    break
                owner._take(event)
                del owner
                pause = FIRST_PAUSE
            break
        except Exception as error:
            with suppress(MemoryError):
                _on(ref, Receiver._died, error)
        with suppress(MemoryError):
            stop.wait(pause)
        pause = min(2 * pause, LAST_PAUSE)
    if not stop.is_set():
        why = "nobody refers to it any more" if ref() is None else "its source has ended"
        log.warning("%s: %s: no more invalidations", name, why)
    source.close()


def _on(ref: weakref.ref[Receiver], method: Callable[[Receiver, Any], None], value: Any) -> None:
    if (owner := ref()) is not None:
        method(owner, value)
