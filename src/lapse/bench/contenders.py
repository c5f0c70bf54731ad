"""Who competes in `lapse bench`, and how each spells an operation.

An operation is a statement over `c` (the cache), `k` (a key, or a batch of keys for `gather`)
and `v` (a value). Each contender's loop is compiled from its own statement, so that everybody
gets the plain Python form of a call, and a code object (with its inline caches) of its own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module, metadata, util
from typing import Any

__all__ = [
    "CONTENDERS",
    "DEFAULT_TTL",
    "Contender",
    "compile_fill",
    "compile_loop",
    "compile_stall",
    "versions",
]

DEFAULT_TTL = 3600  #: seconds; nothing expires while it is timed


@dataclass(frozen=True)
class Contender:
    """A cache, its package and its statements; an operation that it lacks is None."""

    name: str
    make: Callable[..., Any]  #: called with the number of entries it will hold; lapse: and options
    module: str | None = None  #: what must be importable; None: the standard library
    distribution: str | None = None
    get: str = "c.get(k)"
    miss: str | None = "c.get(k)"
    item: str | None = "c[k]"
    set: str | None = "c.set(k, v)"
    setitem: str | None = "c[k] = v"
    delete: str | None = "c.pop(k, None)"
    gather: str = "[c.get(i) for i in k]"

    def __str__(self) -> str:
        return self.name

    @property
    def store(self) -> str:
        """The statement that fills the cache before reads are timed."""
        return self.set or self.get

    @property
    def installed(self) -> bool:
        """Whether the contender's package can be imported here."""
        return self.module is None or util.find_spec(self.module) is not None


def _imported(path: str, *args: Any, **options: Any) -> Callable[..., Any]:
    """A maker of `path` ("module.Class") that ignores how many entries will come."""
    module, _, name = path.rpartition(".")
    return lambda entries, **more: getattr(import_module(module), name)(*args, **options, **more)


def _sized(path: str, *args: Any) -> Callable[..., Any]:
    """A maker of `path` for caches that must be told a bound: twice the entries, never reached."""
    module, _, name = path.rpartition(".")
    return lambda entries: getattr(import_module(module), name)(2 * entries, *args)


def _lru_cache(entries: int) -> Any:
    return functools.lru_cache(2 * entries)(lambda key: key)


def _lapse(name: str) -> Contender:
    return Contender(
        name=f"lapse.{name}",
        make=_imported(f"lapse.{name}", default_ttl=DEFAULT_TTL),
        module="lapse",
        distribution="lapse",
        delete="c.delete(k)",
        gather="c.gather(k)",
    )


CONTENDERS = (
    Contender("dict", make=lambda entries: {}, set="c.__setitem__(k, v)"),
    Contender(
        "functools.lru_cache",
        make=_lru_cache,
        get="c(k)",
        miss=None,
        item=None,
        set=None,
        setitem=None,
        delete=None,
        gather="[c(i) for i in k]",
    ),
    _lapse("TTLCache"),
    _lapse("SlidingTTLCache"),
    _lapse("ProbabilisticTTLCache"),
    Contender(
        "cachebox.TTLCache",
        make=_imported("cachebox.TTLCache", 0, DEFAULT_TTL),
        module="cachebox",
        distribution="cachebox",
        set="c.insert(k, v)",
    ),
    Contender(
        "cachebox.VTTLCache",
        make=_imported("cachebox.VTTLCache", 0),
        module="cachebox",
        distribution="cachebox",
        set=f"c.insert(k, v, {DEFAULT_TTL})",
        setitem=None,
    ),
    Contender(
        "cachetools.TTLCache",
        make=_sized("cachetools.TTLCache", DEFAULT_TTL),
        module="cachetools",
        distribution="cachetools",
        set="c.__setitem__(k, v)",
    ),
    Contender(
        "moka_py.Moka",
        make=_sized("moka_py.Moka", DEFAULT_TTL),
        module="moka_py",
        distribution="moka-py",
        item=None,
        setitem=None,
        delete="c.remove(k)",
    ),
    Contender(
        "theine.Cache",
        make=_sized("theine.Cache"),
        module="theine",
        distribution="theine",
        item=None,
        set="c.set(k, v, ttl)",
        setitem=None,
        delete="c.delete(k)",
    ),
    Contender(
        "lru.LRU",
        make=_sized("lru.LRU"),
        module="lru",
        distribution="lru-dict",
        set="c.__setitem__(k, v)",
    ),
)


def versions() -> dict[str, str | None]:
    """The version of every package that competes; None where it is absent."""
    packages = {c.distribution: c.installed for c in CONTENDERS if c.distribution}
    return {name: _version(name) if here else None for name, here in packages.items()}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed, imported from its source"


def compile_loop(
    statement: str, each: str = "k", *, awaits: bool = False
) -> Callable[[Any, Any, Any], Any]:
    """A function (cache, keys, value) that times `statement` over all keys, in nanoseconds.

    `each` is what the loop binds: a key, or several names where the keys come with something. It is
    a coroutine function if the statement `awaits`.
    """
    return _compile(
        f"{'async ' * awaits}def run(c, keys, v):",
        "    start = clock()",
        f"    for {each} in keys:",
        f"        {statement}",
        "    return clock() - start",
    )


def compile_fill(statement: str) -> Callable[[Any, Any, Any], None]:
    """A function (cache, keys, values) that applies `statement` to each pair, untimed."""
    return _compile(
        "def run(c, keys, values):", "    for k, v in zip(keys, values):", f"        {statement}"
    )


def compile_stall(statement: str) -> Callable[[Any, Any, Any, Any], None]:
    """A function (cache, keys, value, out) that times each single `statement`, in nanoseconds."""
    return _compile(
        "def run(c, keys, v, out):",
        "    for i, k in enumerate(keys):",
        "        start = clock()",
        f"        {statement}",
        "        out[i] = clock() - start",
    )


def _compile(*lines: str) -> Callable[..., Any]:
    names: dict[str, Any] = {"clock": time.perf_counter_ns, "ttl": timedelta(seconds=DEFAULT_TTL)}
    exec("\n".join(lines), names)
    run: Callable[..., Any] = names["run"]
    return run
