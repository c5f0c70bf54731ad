"""A circle of hashes: nodes stand at some points of it, a key belongs to the next node onwards.

                    0 = 2^64
             b ●───────┴──────● a          a owns the arc (b, a], b the arc (c, b], c (a, c].
                │               │          The more points a node has, the more even the arcs.
                └────────● c ───┘          Where a node comes or goes, only arcs of its own move.

Every process and every version of Python sees the same circle: points are BLAKE2b hashes of a
canonical form, never `hash()`. Keys that are equal have the same point, as they are one entry in a
cache: 1, True and 1.0 do, "a" and b"a" do not.

A ring never changes; threads may share it. Looking up costs one hash and a binary search.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

__all__ = ["Move", "Ring", "point_of"]

POINT_BYTES = 8


def point_of(key: Any) -> int:
    """Where a key stands: 0 to 2^64 - 1.

    A key is str, bytes, int, float, bool, None, or a tuple of these; anything else is a TypeError.
    """
    return int.from_bytes(blake2b(_canonical(key), digest_size=POINT_BYTES).digest(), "big")


class Move(NamedTuple):
    """An arc that has gone from one node to another: the points (after, to], round the circle."""

    after: int
    to: int
    #: Names; None where there was, or is, no node at all.
    source: str | None
    target: str | None


class Ring:
    """Nodes, by name, on the circle. Immutable.

    Args:
        sizes: how many points each node has, at least one.
    """

    __slots__ = ("_owners", "_points", "sizes")

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.sizes = dict(sizes)
        places = sorted(
            (point_of((name, i)), name) for name, size in self.sizes.items() for i in range(size)
        )
        self._points = tuple([point for point, _ in places])
        self._owners = tuple([name for _, name in places])

    def owner(self, key: Any) -> str | None:
        """The name of the node that a key belongs to; None if there is none. O(log points)."""
        return self.owner_at(point_of(key))

    def owner_at(self, point: int) -> str | None:
        """The same for a point."""
        if not self._points:
            return None
        place = bisect_left(self._points, point)
        return self._owners[place if place < len(self._points) else 0]

    def moves_to(self, other: Ring) -> list[Move]:
        """The arcs whose owner is another one on the other ring."""
        return [
            Move(after, to, source, target)
            for after, to in _arcs(sorted({*self._points, *other._points}))
            if (source := self.owner_at(to)) != (target := other.owner_at(to))
        ]

    def __len__(self) -> int:
        return len(self._points)


def _arcs(points: list[int]) -> Iterator[tuple[int, int]]:
    """From each point to the next; the first arc begins at the last point."""
    for i, point in enumerate(points):
        yield points[i - 1], point


# --- The canonical form: a tag, and what tells a value from others of its type ---


def _canonical(key: Any) -> bytes:
    if isinstance(key, str):
        return b"s" + key.encode("utf-8", "surrogatepass")
    if isinstance(key, bytes):
        return b"b" + key
    if key is None:
        return b"n"
    if isinstance(key, (int, float)):
        return _number(key)
    if isinstance(key, tuple):
        return b"t" + b"".join(len(part).to_bytes(8, "big") + part for part in map(_canonical, key))
    raise TypeError(f"a key of a ring is text, a number, None or a tuple, not {_name(key)}")


def _number(value: float) -> bytes:
    """Whole numbers in one form, whatever their type."""
    if isinstance(value, float) and not value.is_integer():
        return b"f" + struct.pack(">d", value)
    whole = int(value)
    return b"i" + whole.to_bytes(whole.bit_length() // 8 + 1, "big", signed=True)


def _name(value: Any) -> str:
    return type(value).__name__
