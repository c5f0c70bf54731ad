"""A bus of the processes of one host, without a broker: made for prefork workers.

    process A                                       process B
      broadcast() ─► pieces ─► a socket a member ─►   its socket ─► thread ─► inbox ─► receive()
                     (datagrams.py) (peers.py)        (endpoint.py)           (inbox.py)

The members are the socket files of a private folder (socket_folder.py), which each broadcast reads
anew: there is no list to keep, and none to be wrong. docs/decisions/0022-same-host-bus.md says
why it is built so.

1. What one process sends, each member gets in that order, or with messages missing.
2. A sender waits at most `patience` for members that do not take what it sends. What it then gives
   up is found missing by the sequence numbers in the messages, and what the inbox has no room for
   by MessagesLost.
3. Sockets belong to the process that made them. A forked child closes what it inherits, and joins
   by itself when it first receives.

Lock `_sending`: one broadcast at a time, so that the pieces of messages never mix. Lock `_joining`:
one end at a time. The second may be taken under the first.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lapse.distributed.datagrams import BYTES, JSON, TEXT, Assembler, split
from lapse.distributed.endpoint import Endpoint
from lapse.distributed.inbox import Inbox
from lapse.distributed.peers import Peers
from lapse.distributed.socket_folder import SocketFolder
from lapse.invalidation.process import watch
from lapse.invalidation.source import MessagesLost

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LocalBroadcaster", "LocalStats", "MessagesLost"]

PIECE = 32 << 10  # bytes of a message in one datagram
BUFFER = 10 * PIECE  # bytes under way to one member, as far as the system allows
LARGEST = 8 << 20  # bytes of a message
ROOM = 4 * LARGEST  # bytes that an inbox holds
LOOK = 0.5  # seconds between looks whether the own socket's file is there


class LocalStats(NamedTuple):
    """Counters of one LocalBroadcaster since it was made."""

    #: Messages that this process sent.
    sent: int
    #: Messages, once for each member, given up because the member did not take them in time.
    lost: int
    #: Messages that came in whole and had room.
    received: int
    #: Messages that came in and had no room.
    dropped: int
    #: Messages of which a piece did not come.
    incomplete: int
    #: Messages that wait to be received.
    waiting: int


class LocalBroadcaster:
    """One member of the bus `name`, which the processes of one user on one host share.

        bus = LocalBroadcaster("shop")          # in each worker
        bus.broadcast({"type": "invalidation", "invalidation_type": "key", "key": "users:1"})
        bus.receive(timeout=1.0)                # what the others have sent

    Args:
        name: letters, digits, `-`, `_` and `.`; not a leading dot. Processes of the same name,
            user and directory are on one bus.
        directory: where the private folder with the sockets is made (mode 0700, owned by this
            user); None = $XDG_RUNTIME_DIR, or else the folder for temporary files. Services whose
            environments or private /tmp differ must be given one.
        capacity: messages that wait to be received at most; of 32 MiB together at most.
        patience: seconds that broadcast() waits at most for members that are busy. A member that
            was given up is not waited for again until it has taken a message.

    Raises:
        ValueError: for a name with other characters, a path too long for a socket (107 bytes), a
            capacity below 1, or a negative patience.
        PermissionError: if the folder exists and is not ours alone.
        RuntimeError: on a system without Unix datagram sockets (Windows).
        OSError: if the socket cannot be made.

    Messages are mappings that have a JSON form, `bytes` and `str`; each arrives as what it was. A
    message may have 8 MiB; pieces of 32 KiB travel, and are put together again. A member does not
    get what it sends itself. Order is kept for each sender.

    Every method may be called by any thread. A member whose socket fails, or whose file somebody
    removes, joins anew when it next receives or sends, and its receive() says so. Only processes of
    the same user can send and listen; they are trusted. A forked child joins by itself when it
    first receives, under a new identity; it sends without that. Whoever drops the last reference,
    or ends, leaves the bus.
    """

    #: What BroadcastInvalidation asks a transport: broadcast.py says what each means.
    binary = True
    ordered = True
    replay = False
    loopback = False

    def __init__(
        self,
        name: str,
        *,
        directory: str | os.PathLike[str] | None = None,
        capacity: int = 65_536,
        patience: float = 0.25,
    ) -> None:
        if not 0 <= patience <= threading.TIMEOUT_MAX:
            raise ValueError(f"patience must be seconds from 0 on, not {patience!r}")
        self.name = name
        self._folder = SocketFolder(name, directory)
        self._options: dict[str, Any] = {
            "directory": directory, "capacity": capacity, "patience": patience,
        }  # fmt: skip
        self._inbox = Inbox(capacity, ROOM)
        self._assembler = Assembler(LARGEST)
        self._peers = Peers(self._folder, patience, BUFFER)
        self._receives = self._ending = False
        self._sent = self._lost = 0
        self._renew()
        self.join()
        watch(self)

    def _renew(self) -> None:
        """What each process has of its own."""
        self._pid = os.getpid()
        self._sending = threading.RLock()  # re-entrant: a finalizer may broadcast in its midst
        self._unsent: deque[tuple[bytes, bytes, list[str] | None]] = deque()
        self._delivering = False
        self._joining = threading.RLock()
        self._sender = secrets.token_bytes(8)
        self._missed = False  # was it no member for a while?
        self._look_at = 0.0
        self._endpoint: Endpoint | None = None
        self._farewell: weakref.finalize[Any, Any] | None = None

    # --- Messages ---

    def broadcast(self, message: Mapping[str, Any] | bytes | str) -> None:
        """Send a message to all other members.

        Waits at most `patience` seconds, for members that are busy. Raises ValueError for a message
        of more than 8 MiB, TypeError for one that has no JSON form, OSError if no socket can be
        made, RuntimeError if closed.
        """
        self._transmit(message, None)

    def send_to(self, member: str, message: Mapping[str, Any] | bytes | str) -> None:
        """Send a message to one member; as broadcast(). Nothing happens if it has left."""
        self._transmit(message, [member])

    def _transmit(self, message: Mapping[str, Any] | bytes | str, to: list[str] | None) -> None:
        form, content = _encoded(message)
        if len(content) > LARGEST:
            raise ValueError(f"a message of {len(content)} bytes is larger than {LARGEST}")
        self._check_process()  # before the lock, which a forked child inherits as it was
        with self._sending:
            self._check_open()
            self._unsent.append((form, content, to))
            if self._delivering:
                # A finalizer in the midst of another broadcast: between two pieces of that one the
                # members would give it up, so this one goes out next.
                return
            self._delivering = True
            try:
                while self._unsent:
                    self._deliver(*self._unsent.popleft())
            finally:
                self._delivering = False

    def _deliver(self, form: bytes, content: bytes, to: list[str] | None) -> None:
        members = to or self._others()
        if to is None:
            self._peers.retain(members)
        number = self._sent
        self._sent += 1
        pieces = list(split(form, content, self._sender, number, PIECE))
        lost = self._peers.deliver(pieces, members)
        self._lost += lost

    def receive(self, timeout: float | None = None) -> Any:
        """The next message of another member; None if none comes within `timeout` seconds.

        None as timeout: wait any time. Raises MessagesLost, once, where messages are missing that
        the inbox had no room for; RuntimeError if closed; OSError if the socket cannot be made.
        """
        self._receives = True
        self._look_for_own_file()
        self.join()
        return self._inbox.get(timeout)

    # --- Members ---

    @property
    def identity(self) -> str | None:
        """The name of this member, process id first; None while it has not joined."""
        self._check_process()
        endpoint = self._endpoint
        return None if endpoint is None else endpoint.identity

    def members(self) -> frozenset[str]:
        """The identities of the other members that are alive. Removes what dead ones left."""
        return self._folder.alive() - {self.identity}

    def subscribe(self) -> LocalBroadcaster:
        """Another member of the same bus: for each cache of a process one of its own.

        While nobody has received here, this one leaves then: a member that nobody reads would only
        be in the way. It joins again when something is received.
        """
        self._check_open()
        member = LocalBroadcaster(self.name, **self._options)
        if not self._receives:
            self._leave()
        return member

    def _others(self) -> list[str]:
        """The members that a message goes to. Joins anew if this one's own file is gone."""
        endpoint = self._endpoint
        names = self._folder.names()
        if endpoint is None:
            return names
        if endpoint.identity in names:
            names.remove(endpoint.identity)
            return names
        endpoint.failed = True
        self.join()
        return names

    # --- Joining and leaving ---

    def _look_for_own_file(self) -> None:
        """Notice it, now and then, if somebody has removed it: nothing else would tell."""
        now, endpoint = time.monotonic(), self._endpoint
        if now >= self._look_at and endpoint is not None:
            self._look_at = now + LOOK
            if not self._folder.has(endpoint.identity):
                endpoint.failed = True  # never False: its thread may have failed meanwhile

    def join(self) -> None:
        """Be a member, unless it is one: from here on messages come in.

        receive() does it, too. Raises as the constructor does, and RuntimeError if closed.
        """
        self._check_open()
        with self._joining:
            if self._endpoint is not None and self._endpoint.failed:
                self._missed = True
                self._leave()
            if self._endpoint is None and not self._ending and not self._inbox.closed:
                parts = (self._folder, self._inbox, self._assembler, PIECE, BUFFER)
                endpoint = Endpoint(*parts)
                farewell = weakref.finalize(self, endpoint.close)
                farewell.atexit = False
                if self._endpoint is None and not self._ending and not self._inbox.closed:
                    self._endpoint, self._farewell = endpoint, farewell
                else:  # a handler has joined, or left, meanwhile
                    farewell()
                    return
                if self._missed:  # not before: what is lost until here must be behind the mark
                    self._missed = False
                    self._inbox.lose("reconnected")

    def _leave(self) -> None:
        with self._joining:
            endpoint, self._endpoint = self._endpoint, None
            if self._farewell is not None:
                self._farewell.detach()
            if endpoint is not None:
                endpoint.close()

    def close(self) -> None:
        """Leave the bus, within a second; receive() raises RuntimeError from now on. Idempotent."""
        self._check_process()
        self._inbox.close()
        self._leave()
        with self._sending:
            self._peers.retain(())

    @property
    def closed(self) -> bool:
        """Has it been closed?"""
        return self._inbox.closed

    def _check_open(self) -> None:
        self._check_process()
        if self._inbox.closed:
            raise RuntimeError(f"{type(self).__name__} {self.name!r} is closed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- Fork and exit ---

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self._renew_in_child()

    def _renew_in_child(self) -> None:
        """In a forked child: let go of the parent's sockets, and be no member yet."""
        if self._pid == os.getpid():
            return
        endpoint, farewell = self._endpoint, self._farewell
        self._renew()
        if farewell is not None:
            farewell.detach()
        if endpoint is not None:
            endpoint.close()
        self._peers.retain(())
        self._inbox.after_fork()
        self._assembler = Assembler(LARGEST)

    def _finish_at_exit(self) -> None:
        """Leave for good, but go on sending: others may have something to say yet."""
        self._ending = True
        self._leave()

    # --- Figures ---

    def stats(self) -> LocalStats:
        """Figures of nearly one instant. O(1)."""
        return LocalStats(
            sent=self._sent,
            lost=self._lost,
            received=self._inbox.accepted,
            dropped=self._inbox.dropped,
            incomplete=self._assembler.incomplete,
            waiting=len(self._inbox),
        )

    def get_stats(self) -> dict[str, Any]:
        """The same as a JSON-ready dict, with the name and the class."""
        return self.stats()._asdict() | {"name": self.name, "class": type(self).__name__}

    def __repr__(self) -> str:
        state = "closed" if self._inbox.closed else f"identity={self.identity!r}"
        return f"{type(self).__name__}({self.name!r}, {state})"


def _encoded(message: Mapping[str, Any] | bytes | str) -> tuple[bytes, bytes]:
    """Form and content of a message."""
    if isinstance(message, bytes):
        return BYTES, message
    if isinstance(message, str):
        return TEXT, message.encode()
    if isinstance(message, Mapping):
        return JSON, json.dumps(dict(message), separators=(",", ":")).encode()
    raise TypeError(f"a message is a mapping, bytes or str, not {type(message).__name__}")
