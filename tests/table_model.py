"""The native table in plain Python: where entries stand, and how segments grow and split.

Keys are known by their mixed hashes. Segments never shrink or merge: that takes a sweep. What is
copied here is csrc/segment.c and grow.c; a `whole` table is one segment that only grows. `limit` is
that of a bounded table.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
WIDE_PRODUCTS = sys.platform != "win32" and sys.maxsize > 2**32
GROUP, TAG_BITS = 16, 7
FIRST_SLOTS, HALF_SLOTS, MOST_SLOTS = 16, 640, 1024
PAGE_SLOTS, POOLED_FROM, DEEPEST, LEEWAY, FULL_SHARE = 128, 8, 25, 4, 16

GONE: Any = object()  # what a tombstone is


def mixed(key: Any) -> int:
    """mix_hash() of the key's own hash."""
    return mix(hash(key) & MASK)


def mix(word: int) -> int:
    """mix_hash() of 64 bits."""
    product = word * GOLDEN
    if WIDE_PRODUCTS:
        return (product ^ product >> 64) & MASK
    x = product & MASK
    x = (x ^ x >> 32) * GOLDEN & MASK
    return x ^ x >> 29


def limit_of(slots: int) -> int:
    """How many slots may be in use."""
    return slots - slots // 8


def half_slots_for(entries: list[Entry]) -> int:
    """How many slots a half of a split begins with, if it is from a slab."""
    return HALF_SLOTS if len(entries) < limit_of(HALF_SLOTS) else MOST_SLOTS


class Entry:
    """An entry, and what the policy keeps in its slot."""

    __slots__ = ("asks", "deadline", "hash", "key", "slot", "uses", "watched", "young")

    def __init__(self, key: Any, h: int, deadline: float) -> None:
        self.key, self.hash, self.deadline = key, h, deadline
        self.slot = self.uses = self.asks = 0
        self.young = self.watched = False


class Segment:
    """Slots, each with an Entry, GONE or None, for the hashes that begin like `first`."""

    def __init__(self, first: int, depth: int, slots: int, pooled: bool = False) -> None:
        self.first, self.depth, self.pooled = first, depth, pooled
        self.slots: list[Any] = [None] * slots
        self.used = self.tombstones = 0
        self.aged = self.visited = 0  # the policy's

    @property
    def last(self) -> int:
        return self.first | MASK >> self.depth

    def entries(self) -> list[Entry]:
        """In the order of slots."""
        return [e for e in self.slots if e is not None and e is not GONE]

    def _groups(self, h: int) -> Iterator[int]:
        """The first slot of each group, from the hash's own on."""
        count = len(self.slots) // GROUP
        home = (h >> TAG_BITS & 0xFFFFFFFF) * count >> 32
        for n in range(home, home + count):
            yield n % count * GROUP

    def free_slot(self, h: int) -> int:
        for first in self._groups(h):
            for slot in range(first, first + GROUP):
                if self.slots[slot] is None or self.slots[slot] is GONE:
                    return slot
        raise AssertionError("a segment always has a free slot")

    def has_room(self, h: int) -> bool:
        if self.used + self.tombstones < limit_of(len(self.slots)):
            return True
        return self.tombstones > 0 and self.slots[self.free_slot(h)] is GONE

    def add(self, e: Entry) -> None:
        e.slot = self.free_slot(e.hash)
        self.tombstones -= self.slots[e.slot] is GONE
        self.slots[e.slot] = e
        self.used += 1

    def remove(self, e: Entry) -> None:
        """No probe went past a group that has an empty slot: only in others a tombstone is left."""
        first = e.slot - e.slot % GROUP
        stopper = None in self.slots[first : first + GROUP]
        self.slots[e.slot] = None if stopper else GONE
        self.tombstones += not stopper
        self.used -= 1

    def refill(self, slots: int, entries: list[Entry]) -> None:
        """Begin again with so many slots."""
        self.slots = [None] * slots
        self.used = self.tombstones = 0
        for e in entries:
            self.add(e)


class Table:
    """All segments, in the order of hashes, and all entries by their hashes."""

    def __init__(self, whole: bool = False, limit: int | None = None) -> None:
        self.whole, self.limit = whole, limit
        self.entries: dict[int, Entry] = {}
        self.segments = [Segment(0, 0, FIRST_SLOTS)]
        self._firsts = [0]

    def segment_of(self, h: int) -> Segment:
        return self.segments[bisect_right(self._firsts, h) - 1]

    def lap(self, h: int) -> list[tuple[int, Segment]]:
        """All segments from that of a hash on, each with a hash that it covers."""
        i = bisect_right(self._firsts, h)
        pairs = list(zip(self._firsts, self.segments, strict=True))
        return [(h, self.segments[i - 1]), *pairs[i:], *pairs[: i - 1]]

    def add(self, e: Entry) -> None:
        """Its segment has room."""
        self.segment_of(e.hash).add(e)
        self.entries[e.hash] = e

    def remove(self, e: Entry) -> None:
        self.segment_of(e.hash).remove(e)
        del self.entries[e.hash]

    def grow(self, s: Segment) -> None:
        """Come nearer to room for one more entry in the segment."""
        slots = len(s.slots)
        if s.tombstones > 0 and s.used <= limit_of(slots) // 8 * 7:
            s.refill(slots, s.entries())
        elif s.pooled and slots < MOST_SLOTS:
            by_the_page = slots < HALF_SLOTS or self._is_full()
            s.refill(slots + PAGE_SLOTS if by_the_page else MOST_SLOTS, s.entries())
        elif slots == MOST_SLOTS and self._may_split(s):
            self._split(s)
        else:
            s.pooled = False
            s.refill(2 * slots, s.entries())

    def _is_full(self) -> bool:
        limit = self.limit
        return limit is not None and len(self.entries) >= limit - limit // FULL_SHARE

    def _may_split(self, s: Segment) -> bool:
        deepest = len(self.segments).bit_length() - 1 + LEEWAY
        return not self.whole and s.depth < min(DEEPEST, deepest)

    def _split(self, s: Segment) -> None:
        """The upper half of the hashes gets a segment of its own."""
        bit = 1 << 63 - s.depth
        lower = [e for e in s.entries() if not e.hash & bit]
        upper = [e for e in s.entries() if e.hash & bit]
        pooled = len(self.segments) >= POOLED_FROM
        slots = half_slots_for(upper) if pooled else MOST_SLOTS
        new = Segment(s.first | bit, s.depth + 1, slots, pooled)
        new.aged, new.visited = s.aged, s.visited
        s.depth += 1
        s.refill(half_slots_for(lower) if s.pooled and self._is_full() else len(s.slots), lower)
        new.refill(len(new.slots), upper)
        place = bisect_right(self._firsts, new.first)
        self.segments.insert(place, new)
        self._firsts.insert(place, new.first)
