"""The questions answered by a timed loop: get, set, delete and gather, hot and cold.

A case names an operation, a size and the keys; a track is a case bound to one contender. Keys,
values and the order of the operations are made once for a case and shared by all its tracks.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from .contenders import Contender, compile_fill, compile_loop
from .engine import Plan, Progress, Series, Table, gc_paused, race

__all__ = ["CASES", "Case", "Emptying", "Growing", "Material", "Standing", "Track", "str_keys"]

SEED = 20261122
SLOWEST_ROUND = 5.0  #: seconds; a contender that would need more is listed, not timed
PILOT = 100  #: turns of a loop from which a round's time is foretold

Keys = list[Any]


def str_keys(count: int) -> Keys:
    """Distinct strings of the usual `table:id` form."""
    return [f"user:{i}" for i in range(count)]


def int_keys(count: int) -> Keys:
    """Distinct integers of 48 bits, in no order, like ids from a database."""
    return random.Random(SEED).sample(range(1 << 48), count)


def tuple_keys(count: int) -> Keys:
    """Distinct pairs, the keys that a memoised function of two arguments makes."""
    return [(f"user:{i}", i) for i in range(count)]


def identical(keys: Keys) -> Keys:
    """The very objects that were stored."""
    return keys


def equal(keys: Keys) -> Keys:
    """Equal strings that are other objects, as parsed from each new request."""
    return [key.encode().decode() for key in keys]


def absent(keys: Keys) -> Keys:
    """As many strings, none of which was stored."""
    return [f"absent:{i}" for i in range(len(keys))]


@dataclass(frozen=True)
class Material:
    """What all tracks of one case share: the stored pairs, and the operations in chunks."""

    keys: Keys
    values: list[bytes]
    chunks: list[Keys]


class Track:
    """A case bound to one contender; calling it with a round's number gives its ns an operation.

    `prepare` is untimed and returns the cache and the keys for the next timed loop.
    """

    def __init__(self, case: Case, contender: Contender, material: Material, seat: int) -> None:
        self.contender = contender
        self.material = material
        self.seat = seat
        statement = case.statement(contender)
        assert statement is not None
        self.loop = compile_loop(statement)
        self.store = compile_fill(contender.store)
        self.cache = self.make()

    @staticmethod
    def chunks(keys: Keys, plan: Plan) -> list[Keys]:
        """The looked-up keys of each timed loop."""
        raise NotImplementedError

    @staticmethod
    def steps(plan: Plan, entries: int) -> int:
        """Timed loops in a round."""
        raise NotImplementedError

    def prepare(self, step: int) -> tuple[Any, Keys]:
        """The cache, ready for the loop number `step`, and the keys of that loop."""
        raise NotImplementedError

    def make(self) -> Any:
        """An empty cache."""
        return self.contender.make(len(self.material.keys))

    def fill(self, cache: Any) -> Any:
        """The cache with every pair stored."""
        self.store(cache, self.material.keys, self.material.values)
        return cache

    def chunk(self, step: int) -> Keys:
        """The keys of loop `step`: contenders are a chunk apart, so none warms another's keys."""
        return self.material.chunks[(step + self.seat) % len(self.material.chunks)]

    def timed(self, cache: Any, keys: Keys) -> int:
        """Nanoseconds for one loop over `keys`."""
        with gc_paused():
            elapsed: int = self.loop(cache, keys, self.material.values[0])
        return elapsed

    def pilot(self, weight: int) -> float:
        """Nanoseconds an operation, the best of a few short loops; a turn counts `weight`."""
        cache, keys = self.prepare(0)
        parts = list(_slices(keys[: 3 * PILOT], PILOT))
        return min(self.timed(cache, part) / (len(part) * weight) for part in parts)


class Standing(Track):
    """The cache is filled once; the operation leaves its keys as they are."""

    def __init__(self, case: Case, contender: Contender, material: Material, seat: int) -> None:
        super().__init__(case, contender, material, seat)
        self.fill(self.cache)

    @staticmethod
    def chunks(keys: Keys, plan: Plan) -> list[Keys]:
        """Every key in random order: in slices, or over and over where they are few."""
        draw = random.Random(SEED)
        if len(keys) > plan.operations:
            return list(_slices(draw.sample(keys, len(keys)), plan.operations))
        passes = max(1, plan.operations // len(keys))
        return [[key for _ in range(passes) for key in draw.sample(keys, len(keys))]]

    @staticmethod
    def steps(plan: Plan, entries: int) -> int:
        """One loop over all operations of a round."""
        return 1

    def prepare(self, step: int) -> tuple[Any, Keys]:
        """The standing cache and the next slice of keys."""
        return self.cache, self.chunk(step)


class Growing(Track):
    """A new cache grows from empty to all keys, in their order, as often as a round asks."""

    @staticmethod
    def chunks(keys: Keys, plan: Plan) -> list[Keys]:
        """All keys at once: a table's growth is lumpy, a part of it says little."""
        return [keys]

    @staticmethod
    def steps(plan: Plan, entries: int) -> int:
        """Growths in a round."""
        return max(1, plan.operations // entries)

    def prepare(self, step: int) -> tuple[Any, Keys]:
        """An empty cache; the one before is gone by then."""
        self.cache = None
        self.cache = self.make()
        return self.cache, self.chunk(step)


class Emptying(Standing):
    """Keys leave a full cache and are stored again between the loops."""

    def __init__(self, case: Case, contender: Contender, material: Material, seat: int) -> None:
        self.gone: Keys = []
        self.draw = random.Random(SEED)
        super().__init__(case, contender, material, seat)

    @staticmethod
    def chunks(keys: Keys, plan: Plan) -> list[Keys]:
        """Every key once, in random order, in slices of at most a round's operations."""
        order = random.Random(SEED).sample(keys, len(keys))
        return list(_slices(order, min(len(keys), plan.operations)))

    @staticmethod
    def steps(plan: Plan, entries: int) -> int:
        """Slices in a round."""
        return max(1, plan.operations // entries)

    def prepare(self, step: int) -> tuple[Any, Keys]:
        """The full cache and the keys that leave it next.

        Keys come back in an order of their own: a table that keeps the order of insertion would
        otherwise be emptied from one end, its best case.
        """
        self.store(self.cache, self.draw.sample(self.gone, len(self.gone)), self.material.values)
        self.gone = self.chunk(step)
        return self.cache, self.gone


def _slices(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[at : at + size] for at in range(0, len(items), size))


@dataclass(frozen=True)
class Case:
    """One question: an operation, on how many entries, by which keys."""

    name: str
    what: str
    operation: str  #: the field of Contender that spells it
    track: type[Track] = Standing
    large: bool = False
    make_keys: Callable[[int], Keys] = str_keys
    looked_up: Callable[[Keys], Keys] = identical

    def __str__(self) -> str:
        return self.name

    def title(self, plan: Plan) -> str:
        """The question in words, with the size that `plan` gives it."""
        return f"{self.what}, {self.entries(plan):,} entries"

    def entries(self, plan: Plan) -> int:
        """Entries of the cache."""
        return plan.large if self.large else plan.small

    def statement(self, contender: Contender) -> str | None:
        """How `contender` spells the operation; None if it lacks it."""
        statement: str | None = getattr(contender, self.operation)
        return statement

    def material(self, plan: Plan) -> Material:
        """Keys, values and operations, always the same for the same plan."""
        keys = self.make_keys(self.entries(plan))
        values = [b"%d" % i for i in range(len(keys))]
        chunks = self.track.chunks(self.looked_up(keys), plan)
        if self.operation == "gather":
            size = self.weight(plan)
            chunks = [list(_slices(chunk, size)) for chunk in chunks]
        return Material(keys, values, chunks)

    def weight(self, plan: Plan) -> int:
        """Operations behind one turn of the loop: a gather counts its keys."""
        return min(self.entries(plan), plan.operations) if self.operation == "gather" else 1

    def measure(
        self, contenders: Sequence[Contender], plan: Plan, progress: Progress
    ) -> list[Table]:
        """Time all `contenders` that know the operation; the one table has ns an operation."""
        table = Table(self.name, self.title(plan), "ns")
        material = self.material(plan)
        tracks: dict[str, Callable[[int], float]] = {}
        for seat, contender in enumerate(c for c in contenders if self.statement(c)):
            track = self.track(self, contender, material, seat)
            if note := self.too_slow(track, plan):
                table.series.append(Series(contender.name, [], note))
            else:
                tracks[contender.name] = partial(self._round, track, plan)
        times = race(tracks, plan.rounds, progress)
        table.series += [Series(name, values) for name, values in times.items()]
        names = [contender.name for contender in contenders]
        table.series.sort(key=lambda series: names.index(series.contender))
        tracks.clear()
        gc.collect()
        return [table]

    def too_slow(self, track: Track, plan: Plan) -> str:
        """A note with its ns an operation if a round of `track` takes too long; else empty."""
        growth = self.entries(plan) if issubclass(self.track, Growing) else 0
        pilot = track.pilot(self.weight(plan))
        if pilot * max(plan.operations, growth) <= SLOWEST_ROUND * 1e9:
            return ""
        return f"too slow, ~{pilot:,.0f}"

    def _round(self, track: Track, plan: Plan, number: int) -> float:
        steps = track.steps(plan, self.entries(plan))
        total = operations = 0
        for step in range(number * steps, (number + 1) * steps):
            cache, keys = track.prepare(step)
            total += track.timed(cache, keys)
            operations += len(keys) if self.operation != "gather" else sum(map(len, keys))
            del cache
        return total / operations


CASES = (
    Case("get-hit-1k", "get, hit, the stored str", "get"),
    Case("get-equal-1k", "get, hit, an equal str", "get", looked_up=equal),
    Case("get-int-1k", "get, hit, int keys", "get", make_keys=int_keys),
    Case("get-tuple-1k", "get, hit, tuple keys", "get", make_keys=tuple_keys),
    Case("get-miss-1k", "get, miss", "miss", looked_up=absent),
    Case("get-hit-1m", "get, hit, random order", "get", large=True),
    Case("get-subscript-1k", "c[k], hit", "item"),
    Case("set-overwrite-1k", "set, overwrite", "set"),
    Case("set-overwrite-1m", "set, overwrite, random order", "set", large=True),
    Case("set-new-1k", "set, new key, from empty", "set", Growing),
    Case("set-new-1m", "set, new key, from empty", "set", Growing, large=True),
    Case("set-subscript-1k", "c[k] = v, overwrite", "setitem"),
    Case("delete-1k", "delete", "delete", Emptying),
    Case("delete-1m", "delete, random order", "delete", Emptying, large=True),
    Case("gather-1k", "gather, 1,000 keys a call", "gather"),
    Case("gather-1m", "gather, random order, one call a round", "gather", large=True),
)
