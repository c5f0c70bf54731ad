"""Helpers shared by the tests of the wire form: an example, its forms, and what refuses it."""

from __future__ import annotations

import json

import pytest

from lapse.invalidation import wire
from lapse.invalidation.message import Invalidation
from lapse.invalidation.wire import WireError, decode

try:
    zstd = wire._zstd()
except WireError:
    zstd = None
needs_zstd = pytest.mark.skipif(zstd is None, reason="no zstd: pip install backports.zstd")
FORMS = ["binary", "json"]
COMPRESSIONS = [None, "auto", "zlib", pytest.param("zstd", marks=needs_zstd)]
FRAME = b"\xc1LP\x01"

EXAMPLE = [
    Invalidation("key", "users:1:name", 7, "web-1/5f3a", 12, 1767225600.5),
    Invalidation("key", "users:12:name", None, "web-1/5f3a", 13),
    Invalidation("key", ("cart", 42, b"\xff")),
    Invalidation("pattern", "users:*"),
    Invalidation("table", "orders"),
    Invalidation("tag", "price"),
    Invalidation("all"),
]


def same(items, others):
    """Whether two batches are equal, types and signs of zero included."""
    return items == others and repr(items) == repr(others)


def refusal_of(data, **options):
    """The message with which these bytes are refused."""
    with pytest.raises(WireError) as caught:
        decode(data, **options)
    return str(caught.value)


def document(*items, **fields):
    """A JSON document of these items."""
    return json.dumps({"v": 1, "items": list(items), **fields}).encode()
