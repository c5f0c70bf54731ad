"""What a type checker must make of the public names: checked by mypy --strict, never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any

from typing_extensions import assert_type

from lapse import (
    CacheStats,
    Lease,
    ManualClock,
    ProbabilisticTTLCache,
    SlidingTTLCache,
    TTLCache,
    escape,
)

ages: TTLCache[str, int] = TTLCache(60, name="ages", clock=ManualClock())
names = SlidingTTLCache[int, str](timedelta(minutes=5), max_lifetime=3600)
rates: ProbabilisticTTLCache[str, float] = ProbabilisticTTLCache(0.5, 0.2, beta=1.0, seed=1)
plain: TTLCache[Any, Any] = TTLCache()

# --- One key ---

assert_type(ages["Ada"], int)
assert_type(ages.get("Ada"), int | None)
assert_type(ages.get("Ada", 0), int)
assert_type(ages.get("Ada", "none"), int | str)
assert_type(ages.set("Ada", 36, ttl=timedelta(seconds=5)), None)
assert_type(ages.add("Ada", 36, 1.5), bool)
assert_type(ages.setdefault("Ada", 36), int)
assert_type(ages.incr("Ada"), int)
assert_type(rates.incr("a", 0.5), float)
assert_type(ages.touch("Ada"), bool)
assert_type(ages.expires_in("Ada"), float | None)
assert_type(ages.delete("Ada"), bool)
assert_type(ages.pop("Ada"), int)
assert_type(ages.pop("Ada", None), int | None)
assert_type(ages.popitem(), tuple[str, int])
assert_type("Ada" in ages, bool)
ages["Ada"] = 36
del ages["Ada"]

ages["Ada"] = "36"  # type: ignore[assignment]
ages[1]  # type: ignore[index]
ages.set("Ada", "36")  # type: ignore[arg-type]
ages.set("Ada", 36, ttl="5")  # type: ignore[arg-type]
TTLCache("60")  # type: ignore[arg-type]
TTLCache(60, 300, 1000)  # type: ignore[call-arg]

# --- Many keys ---

assert_type(names.gather([1, 2]), list[str | None])
assert_type(names.gather(range(2), ""), list[str])
assert_type(names.get_many((1, 2)), dict[int, str])
assert_type(names.set_many({1: "Ada"}, ttl=5), None)
assert_type(names.set_many([(1, "Ada")]), None)
assert_type(names.delete_many({1, 2}), int)
assert_type(names.touch_many([1], ttl=5), int)

# --- Invalidation ---


def gone(key: str, value: int, cause: str) -> None: ...


heard: TTLCache[str, int] = TTLCache(60, listener=gone)
assert_type(ages.set("Ada", 36, tags=("people",)), None)
assert_type(ages.set_many({"Ada": 36}, tags={"people"}), None)
assert_type(ages.tags("Ada"), frozenset[str])
assert_type(ages.delete_tag("people"), int)
assert_type(ages.delete_pattern("A*"), int)
assert_type(ages.get_keys_matching_pattern("A*"), list[str])
assert_type(ages.invalidate_key("Ada"), bool)
assert_type(ages.invalidate_pattern(b"A*"), int)
assert_type(ages.invalidate_table("people"), int)
assert_type(escape("A*"), str)
assert_type(escape(b"A*"), bytes)
assert_type(ages.lease("Ada", tags=["people"]), Lease)
assert_type(ages.lease("Ada").outdated, bool)
assert_type(ages.lease("Ada").tags, frozenset[str])
assert_type(ages.fill(ages.lease("Ada"), 36, ttl=5, tags=["born 1815"]), bool)

ages.set("Ada", 36, tags=(1,))  # type: ignore[arg-type]
ages.set("Ada", 36, 5, ("people",))  # type: ignore[call-arg]
ages.fill(ages.lease("Ada"), "36")  # type: ignore[arg-type]
ages.fill("Ada", 36)  # type: ignore[arg-type]
ages.delete_pattern(1)  # type: ignore[arg-type]
ages.delete_tag(b"people")  # type: ignore[arg-type]
TTLCache(60, listener="gone")  # type: ignore[arg-type]

# --- A mapping ---

as_mapping: MutableMapping[str, int] = ages
assert_type(list(ages), list[str])
assert_type(list(ages.keys()), list[str])
assert_type(list(ages.values()), list[int])
assert_type(list(ages.items()), list[tuple[str, int]])
assert_type(iter(names), Iterator[int])
assert_type(ages | {"Bob": 1}, TTLCache[str, int])
assert_type(ages.copy(), TTLCache[str, int])
ages |= {"Bob": 1}
ages.update({"Bob": 1}, Eve=2)
ages.update([("Bob", 1)])


def total(mapping: Mapping[str, int]) -> int:
    return sum(mapping.values())


assert_type(total(ages), int)

# --- The cache itself ---

with ages as opened:
    assert_type(opened, TTLCache[str, int])
assert_type(ages.stats(), CacheStats)
assert_type(ages.stats().hit_ratio, float)
assert_type(ages.default_ttl, float | timedelta | None)
assert_type(ages.expire(limit=100), int)
assert_type(ages.close(), None)
