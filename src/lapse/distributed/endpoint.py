"""The receiving side of a same-host bus: a bound socket, and a thread that empties it at once.

    members ──►  socket: room for some ten datagrams
                   │  thread lapse-bus-<name>: puts messages together
                   ▼
                 inbox: room for thousands          ──►  receive()

The kernel's queue is short, and whoever finds it full must wait. So it is emptied by a thread that
does nothing else: members that send to each other never wait for each other's receivers.

1. The file is there as long as the socket is, and is removed before the socket is closed.
2. The thread outlives a shortage of memory, and marks what it cost in the inbox. If the socket
   fails, so has the endpoint: its owner makes another.
3. A forked child has no part in the socket: it closes its copy, and leaves the file alone.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from lapse.distributed.datagrams import BYTES, JSON, OVERHEAD, Assembler
from lapse.distributed.inbox import Inbox
from lapse.distributed.socket_folder import SocketFolder

__all__ = ["Endpoint"]

log = logging.getLogger("lapse.distributed")
JOIN = 0.9  # seconds that close() waits for the thread
SHORTAGE_PAUSE = 0.05  # seconds before the thread goes on when memory was short


class Endpoint:
    """A member's socket and its thread; listens from when it is made until close().

    Raises PermissionError if the folder is not ours alone, OSError if the socket cannot be bound,
    RuntimeError if no thread is to be had.
    """

    def __init__(
        self, folder: SocketFolder, inbox: Inbox, assembler: Assembler, piece: int, buffer: int
    ) -> None:
        self._folder = folder
        self._inbox = inbox
        self._assembler = assembler
        self._pid = os.getpid()
        self._longest = OVERHEAD + piece
        self._closing = False
        #: Nothing comes in any more, though nobody has closed it.
        self.failed = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            with suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            #: The name of the member: of its file, too.
            self.identity = folder.bind(self._socket, secrets.token_hex(8))
        except BaseException:
            self._socket.close()
            raise
        name = f"lapse-bus-{folder.name}"
        self._thread = threading.Thread(target=self._listen, name=name, daemon=True)
        try:
            self._thread.start()
        except BaseException:
            folder.remove(self.identity)
            self._socket.close()
            raise

    def close(self) -> None:
        """Leave: remove the file, end the thread, close the socket. Idempotent.

        In a forked child it closes the child's copy of the socket, and does nothing else.
        """
        self._closing = True
        if self._pid == os.getpid():
            self._wake()
            self._folder.remove(self.identity)
            if self._thread is not threading.current_thread():
                self._thread.join(JOIN)
        self._socket.close()

    def _listen(self) -> None:
        lost = False
        while not self._closing:
            try:
                if lost:
                    self._inbox.lose("no memory")
                lost = False
                datagram = self._socket.recv(self._longest + 1)
                if datagram:
                    self._take(datagram)
            except OSError:
                self.failed = not self._closing
                if self.failed:
                    log.exception("the socket of %s failed", self.identity)
                return
            except MemoryError:
                lost = True
                time.sleep(SHORTAGE_PAUSE)

    def _wake(self) -> None:
        """Let the thread see that it is to end: by either way, as no system knows both for sure."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RD)
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as waker:
            waker.setblocking(False)
            if self._folder.connect(waker, self.identity):
                waker.send(b"")

    def _take(self, datagram: bytes) -> None:
        message = self._assembler.add(datagram)
        if message is not None:
            form, content = message
            self._inbox.put(_decoded(form, content), len(content))


def _decoded(form: bytes, content: bytes) -> Any:
    """The message as it was sent; what cannot be decoded stays bytes, for the receiver to judge."""
    if form == BYTES:
        return content
    try:
        text = content.decode()
        return json.loads(text) if form == JSON else text
    except (ValueError, RecursionError):
        return content
