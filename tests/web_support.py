"""Helpers of the HTTP tests: an interface behind a real waitress, requests, a cache that fails."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import pytest

from lapse import ManualClock
from lapse.web import sign
from support import PATIENCE

SECRET = "whsec_YSBzZWNyZXQgb2YgYWxsIHRoZXNlIHRlc3RzLCAzMkI="
WEBHOOK = "/webhook/invalidate"


class Answer(NamedTuple):
    """What came back over a socket."""

    status: int
    body: Any
    headers: dict[str, str]


@contextmanager
def served(interface: Any, **options: Any) -> Iterator[tuple[str, int]]:
    """The address at which waitress serves the interface, until the block ends."""
    with interface:
        yield interface.serve(port=0, **options)


def ask(
    address: tuple[str, int],
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own; `body` is bytes, or becomes JSON."""
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE)
    sent = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        sent.setdefault("Content-Type", "application/json")
    try:
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        text = response.read()
        kind = response.headers.get_content_type()
        plain = json.loads(text) if kind == "application/json" and text else text
        return Answer(response.status, plain, {k.lower(): v for k, v in response.getheaders()})
    finally:
        connection.close()


def raw(address: tuple[str, int], data: bytes) -> bytes:
    """What comes back for `data`, until the other side closes, or cuts the connection."""
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        received = b""
        with suppress(ConnectionError):
            connection.sendall(data)
        with suppress(OSError):  # cut already: it is no longer connected
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                received += chunk
    return received


class Broken:
    """A cache whose every method raises."""

    def __init__(self) -> None:
        self.raises = True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def method(*_: Any) -> int:
            if self.raises:
                raise OSError("the password of the store is hunter2")
            return 1

        return method


class Sender:
    """Signs messages at the time of a clock, and posts them to an interface by Flask's client."""

    def __init__(self, hook: Any, clock: Any = None) -> None:
        self.client = hook.app.test_client()
        self.clock = clock

    def post(self, message: Any, secret: str = SECRET, **changes: Any) -> tuple[int, Any]:
        """Status and JSON of the answer; `changes` are headers, with "_" for "-"."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        at = self.clock() if self.clock else None
        id = changes.pop("webhook_id", None)
        headers = sign(secret, body, id=id, timestamp=at) | {"Content-Type": "application/json"}
        headers |= {name.replace("_", "-"): text for name, text in changes.items()}
        answer = self.client.post(WEBHOOK, data=body, headers=headers)
        return answer.status_code, answer.get_json()


def hooked() -> Any:
    """Fixtures: `clock`; `hook`, a WebhookInvalidation of `cache` on it; `sender` to the hook."""
    from lapse.web.webhook import WebhookInvalidation

    @pytest.fixture(name="clock")
    def _clock() -> ManualClock:
        return ManualClock(1_700_000_000.0)

    @pytest.fixture(name="hook")
    def _hook(cache: Any, clock: ManualClock) -> Iterator[WebhookInvalidation]:
        with WebhookInvalidation(cache, secrets=[SECRET], clock=clock) as hook:
            yield hook

    @pytest.fixture(name="sender")
    def _sender(hook: WebhookInvalidation, clock: ManualClock) -> Sender:
        return Sender(hook, clock)

    return _clock, _hook, _sender
