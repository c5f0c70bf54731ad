"""Batches of invalidations as bytes: a compact binary form and a readable JSON one.

    frame   C1 4C 50   version   flags   body           C1 begins no text, and no MessagePack
            magic      01        |
                                 bits 0-1: 0 plain, 1 zlib, 2 zstd; bit 2: the body is JSON

JSON that is not compressed has no frame; it begins with a brace. `decode()` tells the forms apart
by their first bytes. The bodies are in binary_form.py and json_form.py; docs/wire-format.md has all
of it for other languages. No code travels, and no value but those of `encode()`.

A frame has no checksum: who needs one takes a compression (zlib has one) or a transport that has.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from importlib import import_module
from typing import Any, Literal

from lapse.invalidation import binary_form, json_form
from lapse.invalidation.limits import Limits, UnknownVersionError, WireError
from lapse.invalidation.message import Invalidation
from lapse.invalidation.metrics import WireMeter

__all__ = ["Limits", "UnknownVersionError", "WireError", "decode", "encode"]

MAGIC = b"\xc1LP"
VERSION = 1
HEADER = len(MAGIC) + 2
PLAIN, ZLIB, ZSTD = range(3)
COMPRESSION = 0x03
JSON = 0x04
JSON_BEGINS = b"{ \t\r\n"

AUTO_ABOVE = 512  # bytes of a body that "auto" tries to compress
LARGEST_WINDOW = 23  # of zstd, log2 of bytes: 8 MiB, what its format asks every reader to support

_DEFAULT_LIMITS = Limits()


def encode(
    batch: Iterable[Invalidation],
    *,
    form: Literal["binary", "json"] = "binary",
    compress: Literal["auto", "zlib", "zstd"] | None = "auto",
    limits: Limits = _DEFAULT_LIMITS,
    meter: WireMeter | None = None,
) -> bytes:
    """The bytes of a batch; `decode()` takes them back under the same limits.

    A key may be a str, bytes, int, float, bool or None, or a tuple of such; a subclass of these may
    compare otherwise and is refused. `compress="auto"` takes zlib for a body of more than 512 bytes
    if that makes it smaller. "zstd" needs Python 3.14 or the extra `wire`.

    Raises TypeError, naming the type, for a key or an item that has no wire form; WireError, which
    is a ValueError, for a batch beyond the limits or a NaN; ValueError for an unknown form or
    compression. Linear in the size of the batch. Threads may share a meter.
    """
    items = list(batch)
    for item in items:
        if not isinstance(item, Invalidation):
            raise TypeError(f"a batch holds Invalidations, not {type(item).__name__}")
    if form == "binary":
        body, flags = binary_form.write(items, limits), 0
    elif form == "json":
        body, flags = json_form.write(items, limits), JSON
    else:
        raise ValueError(f"form must be 'binary' or 'json', not {form!r}")
    _hold(len(body), limits.output, "before compression")
    data = _framed(body, flags, compress)
    _hold(len(data), limits.input, "on the wire")
    if meter is not None:
        meter.sent(len(body), len(data))
    return data


def decode(
    data: bytes | bytearray | memoryview,
    *,
    limits: Limits = _DEFAULT_LIMITS,
    meter: WireMeter | None = None,
) -> list[Invalidation]:
    """The batch that `data` holds, of whatever form and compression.

    Raises WireError for anything that is no such batch or passes the limits, before it spends the
    memory that they forbid; UnknownVersionError, a WireError, for a version of later releases. To a
    receiver either means that invalidations may be lost. TypeError if `data` is not bytes-like.
    Linear in the size of the batch. Threads may share a meter.
    """
    size = memoryview(data).nbytes
    try:
        _hold(size, limits.input, "on the wire")
        flags, body = _unframed(bytes(data), limits)
        read = json_form.read if flags & JSON else binary_form.read
        items = read(body, limits)
    except WireError:
        if meter is not None:
            meter.refused(size)
        raise
    if meter is not None:
        meter.received(len(body), size)
    return items


def _framed(body: bytes, flags: int, compress: str | None) -> bytes:
    """The body, compressed as asked, behind the header that says so."""
    if compress == "zstd":
        flags, body = flags | ZSTD, _zstd().compress(body)
    elif compress == "zlib":
        flags, body = flags | ZLIB, zlib.compress(body)
    elif compress == "auto":
        if len(body) > AUTO_ABOVE and len(smaller := zlib.compress(body)) < len(body):
            flags, body = flags | ZLIB, smaller
    elif compress is not None:
        raise ValueError(f"compress must be None, 'auto', 'zlib' or 'zstd', not {compress!r}")
    return body if flags == JSON else MAGIC + bytes([VERSION, flags]) + body


def _unframed(data: bytes, limits: Limits) -> tuple[int, bytes]:
    """The flags and the body, decompressed."""
    if data[:1] and data[:1] in JSON_BEGINS:
        flags, body = JSON, data
    elif data.startswith(MAGIC) and len(data) >= HEADER:
        version, flags = data[len(MAGIC) : HEADER]
        if version != VERSION:
            raise UnknownVersionError(version)
        if flags & ~(COMPRESSION | JSON):
            raise WireError(f"the flags {flags:#04x} are not known")
        body = _inflated(data[HEADER:], flags & COMPRESSION, limits.output)
    else:
        raise WireError("neither JSON nor a frame")
    _hold(len(body), limits.output, "before compression")
    return flags, body


def _inflated(body: bytes, compression: int, most: int) -> bytes:
    """The body before compression; no more than `most` bytes and one are ever made of it."""
    if compression == PLAIN:
        return body
    stream: Any
    if compression == ZLIB:
        stream, error = zlib.decompressobj(), zlib.error
    elif compression == ZSTD:
        zstd = _zstd()
        window = {zstd.DecompressionParameter.window_log_max: LARGEST_WINDOW}
        stream, error = zstd.ZstdDecompressor(options=window), zstd.ZstdError
    else:
        raise WireError(f"compression {compression} is not known")
    try:
        plain: bytes = stream.decompress(body, most + 1)
    except error as fault:
        raise WireError(f"the compressed body is damaged: {fault}") from fault
    _hold(len(plain), most, "before compression")
    if not stream.eof or stream.unused_data:
        raise WireError("the compressed body ends too early or too late")
    return plain


def _zstd() -> Any:
    """The module that speaks zstd: the standard library's, or its backport."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise WireError("zstd needs Python 3.14 or the extra: pip install 'lapse[wire]'")


def _hold(size: int, most: int, where: str) -> None:
    if size > most:
        raise WireError(f"more than {most} bytes {where}")
