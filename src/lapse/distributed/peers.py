"""The sending side of a same-host bus: one connected socket for each member.

    deliver(datagrams, members)
        for each member   send until it is done, or the member's queue is full
        then wait, for all whose queue is full together, until one has room
        `patience` seconds over?   the rest is lost to those who are left

1. A member that is slow holds up nobody else's messages: who has room gets them first.
2. A member to which something was lost is not waited for until it has taken a message whole.
3. A member behind whose file nobody listens any more is forgotten, and its file removed.

A socket of its own for each member, because the kernel lets poll() wait for room in the queue of a
datagram socket only where that is connected, and because what waits in one member's queue then
takes no room from the others.

One thread at a time: the caller holds a lock.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from lapse.distributed.socket_folder import SocketFolder

__all__ = ["Peers"]

NAP = 0.001  # seconds, where poll() says that there is room and there is none
_FULL = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})
_GONE = frozenset(
    {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN, errno.EDESTADDRREQ, errno.EPIPE}
)


class Peers:
    """Sockets that are connected to the members of a bus.

    Args:
        folder: where the members are.
        patience: seconds that a message waits at most for members whose queues are full.
        buffer: bytes that may be under way to one member.
    """

    def __init__(self, folder: SocketFolder, patience: float, buffer: int) -> None:
        self._folder = folder
        self._patience = patience
        self._buffer = buffer
        self._sockets: dict[str, socket.socket] = {}
        self._behind: set[str] = set()

    def deliver(self, datagrams: Sequence[bytes], members: Iterable[str]) -> int:
        """Send one message, as its datagrams, to each of `members`; to how many it was lost.

        Takes at most `patience` seconds. Raises OSError if no socket can be made.
        """
        rest = dict.fromkeys(members, 0)
        self._push(datagrams, rest)
        lost = [rest.pop(member) for member in self._behind.intersection(rest)]
        end = time.monotonic() + self._patience
        while rest and (left := end - time.monotonic()) > 0:
            self._await_room(rest, left)
            before = dict(rest)
            self._push(datagrams, rest)
            if rest == before:
                time.sleep(NAP)
        self._behind.update(rest)
        return len(lost) + len(rest)

    def retain(self, members: Iterable[str]) -> None:
        """Close the sockets of all others. They are made anew when something is sent there."""
        for member in self._sockets.keys() - members:
            self._forget(member)
        self._behind.intersection_update(members)

    def _push(self, datagrams: Sequence[bytes], rest: dict[str, int]) -> None:
        """Send what the queues have room for; `rest` keeps whom how many datagrams have reached."""
        for member in list(rest):
            sent = self._send(member, datagrams, rest[member])
            if sent is None:
                del rest[member]
            elif sent == len(datagrams):
                self._behind.discard(member)
                del rest[member]
            else:
                rest[member] = sent

    def _send(self, member: str, datagrams: Sequence[bytes], sent: int) -> int | None:
        """How many of the datagrams have reached the member now; None if it is gone."""
        sock = self._socket(member)
        if sock is None:
            return None
        try:
            while sent < len(datagrams):
                sock.send(datagrams[sent])
                sent += 1
        except OSError as error:
            if error.errno in _GONE:
                self._forget(member)
                self._folder.remove(member)
                return None
            if error.errno not in _FULL:
                raise
        return sent

    def _socket(self, member: str) -> socket.socket | None:
        """The socket that is connected to a member; None if the member is gone."""
        sock = self._sockets.get(member)
        if sock is None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._buffer)
                if not self._folder.connect(sock, member):
                    sock.close()
                    return None
            except BaseException:
                sock.close()
                raise
            self._sockets[member] = sock
        return sock

    def _await_room(self, members: Iterable[str], seconds: float) -> None:
        poll = select.poll()
        for member in members:
            poll.register(self._sockets[member], select.POLLOUT)
        poll.poll(max(1, int(seconds * 1000)))

    def _forget(self, member: str) -> None:
        self._behind.discard(member)
        sock = self._sockets.pop(member, None)
        if sock is not None:
            sock.close()
