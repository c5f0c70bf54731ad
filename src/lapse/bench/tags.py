"""What tags cost: removing a tag's thousand members, and storing an entry with a tag."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import cycle
from typing import Any

from .cases import Standing, str_keys
from .contenders import compile_loop
from .contest import Contest, Trial
from .engine import Plan
from .patterns import make_cache

__all__ = ["TAGS"]

UNTAGGED, TAGGED = "c.set(k, v)", "c.set(k, v, tags=t)"
SHARING = 100  #: entries that share a tag
Tagged = list[tuple[str, tuple[str]]]


class DeleteTag(Trial):
    """Remove what bears a tag, another one each time; the cache alone owns keys and values."""

    def __init__(self, entries: int, members: int) -> None:
        self.members = members
        self.tags = entries // members
        self.cache = make_cache()
        self.number = -1
        for place in range(members):
            for tag in range(self.tags):
                self.store(tag, place)

    def store(self, tag: int, place: int) -> None:
        """Store one member of a tag."""
        number = place * self.tags + tag
        self.cache.set(f"key:{number}", b"%d" % number, tags=(f"tag:{tag}",))

    def prepare(self) -> None:
        """Choose the tag."""
        self.number = (self.number + 1) % self.tags
        self.tag = f"tag:{self.number}"

    def call(self) -> object:
        """Remove its members."""
        return self.cache.delete_tag(self.tag)

    def finish(self, answer: object) -> None:
        """All of them went, and come back."""
        assert answer == self.members
        for place in range(self.members):
            self.store(self.number, place)


def tagged_keys(entries: int, tags: int) -> Tagged:
    """Keys, each with one of a number of tags."""
    labels = [(f"tag:{number}",) for number in range(tags)]
    return [(key, labels[place % tags]) for place, key in enumerate(str_keys(entries))]


class SetMany(Trial):
    """A loop of `set`, each key with its own tag, stored or not."""

    def __init__(self, statement: str) -> None:
        self.loop = compile_loop(statement, each="k, t")

    def run(self, cache: Any, pairs: Iterable[Any]) -> int:
        """Nanoseconds of the loop over pairs of a key and its tags."""
        elapsed: int = self.loop(cache, pairs, None)
        return elapsed


class Overwrite(SetMany):
    """Every key is there, with its tag or without one, and keeps it."""

    def __init__(self, statement: str, pairs: Tagged, plan: Plan, seat: int) -> None:
        super().__init__(statement)
        self.cache = make_cache()
        self.run(self.cache, pairs)
        self.chunks = cycle(Standing.chunks(pairs, plan))
        for _ in range(seat):  # so that no trial warms the keys of another
            next(self.chunks)

    def prepare(self) -> None:
        """The next chunk, as two rows: to reach for pairs would cost more than a tag does."""
        self.keys, self.tags = zip(*next(self.chunks), strict=True)
        self.operations = len(self.keys)

    def call(self) -> object:
        """Store the chunk."""
        return self.run(self.cache, zip(self.keys, self.tags, strict=True))


class Grow(SetMany):
    """New caches grow from empty to all keys."""

    def __init__(self, statement: str, pairs: Tagged, plan: Plan, seat: int) -> None:
        super().__init__(statement)
        self.keys, self.tags = zip(*pairs, strict=True)
        self.copies = max(1, plan.operations // len(pairs))
        self.operations = self.copies * len(pairs)

    def prepare(self) -> None:
        """Empty caches."""
        self.caches = [make_cache() for _ in range(self.copies)]

    def call(self) -> object:
        """Fill them."""
        return sum(self.run(cache, zip(self.keys, self.tags, strict=True)) for cache in self.caches)

    def finish(self, answer: object) -> None:
        """All are full; they go."""
        assert {len(self.keys)} == set(map(len, self.caches))
        self.caches.clear()


def _delete_trials(plan: Plan) -> list[Trial]:
    return [DeleteTag(size, plan.small) for size in (plan.small, plan.large // 10, plan.large)]


def _set_trials(track: type[Overwrite | Grow], large: bool, plan: Plan) -> list[Trial]:
    entries = plan.large if large else plan.small
    shared, own = (tagged_keys(entries, max(1, entries // sharing)) for sharing in (SHARING, 1))
    ways = ((UNTAGGED, shared), (TAGGED, shared), (TAGGED, own))
    return [track(way, pairs, plan, seat) for seat, (way, pairs) in enumerate(ways)]


def _set_contest(name: str, what: str, track: type[Overwrite | Grow], large: bool) -> Contest:
    size = "large" if large else "small"
    return Contest(
        f"tag-{name}-{'1m' if large else '1k'}",
        f"set with one tag, {what}, {{{size}:,}} entries",
        "ns",
        ("untagged", "tagged", "own tag"),
        partial(_set_trials, track, large),
        "untagged",
    )


TAGS = (
    Contest(
        "tag",
        "delete_tag, {small:,} members, by entries of the cache",
        "µs",
        ("1k", "100k", "1m"),
        _delete_trials,
    ),
    *(
        _set_contest(name, what, track, large)
        for name, what, track in (("set", "overwrite", Overwrite), ("new", "new key", Grow))
        for large in (False, True)
    ),
)
