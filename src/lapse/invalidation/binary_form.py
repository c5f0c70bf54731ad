"""The binary body of a batch: a count, and the items one after the other.

    body    count item*                         numbers: varints, 7 bits a byte, lowest first
    item    head target? version? origin? sequence? sent_at?
    head    80 sent_at  40 sequence  20 origin  10 version: these follow
            low nibble, what is invalidated: 0 all, 1 tag, 2 table, 4 pattern, 8 key;
            the type of the target is added to it
    type    0 str, 1 bytes, 2 int, 3 float, 4 tuple, 5 None, 6 False, 7 True
    value   str, bytes     shared fresh byte*   `shared` bytes are those that the text before it in
                                                the same role begins with
            int            size byte*           two's complement, highest byte first
            float          8 bytes              IEEE 754, highest byte first, never NaN
            tuple          count (type value)*

A role is a kind, `version` or `origin`. A version is a type, str or int, and a value; an origin is
the value of a str; a sequence is the difference from the one before, zigzag; sent_at is a float.

Invariants of reading: 1. whatever the bytes, it ends with a list or a WireError; 2. memory is
reserved only after the account has allowed it; 3. time is linear in the bytes read and spelt out.

docs/wire-format.md has the format for other languages. Shared prefixes are the front coding of
Witten, Moffat and Bell, Managing Gigabytes (1999).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import isfinite
from typing import Any

from lapse.invalidation.limits import Account, Limits, WireError
from lapse.invalidation.message import Invalidation, Kind

__all__ = ["read", "write"]

STR, BYTES, INT, FLOAT, TUPLE, NONE, FALSE, TRUE = range(8)
ALL, TAG, TABLE, PATTERN, KEY = 0, 1, 2, 4, 8
VERSION, ORIGIN, SEQUENCE, SENT_AT = 0x10, 0x20, 0x40, 0x80

LAST_SEQUENCE = 2**63 - 1
WIDEST_UNIT = 4  # bytes that UTF-8 takes at most for one code point
LAST_SHIFT = 63  # of the tenth byte of a varint

_FLOAT = struct.Struct(">d")
_TYPES = {str: STR, bytes: BYTES, int: INT, float: FLOAT, tuple: TUPLE, type(None): NONE}
_CODES: dict[Kind, int] = {"all": ALL, "tag": TAG, "table": TABLE, "pattern": PATTERN, "key": KEY}
_KINDS: dict[int, Kind] = {
    ALL: "all", TAG: "tag", TABLE: "table", TABLE + BYTES: "table",
    PATTERN: "pattern", PATTERN + BYTES: "pattern", **{KEY + type: "key" for type in range(8)},
}  # fmt: skip
_CONSTANTS = {NONE: None, FALSE: False, TRUE: True}


def write(items: Sequence[Invalidation], limits: Limits) -> bytes:
    """The body. TypeError for a value without a wire form, WireError beyond the limits."""
    return Writer(limits).batch(items)


def read(data: bytes, limits: Limits) -> list[Invalidation]:
    """The items of a body; WireError for anything else."""
    return Reader(data, limits).batch()


class Writer:
    """Writes one batch."""

    def __init__(self, limits: Limits) -> None:
        self._out = bytearray()
        self._account = Account(limits)
        self._before: dict[str, bytes] = {}
        self._sequence = 0

    def batch(self, items: Sequence[Invalidation]) -> bytes:
        self._account.items(len(items))
        self._number(len(items))
        for item in items:
            self._item(item)
        return bytes(self._out)

    def _item(self, item: Invalidation) -> None:
        code = _CODES[item.kind]
        if code != ALL:
            code += type_of(item.target, item.kind)
        self._out.append(
            code
            | VERSION * (item.version is not None)
            | ORIGIN * (item.origin is not None)
            | SEQUENCE * (item.sequence is not None)
            | SENT_AT * (item.sent_at is not None)
        )
        if code != ALL:
            self._value(item.target, item.kind, 0)
        if item.version is not None:
            self._typed(item.version, "version", 0)
        if item.origin is not None:
            type_of(item.origin, "origin")
            self._value(item.origin, "origin", 0)
        if item.sequence is not None:
            self._next_sequence(item.sequence)
        if item.sent_at is not None:
            self._out += _FLOAT.pack(item.sent_at)

    def _next_sequence(self, sequence: int) -> None:
        check_sequence(sequence)
        step, self._sequence = sequence - self._sequence, sequence
        self._number(2 * step if step >= 0 else -2 * step - 1)

    def _typed(self, value: Any, role: str, depth: int) -> None:
        self._out.append(type_of(value, role))
        self._value(value, role, depth)

    def _value(self, value: Any, role: str, depth: int) -> None:
        if isinstance(value, str):
            self._account.text(len(value), role)
            self._text(value.encode("utf-8", "surrogatepass"), role)
        elif isinstance(value, bytes):
            self._account.text(len(value), role)
            self._text(value, role)
        elif isinstance(value, float):
            self._out += _FLOAT.pack(not_nan(value))
        elif isinstance(value, tuple):
            self._account.tuple(len(value), depth)
            self._number(len(value))
            for part in value:
                self._typed(part, role, depth + 1)
        elif isinstance(value, int) and not isinstance(value, bool):
            size = size_of(value)
            self._account.integer(size)
            self._number(size)
            self._out += value.to_bytes(size, "big", signed=True)

    def _text(self, text: bytes, role: str) -> None:
        self._account.spell_out(len(text))
        shared = _shared_prefix(self._before.get(role, b""), text)
        self._before[role] = text
        self._number(shared)
        self._number(len(text) - shared)
        self._out += text[shared:]

    def _number(self, number: int) -> None:
        while number > 0x7F:
            self._out.append(number & 0x7F | 0x80)
            number >>= 7
        self._out.append(number)


class Reader:
    """Reads one batch."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self._data = data
        self._at = 0
        self._account = Account(limits)
        self._before: dict[str, bytes] = {}
        self._sequence = 0

    def batch(self) -> list[Invalidation]:
        try:
            count = self._count()
            self._account.items(count)
            items = [self._item() for _ in range(count)]
        except (IndexError, struct.error):
            raise WireError("the batch ends too early") from None
        except UnicodeDecodeError:
            raise WireError("a text is not UTF-8") from None
        if self._at != len(self._data):
            raise WireError(f"{len(self._data) - self._at} bytes after the batch")
        return items

    def _item(self) -> Invalidation:
        head = self._byte()
        code = head & 0x0F
        kind = _KINDS.get(code)
        if kind is None:
            raise WireError(f"{code} is no kind of invalidation")
        target = None if code == ALL else self._value(code - _CODES[kind], kind, 0)
        return Invalidation(
            kind,
            target,
            self._version() if head & VERSION else None,
            self._value(STR, "origin", 0) if head & ORIGIN else None,
            self._next_sequence() if head & SEQUENCE else None,
            self._seconds() if head & SENT_AT else None,
        )

    def _version(self) -> Any:
        type = self._byte()
        if type not in (STR, INT):
            raise WireError(f"{type} is no type of a version")
        return self._value(type, "version", 0)

    def _next_sequence(self) -> int:
        step = self._number()
        self._sequence += step >> 1 if step & 1 == 0 else -(step >> 1) - 1
        return check_sequence(self._sequence)

    def _seconds(self) -> float:
        seconds = self._float()
        if not isfinite(seconds):
            raise WireError("sent_at is not finite")
        return seconds

    def _value(self, type: int, role: str, depth: int) -> Any:
        if type <= BYTES:
            return self._text(type, role)
        if type == INT:
            size = self._count()
            self._account.integer(size)
            return int.from_bytes(self._take(size), "big", signed=True)
        if type == FLOAT:
            return not_nan(self._float())
        if type == TUPLE:
            count = self._count()
            self._account.tuple(count, depth)
            return tuple([self._value(self._byte(), role, depth + 1) for _ in range(count)])
        if type not in _CONSTANTS:
            raise WireError(f"{type} is no type of a value")
        return _CONSTANTS[type]

    def _text(self, type: int, role: str) -> str | bytes:
        before = self._before.get(role, b"")
        shared = self._number()
        if shared > len(before):
            raise WireError("a text shares more than the text before it has")
        fresh = self._count()
        self._account.text((shared + fresh) // (WIDEST_UNIT if type == STR else 1), role)
        self._account.spell_out(shared + fresh)
        encoded = self._before[role] = before[:shared] + self._take(fresh)
        if type == BYTES:
            return encoded
        text = encoded.decode("utf-8", "surrogatepass")
        self._account.text(len(text), role)
        return text

    def _float(self) -> float:
        (value,) = _FLOAT.unpack_from(self._data, self._at)
        self._at += _FLOAT.size
        return value  # type: ignore[no-any-return]

    def _count(self) -> int:
        """A number of things that take a byte each, at least."""
        count = self._number()
        if count > len(self._data) - self._at:
            raise WireError("the batch ends too early")
        return count

    def _take(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]

    def _number(self) -> int:
        number = self._byte()
        if number < 0x80:
            return number
        number &= 0x7F
        for shift in range(7, LAST_SHIFT + 1, 7):
            byte = self._byte()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise WireError("a number takes more than ten bytes")

    def _byte(self) -> int:
        byte = self._data[self._at]
        self._at += 1
        return byte


def type_of(value: Any, role: str) -> int:
    """The type code of a value. TypeError if it has none; a subclass may compare otherwise."""
    if isinstance(value, bool):
        return TRUE if value else FALSE
    code = _TYPES.get(type(value))
    if code is None:
        raise TypeError(f"a {role} of type {type(value).__qualname__} has no wire form")
    return code


def size_of(number: int) -> int:
    """The bytes of an int in two's complement, or one more."""
    return number.bit_length() // 8 + 1


def not_nan(number: float) -> float:
    """The number itself. WireError if it is NaN: a key that equals nothing invalidates nothing."""
    if number != number:
        raise WireError("a key is NaN")
    return number


def check_sequence(sequence: int) -> int:
    """The sequence itself. WireError if it is out of range."""
    if not 0 <= sequence <= LAST_SEQUENCE:
        raise WireError(f"a sequence is not within 0 .. {LAST_SEQUENCE}")
    return sequence


def _shared_prefix(a: bytes, b: bytes) -> int:
    """How many bytes two texts begin with in common; compared as numbers, which is quick."""
    n = min(len(a), len(b))
    different = int.from_bytes(a[:n], "big") ^ int.from_bytes(b[:n], "big")
    return n - (different.bit_length() + 7) // 8
