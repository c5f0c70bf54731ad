"""What carries messages between processes, as seen from here: two methods, and what it can do.

    receive(timeout=seconds)   a message, or None if there was none; it may raise: MessagesLost and
                               MessageError are about messages, all else is a dead link
    publish(message)           or whatever the class that uses it calls it; it may raise

A message is a dict; bytes where the transport says that it is `binary`. The rest is optional:

    binary, ordered, replay, broadcast, delivery    attributes, see `Traits`
    subscribe()   an end of one's own: whoever asked for it closes it by its close()
    commit()      called when all that receive() has answered is in force

Only values of the right type count, and only methods of the class: a stand-in that has every
attribute has none of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

from lapse.invalidation.source import Delivery

__all__ = ["Traits", "method_of", "own_end", "traits_of"]


class Traits(NamedTuple):
    """What a transport can do; the defaults are those of one that does not say."""

    #: It carries bytes.
    binary: bool = False
    #: As `Source` has them.
    ordered: bool = True
    replay: bool = False
    broadcast: bool = False
    delivery: Delivery = "at-most-once"


def traits_of(transport: Any) -> Traits:
    """What a transport says of itself."""
    said: dict[str, Any] = {name: getattr(transport, name, None) for name in Traits._fields}
    flags: dict[str, Any] = {name: value for name, value in said.items() if isinstance(value, bool)}
    if said["delivery"] in get_args(Delivery):
        flags["delivery"] = said["delivery"]
    return Traits(**flags)


def method_of(transport: Any, name: str) -> Callable[..., Any] | None:
    """An optional method of a transport."""
    return getattr(transport, name) if callable(getattr(type(transport), name, None)) else None


def own_end(transport: Any) -> tuple[Any, Callable[[], Any] | None]:
    """The end of the transport to use, and what closes it if it is one's own."""
    subscribe = method_of(transport, "subscribe")
    if subscribe is None:
        return transport, None
    end = subscribe()
    return end, end.close
