"""Who serves a value that was invalidated while it was being loaded?

    a load begins, and reads the old value ───────────────► it returns, and is stored?
                 the origin changes ──► the cache is told         │
                                                                  ▼
                                                     what does the next read get?

Each way of loading through lapse meets each kind of invalidation, in threads and in asyncio; other
libraries that are installed go through the same. Nothing sleeps: events say who goes next.

    python examples/stale_comeback.py
    python examples/stale_comeback.py --plain      # without rich
"""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from importlib import metadata
from typing import Any, NamedTuple

from lapse import TTLCache, VersionBasedInvalidation, WriteThroughInvalidation, cached
from lapse.loading.lazy import LazyInvalidation

KEY = "user:1"
TAGS = ("users",)
PATIENCE = 30.0  # seconds after which something hangs
BLOCKED = 0.5  # seconds after which an invalidation is taken to wait for the load
FRESH, STALE = "fresh", "STALE"


class Result(NamedTuple):
    """What the read after the load got."""

    mode: str
    way: str
    kind: str
    served: str


# --- The origin ---


class Origin:
    """A data source of one value. Its first call stops when it has read, or has written."""

    def __init__(self) -> None:
        self.value, self.version = "old", 1
        self.reached, self.go_on = threading.Event(), threading.Event()
        self._stops = 1

    def change(self) -> None:
        """What another process does."""
        self.value, self.version = "new", 2

    def read(self) -> str:
        value = self.value
        self._stop()
        return value

    def _stop(self) -> None:
        if self._stops:
            self._stops = 0
            self.reached.set()
            if not self.go_on.wait(PATIENCE):
                raise TimeoutError("nobody lets the origin go on")

    # The methods of a data source.

    def fetch(self, key: str) -> str:
        return self.read()

    def get_version(self, key: str) -> int:
        return self.version

    def write(self, key: str, value: str) -> bool:
        self.value = value
        self._stop()
        return True


class AsyncOrigin(Origin):
    """The same for coroutines, which stop without a thread."""

    async def aread(self) -> str:
        value = self.value
        await self._astop()
        return value

    async def _astop(self) -> None:
        if self._stops:
            self._stops = 0
            self.reached.set()
            while not self.go_on.is_set():
                await asyncio.sleep(0)

    async def fetch(self, key: str) -> str:
        return await self.aread()

    async def write(self, key: str, value: str) -> bool:
        self.value = value
        await self._astop()
        return True


# --- Ways to load through lapse: each gives the call that begins, and the one that reads after ---

Call = Callable[[], Any]


def get_or_load(cache: Any, origin: Origin) -> tuple[Call, Call]:
    def read() -> str:
        return cache.get_or_load(KEY, lambda key: origin.read(), tags=TAGS)

    return read, read


def get_or_load_async(cache: Any, origin: AsyncOrigin) -> tuple[Call, Call]:
    def read() -> Awaitable[str]:
        return cache.aget_or_load(KEY, lambda key: origin.aread(), tags=TAGS)

    return read, read


def decorated(cache: Any, origin: Origin) -> tuple[Call, Call]:
    @cached(cache=cache, tags=TAGS, key=lambda key: key)
    def load(key: str) -> str:
        return origin.read()

    return (lambda: load(KEY),) * 2


def decorated_async(cache: Any, origin: AsyncOrigin) -> tuple[Call, Call]:
    @cached(cache=cache, tags=TAGS, key=lambda key: key)
    async def load(key: str) -> str:
        return await origin.aread()

    return (lambda: load(KEY),) * 2


def lease_and_fill(cache: Any, origin: Origin) -> tuple[Call, Call]:
    def read() -> str:
        value = cache.get(KEY)
        if value is None:
            lease = cache.lease(KEY, tags=TAGS)
            value = origin.read()
            cache.fill(lease, value)
        return value

    return read, read


def lease_and_fill_async(cache: Any, origin: AsyncOrigin) -> tuple[Call, Call]:
    async def read() -> str:
        value = cache.get(KEY)
        if value is None:
            lease = cache.lease(KEY, tags=TAGS)
            value = await origin.aread()
            cache.fill(lease, value)
        return value

    return read, read


def stale_refresh(cache: Any, origin: Origin) -> tuple[Call, Call]:
    """The old value is past its life, and is reloaded while others would be served."""
    cache.set(KEY, "old", tags=TAGS)
    cache.soft_clear()
    return get_or_load(cache, origin)


def stale_refresh_async(cache: Any, origin: AsyncOrigin) -> tuple[Call, Call]:
    cache.set(KEY, "old", tags=TAGS)
    cache.soft_clear()
    return get_or_load_async(cache, origin)


def write_through(cache: Any, origin: Origin) -> tuple[Call, Call]:
    """The write of the old value has reached the origin, and is overtaken there by the new one."""
    through = WriteThroughInvalidation(cache, origin)
    begin = functools.partial(through.write, KEY, "old", tags=TAGS)
    return begin, get_or_load(cache, origin)[1]


def write_through_async(cache: Any, origin: AsyncOrigin) -> tuple[Call, Call]:
    through = WriteThroughInvalidation(cache, origin)
    begin = functools.partial(through.awrite, KEY, "old", tags=TAGS)
    return begin, get_or_load_async(cache, origin)[1]


def versioned(cache: Any, origin: Origin) -> tuple[Call, Call]:
    reader = VersionBasedInvalidation(cache, origin, trust_versions=True)
    return (lambda: reader.get(KEY, tags=TAGS),) * 2


def versioned_async(cache: Any, origin: AsyncOrigin) -> tuple[Call, Call]:
    reader = VersionBasedInvalidation(cache, origin, trust_versions=True)
    return (lambda: reader.aget(KEY, tags=TAGS),) * 2


def lazy(cache: Any, origin: Origin) -> tuple[Call, Call]:
    reader = LazyInvalidation(cache, origin, start=False)
    return (lambda: reader.get(KEY, tags=TAGS),) * 2


def lazy_async(cache: Any, origin: AsyncOrigin) -> tuple[Call, Call]:
    reader = LazyInvalidation(cache, origin, start=False)
    return (lambda: reader.aget(KEY, tags=TAGS),) * 2


def get_and_set(cache: Any, origin: Origin) -> tuple[Call, Call]:
    """What lapse cannot help: a set() says that the value is true now."""

    def read() -> str:
        value = cache.get(KEY)
        if value is None:
            value = origin.read()
            cache.set(KEY, value, tags=TAGS)
        return value

    return read, read


WAYS: dict[str, tuple[Callable[..., tuple[Call, Call]], Callable[..., tuple[Call, Call]]]] = {
    "get_or_load": (get_or_load, get_or_load_async),
    "cached": (decorated, decorated_async),
    "lease and fill": (lease_and_fill, lease_and_fill_async),
    "stale refresh": (stale_refresh, stale_refresh_async),
    "write-through": (write_through, write_through_async),
    "versioned": (versioned, versioned_async),
    "lazy": (lazy, lazy_async),
}


# --- Kinds of invalidation ---


def by_version(cache: Any, origin: Origin) -> None:
    told = VersionBasedInvalidation(cache, origin, trust_versions=True)
    told.invalidate_by_version(KEY, origin.version)


def marking(cache: Any, origin: Origin) -> LazyInvalidation:
    """It removes nothing; what it marks outdates loads all the same."""
    return LazyInvalidation(cache, origin, start=False)


KINDS: dict[str, Callable[[Any, Origin], object]] = {
    "key": lambda cache, origin: cache.delete(KEY),
    "pattern": lambda cache, origin: cache.delete_pattern("user:*"),
    "tag": lambda cache, origin: cache.delete_tag(*TAGS),
    "table": lambda cache, origin: cache.invalidate_table("user"),
    "clear": lambda cache, origin: cache.clear(),
    "version": by_version,
    "mark": lambda cache, origin: marking(cache, origin).mark_for_invalidation(KEY),
    "mark *": lambda c, origin: marking(c, origin).mark_pattern_for_invalidation("user:*"),
    "mark tag": lambda c, origin: marking(c, origin).mark_tag_for_invalidation(*TAGS),
}


# --- The experiment ---


def in_threads(origin: Origin, begin: Call, invalidate: Call, read: Call) -> str:
    """One thread begins; meanwhile the origin changes and the cache is told; then it may go on."""
    loading = threading.Thread(target=begin, daemon=True)
    loading.start()
    if not origin.reached.wait(PATIENCE):
        raise TimeoutError("the load does not reach the origin")
    origin.change()
    telling = threading.Thread(target=invalidate, daemon=True)
    telling.start()
    telling.join(BLOCKED)  # an invalidation that waits for the load is done after it
    origin.go_on.set()
    for thread in (loading, telling):
        thread.join(PATIENCE)
    return FRESH if read() == "new" else STALE


async def in_tasks(origin: AsyncOrigin, begin: Call, invalidate: Call, read: Call) -> str:
    """The same with a task."""

    async def call(function: Call) -> Any:
        value = function()
        return await value if hasattr(type(value), "__await__") else value

    loading = asyncio.ensure_future(call(begin))
    while not origin.reached.is_set():
        await asyncio.sleep(0)
    origin.change()
    await call(invalidate)
    origin.go_on.set()
    await loading
    return FRESH if await call(read) == "new" else STALE


def one(mode: str, way: Callable[..., tuple[Call, Call]], kind: Callable[..., object]) -> str:
    """One way of loading against one kind of invalidation, on a cache of their own."""
    with TTLCache(60, None) as cache:
        cache.set("user:2", "another", tags=["others"])
        origin = AsyncOrigin() if mode == "asyncio" else Origin()
        begin, read = way(cache, origin)
        invalidate = functools.partial(kind, cache, origin)
        if isinstance(origin, AsyncOrigin):
            return asyncio.run(in_tasks(origin, begin, invalidate, read))
        return in_threads(origin, begin, invalidate, read)


def lapse_results() -> Iterator[Result]:
    """Every way against every kind, in both modes."""
    for name, ways in WAYS.items():
        for mode, way in zip(("threads", "asyncio"), ways, strict=True):
            for kind, change in KINDS.items():
                yield Result(mode, name, kind, one(mode, way, change))


# --- Other libraries: each is given a load, and gives one call that reads, one that invalidates ---

Rival = Callable[[Callable[[str], Any]], dict[str, tuple[Call, Call]]]


def functools_(load: Callable[[str], Any]) -> dict[str, tuple[Call, Call]]:
    call = functools.lru_cache(load)
    return {"lru_cache, cache_clear()": (lambda: call(KEY), call.cache_clear)}


def cachetools_(load: Callable[[str], Any]) -> dict[str, tuple[Call, Call]]:
    import cachetools

    store: Any = cachetools.TTLCache(100, 60)
    call: Any = cachetools.cached(store, lock=threading.Lock())(load)
    shared: Any = cachetools.cached(cachetools.TTLCache(100, 60), condition=threading.Condition())(
        load
    )
    return {
        "cached(lock), pop()": (lambda: call(KEY), lambda: store.pop(call.cache_key(KEY), None)),
        "cached(condition), cache_clear()": (lambda: shared(KEY), shared.cache_clear),
    }


def cachebox_(load: Callable[[str], Any]) -> dict[str, tuple[Call, Call]]:
    import cachebox

    call: Any = cachebox.cached(cachebox.TTLCache(100, 60))(load)
    return {"cached, cache_clear()": (lambda: call(KEY), call.cache_clear)}


def moka_(load: Callable[[str], Any]) -> dict[str, tuple[Call, Call]]:
    import moka_py

    call: Any = moka_py.cached(maxsize=100)(load)
    store: Any = moka_py.Moka(100)
    return {
        "cached, cache_clear()": (lambda: call(KEY), call.cache_clear),
        "get_with(), remove()": (
            lambda: store.get_with(KEY, lambda: load(KEY)),
            lambda: store.remove(KEY),
        ),
    }


def theine_(load: Callable[[str], Any]) -> dict[str, tuple[Call, Call]]:
    import theine

    call: Any = theine.Memoize(100, None)(load)
    return {"Memoize, clear()": (lambda: call(KEY), lambda: call._cache.clear())}


def dogpile_(load: Callable[[str], Any]) -> dict[str, tuple[Call, Call]]:
    from dogpile.cache import make_region

    def region() -> Any:
        return make_region().configure("dogpile.cache.memory")

    one, two = region(), region()
    return {
        "get_or_create(), delete()": (
            lambda: one.get_or_create(KEY, lambda: load(KEY)),
            lambda: one.delete(KEY),
        ),
        "get_or_create(), invalidate()": (
            lambda: two.get_or_create(KEY, lambda: load(KEY)),
            two.invalidate,
        ),
    }


RIVALS: dict[str, Rival] = {
    "functools": functools_,
    "cachetools": cachetools_,
    "cachebox": cachebox_,
    "moka-py": moka_,
    "theine": theine_,
    "dogpile.cache": dogpile_,
}


def version_of(name: str) -> str:
    """A library's version; the interpreter's for what comes with it."""
    if name in sys.stdlib_module_names:
        return ".".join(map(str, sys.version_info[:3]))
    return metadata.version(name)


def rival_results() -> Iterator[tuple[str, list[Result]]]:
    """Each library with its results in threads; none where it is not installed."""
    for name, rival in RIVALS.items():
        try:
            calls = list(rival(lambda key: None))
        except ImportError:
            yield name, []
            continue
        results = []
        for how in calls:
            origin = Origin()
            read, invalidate = rival(lambda key, origin=origin: origin.read())[how]
            served = in_threads(origin, read, invalidate, read)
            results.append(Result("threads", f"{name} {version_of(name)}", how, served))
        yield name, results


# --- What is printed ---


def printed(title: str, columns: list[str], rows: Iterable[list[str]], plain: bool) -> None:
    """A table, by rich where that is installed."""
    if not plain:
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            pass
        else:
            table = Table(*columns, title=title, title_justify="left")
            for row in rows:
                colour = "red" if STALE in row else None
                table.add_row(*row, style=colour)
            Console().print(table)
            return
    lines = [columns, *rows]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    print(f"\n{title}")
    for line in lines:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        )


def main(arguments: list[str]) -> int:
    """Print both tables; 1 if lapse served anything stale."""
    plain = "--plain" in arguments
    served = {(r.way, r.mode, r.kind): r.served for r in lapse_results()}
    rows = [
        [way, mode, *(served[way, mode, kind] for kind in KINDS)]
        for way in WAYS
        for mode in ("threads", "asyncio")
    ]
    printed("lapse: the next read, by kind of invalidation", ["way", "mode", *KINDS], rows, plain)
    others = [["lapse, for contrast", "get(), set(); delete()", one("", get_and_set, KINDS["key"])]]
    missing = []
    for name, results in rival_results():
        others += [[r.way, r.kind, r.served] for r in results]
        missing += [] if results else [name]
    printed("Others: the next read", ["library", "how", "next read"], others, plain)
    for name in missing:
        print(f"{name}: skipped, not installed")
    return int(STALE in served.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
