"""What invalidations cost on the network: bytes and batches, counted where they are encoded."""

from __future__ import annotations

from lapse.invalidation.counting import counting

__all__ = ["WireMeter"]


class WireMeter:
    """Counts the bytes and batches that pass `encode()` and `decode()`.

    "Raw" bytes are counted before compression, "wire" bytes after it. Counts are exact when several
    threads share a meter; each update takes a lock briefly. The attributes are for reading;
    `as_dict()` reads all of them at one instant.
    """

    __slots__ = (
        "batches_in", "batches_out", "malformed", "raw_in", "raw_out", "wire_in", "wire_out",
    )  # fmt: skip

    def __init__(self) -> None:
        #: Bytes and batches that were encoded.
        self.raw_out = self.wire_out = self.batches_out = 0
        #: Bytes and batches that were decoded; `wire_in` counts what was refused too.
        self.raw_in = self.wire_in = self.batches_in = 0
        #: Inputs that were refused.
        self.malformed = 0

    def sent(self, raw: int, wire: int) -> None:
        """Count a batch of `raw` bytes that was encoded to `wire` bytes."""
        with counting():
            self.raw_out += raw
            self.wire_out += wire
            self.batches_out += 1

    def received(self, raw: int, wire: int) -> None:
        """Count a batch of `raw` bytes that was decoded from `wire` bytes."""
        with counting():
            self.raw_in += raw
            self.wire_in += wire
            self.batches_in += 1

    def refused(self, wire: int) -> None:
        """Count an input of `wire` bytes that is no batch."""
        with counting():
            self.wire_in += wire
            self.malformed += 1

    def as_dict(self) -> dict[str, int]:
        """All counts at one instant, ready for JSON."""
        with counting():
            return {name: getattr(self, name) for name in self.__slots__}

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}={count}" for name, count in self.as_dict().items())
        return f"{type(self).__name__}({counts})"
