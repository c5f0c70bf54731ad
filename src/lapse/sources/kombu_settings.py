"""What a kombu transport is told: where the broker is, and the options that make its failures show.

A dead link must raise, and soon. So whatever a transport leaves unlimited has a limit here, idle
connections give signs of life, and a broker that can confirms what it is sent.
"""

from __future__ import annotations

import os
import socket
import ssl
import uuid
from collections.abc import Mapping
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

__all__ = ["BACKLOG", "Settings"]

BACKLOG = 10_000  # messages that may wait in a consumer, and again in its queue at an AMQP broker

SIGN_OF_LIFE = 5  # seconds between signs of life over a connection on which nothing happens
_POLL = 0.005  # seconds between looks into a transport that cannot wait
_KEEPALIVE = {"TCP_KEEPIDLE": SIGN_OF_LIFE, "TCP_KEEPINTVL": SIGN_OF_LIFE, "TCP_KEEPCNT": 2}


class Settings:
    """How to reach one exchange; immutable, safe to share. KombuTransport has the arguments."""

    def __init__(
        self,
        url: str,
        name: str,
        timeout: float,
        tls: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> None:
        self._kombu = _kombu()
        self._url, self._name = url, name
        scheme = url.partition("://")[0]
        if not scheme.replace("+", "").isalnum():  # with a dot kombu might import what it names
            raise ValueError("a URL begins with the name of a transport")
        self._tls = {**_checked(scheme, url), **tls} or False
        self._options: dict[str, Any] = {}
        #: Seconds that a step of connecting, or a publish, may take.
        self.timeout = timeout
        #: Seconds between signs of life.
        self.sign_of_life = SIGN_OF_LIFE
        plain = self.connection()
        #: The kind of transport, in kombu's terms: "redis", "amqp", "memory", ...
        self.driver: str = plain.transport.driver_type
        if not plain.supports_exchange_type("fanout"):
            raise ValueError(f"the transport {self.driver!r} of kombu has no fanout")
        self._options = {**self._defaults(), **options}

    def connection(self, *, idle: bool = False) -> Any:
        """A kombu Connection, not connected yet; `idle`: one that may have nothing to say."""
        try:
            connection = self._kombu.Connection(
                self._url,
                ssl=self._tls,
                connect_timeout=self.timeout,
                heartbeat=self.sign_of_life if idle else 0,
                transport_options=dict(self._options),
            )
            connection.transport  # noqa: B018 kombu looks for it now
        except (KeyError, TypeError) as fault:
            raise ValueError(f"kombu cannot make a connection of the URL: {fault}") from None
        except ImportError as fault:
            raise ImportError(f"kombu needs another library here: {fault}") from fault
        return connection

    def exchange(self) -> Any:
        """The exchange that hands every message to every queue; a broker need not store it."""
        return self._kombu.Exchange(self._name, "fanout", durable=False, delivery_mode="transient")

    def queue(self) -> Any:
        """A new queue for one consumer.

        On Redis it is no more than what the consumer calls its subscription, and so the same for
        all: the server remembers these names even of processes that were killed.
        """
        if self.driver == "redis":
            return self._kombu.Queue(f"_lapse.{self._name}", self.exchange(), durable=False)
        own = f"{self._name}.{os.getpid()}.{uuid.uuid4().hex}"
        return self._kombu.Queue(
            own, self.exchange(), durable=False, exclusive=True, max_length=BACKLOG
        )

    def _defaults(self) -> dict[str, Any]:
        if self.driver == "redis":
            return {
                "socket_timeout": self.timeout,
                "socket_connect_timeout": self.timeout,
                "socket_keepalive": True,
                "socket_keepalive_options": {
                    getattr(socket, name): value
                    for name, value in _KEEPALIVE.items()
                    if hasattr(socket, name)
                },
                "health_check_interval": self.sign_of_life,
            }
        if self.driver == "amqp":
            return {"confirm_publish": True, "write_timeout": self.timeout}
        return {"polling_interval": _POLL}


def _checked(scheme: str, url: str) -> dict[str, Any]:
    """What makes TLS check a certificate and the name in it, which kombu leaves out."""
    if scheme == "rediss":
        return {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True}
    if scheme == "amqps":
        several = ";" in url  # then kombu fills in the name, but "localhost" as an address
        return {"server_hostname": None if several else urlsplit(url).hostname}
    return {}


def _kombu() -> Any:
    try:
        return import_module("kombu")
    except ImportError as fault:
        raise ImportError("kombu is missing: pip install 'lapse[kombu]'") from fault
