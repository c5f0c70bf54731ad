"""Exact LRU on real traces: as many hits as an OrderedDict has, to the last one."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from lapse import TTLCache
from lapse.traces import open_sample, open_trace

LONG = os.environ.get("LAPSE_LONG") == "1"
TRACES = Path(__file__).resolve().parents[1].parent / "shared" / "traces"
SIZES = [1, 30, 1000, 20_000]
NAMES = [
    "web07.trace.xz",
    "orm-night.trace.xz",
    "arc-oltp.gz",
    "zipf-1.0.gz",
    "weblog-2015.tsv.gz",
    *(f"lirs-{name}.gz" for name in ("multi1", "multi2", "sprite", "cs", "cpp")),
]


def hits_of_an_ordered_dict(keys: Iterable[Any], maxsize: int) -> int:
    """Where a miss stores the key."""
    entries: OrderedDict[Any, bool] = OrderedDict()
    hits = 0
    for key in keys:
        if key in entries:
            hits += 1
        elif len(entries) == maxsize:
            entries.popitem(last=False)
        entries[key] = True
        entries.move_to_end(key)
    return hits


def compare(trace: Any) -> None:
    """At every size both have the same hits."""
    keys = [key for chunk in trace for key in chunk.keys]
    for maxsize in SIZES:
        cache: Any = TTLCache(None, None, maxsize=maxsize, policy="lru")
        for key in keys:
            if cache.get(key) is None:
                cache[key] = True
        assert cache.stats().hits == hits_of_an_ordered_dict(keys, maxsize)


def test_the_sample() -> None:
    """On the trace that comes with the package."""
    with open_sample() as trace:
        compare(trace)


@pytest.mark.parametrize("name", NAMES)
def test_real_traces(name: str) -> None:
    """On every shared trace."""
    if not (TRACES / name).is_file():
        pytest.skip("no real traces: ../shared/traces")
    with open_trace(str(TRACES / name), limit=None if LONG else 100_000) as trace:
        compare(trace)
