"""Helpers of the tests of loading: loaders that wait to be let go, calls in threads, who waits."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from lapse.flight_board import board
from support import PATIENCE, wait_until


class Counting:
    """A loader that gives (key, how many calls it has had), or raises what it is told to."""

    def __init__(self, error: BaseException | None = None):
        self.error = error
        self.keys: list[Any] = []

    def __call__(self, key: Any) -> Any:
        self.keys.append(key)
        if self.error is not None:
            raise self.error
        return key, len(self.keys)


class Held(Counting):
    """The same, but every call waits inside until it is let go."""

    def __init__(self, error: BaseException | None = None):
        super().__init__(error)
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, key: Any) -> Any:
        number = len(self.keys) + 1
        self.keys.append(key)
        self.entered.set()
        assert self.go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return key, number


class HeldTask:
    """The same for coroutines: let go from any thread; it counts how often it was cancelled."""

    def __init__(self, error: BaseException | None = None):
        self.error = error
        self.keys: list[Any] = []
        self.cancelled = 0
        self.was_cancelled = threading.Event()
        self.entered = threading.Event()
        self._go: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, key: Any) -> Any:
        self.keys.append(key)
        number = len(self.keys)
        self._go, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self.entered.set()
        try:
            await self._go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            self.was_cancelled.set()
            raise
        if self.error is not None:
            raise self.error
        return key, number

    def release(self) -> None:
        assert self._loop is not None
        assert self._go is not None
        self._loop.call_soon_threadsafe(self._go.set)


class Call:
    """A function under way in a thread of its own."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any):
        self._call = lambda: function(*args, **kwargs)
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        """What it returned; what it raised is raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "a thread hangs"
        if self._error is not None:
            raise self._error
        return self._value

    def error(self) -> BaseException | None:
        """What it raised."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "a thread hangs"
        return self._error


def waiting(cache: Any, key: Any) -> int:
    """How many callers wait for loads of `key` that can be joined."""
    flights = board.running.get((id(cache), hash(key)), ())
    return sum(len(flight.waiters) for flight in flights if flight.key == key)


def wait_for_waiters(cache: Any, key: Any, count: int) -> None:
    assert wait_until(lambda: waiting(cache, key) == count), f"{waiting(cache, key)} wait"


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """asyncio.run(), but not for ever."""

    async def bounded() -> Any:
        return await asyncio.wait_for(main, PATIENCE)

    return asyncio.run(bounded())


def start(awaitable: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(awaitable)


async def entered(load: HeldTask) -> None:
    """Wait until a loader of this loop has been called."""
    while not load.keys:
        await asyncio.sleep(0)


def load_tasks() -> list[asyncio.Task[Any]]:
    """The tasks that load in this loop."""
    return [task for task in asyncio.all_tasks() if task.get_coro().__name__ == "fly"]


async def settle_down(turns: int = 20) -> None:
    """Let every task run as far as it can without a timer."""
    for _ in range(turns):
        await asyncio.sleep(0)


def nothing_under_way() -> bool:
    """Has every load left the board, with nobody waiting?"""
    return not board.running and not board.blocked


def everything_lands() -> Iterator[None]:
    """A fixture: no test leaves a load behind."""
    yield
    gc.collect()  # tasks of loops that are closed
    under_way = not wait_until(nothing_under_way)  # a worker settles after it has stored
    board.forget()
    assert not under_way


class AsyncCalls:
    """Calls aget() for get()."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def get(self, *args: Any, **options: Any) -> Any:
        async def call() -> Any:
            return await self.inner.aget(*args, **options)

        return asyncio.run(call())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
