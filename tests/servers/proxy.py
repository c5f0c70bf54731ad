"""A TCP proxy: its connections may speak TLS, and fall silent as behind a router that forgets."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import subprocess
import threading
from pathlib import Path

from servers.ports import HOST


class Proxy:
    """Forwards to a port; `silence()` makes it swallow what comes over the connections of today.

    They stay open, and later ones work. With `tls` those who connect speak TLS. As a context
    manager it runs inside.
    """

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._tls = tls
        self._server = socket.create_server((HOST, 0))
        self._other: dict[socket.socket, socket.socket] = {}
        self._silent: set[socket.socket] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.getsockname()[1]
        return port

    def silence(self) -> None:
        """Forward nothing more over what is connected now."""
        self._silent |= set(self._other)

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._server, selectors.EVENT_READ)
            while not self._ended.is_set():
                for key, _ in selector.select(0.1):
                    if key.fileobj is self._server:
                        self._connect(selector)
                    else:
                        self._forward(selector, key.fileobj)

    def _connect(self, selector: selectors.BaseSelector) -> None:
        here, _ = self._server.accept()
        if self._tls is not None:
            try:
                here = self._tls.wrap_socket(here, server_side=True)
            except OSError:
                here.close()
                return
        there = socket.create_connection((HOST, self._target))
        for one, other in ((here, there), (there, here)):
            self._other[one] = other
            selector.register(one, selectors.EVENT_READ)

    def _forward(self, selector: selectors.BaseSelector, one: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            data = one.recv(65536)
            while isinstance(one, ssl.SSLSocket) and one.pending():
                data += one.recv(65536)
        if one in self._silent:
            if not data:
                selector.unregister(one)
            return
        other = self._other.get(one)
        if other is None:  # closed together with the other end
            return
        if data:
            other.sendall(data)
            return
        for each in (one, other):
            self._other.pop(each, None)
            with contextlib.suppress(KeyError):
                selector.unregister(each)
            each.close()

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        for each in [self._server, *self._other]:
            each.close()


def certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context with a certificate of its own for "localhost", and that certificate."""
    key, made = folder / "key.pem", folder / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", key, "-out", made], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made, key)
    return context, made
