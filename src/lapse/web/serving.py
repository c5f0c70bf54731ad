"""Serving an app by waitress, on one address, until it is closed.

    run() ──► wasyncore loop ──► waitress's threads ──► the app
                 ▲
    close() ─────┘  wakes the loop, which ends; threads get a moment to finish

Any thread may call close(); one thread at a time is in run().
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from lapse.web.guards import is_loopback

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["Server", "check_address"]

MOST_HEADER_BYTES = 1 << 16  # a key in a path may take 48 KiB
MOST_BODY_BYTES = 1 << 20  # beyond it waitress refuses by itself, before it has read the body
MOST_CONNECTIONS = 500
IDLE = 60  # seconds that a connection may stay without a request
LOOK_ROUND = 1  # seconds after which the loop looks for an interrupt, where that does not wake it
PATIENCE = 0.01  # seconds that the loop waits for a thread that is sending
LAST_WORDS = 0.5  # seconds that handlers have to finish


def check_address(host: str, remote: bool) -> None:
    """Raise ValueError if `host` can be reached from elsewhere, and nobody there is admitted."""
    if not remote and host != "localhost" and not is_loopback(host.strip("[]")):
        raise ValueError(
            f"{host!r} can be reached from other machines, and no secrets or tokens are configured "
            "that would tell who may invalidate. Configure some, or serve 127.0.0.1."
        )


class Server:
    """Listens from its construction on; serves in run().

    Args:
        app: a WSGI application.
        host: an address, or "localhost".
        port: 0 = any that is free.
        threads: requests that are handled at a time.

    Raises ImportError without waitress, OSError if the address is not to be had.
    """

    def __init__(self, app: WSGIApplication, host: str, port: int, threads: int) -> None:
        waitress = _waitress()
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family)
        #: Where it listens.
        self.address: tuple[str, int] = listening.getsockname()[:2]
        self._loop = waitress.wasyncore.loop
        self._close_all = waitress.wasyncore.close_all
        self._map: dict[int, Any] = {}
        self._short = threading.RLock()  # a signal handler may close in the middle of it
        self._closing = self._ended = False
        self._runner: int | None = None
        self._done = threading.Event()
        self._server = waitress.server.create_server(
            app,
            map=self._map,
            sockets=[listening],
            threads=threads,
            ident=None,
            connection_limit=MOST_CONNECTIONS,
            channel_timeout=IDLE,
            max_request_header_size=MOST_HEADER_BYTES,
            max_request_body_size=MOST_BODY_BYTES,
            # The app is to see what a proxy has written: it may have to refuse it.
            clear_untrusted_proxy_headers=False,
        )
        self._server.channel_class = _patient(self._server.channel_class)

    def run(self) -> None:
        """Serve, until close()."""
        self._runner = threading.get_ident()
        try:
            while not self._closing:
                self._loop(timeout=LOOK_ROUND, use_poll=True, map=self._map, count=1)
        finally:
            with self._short:  # who wakes the loop up must not find its pipe closed
                self._ended = True
            self._server.task_dispatcher.shutdown(timeout=LAST_WORDS)
            self._close_all(self._map, ignore_all=True)
            self._done.set()

    def close(self, wait: float = 0.9) -> None:
        """End run(), and wait up to `wait` seconds for that. Idempotent; a signal handler may."""
        with self._short:
            if not self._closing and not self._ended:
                self._closing = True
                self._server.pull_trigger()
        if self._runner != threading.get_ident():
            self._done.wait(wait)


def _patient(channel_class: Any) -> Any:
    """Waitress's channel, but it waits for a thread that is sending instead of asking in a loop.

    The loop would hold the GIL meanwhile, which that thread needs to come to an end.
    """

    class Channel(channel_class):  # type: ignore[misc]
        def handle_write(self) -> None:
            held = self.outbuf_lock.acquire(timeout=PATIENCE)
            try:
                super().handle_write()
            finally:
                if held:
                    self.outbuf_lock.release()

    return Channel


def _waitress() -> Any:
    try:
        import waitress.server
        import waitress.wasyncore
    except ModuleNotFoundError as error:
        raise ImportError("serving needs waitress: pip install 'lapse[web]'") from error
    return waitress
