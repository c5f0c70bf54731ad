"""Ports for servers of the tests' own."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

HOST = "127.0.0.1"
PORTS = range(10_000, 30_000)  # below those that systems give to who connects


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise OSError("of 100 ports none is free")
