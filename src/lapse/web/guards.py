"""Who is admitted to a handler.

    Loopback      this machine alone: where nothing else is configured
    Bearer        who has one of the tokens
    Signed        who knows one of the secrets that webhooks are signed with

A guard looks at a request and answers a Caller, or raises Refused. `remote` says whether others
than this machine can be admitted at all; a server listens to them only then.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lapse.web.refusal import Refused
from lapse.web.signatures import SignatureError, Signatures
from lapse.web.tokens import Scope, Tokens, covers

if TYPE_CHECKING:
    from werkzeug.wrappers import Request

__all__ = ["Bearer", "Caller", "Guard", "Loopback", "Signed", "is_loopback"]

_LOCAL_NAME = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?", re.ASCII | re.I)
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via")


class Caller(NamedTuple):
    """Whose request it is."""

    #: "loopback", "token <fingerprint>" or "webhook <id>".
    name: str
    scope: Scope
    #: The address that the request came from.
    address: str

    def need(self, scope: Scope) -> None:
        """Refuse the request if its scope does not allow this."""
        if not covers(self.scope, scope):
            raise Refused(403, "scope", f"This needs the scope {scope!r}")


class Guard(Protocol):
    """Tells who may come in."""

    #: May it be anybody on another machine?
    remote: bool

    def admit(self, request: Request) -> Caller:
        """Whose request it is; raises Refused."""


class Loopback:
    """Admits what comes from this machine and was meant for it, and to everything.

    A page in a browser here may have any name resolve to 127.0.0.1, and then send us requests under
    that name: so only the names of this machine will do. What a proxy has forwarded came from
    elsewhere.
    """

    remote = False

    def admit(self, request: Request) -> Caller:
        address = _address(request)
        host = request.environ.get("HTTP_HOST", "")
        if not is_loopback(address) or not _LOCAL_NAME.fullmatch(host):
            raise Refused(403, "not_local", "Only this machine is served")
        if any(name in request.headers for name in _FORWARDED):
            raise Refused(403, "not_local", "Only this machine is served, and not by a proxy")
        return Caller("loopback", "clear", address)


class Bearer:
    """Admits who has a token, to what its scope allows."""

    remote = True

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def admit(self, request: Request) -> Caller:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer":
            raise Refused(401, "no_token", "A token is required", WWW_Authenticate="Bearer")
        grant = self._tokens.find(token.strip())
        if grant is None:
            raise Refused(401, "wrong_token", "The token is wrong", WWW_Authenticate="Bearer")
        return Caller(f"token {grant.fingerprint}", grant.scope, _address(request))


class Signed:
    """Admits what is signed, to everything."""

    remote = True

    def __init__(self, signatures: Signatures) -> None:
        self._signatures = signatures

    def admit(self, request: Request) -> Caller:
        try:
            id = self._signatures.verify(request.headers, request.get_data())
        except SignatureError as error:
            status = 400 if error.reason == "malformed" else 401
            raise Refused(status, error.reason, str(error).capitalize()) from None
        return Caller(f"webhook {id}", "clear", _address(request))


def is_loopback(address: str) -> bool:
    """Is it an address of the machine's own loopback interface?"""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)
    return (mapped or ip).is_loopback


def _address(request: Request) -> str:
    return str(request.environ.get("REMOTE_ADDR", ""))
