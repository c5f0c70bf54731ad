"""Bodies of requests: JSON objects, and the invalidations that they ask for.

Invariants
    1. Whatever the bytes, each function returns or raises Refused.
    2. How deep a document nests is checked before it is parsed.
    3. Nothing is guessed: a field that comes twice and a number that is none are refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NoReturn

from lapse.invalidation.message import Invalidation, MessageError, parse
from lapse.web.refusal import Refused

if TYPE_CHECKING:
    from werkzeug.wrappers import Request

__all__ = ["invalidations_of", "read_object"]

DEEPEST = 8  # rounds, each of which takes off a level of brackets: a batch of tuples in keys has 7
BRACKETS = b"[]{}"
_NOT_BRACKETS = bytes(set(range(256)) - set(BRACKETS))


def read_object(request: Request) -> dict[str, Any]:
    """The JSON object that a request brings.

    Refused unless it says that it is JSON: a page in a browser that sends JSON elsewhere than home
    must ask first, and nobody here says yes.
    """
    if request.mimetype != "application/json":
        raise Refused(415, "not_json", "Content-Type must be application/json")
    data = request.get_data()
    try:
        _check_depth(data)
        document = _DECODER.decode(data.decode("utf-8"))
    except ValueError:
        raise Refused(400, "not_json", "The body is no proper JSON") from None
    if not isinstance(document, dict):
        raise Refused(400, "not_json", "The body is no JSON object")
    return document


def invalidations_of(message: dict[str, Any], types: Collection[str]) -> list[Invalidation]:
    """What a message asks for, if its type, or those of a batch's items, are among `types`."""
    items = message.get("items") if message.get("type") == "batch" else None
    for each in [message, *(items if isinstance(items, list) else ())]:
        name = each.get("type") if isinstance(each, dict) else None
        if not isinstance(name, str) or name not in types:
            raise _unknown_type()
    try:
        parsed = parse(message)
    except MessageError as error:
        raise Refused(400, "malformed", f"The message is malformed: {error}") from None
    if parsed.kind != "invalidations":
        raise _unknown_type()
    return list(parsed.invalidations)


def _unknown_type() -> Refused:
    """The refusal of a message of a type that is not known here."""
    return Refused(400, "unknown_type", "Invalid invalidation type")


def _check_depth(data: bytes) -> None:
    """ValueError for brackets, outside strings, that nest too deeply or do not match."""
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    brackets = b"".join(unescaped.split(b'"')[::2]).translate(None, _NOT_BRACKETS)
    for _ in range(DEEPEST):
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    if brackets:
        raise ValueError("too deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field twice")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse)
