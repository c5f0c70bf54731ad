"""Who is admitted by the HTTP interfaces: this machine alone, or who has a token."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("flask", reason="the extra `web` is not installed")
pytest.importorskip("waitress", reason="the extra `web` is not installed")

import lapse
from lapse import Invalidation
from lapse.web import hash_token
from lapse.web.admin import AdministrativeInvalidation
from lapse.web.api import APIInvalidation
from lapse.web.guards import is_loopback
from lapse.web.tokens import Tokens, covers, scope_of
from lapse.web.webhook import WebhookInvalidation
from web_support import ask, raw, served

URL = "/api/cache/invalidate"
MESSAGE = {"type": "key", "key": "a"}


@pytest.fixture
def cache() -> Any:
    return lapse.TTLCache(60, cleanup_interval=None)


# --- This machine alone ---


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        ("127.0.0.1", "localhost", 200),
        ("127.0.0.1", "LOCALHOST:5000", 200),
        ("127.8.7.6", "127.0.0.1:80", 200),
        ("::1", "[::1]:5000", 200),
        ("::ffff:127.0.0.1", "[::1]", 200),
        ("::ffff:10.0.0.1", "localhost", 403),
        ("10.0.0.1", "localhost", 403),
        ("", "localhost", 403),
        ("unix:", "localhost", 403),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "localhost.evil.example", 403),
        ("127.0.0.1", "localhost:5000@evil.example", 403),
        ("127.0.0.1", "localhost, evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
        ("127.0.0.1", "localhost\u0661", 403),
    ],
)
def test_this_machine_alone(cache, address, host, status):
    """Without tokens a request must come from this machine, and be meant for it by name."""
    client = APIInvalidation(cache).app.test_client()
    environ = {"REMOTE_ADDR": address, "HTTP_HOST": host}
    answer = client.post(URL, json=MESSAGE, environ_overrides=environ)
    assert (answer.status_code, answer.get_json()["status"]) in [(status, "error")]


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_proxies(cache, header):
    """Without tokens, what a proxy on this machine has forwarded is refused."""
    with served(APIInvalidation(cache)) as address:
        assert ask(address, "POST", URL, MESSAGE, {header: "10.0.0.7"}).status == 403
        assert ask(address, "POST", URL, MESSAGE).status == 200


def test_no_host(cache):
    """A request without a name of this machine is refused."""
    body = json.dumps(MESSAGE).encode()
    head = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with served(APIInvalidation(cache)) as address:
        assert b" 403 " in raw(address, b"POST %s HTTP/1.0\r\n" % URL.encode() + head + body)


def test_loopback_addresses():
    """What is no address is none of this machine's."""
    assert is_loopback("127.255.0.1")
    for text in ("", "localhost", "0.0.0.0", "::", "127.1", "fe80::1%lo", "127.0.0.1:80"):
        assert not is_loopback(text)


@pytest.mark.parametrize("kind", [WebhookInvalidation, AdministrativeInvalidation, APIInvalidation])
def test_no_cross_origin_headers(cache, kind):
    """No answer allows another site's page to read it, or to ask."""
    interface = kind(cache)
    client = interface.app.test_client()
    origin = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for rule in interface.app.url_map.iter_rules():
        path = rule.rule.replace("<lapse_any_path:key>", "a")
        answer = client.options(path, headers=origin)
        assert answer.status_code == 405
        assert not [name for name, _ in answer.headers if "Access-Control" in name]


# --- Tokens ---


def test_hash_token():
    """A hash has a prefix, is the same each time, and stands for one token."""
    assert hash_token("x" * 20) == hash_token("x" * 20) != hash_token("x" * 21)
    assert hash_token("x" * 20).startswith("sha256:")
    for token in ("", " ", "a b", "a\n", "\u00e9", "x" * 513):
        with pytest.raises(ValueError, match="token"):
            hash_token(token)


def test_only_hashes_are_kept(cache):
    """Nothing that an interface holds has a token in it."""
    tokens = Tokens({"t" * 20: "read"})
    held = repr([getattr(tokens, name) for name in tokens.__slots__])
    assert "ttt" not in held
    assert repr(tokens) == "Tokens(1 tokens)"


@pytest.mark.parametrize("tokens", [{}, {"": "read"}, {"a b": "read"}, {"t": "write"}, {"t": None}])
def test_tokens_that_are_refused(cache, tokens):
    """No token, one that cannot be sent and an unknown scope are a ValueError."""
    for kind in (AdministrativeInvalidation, APIInvalidation):
        with pytest.raises(ValueError, match=r"token|scope"):
            kind(cache, tokens=tokens)


def test_order_of_scopes():
    """Each scope covers itself and those before it."""
    scopes = ["read", "key", "pattern", "clear"]
    covered = [[needed for needed in scopes if covers(granted, needed)] for granted in scopes]
    assert covered == [scopes[: i + 1] for i in range(4)]


@pytest.mark.parametrize(
    ("pattern", "scope"),
    [
        ("users:*", "pattern"),
        ("*:name", "pattern"),
        ("a", "pattern"),
        (r"\*", "pattern"),
        ("*\\", "pattern"),
        ("[a]b", "pattern"),
        ("*", "clear"),
        ("**", "clear"),
        ("?*", "clear"),
        ("", "clear"),
        ("[a-z]*", "clear"),
        ("[^]*", "clear"),
        (r"[\]a]", "clear"),
        ("*[^\x00", "clear"),
        ("[a\\", "clear"),
        ("[*" * 500 + "\\x", "clear"),
        ("[*]" * 300 + "x", "pattern"),
    ],
)
def test_scopes_of_patterns(pattern, scope):
    """A pattern without a literal character needs the scope clear; finding out takes no time."""
    assert scope_of(Invalidation("pattern", pattern)) == scope
    assert scope_of(Invalidation("pattern", pattern.encode())) == scope
