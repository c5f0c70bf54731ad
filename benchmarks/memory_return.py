"""How much of its memory does a cache give back, and is what stays what its entries need?

    python benchmarks/memory_return.py [--entries 1000000] [--only TEXT] [--full]

Each line is a cache that was filled and then lost most of its entries, in a process of its own,
beside another process in which a cache like it was filled with just those that are left. Keys and
values are there before the first reading, so that what is measured is the cache's own: the
anonymous memory of the process, as /proc/self/smaps_rollup counts it, and what `sys.getsizeof()`
says. Sweeps are calls of `expire()`, as the sweeping thread makes them. Keys and values that die
are the allocator's affair.

With `--full`, bytes an entry of caches that nothing has left but what was evicted, at the sizes of
test_memory.py, as shares of `--entries`.

Exit status 1 if a cache has more than 1.2 times what the other one has, and a constant: 64 KiB by
its own count, and 512 KiB resident, for the C library keeps what small pieces came from; or if an
entry takes more than it may.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import lapse
from lapse import ManualClock
from lapse.bench.probes import MEMORY_SIZES

MOST = 1.2  #: times what a new cache of the same entries has,
CONSTANT = 512 << 10  #: and so many bytes, resident
COUNTED = 64 << 10  #: or by the cache's own count
ENTRY = {"plain": 64, "duel": 72, "lru": 88}  #: bytes an entry of a full cache, at most
SWEEPS = 2  #: a cache that has lost less than half is packed when it has not grown since a sweep
LIFE = 100.0

KINDS = {
    "plain": "TTLCache",
    "sliding": "SlidingTTLCache",
    "duel": "TTLCache, maxsize",
    "lru": "TTLCache, maxsize, lru",
    "tags": "TTLCache, two tags an entry",
}

Cache = Any


def _make(kind: str, entries: int, clock: ManualClock) -> Cache:
    options: dict[str, Any] = {"clock": clock, "cleanup_interval": None}
    if kind in ("duel", "lru"):
        options |= {"maxsize": entries, "policy": kind}
    if kind == "sliding":
        return lapse.SlidingTTLCache(None, **options)
    return lapse.TTLCache(None, **options)


def _store(cache: Cache, kind: str, keys: list[int], life: float | None) -> None:
    if kind == "tags":
        for start in range(0, len(keys), 1000):
            chunk = dict.fromkeys(keys[start : start + 1000])
            cache.set_many(chunk, ttl=life, tags=("all", f"tag {start}"))
    else:
        for key in keys:
            cache.set(key, None, life)


def _fill(cache: Cache, kind: str, gone: list[int], kept: list[int], life: float | None) -> None:
    _store(cache, kind, gone, life)
    _store(cache, kind, kept, None)


def _clear(cache: Cache, kind: str, gone: list[int], kept: list[int], clock: ManualClock) -> None:
    _fill(cache, kind, gone, kept, None)
    cache.clear()


def _expire(cache: Cache, kind: str, gone: list[int], kept: list[int], clock: ManualClock) -> None:
    _fill(cache, kind, gone, kept, LIFE)
    clock.advance(LIFE + 1)
    for _ in range(SWEEPS):
        cache.expire()


def _delete(cache: Cache, kind: str, gone: list[int], kept: list[int], clock: ManualClock) -> None:
    _fill(cache, kind, gone, kept, None)
    for key in gone:
        cache.delete(key)
    for _ in range(SWEEPS):
        cache.expire()


#: What happens to a full cache: how, and the share of its entries that stays.
EVENTS: dict[str, tuple[Callable[..., None], float]] = {
    "clear": (_clear, 0),
    "all expire": (_expire, 0),
    "99 % expire": (_expire, 0.01),
    "deleted to 1 %": (_delete, 0.01),
    "deleted to 10 %": (_delete, 0.1),
    "deleted to 45 %": (_delete, 0.45),
    "deleted to 80 %": (_delete, 0.8),
}
NEW = "new"  #: an event that is none: the cache is filled with those that would stay
FULL = "full"  #: half as many again are stored as a bounded cache holds

# --- In a process of its own ---


def _resident() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))


def _settle() -> None:
    """Give back what the process has and does not use, so that nothing grows into it unseen."""
    for _ in range(3):  # the allocator of a free-threaded interpreter waits a while before it does
        gc.collect()
        time.sleep(0.05)
    ctypes.CDLL(None).malloc_trim(0)


def _child(kind: str, event: str, share: float, entries: int) -> None:
    """Print, as JSON, the bytes that the cache has at the end, both ways."""
    extra = entries // 2 if event == FULL and kind in ENTRY and kind != "plain" else 0
    keys, clock = list(range(entries + extra)), ManualClock()
    left = round(entries * share)
    kept, gone = keys[:left], keys[left:]
    _make(kind, 1, clock).clear()
    _settle()
    before = _resident()
    cache = _make(kind, entries, clock)
    if event in EVENTS:
        EVENTS[event][0](cache, kind, gone, kept, clock)
    else:
        _fill(cache, kind, gone if event == FULL else [], kept, None)
    print(json.dumps([_resident() - before, sys.getsizeof(cache)]))
    assert len(cache) == (entries if event == FULL else left)


def _measure(kind: str, event: str, share: float, entries: int) -> tuple[int, int]:
    """Bytes resident, and counted."""
    child = [
        sys.executable,
        __file__,
        "--child",
        kind,
        event,
        str(share),
        "--entries",
        str(entries),
    ]
    out = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout
    resident, counted = json.loads(out)
    return resident, counted


# --- The tables ---


def _row(*cells: object) -> str:
    texts = [cell if isinstance(cell, str) else f"{cell:,}" for cell in cells]
    return f"{texts[0]:<28}{texts[1]:<17}" + "".join(f"{text:>10}" for text in texts[2:])


def _returns(entries: int, only: str) -> bool:
    """What stays; is all of it within the limits?"""
    good = True
    print("KiB, resident and counted; beside each, those of a new cache of the same entries\n")
    print(_row("cache", "event", "entries", "resident", "new", "counted", "new"))
    for kind, title in KINDS.items():
        for event, (_, share) in EVENTS.items():
            if only not in f"{title} {event} {kind}":
                continue
            left, counted = _measure(kind, event, share, entries)
            need, expected = _measure(kind, NEW, share, entries)
            fine = left <= MOST * need + CONSTANT and counted <= MOST * expected + COUNTED
            good = good and fine
            kib = (n // 1024 for n in (left, need, counted, expected))
            row = _row(title, event, round(entries * share), *kib)
            print(row if fine else f"{row}  too much", flush=True)
    return good


def _full(entries: int, only: str) -> bool:
    """Bytes an entry of full caches; is each within its limit?"""
    good = True
    print("bytes an entry, resident and counted\n")
    print(_row("cache", "", "entries", "resident", "counted", "at most"))
    for kind, most in ENTRY.items():
        for size in (round(entries * share) for share in MEMORY_SIZES):
            if only not in f"{KINDS[kind]} {kind}":
                continue
            each = [round(n / size, 1) for n in _measure(kind, FULL, 0, size)]
            good = good and max(each) <= most
            row = _row(KINDS[kind], "", size, *each, most)
            print(row if max(each) <= most else f"{row}  too much", flush=True)
    return good


def main() -> int:
    """One of the tables; 1 if a line is above what is promised."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--only", default="", help="a word of the lines wanted")
    parser.add_argument("--full", action="store_true", help="bytes an entry of full caches")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, event, share = options.child
        _child(kind, event, float(share), options.entries)
        return 0
    table = _full if options.full else _returns
    return int(not table(options.entries, options.only))


if __name__ == "__main__":
    sys.exit(main())
