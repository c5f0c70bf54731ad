"""Messages as datagrams of bounded size, and back.

    datagram   magic C1 4C 42   version 01   form   sender   number   index   count   piece
               3 bytes          1            1      8        8        4       4       to the end

A message is cut into `count` pieces, and put together from them. Numbers are big-endian.

1. One sender sends one message after the other, and the transport keeps their order: so a piece
   that is not the next of its message means that the message is lost. Whoever gets the messages
   finds that out by the sequence numbers in them; here it is counted.
2. Pieces that wait take at most `largest` bytes a message and four times that in all.
3. What is no datagram of this form is given on as it came: whoever gets the messages judges it.

`split()` may be called by any thread, an Assembler by one at a time.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator

__all__ = ["BYTES", "JSON", "OVERHEAD", "TEXT", "Assembler", "split"]

MAGIC = b"\xc1LB\x01"
_HEADER = struct.Struct("!4sc8sQII")
#: Bytes of a datagram that are not of the message.
OVERHEAD = _HEADER.size

BYTES, TEXT, JSON = b"B", b"T", b"J"
SENDERS = 256  # messages that may be incomplete at once


def split(form: bytes, message: bytes, sender: bytes, number: int, size: int) -> Iterator[bytes]:
    """The datagrams of one message, each with at most `size` bytes of it.

    `form` is BYTES, TEXT or JSON; `sender` 8 bytes that no other process uses; `number` must grow
    with each message of the sender.
    """
    count = max(1, -(-len(message) // size))
    for index in range(count):
        header = _HEADER.pack(MAGIC, form, sender, number, index, count)
        yield header + message[index * size : (index + 1) * size]


class Assembler:
    """Puts messages together from the datagrams of many senders.

    Args:
        largest: bytes of a message; one that grows beyond is given up.
    """

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._begun: OrderedDict[bytes, _Begun] = OrderedDict()  # by sender, the latest last
        self._size = 0
        #: Messages that were given up because a piece of them is missing or there was no room.
        self.incomplete = 0

    def add(self, datagram: bytes) -> tuple[bytes, bytes] | None:
        """Form and content of the message that is complete now; None if none is.

        What is no datagram of a message comes back whole, as BYTES.
        """
        if len(datagram) < OVERHEAD or not datagram.startswith(MAGIC):
            return BYTES, datagram
        _, form, sender, number, index, count = _HEADER.unpack_from(datagram)
        if form not in (BYTES, TEXT, JSON) or index >= count:
            return BYTES, datagram
        piece = datagram[OVERHEAD:]
        begun = self._begun.get(sender)
        if begun is not None and not begun.goes_on(form, number, index, count):
            self._give_up(sender)
            begun = None
        if count == 1:
            return form, piece
        if begun is None:
            if index:
                return None  # the rest of a message that was given up, or began before our time
            begun = self._begun[sender] = _Begun(form, number, count)
        return self._grow(sender, begun, piece)

    def _grow(self, sender: bytes, begun: _Begun, piece: bytes) -> tuple[bytes, bytes] | None:
        begun.pieces.append(piece)
        begun.size += len(piece)
        self._size += len(piece)
        self._begun.move_to_end(sender)
        if begun.size > self._largest:
            self._give_up(sender)
        elif len(begun.pieces) == begun.count:
            self._forget(sender)
            return begun.form, b"".join(begun.pieces)
        while self._size > 4 * self._largest or len(self._begun) > SENDERS:
            self._give_up(next(iter(self._begun)))
        return None

    def _give_up(self, sender: bytes) -> None:
        self.incomplete += 1
        self._forget(sender)

    def _forget(self, sender: bytes) -> None:
        self._size -= self._begun.pop(sender).size


class _Begun:
    """A message of which some pieces are here."""

    __slots__ = ("count", "form", "number", "pieces", "size")

    def __init__(self, form: bytes, number: int, count: int) -> None:
        self.form = form
        self.number = number
        self.count = count
        self.pieces: list[bytes] = []
        self.size = 0

    def goes_on(self, form: bytes, number: int, index: int, count: int) -> bool:
        """Is the piece `index` of that message the one that comes next here?"""
        same = (form, number, count) == (self.form, self.number, self.count)
        return same and index == len(self.pieces)
