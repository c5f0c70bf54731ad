"""The caps of the wire form: each holds at the exact place, before memory is spent."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest

from lapse.invalidation.message import Invalidation
from lapse.invalidation.wire import Limits, WireError, decode, encode
from wire_support import FORMS, FRAME, needs_zstd, refusal_of, zstd

CAPS = [
    ("items", 2, [Invalidation("all")] * 2, [Invalidation("all")] * 3),
    ("parts", 3, [Invalidation("key", (1, (2,)))], [Invalidation("key", (1, (2, 3)))]),
    ("depth", 1, [Invalidation("key", ((),)[0])], [Invalidation("key", ((),))]),
    ("depth", 0, [Invalidation("key", 1)], [Invalidation("key", ())]),
    ("key_length", 3, [Invalidation("key", "𝄞𝄞𝄞")], [Invalidation("key", "aaaa")]),
    ("key_length", 3, [Invalidation("key", b"aaa")], [Invalidation("key", b"aaaa")]),
    ("key_length", 3, [Invalidation("key", ("aaa", "aaa"))], [Invalidation("key", ("aaaa",))]),
    ("pattern_length", 3, [Invalidation("pattern", "a*b")], [Invalidation("pattern", "a*bc")]),
    ("pattern_length", 3, [Invalidation("table", b"aaa")], [Invalidation("table", b"aaaa")]),
    ("tag_length", 3, [Invalidation("tag", "aaa")], [Invalidation("tag", "aaaa")]),
    ("name_length", 3, [Invalidation("all", origin="aaa")], [Invalidation("all", origin="aaaa")]),
    ("name_length", 3, [Invalidation("all", version="aaa")], [Invalidation("all", version="aaaa")]),
    ("int_length", 2, [Invalidation("key", 2**15 - 1)], [Invalidation("key", 2**15)]),
    (
        "int_length",
        2,
        [Invalidation("all", version=-(2**14))],
        [Invalidation("all", version=2**15)],
    ),
]


class TestCaps:
    """Each limit holds, at the exact place, on both sides."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(("name", "cap", "allowed", "refused"), CAPS)
    def test_items_and_lengths(self, form, name, cap, allowed, refused):
        """What is just allowed passes; one more is refused by sender and receiver."""
        limits = Limits(**{name: cap})

        assert decode(encode(allowed, form=form, limits=limits), limits=limits) == allowed
        refusal_of(encode(refused, form=form), limits=limits)
        with pytest.raises(WireError):
            encode(refused, form=form, limits=limits)

    @pytest.mark.parametrize("compress", [None, "zlib"])
    @pytest.mark.parametrize("form", FORMS)
    def test_input_and_output(self, form, compress):
        """Bytes on the wire, and bytes before compression."""
        batch = [Invalidation("key", "a" * 2000)]
        raw = len(encode(batch, form=form, compress=None)) - (5 if form == "binary" else 0)
        data = encode(batch, form=form, compress=compress)

        for cap, exact in [("input", len(data)), ("output", raw)]:
            assert decode(data, limits=Limits(**{cap: exact})) == batch
            refusal_of(data, limits=Limits(**{cap: exact - 1}))
            with pytest.raises(WireError):
                encode(batch, form=form, compress=compress, limits=Limits(**{cap: exact - 1}))

    @pytest.mark.parametrize("compress", ["zlib", pytest.param("zstd", marks=needs_zstd)])
    @pytest.mark.parametrize("fill", [b"\x00", b"[", b" "])
    def test_a_decompression_bomb(self, compress, fill):
        """A small message that unpacks to 64 MiB costs no more memory than the cap allows."""
        flags = 1 if compress == "zlib" else 2
        pack = zlib.compress if compress == "zlib" else zstd.compress
        for form in (0, 4):
            data = FRAME + bytes([flags | form]) + pack(fill * (64 << 20))
            assert peak_of(data, Limits(output=1 << 20)) < 4 << 20

    @needs_zstd
    def test_a_wide_zstd_window(self):
        """A frame that asks for a window of 128 MiB is refused before it gets it."""
        options = {zstd.CompressionParameter.window_log: 27}
        stream = zstd.ZstdCompressor(options=options)
        body = stream.compress(b"\x00" * 1000) + stream.flush()
        assert "damaged" in refusal_of(FRAME + b"\x02" + body)

    def test_a_bomb_of_shared_prefixes(self):
        """Texts that are spelt out from almost no bytes count in full."""
        first = b"\x08\x00\xa0\x1f" + b"a" * 4000
        data = FRAME + b"\x00\xa0\x8d\x06" + first + b"\x08\xa0\x1f\x00" * 99_999
        assert peak_of(data, Limits(output=1 << 20)) < 4 << 20

    @pytest.mark.parametrize(
        "body",
        [
            b'{"v":1,"items":[' + b"[]," * 300_000 + b"[]]}",
            b'{"v":1,"items":[' + b'{"a":0},' * 120_000 + b"{}]}",
            b'{"v":1,"items":["' + b'","' * 300_000 + b'"]}',
            b'{"v":1,"items":["' + b"\\\"" * 500_000 + b'"]}',
            b'{"v":1,"items":[' + b"0," * 500_000 + b"0]}",
            b'{"' * 300_000,
        ],
    )  # fmt: skip
    def test_a_bomb_of_json_values(self, body):
        """More values than the items could have are refused before they are made."""
        assert peak_of(body, Limits(items=100, parts=100)) < 8 << 20

    @pytest.mark.parametrize(
        "opening", [b"[", b'{"a":', b'{"v":1,"items":[{"kind":"key","target":[']
    )
    def test_nesting(self, opening):
        """A document that nests deeply never reaches the parser's recursion."""
        data = b'{"v":1,"items":' + opening * (1_000_000 // len(opening))
        assert "nest" in refusal_of(data) or "values" in refusal_of(data)

    def test_counts_that_lie(self):
        """A count of more items, elements or bytes than there are bytes left is refused at once."""
        for body in (
            b"\xff\x7f",
            b"\x01\x0c\xff\x7f",
            b"\x01\x08\x00\xff\x1f",
            b"\x01\x0a\xff\x01",
        ):
            assert "too early" in refusal_of(FRAME + b"\x00" + body)

    @pytest.mark.parametrize(
        ("cap", "error"),
        [({"items": -1}, ValueError), ({"depth": 65}, ValueError), ({"input": 1.5}, TypeError)],
    )
    def test_caps_are_checked(self, cap, error):
        """A cap is an int, not negative; the depth is one that recursion can bear."""
        with pytest.raises(error):
            Limits(**cap)

    @pytest.mark.parametrize("form", FORMS)
    def test_the_greatest_depth(self, form):
        """The deepest key that limits can allow is within what the interpreter can do."""
        key = ()
        for _ in range(63):
            key = (key,)
        batch, limits = [Invalidation("key", key)], Limits(depth=64)
        assert decode(encode(batch, form=form, limits=limits), limits=limits) == batch


def peak_of(data, limits):
    """The most bytes of memory that the refusal of `data` takes at a time."""
    tracemalloc.start()
    try:
        refusal_of(data, limits=limits)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
