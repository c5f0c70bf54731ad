"""One invalidation, whatever brought it, and the one parser of the messages that bring it.

An `Invalidation` is an immutable value, checked when it is made.

    kind      target                  what goes
    key       any key                 the entry of that key; None is a key like any other
    pattern   str or bytes            every entry whose key matches the glob
    table     str or bytes            every entry whose key begins with the target and a ':'
    tag       str                     every entry that carries the tag
    all       none                    every entry

The other fields say where it comes from. Each may be None: not known.

A message is a mapping. `parse()` reads four spellings by one table:

    queue, webhook   {"type": "invalidate_key", "key": K}    _pattern, _table, _tag; "clear_all"
    API              {"type": "key", "key": K}               pattern, table, tag; "all"
    broadcast        {"type": "invalidation", "invalidation_type": "key", "key": K}
    ours             {"type": "batch", "items": [any of these, ...]}
                     {"type": "heartbeat", "origin": O, "sequence": last}
                     {"type": "ack", "origin": who, "of": [origin, sequence]}

and beside them "timestamp" (Unix seconds), "origin", "sequence", "version", "ack" (true: please
acknowledge) and "member" (the sender's name among those of the transport). Other fields are
ignored, and so are messages of another type. What is malformed is poison: a `MessageError`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from lapse.invalidation.limits import Account, Limits

__all__ = [
    "KINDS",
    "Invalidation",
    "Kind",
    "Message",
    "MessageError",
    "check",
    "parse",
    "sender_of",
    "spell_broadcast",
    "spell_queue",
]

Kind = Literal["key", "pattern", "table", "tag", "all"]

#: Every kind.
KINDS: tuple[Kind, ...] = get_args(Kind)

_LATEST = sys.float_info.max
_LAST_SEQUENCE = 2**63 - 1
_DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Invalidation:
    """What has stopped being true, and where that was noticed.

    Immutable, compared by value and hashable if its target is; so safe to share between threads.
    Raises ValueError for an unknown kind, a target of `all`, a negative sequence or a sent_at that
    is not finite, and TypeError for a field of the wrong type. A key is taken as it is: whether it
    is hashable shows when it is applied.
    """

    kind: Kind
    target: Any = None
    #: Version that the target now has, in its origin's own terms (a counter, an LSN, an ETag).
    version: int | str | None = None
    #: One incarnation of the publisher; another one after a restart or a fork.
    origin: str | None = None
    #: Number of the message among those of its origin, from 0 on; a gap means that one was lost.
    sequence: int | None = None
    #: Unix seconds by the origin's clock. For display and latency, never for order.
    sent_at: float | None = None

    def __post_init__(self) -> None:
        _check_target(self.kind, self.target)
        if self.version is not None:
            _check_type("version", self.version, int, str)
        if self.origin is not None:
            _check_type("origin", self.origin, str)
        if self.sequence is not None:
            _check_type("sequence", self.sequence, int)
            if self.sequence < 0:
                raise ValueError(f"sequence must not be negative, but is {self.sequence}")
        if self.sent_at is not None:
            _check_type("sent_at", self.sent_at, float, int)
            if not -_LATEST <= self.sent_at <= _LATEST:
                raise ValueError("sent_at must be a finite number of seconds")
            object.__setattr__(self, "sent_at", float(self.sent_at))


def _check_target(kind: str, target: Any) -> None:
    if kind == "key":
        return
    if kind == "pattern" or kind == "table":
        _check_type(f"target of a {kind}", target, str, bytes)
    elif kind == "tag":
        _check_type("target of a tag", target, str)
    elif kind != "all":
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    elif target is not None:
        raise ValueError(f"an invalidation of all takes no target, not {target!r}")


def _check_type(what: str, value: Any, *allowed: type) -> None:
    if not isinstance(value, allowed) or isinstance(value, bool):
        names = " or ".join(each.__name__ for each in allowed)
        raise TypeError(f"{what} must be {names}, not {type(value).__name__}")


# --- Messages ---


class MessageError(ValueError):
    """A message that cannot be read: poison. Something may be outdated, and nobody knows what."""


class Message(NamedTuple):
    """What a message says."""

    #: "unknown": well-formed, and about something else.
    kind: Literal["invalidations", "heartbeat", "ack", "unknown"]
    invalidations: tuple[Invalidation, ...] = ()
    #: The incarnation of the sender, and the number of its message; a heartbeat has the last one.
    origin: str | None = None
    sequence: int | None = None
    #: Unix seconds by the sender's clock.
    sent_at: float | None = None
    #: The sender wants to know when everything up to this message is in force.
    ack: bool = False
    #: What an acknowledgement is of: origin and sequence.
    of: tuple[str, int] | None = None
    #: The message itself, if its type is unknown.
    content: Mapping[str, Any] | None = None
    #: The sender's name among the members of the transport: of a heartbeat or acknowledgement.
    member: str | None = None


_KIND_OF_TYPE: dict[str, Kind] = {kind: kind for kind in KINDS}
_QUEUE_TYPE = {kind: f"invalidate_{kind}" for kind in KINDS} | {"all": "clear_all"}
_KIND_OF_TYPE |= {name: kind for kind, name in _QUEUE_TYPE.items()}


def parse(message: Mapping[str, Any], *, limits: Limits = _DEFAULT_LIMITS) -> Message:
    """What `message` says, in whichever spelling.

    Keys are str, bytes, int, float, bool, None, or tuples of these. Raises MessageError for a
    message that lacks its target, has a field of the wrong type or passes the limits. Linear in the
    size of the message.
    """
    try:
        return _parsed(message, Account(limits))
    except MessageError:
        raise
    except (TypeError, ValueError) as error:
        raise MessageError(str(error)) from error


def sender_of(
    message: Mapping[str, Any], *, limits: Limits = _DEFAULT_LIMITS
) -> tuple[str | None, int | None]:
    """Origin and sequence of a message that cannot be read, so far as they can; else None.

    One that is out of range tells nothing: taken for the last number of its origin it would make
    duplicates of all that are still to come.
    """
    fields = {name: message.get(name) for name in ("origin", "sequence")}
    return _lenient_sender(fields, Account(limits))[:2]


def check(invalidation: Invalidation, account: Account) -> None:
    """Raise TypeError or ValueError if it could not be read back from a message."""
    if invalidation.kind != "all":
        _admit(invalidation.target, invalidation.kind, account)
    if invalidation.version is not None:
        _admit(invalidation.version, "version", account)


def _parsed(message: Mapping[str, Any], account: Account) -> Message:
    if not isinstance(message, Mapping):
        raise MessageError(f"a message is a mapping, not a {type(message).__name__}")
    name = message.get("type")
    if not isinstance(name, str):
        raise MessageError('a message has no "type"')
    if name == "heartbeat":
        return _heartbeat(message, account)
    if name == "ack":
        return _acknowledgement(message, account)
    items: Any = message.get("items") if name == "batch" else [message]
    if not isinstance(items, (list, tuple)):
        raise MessageError('a batch has no array "items"')
    if name != "batch" and _kind_of(message) is None:
        return Message("unknown", (), *_lenient_sender(message, account), content=message)
    account.items(len(items))
    origin, sequence, sent_at = _sender(message, account)
    found = tuple([_item(each, account, origin, sequence, sent_at) for each in items])
    ack = message.get("ack") is True
    return Message("invalidations", found, origin, sequence, sent_at, ack)


def _kind_of(message: Mapping[str, Any]) -> Kind | None:
    """The kind that a message names in one of the spellings; None if it is about something else."""
    name = message.get("type")
    if name == "invalidation":
        name = message.get("invalidation_type")
    if not isinstance(name, str):
        raise MessageError("an invalidation has no type")
    return _KIND_OF_TYPE.get(name)


def _item(
    message: Any, account: Account, origin: str | None, sequence: int | None, sent_at: float | None
) -> Invalidation:
    """The invalidation of one message. In a batch one of an unknown type is poison, too."""
    kind = _kind_of(message) if isinstance(message, Mapping) else None
    if kind is None:
        raise MessageError("an item of a batch is no invalidation")
    if kind != "all" and kind not in message:
        raise MessageError(f"an invalidation of a {kind} does not name it")
    target = None if kind == "all" else message[kind]
    item = Invalidation(kind, target, message.get("version"), origin, sequence, sent_at)
    check(item, account)
    return item


def _admit(value: Any, role: str, account: Account, depth: int = 0) -> None:
    """Enter a value into the account; TypeError if a message cannot hold it."""
    if type(value) is str or type(value) is bytes:
        account.text(len(value), role)
    elif type(value) is int:
        account.integer(value.bit_length() // 8 + 1)
    elif type(value) is tuple:
        account.tuple(len(value), depth)
        for part in value:
            _admit(part, role, account, depth + 1)
    elif type(value) is float:
        if value != value:
            raise MessageError("a key is NaN, which equals nothing")
    elif value is not None and type(value) is not bool:
        raise TypeError(f"a {role} of type {type(value).__qualname__} cannot be sent")


def _sender(
    message: Mapping[str, Any], account: Account
) -> tuple[str | None, int | None, float | None]:
    """Origin, sequence and time of a message, checked."""
    origin, sequence = message.get("origin"), message.get("sequence")
    sent_at = message.get("timestamp")
    checked = Invalidation("all", None, None, origin, sequence, sent_at)
    if origin is not None:
        account.text(len(origin), "origin")
    if sequence is not None and sequence > _LAST_SEQUENCE:
        raise MessageError("a sequence is out of range")
    return checked.origin, checked.sequence, checked.sent_at


def _lenient_sender(
    message: Mapping[str, Any], account: Account
) -> tuple[str | None, int | None, float | None]:
    """The same of a message of a foreign type, where these fields may mean anything."""
    try:
        return _sender(message, account)
    except (TypeError, ValueError):
        return None, None, None


def _heartbeat(message: Mapping[str, Any], account: Account) -> Message:
    origin, sequence, sent_at = _sender(message, account)
    if origin is None:
        raise MessageError("a heartbeat has no origin")
    ack, member = message.get("ack") is True, _member(message, account)
    return Message("heartbeat", (), origin, sequence, sent_at, ack, member=member)


def _acknowledgement(message: Mapping[str, Any], account: Account) -> Message:
    origin, _, sent_at = _sender(message, account)
    of = message.get("of")
    if not isinstance(of, (list, tuple)) or len(of) != 2:
        raise MessageError("an acknowledgement does not say of what")
    whose, number, _ = _sender({"origin": of[0], "sequence": of[1]}, account)
    if origin is None or whose is None or number is None:
        raise MessageError("an acknowledgement does not say whose it is, or of what")
    member = _member(message, account)
    return Message("ack", (), origin, None, sent_at, of=(whose, number), member=member)


def _member(message: Mapping[str, Any], account: Account) -> str | None:
    """The sender's name among the members of the transport, checked."""
    member: str | None = message.get("member")
    if member is not None:
        _check_type("member", member, str)
        account.text(len(member), "origin")
    return member


# --- The way back ---


def spell_queue(invalidation: Invalidation, timestamp: float) -> dict[str, Any]:
    """The invalidation as a message of a queue: type, timestamp (Unix seconds), the target."""
    return {
        "type": _QUEUE_TYPE[invalidation.kind],
        "timestamp": timestamp,
        **_fields(invalidation),
    }


def spell_broadcast(invalidation: Invalidation, timestamp: float) -> dict[str, Any]:
    """The invalidation as a broadcast message: type, invalidation_type, timestamp, the target."""
    return {
        "type": "invalidation",
        "invalidation_type": invalidation.kind,
        "timestamp": timestamp,
        **_fields(invalidation),
    }


def _fields(invalidation: Invalidation) -> dict[str, Any]:
    fields: dict[str, Any] = (
        {} if invalidation.kind == "all" else {invalidation.kind: invalidation.target}
    )
    if invalidation.version is not None:
        fields["version"] = invalidation.version
    return fields
