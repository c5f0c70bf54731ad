"""How much a batch may hold: the caps of the wire form, and the account that a batch keeps of them.

Sender and receiver keep the same account, so that `encode()` refuses what `decode()` would refuse
under the same limits. A receiver asks before it spends memory.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Account", "Limits", "UnknownVersionError", "WireError"]

_DEEPEST = 64  # levels of tuples that the recursion of reader and writer is good for


class WireError(ValueError):
    """Bytes that are no batch, or a batch beyond the limits. The message says what is wrong."""


class UnknownVersionError(WireError):
    """A batch in a version of the wire form that this release does not know: `version`."""

    def __init__(self, version: int) -> None:
        super().__init__(f"version {version} of the wire form is not known")
        self.version = version


@dataclass(frozen=True, slots=True)
class Limits:
    """The caps of one batch; immutable. A unit is a code point of a str or a byte of bytes.

    Raises TypeError for a cap that is no int, ValueError for one below zero or a depth above 64.
    """

    #: Bytes on the wire.
    input: int = 1 << 20
    #: Bytes after decompression; and again of all texts, once their shared prefixes are added.
    output: int = 16 << 20
    #: Invalidations.
    items: int = 100_000
    #: Elements of all tuples in keys together.
    parts: int = 200_000
    #: Levels of tuples in a key; 0 allows no tuple.
    depth: int = 4
    #: Units of a key, or of each text in a tuple.
    key_length: int = 4096
    #: Units of a pattern or a table.
    pattern_length: int = 1024
    #: Units of a tag.
    tag_length: int = 1024
    #: Units of an origin or a version.
    name_length: int = 256
    #: Bytes of an int in a key or a version.
    int_length: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            cap = getattr(self, field.name)
            if not isinstance(cap, int) or isinstance(cap, bool):
                raise TypeError(f"{field.name} must be an int, not {type(cap).__name__}")
            if cap < 0:
                raise ValueError(f"{field.name} must not be negative, but is {cap}")
        if self.depth > _DEEPEST:
            raise ValueError(f"depth must be at most {_DEEPEST}, but is {self.depth}")


class Account:
    """What one batch has used of its limits; each method raises WireError where a cap is passed."""

    __slots__ = ("_lengths", "_limits", "_parts", "_room")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parts = limits.parts
        self._room = limits.output
        self._lengths = {
            "key": limits.key_length,
            "pattern": limits.pattern_length,
            "table": limits.pattern_length,
            "tag": limits.tag_length,
            "version": limits.name_length,
            "origin": limits.name_length,
        }

    def items(self, count: int) -> None:
        """A batch of `count` items."""
        _hold(count, self._limits.items, "items in a batch")

    def text(self, units: int, role: str) -> None:
        """A text of at least `units` units: a kind's target, a version or an origin."""
        if units > self._lengths[role]:
            raise WireError(f"a {role} is longer than {self._lengths[role]} units")

    def spell_out(self, size: int) -> None:
        """`size` bytes for a text that took fewer in the message."""
        self._room -= size
        if self._room < 0:
            raise WireError(f"more than {self._limits.output} bytes of text in a batch")

    def integer(self, size: int) -> None:
        """An int of `size` bytes."""
        _hold(size, self._limits.int_length, "bytes in an int")

    def tuple(self, count: int, depth: int) -> None:
        """A tuple of `count` elements within `depth` others."""
        _hold(depth + 1, self._limits.depth, "levels of tuples in a key")
        self._parts -= count
        if self._parts < 0:
            raise WireError(f"more than {self._limits.parts} tuple elements in a batch")


def _hold(count: int, cap: int, what: str) -> None:
    if count > cap:
        raise WireError(f"{count} {what}; the limit is {cap}")
