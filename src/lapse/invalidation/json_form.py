"""The JSON form of a batch: one item a line, for people, logs and other languages.

    {"v": 1, "items": [
    {"kind": "key", "target": "users:1", "version": 7, "origin": "web-1/5f3a", "sequence": 12},
    {"kind": "all"}
    ]}

    str, bool, None     as JSON has them                tuple   an array
    int                 a number within +-(2^53 - 1), which every JSON reader keeps exact;
                        {"int": "0x20000000000000"} beyond
    float               a number; {"float": "inf"} and {"float": "-inf"}; never NaN
    bytes               {"bytes": "users:1"}, the character U+00nn for the byte nn

Invariants of reading: 1. whatever the bytes, it ends with a list or a WireError; 2. how deep a
document nests and how many values it has is checked before it is parsed; 3. nothing is guessed: an
unknown or repeated field is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from math import inf, isfinite
from typing import Any, NoReturn, TypeVar

from lapse.invalidation.binary_form import check_sequence, not_nan, size_of, type_of
from lapse.invalidation.limits import Account, Limits, UnknownVersionError, WireError
from lapse.invalidation.message import KINDS, Invalidation

__all__ = ["read", "write"]

T = TypeVar("T")

VERSION = 1
LAST_EXACT = 2**53 - 1
NUMBER_CHARS = 32  # a float takes 24, an int that belongs here 17

LEVELS = 4  # beside tuples: the document, the array of items, an item, the object around bytes
MARKS_AN_ITEM = 24  # two braces, six colons and commas, and brackets or an object for a value
MARKS_A_PART = 4  # a comma, and the brackets of a tuple or the three marks of an object
MARKS = b"[]{},:"

_FIELDS = frozenset(["kind", "target", "version", "origin", "sequence", "sent_at"])
_NOT_MARKS = bytes(set(range(256)) - set(MARKS))
_HEX = re.compile(r"-?0x[0-9a-f]+", re.ASCII)
_INFINITIES = {"inf": inf, "-inf": -inf}


def write(items: Sequence[Invalidation], limits: Limits) -> bytes:
    """The document. TypeError for a value without a wire form, WireError beyond the limits."""
    account = Account(limits)
    account.items(len(items))
    lines = [json.dumps(_plain_item(item, account), ensure_ascii=False) for item in items]
    document = f'{{"v": {VERSION}, "items": [\n' + ",\n".join(lines) + "\n]}\n"
    return document.encode("utf-8", "surrogatepass")


def _plain_item(item: Invalidation, account: Account) -> dict[str, Any]:
    plain: dict[str, Any] = {"kind": item.kind}
    if item.kind != "all":
        plain["target"] = _plain(item.target, item.kind, account)
    if item.version is not None:
        plain["version"] = _plain(item.version, "version", account)
    if item.origin is not None:
        plain["origin"] = _plain(item.origin, "origin", account)
    if item.sequence is not None:
        plain["sequence"] = check_sequence(item.sequence)
    if item.sent_at is not None:
        plain["sent_at"] = item.sent_at
    return plain


def _plain(value: Any, role: str, account: Account, depth: int = 0) -> Any:
    """What json.dumps() makes of it comes back as the same value."""
    type_of(value, role)
    _admit(value, role, account, depth)
    if isinstance(value, tuple):
        return [_plain(part, role, account, depth + 1) for part in value]
    if isinstance(value, bytes):
        return {"bytes": value.decode("latin-1")}
    if isinstance(value, float) and not isfinite(value):
        return {"float": str(not_nan(value))}
    if isinstance(value, int) and abs(value) > LAST_EXACT:
        return {"int": hex(value)}
    return value


def read(data: bytes, limits: Limits) -> list[Invalidation]:
    """The items of a document; WireError for anything else."""
    try:
        _check_shape(data, limits)
        document = _DECODER.decode(data.decode("utf-8", "surrogatepass"))
        account = Account(limits)
        return [_item(plain, account) for plain in _items(document, account)]
    except WireError:
        raise
    except (TypeError, ValueError) as error:
        raise WireError(f"not a batch in JSON: {error}") from error


def _check_shape(data: bytes, limits: Limits) -> None:
    """Refuse what would cost the parser too much memory or stack.

    Looks at brackets, commas and colons outside strings. Each round removes the innermost level at
    least; what is left is too deep, or no JSON.
    """
    unescaped = data.replace(rb"\\", b"").replace(rb"\"", b"")
    most = MARKS_AN_ITEM * (limits.items + 1) + MARKS_A_PART * limits.parts
    if unescaped.count(b'"') > 2 * most:
        raise WireError("more strings than a batch can have")
    marks = b"".join(unescaped.split(b'"')[::2]).translate(None, _NOT_MARKS)
    if len(marks) > most:
        raise WireError("more values than a batch can have")
    brackets = marks.translate(None, b",:")
    for _ in range(LEVELS + limits.depth):
        brackets = brackets.replace(b"{}", b"").replace(b"[]", b"")
    if brackets:
        raise WireError("brackets do not match, or nest too deeply")


def _items(document: Any, account: Account) -> list[Any]:
    version = document.get("v") if isinstance(document, dict) else None
    if type(version) is not int:
        raise WireError('not an object with a version "v"')
    if version != VERSION:
        raise UnknownVersionError(version)
    items = document.get("items")
    if len(document) != 2 or not isinstance(items, list):
        raise WireError('there must be "v" and an array "items", and nothing else')
    account.items(len(items))
    return items


def _item(plain: Any, account: Account) -> Invalidation:
    if not isinstance(plain, dict) or not plain.keys() <= _FIELDS:
        raise WireError("an item is no object, or has an unknown field")
    kind = plain.get("kind")
    if kind not in KINDS or (kind == "all") == ("target" in plain):
        raise WireError("an item has no known kind, or no target, or a target of all")
    item = Invalidation(
        kind,
        _value(plain.get("target"), kind, account),
        _value(plain.get("version"), "version", account),
        _value(plain.get("origin"), "origin", account),
        plain.get("sequence"),
        plain.get("sent_at"),
    )
    if item.sequence is not None:
        check_sequence(item.sequence)
    return item


def _value(plain: Any, role: str, account: Account, depth: int = 0) -> Any:
    """The value that stands in JSON as `plain`."""
    if isinstance(plain, dict):
        value = _wrapped(plain)
    elif isinstance(plain, list):
        account.tuple(len(plain), depth)
        return tuple([_value(part, role, account, depth + 1) for part in plain])
    elif isinstance(plain, float) and not isfinite(plain):
        raise WireError("a number is beyond the range of a float")
    else:
        value = plain
    _admit(value, role, account, depth)
    return value


def _wrapped(plain: dict[str, Any]) -> Any:
    """bytes, a large int or an infinity, in an object with one field."""
    ((name, text),) = plain.items() if len(plain) == 1 else (("", ""),)
    if isinstance(text, str):
        if name == "bytes":
            return text.encode("latin-1")
        if name == "int" and _HEX.fullmatch(text):
            return int(text, 16)
        if name == "float" and text in _INFINITIES:
            return _INFINITIES[text]
    raise WireError("an object stands for no value")


def _admit(value: Any, role: str, account: Account, depth: int) -> None:
    """Enter a value into the account."""
    if isinstance(value, (str, bytes)):
        account.text(len(value), role)
    elif isinstance(value, tuple):
        account.tuple(len(value), depth)
    elif isinstance(value, int) and not isinstance(value, bool):
        account.integer(size_of(value))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("an object has a field twice")
    return found


def _short(convert: Callable[[str], T]) -> Callable[[str], T]:
    """`convert`, but only of numbers of a sensible length."""

    def number(text: str) -> T:
        if len(text) > NUMBER_CHARS:
            raise WireError(f"a number has more than {NUMBER_CHARS} characters")
        return convert(text)

    return number


def _refuse(name: str) -> NoReturn:
    raise WireError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_short(int),
    parse_float=_short(float),
    parse_constant=_refuse,
)
