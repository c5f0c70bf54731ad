"""The private folder of a same-host bus: one socket file a member, and who they are.

    <directory>/lapse-<uid>-<name>/          0700, ours, no symbolic link
        4711-0123456789abcdef                a member: process 4711, and its sender's 8 bytes
        .4711-0123456789abcdef               a socket that is being bound

Whoever may write into the folder may send to the members, and nobody else: so it is checked each
time that it is opened. A file appears under a member's name only once a socket listens behind it:
a name behind which none listens is what a killed process has left, and is removed.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["SocketFolder"]

LONGEST_PATH = 107 if sys.platform == "linux" else 103  # bytes of a socket's path, without its 0
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", re.ASCII)
_MEMBER = re.compile(r"[0-9]{1,10}-[0-9a-f]{16}", re.ASCII)
LONGEST_MEMBER = ".4294967295-0123456789abcdef"
BINDING = 60.0  # seconds after which a socket that is still being bound is what a dead process left


class SocketFolder:
    """The folder of the bus `name`.

    Args:
        name: letters, digits, `-`, `_` and `.`; not a leading dot.
        directory: where the private folder is made; None = $XDG_RUNTIME_DIR, or else the folder
            for temporary files. All processes of a bus must agree on it.

    Raises:
        ValueError: for a name with other characters, or a path too long for a socket.
        RuntimeError: on a system without Unix datagram sockets.

    The methods raise PermissionError if the folder is not ours alone, and OSError.
    """

    def __init__(self, name: str, directory: str | os.PathLike[str] | None = None) -> None:
        if not hasattr(socket, "AF_UNIX") or not hasattr(os, "geteuid"):
            raise RuntimeError(
                "a LocalBroadcaster needs Unix datagram sockets, which this system does not have: "
                "use a broadcaster with a broker, such as KombuBroadcaster"
            )
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                "the name of a bus must be letters, digits, '-', '_' and '.', and not begin "
                f"with '.', but is {name!r}"
            )
        self.name = name
        place = directory or os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        self.path = Path(os.path.abspath(place)) / f"lapse-{os.geteuid()}-{name}"
        excess = len(os.fsencode(self.path / LONGEST_MEMBER)) - LONGEST_PATH
        if excess > 0:
            raise ValueError(
                f"{str(self.path)!r} is {excess} bytes too long for the path of a Unix socket: "
                "give the bus a shorter name, or directory= a shorter path"
            )

    def open(self) -> None:
        """Make the folder if it is not there, and see that it is ours alone."""
        around = os.stat(self.path.parent).st_mode
        if around & 0o022 and not around & stat.S_ISVTX:
            raise PermissionError(
                f"{str(self.path.parent)!r} lets others replace what is in it (mode "
                f"{stat.S_IMODE(around):o}): a bus needs a directory= that does not"
            )
        with suppress(FileExistsError):
            os.mkdir(self.path, 0o700)
        found = os.lstat(self.path)
        if not stat.S_ISDIR(found.st_mode):
            raise PermissionError(f"{str(self.path)!r} is not a folder: it may be a trap")
        if found.st_uid != os.geteuid():
            raise PermissionError(
                f"{str(self.path)!r} belongs to user {found.st_uid}: others could send "
                "invalidations; give directory= a folder of your own"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(
                f"{str(self.path)!r} is open to others (mode {stat.S_IMODE(found.st_mode):o}), "
                "who could send invalidations: it must be 700"
            )

    def bind(self, sock: socket.socket, token: str) -> str:
        """Put a socket there; the identity that it has as a member. `token`: 16 hex digits."""
        self.open()
        identity = f"{os.getpid()}-{token}"
        hidden = self.path / f".{identity}"
        sock.bind(os.fspath(hidden))
        os.rename(hidden, self.path / identity)
        self._clean()
        return identity

    def names(self) -> list[str]:
        """The members' identities, those of killed processes among them; [] without a folder."""
        try:
            return [name for name in os.listdir(self.path) if _MEMBER.fullmatch(name)]
        except FileNotFoundError:
            return []

    def has(self, identity: str) -> bool:
        """Is the file of a member there?"""
        return os.path.lexists(self.path / identity)

    def connect(self, sock: socket.socket, identity: str) -> bool:
        """Connect a socket to a member; False if it is gone, and nothing is left of it then.

        The identity may come from a message: what could not be one of ours is no path either.
        Raises OSError for other reasons.
        """
        if not _MEMBER.fullmatch(identity):
            return False
        try:
            sock.connect(os.fspath(self.path / identity))
        except FileNotFoundError:
            return False
        except ConnectionRefusedError:
            self.remove(identity)
            return False
        return True

    def remove(self, identity: str) -> None:
        """Remove the file of a member."""
        with suppress(FileNotFoundError):
            os.unlink(self.path / identity)

    def alive(self) -> frozenset[str]:
        """The identities of the members that listen; the files of others are removed."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            return frozenset(name for name in self.names() if self.connect(probe, name))

    def _clean(self) -> None:
        """Remove what processes that were killed left, in the midst of binding or later."""
        self.alive()
        for name in os.listdir(self.path):
            if name.startswith(".") and _MEMBER.fullmatch(name[1:]):
                with suppress(FileNotFoundError):
                    if time.time() - os.lstat(self.path / name).st_mtime > BINDING:
                        os.unlink(self.path / name)
