"""A bus over kombu: the link of a KombuQueue under the names that broadcasters have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lapse.sources.kombu import KombuTransport

__all__ = ["KombuBroadcaster"]


class KombuBroadcaster(KombuTransport):
    """A broadcaster for `BroadcastInvalidation`: receive() and broadcast(message).

    A KombuQueue of the same broker and name is on the same bus.
    """

    def broadcast(self, message: bytes | bytearray | memoryview | Mapping[str, Any]) -> None:
        """As `send()`: every process gets it, this one too."""
        self.send(message)
