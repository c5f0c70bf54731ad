"""Whatever bytes come, decoding ends soon, with a batch or a WireError.

LAPSE_LONG=1 runs a million inputs instead of 40,000:

    LAPSE_LONG=1 python -m pytest tests/test_wire_fuzz.py
"""

from __future__ import annotations

import os
import random
import time
import zlib
from math import inf

from lapse.invalidation.message import Invalidation
from lapse.invalidation.wire import WireError, decode, encode
from wire_support import EXAMPLE, FORMS, FRAME, same, zstd

INPUTS = 1_000_000 if os.environ.get("LAPSE_LONG") == "1" else 40_000
SEED = 20240607
SLOWEST = 2.0  # seconds of processor time for one input


def corpus():
    """Messages to start from: each form and compression, alone and together."""
    texts = (
        Invalidation("key", ("ü", "𝄞", b"\xff", -(2**70), inf, (None, True, ("x", 1.5)))),
        *EXAMPLE,
    )
    batches = [[], *([item] for item in texts), EXAMPLE, [*texts, *texts]]
    compressions = [None, "zlib", *(["zstd"] if zstd else [])]
    return [
        encode(batch, form=form, compress=compress)
        for batch in batches
        for form in FORMS
        for compress in compressions
    ]


class Mutator:
    """Makes inputs that are nearly messages, or nothing of the kind, from a seed."""

    WORDS = (
        b"\x00", b"\xff", b"\x80", b"\x7f", b"\xff" * 9, b"\xc1LP\x01", b"\xc1LP\x02", b"\x00\x00",
        b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"null", b"true", b"NaN", b"1e999", b"-0",
        b'{"bytes": "', b'{"int": "0x', b'"kind": "all"', b'"v": 2', b"\\ud800", b"\xed\xa0\x80",
    )  # fmt: skip

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.messages = corpus()
        self.bodies = [
            (4, data) if data[:1] == b"{" else (0, data[5:])
            for data in self.messages
            if data[:1] == b"{" or data[4] == 0
        ]

    def next(self):
        """One input."""
        way = self.random.random()
        if way < 0.02:
            return self.random.randbytes(self.random.randrange(40))
        if way < 0.05:
            return FRAME + b"\x00" + self.random.randbytes(self.random.randrange(40))
        if way < 0.15:
            return self.mutated(self.random.choice(self.messages))
        flags, body = self.random.choice(self.bodies)
        body = self.mutated(body)
        if way < 0.3:  # damage below an undamaged compression
            return FRAME + bytes([flags | 1]) + zlib.compress(body, 1)
        return FRAME + bytes([flags]) + body

    def mutated(self, data):
        """`data` after one to four changes."""
        data = bytearray(data)
        for _ in range(1 + int(self.random.random() ** 3 * 4)):
            self.change(data)
        return bytes(data)

    def change(self, data):
        """A bit, a byte, a cut, a word, a repetition, or a splice with another message."""
        at = int(self.random.random() * (len(data) + 1))
        to = at + int(self.random.random() * 9)
        way = int(self.random.random() * 10)
        if way < 4 and at < len(data):
            data[at] ^= 1 << int(self.random.random() * 8)
        elif way < 6:
            data[at : at + 1] = bytes([int(self.random.random() * 256)])
        elif way == 6:
            del data[at : to if self.random.random() < 0.8 else len(data)]
        elif way == 7:
            data[at:at] = self.random.choice(self.WORDS)
        elif way == 8:
            data[at:at] = data[at:to] * 2
        else:
            _, other = self.random.choice(self.bodies)
            data[at:] = other[int(self.random.random() * len(other)) :]


def test_fuzz():
    """Whatever the bytes: a batch that encodes and decodes to itself, or WireError; and soon.

    40,000 inputs; a million with LAPSE_LONG=1. The seed is fixed.
    """
    mutator = Mutator(SEED)
    slowest, valid = 0.0, 0
    for number in range(INPUTS):
        data = mutator.next()
        started = time.thread_time()
        try:
            items = decode(data)
        except WireError:
            items = None
        except Exception as error:
            raise AssertionError(f"input {number}, {data.hex()}") from error
        slowest = max(slowest, time.thread_time() - started)
        if items is not None:
            valid += 1
            form = FORMS[number % 2]
            assert same(decode(encode(items, form=form, compress=None)), items), data.hex()
    assert slowest < SLOWEST
    assert 0.01 < valid / INPUTS < 0.5
