"""The glob dialect of Redis said as plainly as possible: the oracle of every test of patterns.

A pattern is a list of items, each the set of units that one place of the key may hold, or `STAR`.
Matching keeps the set of all places in the key that the items so far can have led to: no recursion,
no backtracking, nothing in common with the native matcher. Nothing here is meant to be fast.

Two answers differ from a server's on purpose. A star matches the empty key too: a server agrees
only where the pattern is exactly `*`. Units have no sign: a server compares the ends of a range as
C chars, which most machines take for signed.
"""

from __future__ import annotations

from typing import NamedTuple

STAR = None


class Units(NamedTuple):
    """What may stand in one place: a unit within one of `ranges`, or, if `negated`, within none."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def allow(self, unit: int) -> bool:
        """Whether `unit` may stand here."""
        return any(low <= unit <= high for low, high in self.ranges) != self.negated


ANY = Units((), negated=True)
Item = Units | None


def units_of(text: str | bytes) -> list[int]:
    """The code points of a str, or the bytes of a bytes object."""
    return [ord(character) for character in text] if isinstance(text, str) else list(text)


def parse(pattern: str | bytes) -> list[Item]:
    """The items of `pattern`; nothing is an error."""
    units = units_of(pattern)
    items: list[Item] = []
    while units:
        unit = units.pop(0)
        if unit == ord("*"):
            items.append(STAR)
        elif unit == ord("?"):
            items.append(ANY)
        elif unit == ord("["):
            items.append(take_bracket(units))
        else:
            if unit == ord("\\") and units:
                unit = units.pop(0)
            items.append(Units(((unit, unit),)))
    return items


def take_bracket(units: list[int]) -> Units:
    """Takes from `units`, which begin behind a `[`, all up to its `]` or to their end."""
    negated = units[:1] == [ord("^")]
    if negated:
        units.pop(0)
    ranges: list[tuple[int, int]] = []
    while units:
        first = units.pop(0)
        if first == ord("]"):
            break
        if first == ord("\\") and units:
            first = last = units.pop(0)
        elif len(units) >= 2 and units[0] == ord("-"):
            last = units[1]
            del units[:2]
        else:
            last = first
        ranges.append((min(first, last), max(first, last)))
    return Units(tuple(ranges), negated)


def matches(pattern: str | bytes, key: object) -> bool:
    """Whether `pattern` matches the whole of `key`; false unless both are str, or both bytes."""
    kind = str if isinstance(pattern, str) else bytes
    if not isinstance(key, kind):
        return False
    units = units_of(key)
    places = {0}
    for item in parse(pattern):
        if item is STAR:
            places = set(range(min(places), len(units) + 1)) if places else places
        else:
            places = {at + 1 for at in places if at < len(units) and item.allow(units[at])}
    return len(units) in places
