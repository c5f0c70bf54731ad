"""Helpers shared by tests: makers of caches, keys and values with hooks, a child interpreter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import lapse

#: Seconds after which a test gives up on a thread, a task or a process. A machine may be slow, and
#: may run anything else first: only what never comes is an error.
PATIENCE = 120
#: What a call takes at most that waits for nothing, on the slowest machine. Let what it might wait
#: for by mistake take longer.
SOON = 30

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ttl": (lapse.TTLCache, {}),
    "sliding": (lapse.SlidingTTLCache, {}),
    "probabilistic": (lapse.ProbabilisticTTLCache, {"early_expiry_factor": 0.0}),
}


def cache_maker(cache_class: Any, clock: Any, fixed: dict[str, Any]) -> Callable[..., Any]:
    """A function that makes caches of `cache_class` on `clock`, without the sweeping thread."""

    def make(default_ttl: Any = 10, **options: Any) -> Any:
        options = {"cleanup_interval": None, "clock": clock, **fixed, **options}
        return cache_class(default_ttl, **options)

    return make


def percent_of_hits(trace: Any, cache: Any) -> float:
    """Hits in percent, where a miss stores the key."""
    hits = requests = 0
    for chunk in trace:
        for key in chunk.keys:
            if cache.get(key) is None:
                cache[key] = True
            else:
                hits += 1
        requests += len(chunk.keys)
    return 100 * hits / requests


def switching(seconds: float, autouse: bool = True) -> Any:
    """A fixture in which threads take turns so often, where there is a GIL."""

    @pytest.fixture(autouse=autouse)
    def _switch_often() -> Iterator[None]:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(seconds)
        yield
        sys.setswitchinterval(interval)

    return _switch_often


#: Does the address sanitizer (.ci/sanitize) watch this process?
ADDRESS_SANITIZER = "asan" in os.environ.get("LD_PRELOAD", "")
needs_real_memory = pytest.mark.skipif(
    ADDRESS_SANITIZER, reason="the address sanitizer keeps freed memory for a while"
)

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


class Key:
    """A key with a chosen hash, equal to keys of the same name; `hook` runs in `__eq__`."""

    def __init__(self, name: Any, hash_value: int = 5, hook: Callable[[], Any] | None = None):
        self.name = name
        self.hash_value = hash_value
        self.hook = hook

    def __hash__(self) -> int:
        return self.hash_value

    def __eq__(self, other: object) -> bool:
        for key in (self, other):
            if isinstance(key, Key) and key.hook is not None:
                key.hook()
        return isinstance(other, Key) and self.name == other.name

    def __repr__(self) -> str:
        return f"Key({self.name!r})"


class Dying:
    """An object that runs `hook` once, when it dies."""

    def __init__(self, hook: Callable[[], Any]):
        self.hook = hook

    def __del__(self) -> None:
        self.hook()


def check(cache: Any) -> None:
    """Holds a cache to its native invariants, and iteration, length and reads to each other."""
    assert cache._check()
    items = list(cache.items())
    keys = [key for key, _ in items]
    assert len(items) == len(cache)
    assert len({id(key) for key in keys}) == len(keys)
    missing = object()
    found = cache.gather(keys, missing)
    assert all(value is stored for value, (_, stored) in zip(found, items, strict=True))
    assert all(key in cache for key in keys)


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether `condition` came true within `seconds` that other threads had to make it so.

    This thread wakes up often: on a free-threaded build objects die in the thread that made them.
    """
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return bool(condition())


def await_child(child: int, seconds: float = PATIENCE) -> int:
    """The status of a forked child when it has ended; one that hangs is killed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def in_child(work: Callable[[], Any]) -> int:
    """Forks, runs `work` in the child and gives its exit status; a child that hangs is killed.

    The allocator of GCC 12's sanitizer knows no fork: if a thread was just ending, and held a lock
    of it, the child waits for that lock. Such a child is given another try, and a warning tells.
    """
    status = await_child(_forked(work))
    for _ in range(2 * ADDRESS_SANITIZER):
        if status == signal.SIGKILL:
            warnings.warn("a forked child hung under the sanitizer", RuntimeWarning, stacklevel=2)
            status = await_child(_forked(work))
    return status


def _forked(work: Callable[[], Any]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return child


def in_child_of_another_thread(work: Callable[[], Any]) -> int:
    """The same, from a thread that has none of the locks which the caller holds."""
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(in_child(work)))
    thread.start()
    thread.join()
    return status[0]


def no_thread(_: Any) -> None:
    """In place of `threading.Thread.start`, where no thread is to be had."""
    raise RuntimeError("can't start new thread")


@contextmanager
def no_thread_to_be_had() -> Iterator[None]:
    """Within this block no thread can be started."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        yield


def run_python(
    code: str, *options: str, timeout: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Runs `code` in a fresh interpreter that imports the same lapse as this one."""
    path = os.pathsep.join([str(Path(lapse.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
