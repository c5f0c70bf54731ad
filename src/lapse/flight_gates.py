"""Gates: what a caller waits at until somebody else's load has ended.

A gate is opened with an `Outcome`, from any thread; whatever comes after the first opening is
ignored. One caller waits at a gate, and takes the outcome out of it: an exception refers to the
frames that it has passed, and they to the gate, which must not hold the exception in turn.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import asyncio

__all__ = ["AGAIN", "Gate", "LoopGate", "Outcome", "ThreadGate", "until"]


#: Taken from a gate instead of a value: begin anew.
AGAIN: Any = object()


class Outcome(NamedTuple):
    """How a load has ended."""

    value: Any = AGAIN
    #: What ended it instead of a value, and where from.
    error: BaseException | None = None
    trace: TracebackType | None = None
    #: It is for the leader alone: those who waited begin anew.
    dropped: bool = False


class Gate:
    """Closed until it has an outcome."""

    __slots__ = ("outcome",)

    def __init__(self) -> None:
        self.outcome: Outcome | None = None

    def open(self, outcome: Outcome) -> None:
        """Let the caller go on with `outcome`. Thread-safe; may be called more than once."""
        if self.outcome is None:
            self.outcome = outcome
        self._wake()

    def take(self, key: Any, led: bool = False) -> Any:
        """The value, or AGAIN; TimeoutError if the gate has not been opened.

        What was dropped is for the caller who `led` the load of `key`. An error is raised.
        """
        outcome, self.outcome = self.outcome, None
        if outcome is None:
            raise TimeoutError(f"the load of {key!r} is still under way")
        value, error, trace, dropped = outcome
        del outcome
        try:
            if dropped and not led:
                return AGAIN
            if error is not None:
                raise error.with_traceback(trace)
        finally:
            del error, trace
        return value

    def _wake(self) -> None:
        raise NotImplementedError


class ThreadGate(Gate):
    """A gate that a thread waits at."""

    __slots__ = ("_closed",)

    def __init__(self) -> None:
        super().__init__()
        self._closed = threading.Lock()
        self._closed.acquire()

    def wait(self, deadline: float | None) -> None:
        """Block until the gate is open, or it is `deadline` (monotonic seconds; None: never)."""
        self._closed.acquire(timeout=-1 if deadline is None else _left(deadline))

    def _wake(self) -> None:
        try:
            self._closed.release()
        except RuntimeError:  # open already
            return


class LoopGate(Gate):
    """A gate that a coroutine waits at: made in the thread that runs its event loop."""

    __slots__ = ("_future", "_loop", "_thread")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop, self._future = loop, loop.create_future()
        self._thread = threading.get_ident()

    async def wait(self, deadline: float | None) -> None:
        """Wait until the gate is open, or it is `deadline` (monotonic seconds; None: never)."""
        if deadline is None:
            await self._future
            return
        alarm = self._loop.call_later(_left(deadline), self._set)
        try:
            await self._future
        finally:
            alarm.cancel()

    def _wake(self) -> None:
        try:
            if threading.get_ident() == self._thread:
                self._set()
            else:
                self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:  # the loop is closed: nobody waits there any more
            return

    def _set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


def until(timeout: float | None) -> float | None:
    """The moment (monotonic seconds) that is `timeout` seconds away; None: never.

    ValueError, TypeError for what is no number of seconds.
    """
    if timeout is None:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout must be seconds or None, and not negative: {timeout!r}")
    return time.monotonic() + timeout


def _left(deadline: float) -> float:
    return max(0.0, min(deadline - time.monotonic(), threading.TIMEOUT_MAX))
