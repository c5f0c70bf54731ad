"""From what a transport hands over to a `Message`, and from a message to bytes.

    C1 4C 50 ...              a frame of wire.py: a batch
    {"v": 1, "items": [...]}  the JSON form of wire.py: a batch
    {"type": ...}             JSON of a message in one of the spellings of message.py
    a mapping                 such a message, as it is

A batch has the origin and the sequence that all of its items agree on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from lapse.invalidation import wire
from lapse.invalidation.limits import Limits, WireError
from lapse.invalidation.message import Invalidation, Message, MessageError, parse
from lapse.invalidation.metrics import WireMeter

__all__ = ["fits_json", "parse_bytes", "read", "to_json"]

_DEFAULT_LIMITS = Limits()


def read(raw: Any, *, limits: Limits = _DEFAULT_LIMITS, meter: WireMeter | None = None) -> Message:
    """The message that a transport has handed over: a mapping, or bytes-like, or a str.

    Raises MessageError for anything that is no message, an unknown version of the wire included.
    """
    if isinstance(raw, (bytes, bytearray, memoryview, str)):
        return parse_bytes(raw, limits=limits, meter=meter)
    return parse(raw, limits=limits)


def parse_bytes(
    data: bytes | bytearray | memoryview | str,
    *,
    limits: Limits = _DEFAULT_LIMITS,
    meter: WireMeter | None = None,
) -> Message:
    """The message in `data`; raises MessageError. Linear in its size."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogatepass")
    if bytes(data[: len(wire.MAGIC)]) == wire.MAGIC:
        return _batch(data, limits, meter)
    size = memoryview(data).nbytes
    try:
        plain = _from_json(data, size, limits)
        if "v" in plain and "type" not in plain:
            return _batch(data, limits, meter)
        message = parse(plain, limits=limits)
    except MessageError:
        if meter is not None:
            meter.refused(size)
        raise
    if meter is not None:
        meter.received(size, size)
    return message


def fits_json(items: Iterable[Invalidation]) -> bool:
    """Has JSON all of their targets? It has neither bytes nor tuples."""
    return not any(isinstance(item.target, (bytes, tuple)) for item in items)


def to_json(message: Mapping[str, Any]) -> bytes:
    """A message as JSON. TypeError or ValueError for a value that JSON does not have."""
    text = json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def _batch(
    data: bytes | bytearray | memoryview, limits: Limits, meter: WireMeter | None
) -> Message:
    try:
        items = tuple(wire.decode(data, limits=limits, meter=meter))
    except WireError as error:
        raise MessageError(str(error)) from error
    origin, sequence = _common(items, "origin"), _common(items, "sequence")
    return Message("invalidations", items, origin, sequence, _common(items, "sent_at"))


def _common(items: tuple[Invalidation, ...], field: str) -> Any:
    """The value of a field if all items have the same, else None."""
    values = {getattr(item, field) for item in items}
    return values.pop() if len(values) == 1 else None


def _from_json(data: bytes | bytearray | memoryview, size: int, limits: Limits) -> dict[str, Any]:
    if size > limits.input:
        raise MessageError(f"more than {limits.input} bytes on the wire")
    try:
        text = bytes(data).decode("utf-8", "surrogatepass")
        plain = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"neither a frame nor JSON: {error}") from error
    if not isinstance(plain, dict):
        raise MessageError("a message is an object")
    return plain


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has a field twice")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
