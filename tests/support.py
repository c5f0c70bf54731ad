"""Helpers shared by tests: makers of caches, keys and values with hooks, a child interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lapse

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


def wait_until(condition: Callable[[], object], seconds: float = 10) -> bool:
    """Whether `condition` came true within `seconds` that other threads had to make it so.

    This thread wakes up often: on a free-threaded build objects die in the thread that made them.
    """
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return bool(condition())


def run_python(code: str, *options: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
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
