"""Signatures of webhooks, by the Standard Webhooks scheme, on the standard library alone.

    webhook-id           names the message; the same when it is sent again
    webhook-timestamp    whole Unix seconds of this attempt
    webhook-signature    "v1,<base64>", several separated by spaces while secrets are rotated

    signed: <id>.<timestamp>.<body as it came>        by HMAC-SHA256 under each secret

Invariants
    1. Whatever the headers hold, verify() returns the id or raises SignatureError.
    2. What is compared is the text of a signature, not what it decodes to: base64 has several texts
       for the same bytes, and so no other text than the one that sign() makes passes.
    3. Every signature is compared with every secret's, in constant time; no match ends that early.
    4. The age is judged only once the signature is known to be right.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets as random
import time
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Literal, Protocol

__all__ = ["Reason", "SignatureError", "Signatures", "sign"]

Reason = Literal["unsigned", "malformed", "wrong_signature", "expired"]

PREFIX = "whsec_"
FEWEST_BYTES = 24  # of a secret: 192 bits
MOST_SIGNATURES = 16
MOST_CHARS = 2048  # of all signatures together; one takes 47

_ID = re.compile(r"[!-\-/-~]{1,256}", re.ASCII)  # what is visible in ASCII, but for the "."
_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)


class Headers(Protocol):
    """A mapping by header names in lower case; or one that does not mind the case."""

    def get(self, name: str, /) -> str | None:
        """The value of a header."""


class SignatureError(ValueError):
    """A message that is not signed as it should be: `reason` says in one word what is wrong."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def sign(
    secret: str | bytes,
    body: str | bytes,
    *,
    id: str | None = None,
    timestamp: float | None = None,
) -> dict[str, str]:
    """The three headers that sign a message.

    Args:
        secret: as `Signatures` takes it.
        body: exactly what is sent; a str in UTF-8.
        id: names the message; the same for each attempt to send it. None = a new random one.
        timestamp: Unix seconds, of which whole ones count. None = now.

    Raises ValueError for a secret or an id that is no good. Safe from any thread.
    """
    id = "msg_" + random.token_hex(16) if id is None else id
    if not _ID.fullmatch(id):
        raise ValueError("an id is 1 to 256 visible ASCII characters without a '.'")
    seconds = str(int(time.time() if timestamp is None else timestamp))
    content = body.encode() if isinstance(body, str) else body
    return {
        "webhook-id": id,
        "webhook-timestamp": seconds,
        "webhook-signature": _signature(_key(secret), id, seconds, content).decode(),
    }


class Signatures:
    """Verifies what is signed with one of some secrets. Immutable, safe from any thread.

    Args:
        secrets: each "whsec_" and base64, or base64, or bytes; 24 bytes at least. Several while
            they are rotated: any of them will do.
        tolerance: seconds that a timestamp may differ from the clock, either way.
        clock: a callable that returns Unix seconds.

    Raises ValueError for a secret that is no base64 or too short, for none, and for a tolerance
    that is not positive and finite.
    """

    __slots__ = ("_clock", "_keys", "tolerance")

    def __init__(
        self,
        secrets: Iterable[str | bytes],
        *,
        tolerance: float = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._keys = [_key(secret) for secret in secrets]
        if not self._keys:
            raise ValueError("there must be a secret")
        if not (tolerance > 0 and isfinite(tolerance)):
            raise ValueError(f"tolerance must be positive, finite seconds, not {tolerance!r}")
        self.tolerance = tolerance
        self._clock = clock

    def verify(self, headers: Headers, body: bytes) -> str:
        """The id of a message that is signed and of these days; else raises SignatureError.

        It may have come before: who calls this remembers ids. Costs an HMAC of `body` a secret.
        """
        id, seconds, given = (headers.get(f"webhook-{each}") for each in _PARTS)
        if not id or not seconds or not given:
            raise SignatureError("unsigned", "a signature is required")
        if not _ID.fullmatch(id) or not _SECONDS.fullmatch(seconds):
            raise SignatureError("malformed", "the id or the timestamp is malformed")
        self._compare(_listed(given), id, seconds, body)
        if not abs(self._clock() - int(seconds)) <= self.tolerance:
            raise SignatureError("expired", "the timestamp is too far from the clock")
        return id

    def _compare(self, given: list[bytes], id: str, seconds: str, body: bytes) -> None:
        right = False
        for key in self._keys:
            expected = _signature(key, id, seconds, body)
            for each in given:
                right |= hmac.compare_digest(expected, each)
        if not right:
            raise SignatureError("wrong_signature", "no signature is right")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._keys)} secrets, tolerance={self.tolerance})"


_PARTS = ("id", "timestamp", "signature")


def _listed(header: str) -> list[bytes]:
    """The signatures of a header."""
    listed = header.encode("utf-8", "replace").split() if len(header) <= MOST_CHARS else []
    if not 0 < len(listed) <= MOST_SIGNATURES or not all(b"," in each for each in listed):
        raise SignatureError("malformed", "the signatures are malformed")
    return listed


def _signature(key: bytes, id: str, seconds: str, body: bytes) -> bytes:
    signed = b".".join([id.encode(), seconds.encode(), body])
    return b"v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256))


def _key(secret: str | bytes) -> bytes:
    """The bytes of a secret."""
    if isinstance(secret, str):
        text = secret[len(PREFIX) :] if secret.startswith(PREFIX) else secret
        try:
            secret = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("a secret is no base64") from None  # and is not shown
    if len(secret) < FEWEST_BYTES:
        raise ValueError(f"a secret has {len(secret)} bytes; {FEWEST_BYTES} are the least")
    return bytes(secret)
