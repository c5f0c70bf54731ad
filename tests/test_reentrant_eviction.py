"""Bounded caches whose keys, values, listeners and clocks change them while a store makes room."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from lapse import TTLCache
from support import Dying, Key, check
from test_hash_table import STORES
from test_threads import in_threads

TIMES = 6  # that a hook changes the cache
SIZES = [1, 2, 60]

#: What a hook does to its cache: with the key that comes, with one that is there, or with others.
CHANGES: dict[str, Callable[[Hook], object]] = {
    "get": lambda hook: (hook.cache.get(hook.key), hook.cache.get(hook.any_key())),
    "set": lambda hook: hook.cache.set(hook.key, 0),
    "set an old one": lambda hook: hook.cache.set(hook.any_key(), 0),
    "set another": lambda hook: hook.cache.set(object(), 0),
    "delete": lambda hook: hook.cache.delete(hook.any_key()),
    "move": lambda hook: (hook.cache.delete(hook.key), hook.cache.set(hook.key, 0)),
    "clear": lambda hook: hook.cache.clear(),
    "refill": lambda hook: hook.refill(2 * hook.maxsize),
    "clear and refill": lambda hook: (hook.cache.clear(), hook.refill(hook.maxsize)),
    "empty": lambda hook: hook.cache.delete_many(list(hook.cache)),
    "expire": lambda hook: (hook.cache.set(hook.key, 0, 1e-9), hook.cache.expire()),
}
EVICTING = STORES | {
    "get_or_load": lambda cache, key: cache.get_or_load(key, lambda key: 1),
    "fill": lambda cache, key: cache.fill(cache.lease(key), 1),
}


class Hook:
    """Changes a cache a few times in the midst of a call; `longest`: the most that it held."""

    def __init__(self, change: Callable[[Hook], object], maxsize: int) -> None:
        self.change, self.maxsize = change, maxsize
        self.cache: Any = None
        self.key: Any = None  # the last new one
        self.left = self.longest = 0

    def __call__(self) -> None:
        if self.left > 0:
            self.left -= 1
            self.look()
            self.change(self)
            self.look()

    def look(self) -> None:
        if not self.cache.closed:
            self.longest = max(self.longest, len(self.cache), len(list(self.cache)))

    def any_key(self) -> Any:
        return next(iter(self.cache), None)

    def refill(self, count: int) -> None:
        self.cache.set_many((object(), n) for n in range(count))


class Hashing(Key):
    """Runs its hook in `__hash__`, not in `__eq__`."""

    def __init__(self, name: Any, hash_value: int, hook: Callable[[], object]) -> None:
        super().__init__(name, hash_value)
        self.hashed = hook

    def __hash__(self) -> int:
        self.hashed()
        return super().__hash__()

    __eq__ = Key.__eq__


class Mortal(Key):
    """Runs its hook when it dies."""

    __hash__, __eq__ = Key.__hash__, Key.__eq__

    def __init__(self, name: Any, hash_value: int, hook: Callable[[], object]) -> None:
        super().__init__(name, hash_value)
        self.died = hook

    def __del__(self) -> None:
        self.died()


#: Who calls the hook: keys in three ways, values when they die, the listener, the clock.
KEYS: dict[str, Callable[[int, Hook], Any]] = {
    "hash": lambda n, hook: Hashing(n, n // 4, hook),
    "eq": lambda n, hook: Key(n, n // 4, hook),
    "dying key": lambda n, hook: Mortal(n, n // 4, hook),
}
CALLERS = [*KEYS, "dying value", "listener", "clock"]


class Scene:
    """A full cache whose `caller` runs a hook."""

    def __init__(self, caller: str, policy: str, maxsize: int, change: Any) -> None:
        self.caller, self.maxsize, self.count = caller, maxsize, 0
        self.hook = Hook(change, maxsize)
        listening, timed = caller == "listener", caller == "clock"
        self.cache = self.hook.cache = TTLCache(
            None,
            None,
            maxsize=maxsize,
            policy=policy,
            listener=self.listen if listening else None,
            clock=self.time if timed else None,
        )
        for _ in range(maxsize):
            self.cache.set(self.new_key(), self.new_value())

    def listen(self, key: Any, value: Any, cause: str) -> None:
        if cause == "evicted":
            self.hook()

    def time(self) -> float:
        self.hook()
        return 5.0

    def new_key(self) -> Any:
        self.count += 1
        self.hook.key = KEYS.get(self.caller, lambda n, hook: n)(self.count, self.hook)
        return self.hook.key

    def new_value(self) -> Any:
        return Dying(self.hook) if self.caller == "dying value" else self.count

    def store(self, call: Callable[[Any, Any], object]) -> None:
        """Let new keys come until the hook has done what it may."""
        self.cache.set_many((self.new_key(), self.new_value()) for _ in range(self.maxsize))
        self.hook.left = TIMES
        for _ in range(8 * TIMES * (self.maxsize + 1)):
            call(self.cache, self.new_key())
            self.cache.set(self.new_key(), self.new_value())
            if self.hook.left == 0:
                return

    def end(self) -> None:
        """All room is still there, and no more."""
        assert (self.hook.left, self.hook.longest <= self.maxsize) == (0, True)
        check(self.cache)
        self.cache.set_many((("last", n), n) for n in range(self.maxsize))
        assert len(list(self.cache)) == self.maxsize


@pytest.mark.parametrize("policy", ["duel", "lru"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("caller", CALLERS)
def test_a_store_in_whose_midst_the_cache_changes(caller: str, change: str, policy: str) -> None:
    """Whoever changes the cache, and how: the store ends, the bound holds, no room is lost."""

    def play(_: int) -> None:
        for maxsize in SIZES:
            for call in EVICTING.values():
                scene = Scene(caller, policy, maxsize, CHANGES[change])
                scene.store(call)
                scene.end()

    in_threads(play, 1)


@pytest.mark.parametrize("policy", ["duel", "lru"])
@pytest.mark.parametrize("caller", CALLERS)
def test_a_store_in_whose_midst_the_cache_is_closed(caller: str, policy: str) -> None:
    """The store ends, or says that the cache is closed."""

    def play(_: int) -> None:
        for call in EVICTING.values():
            scene = Scene(caller, policy, 3, lambda hook: hook.cache.close())
            with suppress(RuntimeError):
                scene.store(call)
            assert scene.cache.closed

    in_threads(play, 1)
