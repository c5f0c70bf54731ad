"""What the default policy knows of keys that are gone, in plain Python, as csrc/duel.c keeps it."""

from __future__ import annotations

from typing import NamedTuple

from table_model import mix

BUCKET, HISTORY_LEAST, TIME_BITS = 15, 1024, 12


class Fact(NamedTuple):
    """What is known of a key that is gone: how often it was asked for, and when it went."""

    print: tuple[int, int]
    asks: int
    time: int


class Bucket:
    """The facts of some keys, written in turn."""

    def __init__(self) -> None:
        self.facts: list[Fact | None] = [None] * BUCKET
        self.next = self.aged = 0

    def place(self, print: tuple[int, int]) -> int | None:
        """Where a fingerprint stands."""
        for i, fact in enumerate(self.facts):
            if fact is not None and fact.print == print:
                return i
        return None

    def age(self, age: int) -> None:
        """Halve all asks as often as is due."""
        due, self.aged = age - self.aged, age
        if due:
            self.facts = [fact and fact._replace(asks=fact.asks >> due) for fact in self.facts]


class History:
    """Buckets of facts; `now` counts evictions, and 2^shift of them are a unit of time."""

    def __init__(self, capacity: int, salt: int) -> None:
        self.salt, self.capacity, self.now, self.age, self.shift = salt, capacity, 0, 0, 0
        while capacity >> self.shift > (1 << TIME_BITS) // 2 - 1:
            self.shift += 1
        self.buckets: list[Bucket] = []

    def prepare(self) -> None:
        words = max(HISTORY_LEAST, self.capacity)
        self.buckets = [Bucket() for _ in range(-(-words // BUCKET))]

    def _find(self, h: int) -> tuple[Bucket, int | None]:
        p = mix(h ^ self.salt)
        bucket = self.buckets[(p >> 8 & 0xFFFFFFFF) * len(self.buckets) >> 32]
        return bucket, bucket.place(self._print(h))

    def _print(self, h: int) -> tuple[int, int]:
        p = mix(h ^ self.salt)
        return p >> 40 & 0xFF, p >> 48 & 0xFF | 1

    def _away(self, fact: Fact) -> int:
        """How many evictions ago that was."""
        return ((self.now >> self.shift) - fact.time) % (1 << TIME_BITS) << self.shift

    def knows(self, h: int) -> bool:
        """Was it evicted not long ago?"""
        bucket, i = self._find(h)
        return i is not None and self._away(bucket.facts[i]) < self.capacity

    def remember(self, h: int, asks: int) -> None:
        bucket, _ = self._find(h)
        bucket.age(self.age)
        time = (self.now >> self.shift) % (1 << TIME_BITS)
        bucket.facts[bucket.next] = Fact(self._print(h), asks, time)
        bucket.next = (bucket.next + 1) % BUCKET
        self.now += 1

    def recall(self, h: int) -> tuple[int, int | None]:
        """Take a fact out: the asks, and the eviction that it was; None: long ago or never."""
        bucket, i = self._find(h) if self.buckets else (None, None)
        if bucket is None or i is None:
            return 0, None
        bucket.age(self.age)
        fact, bucket.facts[i] = bucket.facts[i], None
        gone = self._away(fact)
        return fact.asks, self.now - gone if gone < self.capacity else None
