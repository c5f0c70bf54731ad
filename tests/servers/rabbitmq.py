"""A private RabbitMQ that may be killed and comes back: the system's package `rabbitmq-server`.

The node, its files and Erlang's name server are the caller's own: in a folder, on free ports of
127.0.0.1. Starting takes it seconds. `missing()` says why there can be none.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from servers.ports import HOST, free_port

SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
CONFIG = "listeners.tcp.1 = {host}:{port}\nloopback_users.guest = true\n"


def missing() -> str:
    """Why no server can be started; empty if one can."""
    if not SERVER.exists() or shutil.which("erl") is None:
        return "no broker to talk to: rabbitmq-server is missing"
    return ""


class RabbitMQ:
    """A broker of the caller's own; for one thread. As a context manager it runs inside."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder
        (folder / "rabbitmq.conf").write_text(CONFIG.format(host=HOST, port=self.port))
        (folder / "plugins").write_text("[].")
        self._environment = {
            **os.environ,
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"lapse{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._names: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, running or not."""
        return f"amqp://guest:guest@{HOST}:{self.port}//"

    def start(self) -> None:
        """Run; returns once it listens."""
        with (self._folder / "output").open("ab") as output:
            run: dict[str, Any] = {"env": self._environment, "stdout": output, "stderr": output}
            if self._names is None:
                self._names = subprocess.Popen(["epmd"], **run)
            self._process = subprocess.Popen([SERVER], start_new_session=True, **run)
        end = time.monotonic() + 60
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError((self._folder / "output").read_text()[-4000:])
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as `kill -9` does: no goodbye to anybody."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def __enter__(self) -> RabbitMQ:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._names is not None:
            self._names.kill()
            self._names.wait()
