"""The wire form of a batch: what goes in comes out, the bytes stay as they are, faults are named.

LAPSE_LONG=1 makes more batches, at random.
"""

from __future__ import annotations

import os
import random
import re
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from math import inf, nan
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from lapse.invalidation.message import KINDS, Invalidation
from lapse.invalidation.metrics import WireMeter
from lapse.invalidation.wire import UnknownVersionError, WireError, decode, encode
from support import run_python
from wire_support import (
    COMPRESSIONS,
    EXAMPLE,
    FORMS,
    FRAME,
    document,
    refusal_of,
    same,
    zstd,
)

LONG = os.environ.get("LAPSE_LONG") == "1"
PAGE = Path(__file__).parents[1] / "docs" / "wire-format.md"
GOLDEN = bytes.fromhex(
    "c14c50010007f8000c75736572733a313a6e616d65020107000a7765622d312f"
    "3566336118" + "41da556e40200000" + "6807" + "06323a6e616d65" + "0a00020c03000004"
    "6361727402012a010001ff04000775736572733a2a0200066f7264657273010005707269636500"
)

SIMPLE = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(), max_size=20) | st.binary(max_size=20)
    | st.integers(-(2**2040), 2**2040)
)  # fmt: skip
KEYS = st.recursive(SIMPLE, lambda keys: st.lists(keys, max_size=4).map(tuple), max_leaves=8)
TEXTS = st.text(st.characters(), max_size=20)
TARGETS = {
    "key": KEYS.filter(lambda key: depth_of(key) <= 4),
    "pattern": TEXTS | st.binary(max_size=20),
    "table": TEXTS | st.binary(max_size=20),
    "tag": TEXTS,
    "all": st.none(),
}
ITEMS = st.sampled_from(KINDS).flatmap(
    lambda kind: st.builds(
        Invalidation,
        st.just(kind),
        TARGETS[kind],
        st.none() | st.integers() | TEXTS,
        st.none() | TEXTS,
        st.none() | st.integers(0, 2**63 - 1),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
    )
)


def depth_of(key):
    """Levels of tuples in a key."""
    return 1 + max(map(depth_of, key), default=0) if isinstance(key, tuple) else 0


class TestRoundTrips:
    """What is encoded comes back, equal and of the same types."""

    @pytest.mark.parametrize("compress", COMPRESSIONS)
    @pytest.mark.parametrize("form", FORMS)
    @given(batch=st.lists(ITEMS, max_size=6))
    @settings(
        max_examples=1000 if LONG else 60, database=None, deadline=None, derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    def test_any_batch(self, form, compress, batch):
        """Every kind, value and field, in each form and compression."""
        assert same(decode(encode(batch, form=form, compress=compress)), batch)

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        "key",
        [
            None, True, False, 0, -1, 127, 128, -128, -129, 2**53 - 1, 2**53, -(2**53), 2**64,
            -(2**2040), 0.0, -0.0, 5e-324, inf, -inf, "", "\x00", "\ud800\udc00", "\udcff",
            "ü𝄞", '\\"[{', b"", b"\x00\xff", (), ((),), ((((),),),),
            ("a", ("b", (b"c", (None, True, 1, 1.0)))),
        ],
    )  # fmt: skip
    def test_edges_of_keys(self, form, key):
        """Values at the edge of some range or escape."""
        batch = [Invalidation("key", key), Invalidation("key", key)]
        assert same(decode(encode(batch, form=form, compress=None)), batch)

    @pytest.mark.parametrize("form", FORMS)
    def test_a_large_batch(self, form):
        """As many items as are allowed, compressed below what is allowed on the wire."""
        batch = [Invalidation("key", f"users:{i}", None, "o", i) for i in range(100_000)]
        data = encode(batch, form=form)

        assert data[:5] == FRAME + bytes([1 if form == "binary" else 5])
        assert decode(data) == batch

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_any_bytes_like_input(self, kind):
        """The bytes may come in whatever holds bytes."""
        assert decode(kind(GOLDEN)) == EXAMPLE


class TestFormat:
    """The bytes are what the documentation says, and stay so."""

    def test_golden_bytes(self):
        """The binary form of version 1 never changes."""
        assert encode(EXAMPLE, compress=None) == GOLDEN
        assert decode(GOLDEN) == EXAMPLE

    @pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside these tests")
    def test_the_page_shows_the_example(self):
        """docs/wire-format.md: hexdump and JSON of the example are those of this release."""
        text = PAGE.read_text(encoding="utf-8")
        dump = text.split("## An example")[1].split("## JSON")[0]
        lines = re.findall(r"^    +((?:[0-9a-f]{2} )*[0-9a-f]{2})(?: |$)", dump, re.MULTILINE)
        shown = text.split("The same example:")[1].split("`target`")[0]

        assert bytes.fromhex(" ".join(lines)) == GOLDEN
        assert [line.strip() for line in shown.strip().splitlines()] == (
            encode(EXAMPLE, form="json").decode().splitlines()
        )

    def test_shared_prefixes_are_not_repeated(self):
        """A key that shares a prefix with the one before costs little more than its own end."""
        one = encode([Invalidation("key", "a" * 200)], compress=None)
        two = encode([Invalidation("key", "a" * 200), Invalidation("key", "a" * 199 + "b")])
        assert len(two) == len(one) + 5

    def test_json_need_not_be_ours(self):
        """Another writer's blanks, order, escapes and numbers are understood."""
        data = b"""
        {"items": [{"target": "\\u0075sers", "kind": "key", "version": null, "sent_at": 5},
                   {"kind": "key", "target": 18446744073709551616},
                   {"kind": "key", "target": {"int": "-0x0f"}}, {"kind": "key", "target": null}],
         "v": 1}"""
        assert decode(data) == [
            Invalidation("key", "users", sent_at=5.0),
            Invalidation("key", 2**64),
            Invalidation("key", -15),
            Invalidation("key", None),
        ]

    def test_auto_compresses_what_gets_smaller(self):
        """Small batches, and those that do not shrink, stay as they are."""
        noise = random.Random(1).randbytes(4000)

        assert encode(EXAMPLE, compress="auto") == encode(EXAMPLE, compress=None)
        for key, flags in [("a" * 4000, 1), (noise, 0)]:
            batch = [Invalidation("key", key)]
            assert encode(batch)[4] == flags
            assert decode(encode(batch)) == batch

    @pytest.mark.skipif(zstd is not None, reason="zstd is installed")
    def test_without_zstd(self):
        """Who has no zstd is told which extra brings it, on either side."""
        with pytest.raises(ValueError, match=r"lapse\[wire\]"):
            encode(EXAMPLE, compress="zstd")
        assert "lapse[wire]" in refusal_of(FRAME + b"\x02")


class TestRefusals:
    """What cannot be encoded, and what is no batch."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(
        ("key", "name"),
        [
            (frozenset(), "frozenset"), ([], "list"), (object(), "object"), (1j, "complex"),
            (bytearray(), "bytearray"), (("a", {}), "dict"), (type("Name", (str,), {})(), "Name"),
            (type("Number", (int,), {})(), "Number"), (Path(), type(Path()).__qualname__),
        ],
    )  # fmt: skip
    def test_a_key_without_a_wire_form(self, form, key, name):
        """TypeError names the type, of a part of a tuple too."""
        with pytest.raises(TypeError, match=f"key of type .*{name} has no wire form"):
            encode([Invalidation("key", key)], form=form)

    @pytest.mark.parametrize("form", FORMS)
    def test_nan(self, form):
        """NaN equals no key, so it invalidates none."""
        with pytest.raises(ValueError, match="NaN"):
            encode([Invalidation("key", (1, nan))], form=form)

    def test_arguments(self):
        """Unknown forms and compressions, other objects in a batch, text instead of bytes."""
        with pytest.raises(ValueError, match="form must be"):
            encode([], form="xml")
        with pytest.raises(ValueError, match="compress must be"):
            encode([], compress="lzma")
        with pytest.raises(TypeError, match="holds Invalidations, not tuple"):
            encode([("key", "a")])
        with pytest.raises(TypeError):
            decode("{}")

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"", "neither"),
            (b"\x00", "neither"),
            (b"[]", "neither"),
            (b"\x80\x04K\x01.", "neither"),  # a pickle
            (b"\xc1LX\x01\x00\x00", "neither"),
            (FRAME, "neither"),
            (FRAME + b"\x08\x00", "flags 0x08"),
            (FRAME + b"\x80\x00", "flags 0x80"),
            (FRAME + b"\x03\x00", "compression 3"),
            (FRAME + b"\x00", "too early"),
            (FRAME + b"\x00\x00\x00", "1 bytes after"),
            (FRAME + b"\x00\x01\x06", "6 is no kind"),
            (FRAME + b"\x00\x01\x04\x01\x00", "shares more"),
            (FRAME + b"\x00\x01\x04\x00\x05a", "too early"),
            (FRAME + b"\x00\x01\x04\x00\x02\xc3\x28", "not UTF-8"),
            (FRAME + b"\x00\x01\x0a\x02\x01", "too early"),
            (FRAME + b"\x00\x01\x0c\x01\x08", "8 is no type"),
            (FRAME + b"\x00\x01\x0b" + struct.pack(">d", nan), "NaN"),
            (FRAME + b"\x00\x01\x0b\x00\x00", "too early"),
            (FRAME + b"\x00\x01\x10\x01\x00\x00", "no type of a version"),
            (FRAME + b"\x00\x01\x40\x01", "sequence"),
            (FRAME + b"\x00\x01\x40" + b"\xff" * 9 + b"\x7f", "sequence"),
            (FRAME + b"\x00\x01\x40" + b"\xff" * 10 + b"\x00", "ten bytes"),
            (FRAME + b"\x00\x01\x80" + struct.pack(">d", inf), "finite"),
            (FRAME + b"\x01" + b"not zlib", "damaged"),
            (FRAME + b"\x01" + zlib.compress(b"\x00")[:-1], "too early"),
            (FRAME + b"\x01" + zlib.compress(b"\x00") + b"\x00", "too late"),
            (FRAME + b"\x05" + zlib.compress(GOLDEN), "not a batch in JSON"),
        ],
    )
    def test_malformed_frames(self, data, message):
        """Each fault of a frame is named."""
        assert message in refusal_of(data)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"{", "brackets"),
            (b"{]", "brackets"),
            (b'{"', "brackets"),
            (b" ", "not a batch"),
            (b"{}", 'version "v"'),
            (b'{"v": 1}', "nothing else"),
            (b'{"v": true, "items": []}', 'version "v"'),
            (b'{"v": "1", "items": []}', 'version "v"'),
            (b'{"v": 1, "items": {}}', "nothing else"),
            (b'{"v": 1, "items": [], "x": 1}', "nothing else"),
            (b'{"v": 1, "items": []} 1', "not a batch"),
            (b'{"v": 1, "v": 1, "items": []}', "twice"),
            (b'{"v": 1, "items": ["\xc3\x28"]}', "not a batch"),
            (document(1), "no object"),
            (document({"kind": "key", "target": "a", "ttl": 1}), "unknown field"),
            (document({"kind": "keys", "target": "a"}), "no known kind"),
            (document({"kind": [], "target": "a"}), "no known kind"),
            (document({"kind": "key"}), "no target"),
            (document({"kind": "all", "target": None}), "a target of all"),
            (document({"kind": "tag", "target": 1}), "must be str"),
            (document({"kind": "pattern", "target": None}), "must be str or bytes"),
            (document({"kind": "key", "target": {"a": "b"}}), "stands for no value"),
            (document({"kind": "key", "target": {}}), "stands for no value"),
            (document({"kind": "key", "target": {"bytes": "a", "int": "0x1"}}), "for no value"),
            (document({"kind": "key", "target": {"bytes": 1}}), "stands for no value"),
            (document({"kind": "key", "target": {"bytes": "\u0100"}}), "latin-1"),
            (document({"kind": "key", "target": {"int": "1_0"}}), "stands for no value"),
            (document({"kind": "key", "target": {"float": "nan"}}), "stands for no value"),
            (document({"kind": "key", "target": nan}), "NaN is not JSON"),
            (document({"kind": "key", "target": inf}), "Infinity is not JSON"),
            (b'{"v": 1, "items": [{"kind": "key", "target": 1e999}]}', "range of a float"),
            (b'{"v": 1, "items": [{"kind": "all", "sent_at": 1e999}]}', "finite"),
            (document({"kind": "key", "target": 10**32}), "32 characters"),
            (document({"kind": "all", "version": 1.5}), "version must be"),
            (document({"kind": "all", "version": [1]}), "version must be"),
            (document({"kind": "all", "origin": 1}), "origin must be"),
            (document({"kind": "all", "sequence": "1"}), "sequence must be"),
            (document({"kind": "all", "sequence": -1}), "sequence must"),
            (document({"kind": "all", "sequence": 2**63}), "sequence"),
            (document({"kind": "all", "sent_at": "now"}), "sent_at must be"),
        ],
    )
    def test_malformed_json(self, data, message):
        """Each fault of a document is named."""
        assert message in refusal_of(data)

    @pytest.mark.parametrize(
        ("data", "version"),
        [(b"\xc1LP\x02\xff", 2), (b"\xc1LP\x00\x00", 0), (b'{"v": 3, "more": []}', 3)],
    )
    def test_an_unknown_version_is_told_apart(self, data, version):
        """Before anything else of the message is judged."""
        with pytest.raises(UnknownVersionError, match=f"version {version} ") as caught:
            decode(data)
        assert caught.value.version == version

    @pytest.mark.parametrize("compress", COMPRESSIONS)
    @pytest.mark.parametrize("form", FORMS)
    def test_truncated_anywhere(self, form, compress):
        """No beginning of a message is a message, and nothing may follow one."""
        data = encode(EXAMPLE, form=form, compress=compress).rstrip(b"\n")
        for end in range(len(data)):
            refusal_of(data[:end])
        refusal_of(data + b"\x00")


class TestMeter:
    """Bytes and batches are counted."""

    def test_counts(self):
        """Raw and wire bytes either way, batches, and what was refused."""
        meter = WireMeter()
        batch = [Invalidation("key", "a" * 2000)]
        data = encode(batch, meter=meter)
        plain = encode(batch, form="json", compress=None, meter=meter)
        decode(data, meter=meter)
        with pytest.raises(WireError):
            decode(b"nothing", meter=meter)
        with pytest.raises(TypeError):
            encode([Invalidation("key", object())], meter=meter)

        body = len(encode(batch, compress=None)) - 5
        assert meter.as_dict() == {
            "batches_in": 1,
            "batches_out": 2,
            "malformed": 1,
            "raw_in": body,
            "raw_out": body + len(plain),
            "wire_in": len(data) + len(b"nothing"),
            "wire_out": len(data) + len(plain),
        }
        assert "malformed=1" in repr(meter)

    def test_threads(self):
        """Counts of threads that share a meter are exact."""
        meter = WireMeter()

        def work(_):
            for _ in range(2000):
                meter.sent(3, 2)
                meter.received(5, 4)
                meter.refused(1)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert (meter.raw_out, meter.wire_out, meter.batches_out) == (24_000, 16_000, 8000)
        assert (meter.raw_in, meter.wire_in, meter.batches_in) == (40_000, 40_000, 8000)
        assert meter.malformed == 8000

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_fork(self):
        """A child counts, although a thread that it does not have held the lock at the fork."""
        done = run_python(FORK)
        assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


FORK = """
import os, signal, threading
from lapse.invalidation import counting, metrics

meter, held, stop = metrics.WireMeter(), threading.Event(), threading.Event()

def hold():
    with counting.counting():
        held.set()
        stop.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(100)
    meter.sent(1, 1)
    meter.sent(1, 1)
    print(meter.batches_out, flush=True)
    os._exit(0)
_, status = os.waitpid(child, 0)
stop.set()
thread.join()
assert status == 0
"""
