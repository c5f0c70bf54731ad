"""Messages: the four spellings of the reference, ours, poison, and the way back."""

from __future__ import annotations

import json
import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lapse.invalidation.envelope import parse_bytes, read, to_json
from lapse.invalidation.limits import Limits
from lapse.invalidation.message import (
    Invalidation,
    Message,
    MessageError,
    parse,
    spell_broadcast,
    spell_queue,
)
from lapse.invalidation.metrics import WireMeter
from lapse.invalidation.wire import encode

TARGETS = {"key": "user:1", "pattern": "user:*", "table": "user", "tag": "red"}
QUEUE = [
    *[({"type": f"invalidate_{k}", k: t}, Invalidation(k, t)) for k, t in TARGETS.items()],
    ({"type": "clear_all"}, Invalidation("all")),
]
API = [
    *[({"type": k, k: t}, Invalidation(k, t)) for k, t in TARGETS.items()],
    ({"type": "all"}, Invalidation("all")),
]
BROADCAST = [
    ({**message, "type": "invalidation", "invalidation_type": message["type"]}, item)
    for message, item in API
]


@pytest.mark.parametrize(("message", "item"), [*QUEUE, *API, *BROADCAST])
def test_every_spelling(message, item):
    """Each spelling of each kind is the invalidation, as JSON too; extra fields do not matter."""
    assert parse(message) == Message("invalidations", (item,))
    assert read(to_json(message)) == parse({**message, "reason": ["price"], "pattern2": 1})


@pytest.mark.parametrize("key", [0, -7, 1.5, True, None, "", b"raw", ("cart", 42, None)])
def test_keys_of_every_type(key):
    """A key is any scalar, or a tuple of scalars where the transport carries one."""
    (item,) = parse({"type": "invalidate_key", "key": key}).invalidations
    assert item.target == key
    assert type(item.target) is type(key)


def test_the_envelope():
    """Time, origin, sequence, version and the wish for an acknowledgement are read."""
    message = parse(
        {
            "type": "invalidate_key", "key": 1, "timestamp": 1700000000, "origin": "web-1",
            "sequence": 7, "version": "v2", "ack": True,
        }
    )  # fmt: skip
    item = Invalidation("key", 1, "v2", "web-1", 7, 1700000000.0)
    assert message == Message("invalidations", (item,), "web-1", 7, 1700000000.0, True)


def test_a_batch():
    """A batch may mix the spellings; its items have its envelope and their own versions."""
    items = [{**QUEUE[0][0], "version": 3}, API[1][0], BROADCAST[4][0]]
    message = parse({"type": "batch", "items": items, "origin": "o", "sequence": 2})
    assert message.invalidations == (
        Invalidation("key", "user:1", 3, "o", 2),
        Invalidation("pattern", "user:*", None, "o", 2),
        Invalidation("all", None, None, "o", 2),
    )
    assert (message.origin, message.sequence) == ("o", 2)


def test_signs_of_life():
    """Heartbeats and acknowledgements say who, and up to which number."""
    assert parse({"type": "heartbeat", "origin": "o"}) == Message("heartbeat", (), "o")
    beat = parse({"type": "heartbeat", "origin": "o", "sequence": 4, "ack": True})
    assert beat == Message("heartbeat", (), "o", 4, None, True)
    ack = parse({"type": "ack", "origin": "o", "of": ["p", 3]})
    assert ack == Message("ack", (), "o", of=("p", 3))


def test_an_unknown_type():
    """It is no poison, whatever its fields are; an origin and a sequence are taken if they fit."""
    for message in (
        {"type": "product_update", "product_id": 1, "timestamp": "today", "sequence": -1},
        {"type": "invalidation", "invalidation_type": "user", "key": 1},
    ):
        assert parse(message) == Message("unknown", content=message)
    numbered = {"type": "product_update", "origin": "o", "sequence": 3}
    assert parse(numbered)[2:4] == ("o", 3)


POISON = [
    None,
    [],
    {},
    {"type": 7},
    {"type": "invalidation"},
    {"type": "invalidate_key"},
    {"type": "key", "pattern": "x"},
    {"type": "invalidate_key", "key": []},
    {"type": "invalidate_key", "key": {"a": 1}},
    {"type": "invalidate_key", "key": math.nan},
    {"type": "invalidate_key", "key": object()},
    {"type": "invalidate_key", "key": ([],)},
    {"type": "invalidate_key", "key": "x" * 4097},
    {"type": "invalidate_key", "key": 1 << 3000},
    {"type": "invalidate_pattern", "pattern": 3},
    {"type": "invalidate_pattern", "pattern": "x" * 1025},
    {"type": "invalidate_table", "table": None},
    {"type": "invalidate_tag", "tag": b"x"},
    {"type": "invalidate_key", "key": 1, "origin": 3},
    {"type": "invalidate_key", "key": 1, "origin": "x" * 257},
    {"type": "invalidate_key", "key": 1, "sequence": -1},
    {"type": "invalidate_key", "key": 1, "sequence": True},
    {"type": "invalidate_key", "key": 1, "sequence": 1 << 63},
    {"type": "invalidate_key", "key": 1, "timestamp": math.inf},
    {"type": "invalidate_key", "key": 1, "timestamp": "today"},
    {"type": "invalidate_key", "key": 1, "version": 1.5},
    {"type": "batch"},
    {"type": "batch", "items": {}},
    {"type": "batch", "items": [3]},
    {"type": "batch", "items": [{"type": "batch", "items": []}]},
    {"type": "batch", "items": [{"type": "heartbeat", "origin": "o"}]},
    {"type": "batch", "items": [{"type": "something"}]},
    {"type": "heartbeat"},
    {"type": "ack", "origin": "o"},
    {"type": "ack", "origin": "o", "of": ["o"]},
    {"type": "ack", "origin": "o", "of": ["o", -1]},
    {"type": "ack", "of": ["o", 1]},
]


@pytest.mark.parametrize("message", POISON, ids=lambda m: str(m)[:60])
def test_poison(message):
    """What is malformed is refused, and nothing else is raised."""
    with pytest.raises(MessageError):
        parse(message)


def test_too_many_items():
    """A batch beyond the limits is refused before its items are read."""
    batch = {"type": "batch", "items": [object()] * 3}
    with pytest.raises(MessageError, match="3 items"):
        parse(batch, limits=Limits(items=2))


# --- Bytes ---


@pytest.mark.parametrize("form", ["binary", "json"])
def test_batches_of_the_wire(form):
    """Both forms of wire.py are messages; origin and sequence are what the items agree on."""
    items = [Invalidation("key", ("a", n), None, "o", 5, 9.0) for n in range(100)]
    message = parse_bytes(encode(items, form=form))
    assert message == Message("invalidations", tuple(items), "o", 5, 9.0)
    mixed = [*items, Invalidation("all", None, None, "o", 6)]
    assert parse_bytes(encode(mixed, form=form))[2:5] == ("o", None, None)


@pytest.mark.parametrize(
    "data",
    [
        b"", "", b"\xc1LP", b"\xc1LP\x02\x00\x00", b"\xc1LP\x01\x00\x05", b'{"v":2,"items":[]}',
        b'{"v":1,"items":[{}]}', b"[]", b"3", b"nonsense", b"\xff\xfe", b'{"type":"key"',
        b'{"type":"key","key":NaN}', b'{"type":"key","key":1,"key":2}', b"[" * 100_000,
        b'{"type":"key","key":' + b"9" * 5000 + b"}",
    ],
    ids=lambda data: str(data[:30]),
)  # fmt: skip
def test_bytes_that_are_no_message(data):
    """Whatever the bytes, an unknown version of the wire among them, it is a MessageError."""
    with pytest.raises(MessageError):
        parse_bytes(data)


def test_bytes_are_capped_and_counted():
    """Input beyond the cap is refused unread; a meter counts what came in."""
    meter = WireMeter()
    data = to_json({"type": "clear_all"})
    for each in (data, data.decode(), bytearray(data), memoryview(data)):
        assert parse_bytes(each, meter=meter).invalidations == (Invalidation("all"),)
    assert (meter.wire_in, meter.batches_in) == (4 * len(data), 4)
    with pytest.raises(MessageError, match="10 bytes"):
        parse_bytes(data, limits=Limits(input=10), meter=meter)
    assert (meter.wire_in, meter.malformed) == (5 * len(data), 1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "key", "items", "pattern", "origin", "of", "sequence"]),
            inner | st.sampled_from(["key", "batch", "invalidation", "clear_all", "ack"]),
        )
    ),
)


@given(JSON)
def test_anything_is_a_message_or_poison(plain):
    """No JSON makes the parser raise anything but MessageError."""
    for parser, data in ((parse, plain), (parse_bytes, json.dumps(plain))):
        with suppress(MessageError):
            assert isinstance(parser(data), Message)


# --- The way back ---


@pytest.mark.parametrize("item", [item for _, item in QUEUE])
def test_spelling(item):
    """What is spelt as the reference does is exactly its dict, and is read back."""
    message = {k: v for m, i in QUEUE if i == item for k, v in m.items()}
    assert spell_queue(item, 5.0) == {**message, "timestamp": 5.0}
    broadcast = {k: v for m, i in BROADCAST if i == item for k, v in m.items()}
    assert spell_broadcast(item, 5.0) == {**broadcast, "timestamp": 5.0}
    for spell in (spell_queue, spell_broadcast):
        (again,) = parse(spell(Invalidation(item.kind, item.target, 4), 5.0)).invalidations
        assert again == Invalidation(item.kind, item.target, 4, sent_at=5.0)
