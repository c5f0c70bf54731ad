"""AdministrativeInvalidation: the reference's routes, tokens, the audit log, failures."""

from __future__ import annotations

import json
import logging
from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("flask", reason="the extra `web` is not installed")

import lapse
from lapse.web import hash_token
from lapse.web.admin import AdministrativeInvalidation
from web_support import Broken

KEY_URL = "/admin/cache/invalidate/"
PATTERN_URL = "/admin/cache/invalidate-pattern"
CLEAR_URL = "/admin/cache/clear"
STATS_URL = "/admin/cache/stats"
ERROR = {"status": "error"}
SUCCESS = {"status": "success"}


@pytest.fixture
def cache() -> Any:
    cache: lapse.TTLCache[Any, Any] = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many({"users:1": 1, "users:2": 2, "orders:1": 3})
    return cache


@pytest.fixture
def admin(cache):
    with AdministrativeInvalidation(cache) as admin:
        yield admin


@pytest.fixture
def client(admin) -> Any:
    return admin.app.test_client()


def test_a_key(cache, client):
    """An entry that was there answers success, one that was not error, as in the reference."""
    for expected in (SUCCESS, ERROR):
        answer = client.delete(KEY_URL + "users:1")
        assert (answer.status_code, answer.get_json()) == (200, expected)
    assert set(cache) == {"users:2", "orders:1"}


def test_a_pattern(cache, client):
    """The answer to a pattern counts what went."""
    answer = client.post(PATTERN_URL, json={"pattern": "users:*"})
    assert (answer.status_code, answer.get_json()) == (200, SUCCESS | {"count": 2})
    assert client.post(PATTERN_URL, json={"pattern": "users:*"}).get_json()["count"] == 0
    assert set(cache) == {"orders:1"}


def test_clear(cache, client):
    """Clearing removes everything."""
    answer = client.delete(CLEAR_URL)
    assert (answer.status_code, answer.get_json()) == (200, SUCCESS)
    assert len(cache) == 0


def test_stats(cache, client):
    """Statistics are the cache's own."""
    cache.get("users:1")
    answer = client.get(STATS_URL)
    assert answer.status_code == 200
    assert (answer.get_json()["size"], answer.get_json()["hits"]) == (3, 1)
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_dry_run(cache, admin, client):
    """A dry run counts what a pattern matches, and removes nothing."""
    body = {"pattern": "users:*", "dry_run": True}
    for _ in range(2):
        assert client.post(PATTERN_URL, json=body).get_json() == SUCCESS | {"count": 2}
    assert len(cache) == 3
    assert admin.stats().invalidations == 0
    assert client.post(PATTERN_URL, json=body | {"dry_run": False}).get_json()["count"] == 2


@pytest.mark.parametrize("body", [{}, {"pattern": ""}, {"pattern": None}, {"patern": "users:*"}])
def test_no_pattern(cache, client, body):
    """Without a pattern the answer is the reference's, with the status 400."""
    answer = client.post(PATTERN_URL, json=body)
    assert answer.status_code == 400
    assert answer.get_json() == ERROR | {"message": "Pattern required"}
    assert len(cache) == 3


@pytest.mark.parametrize(
    "body",
    [
        {"pattern": 5},
        {"pattern": ["users:*"]},
        {"pattern": "x" * 1025},
        {"pattern": "users:*", "dry_run": 1},
        {"pattern": "users:*", "dryrun": True},
        ["users:*"],
        "users:*",
    ],
)
def test_malformed_patterns(cache, client, body):
    """A pattern that is none, or a field that is misspelt, is 400, and nothing goes."""
    answer = client.post(PATTERN_URL, json=body)
    assert (answer.status_code, answer.get_json()["status"]) == (400, "error")
    assert len(cache) == 3


def test_the_content_type(cache, client):
    """A pattern that does not say it is JSON is 415; one above 64 KiB is 413."""
    assert client.post(PATTERN_URL, data=b'{"pattern": "*"}').status_code == 415
    large = {"pattern": "*", "x": "x" * 70_000}
    assert client.post(PATTERN_URL, json=large).status_code == 413
    assert len(cache) == 3


# --- Tokens ---

TOKENS = {"r" * 32: "read", "k" * 32: "key", "p" * 32: "pattern", "c" * 32: "clear"}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("hashed", [False, True])
def test_scopes(cache, hashed):
    """Each scope may do what it says and what lies below; tokens are given plain or hashed."""
    tokens = {hash_token(t) if hashed else t: scope for t, scope in TOKENS.items()}
    client = AdministrativeInvalidation(cache, tokens=tokens).app.test_client()
    calls = {
        "read": lambda **sent: client.get(STATS_URL, **sent),
        "key": lambda **sent: client.delete(KEY_URL + "x", **sent),
        "pattern": lambda **sent: client.post(PATTERN_URL, json={"pattern": "x*"}, **sent),
        "clear": lambda **sent: client.delete(CLEAR_URL, **sent),
        "star": lambda **sent: client.post(PATTERN_URL, json={"pattern": "*"}, **sent),
    }
    allowed = {
        scope: [name for name, call in calls.items() if call(headers=bearer(t)).status_code == 200]
        for t, scope in TOKENS.items()
    }
    assert allowed == {
        "read": ["read"],
        "key": ["read", "key"],
        "pattern": ["read", "key", "pattern"],
        "clear": ["read", "key", "pattern", "clear", "star"],
    }
    answer = calls["clear"](headers=bearer("p" * 32))
    assert answer.status_code == 403
    assert answer.get_json() == ERROR | {"message": "This needs the scope 'clear'"}


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer " + "c" * 31},
        {"Authorization": "Bearer " + "c" * 33},
        {"Authorization": "Bearer " + "C" * 32},
        {"Authorization": "Bearer " + "c" * 32 + ", Bearer " + "c" * 32},
        {"Authorization": "Bearer " + hash_token("c" * 32)},
        {"Authorization": "Basic " + "c" * 32},
        {"Authorization": "c" * 32},
        {"Authorization": "Bearer \u00ff\u00e9"},
        {"Authorization": "Bearer " + "x" * 20_000},
        {"X-Token": "c" * 32},
        {"Cookie": "token=" + "c" * 32},
    ],
)
def test_wrong_tokens(cache, sent):
    """Without a token, with a wrong one or with a hash: 401, told to bear one; nothing goes."""
    admin = AdministrativeInvalidation(cache, tokens=TOKENS)
    client = admin.app.test_client()
    answers = [
        client.get(STATS_URL, headers=sent),
        client.delete(KEY_URL + "users:1", headers=sent),
        client.post(PATTERN_URL, json={"pattern": "users:*"}, headers=sent),
        client.post(PATTERN_URL, data=b"x" * 100_000, headers=sent),
        client.delete(CLEAR_URL + "?token=" + "c" * 32, headers=sent),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.headers["WWW-Authenticate"] for answer in answers} == {"Bearer"}
    assert {answer.get_json()["status"] for answer in answers} == {"error"}
    assert len(cache) == 3


def test_the_word_bearer(cache):
    """The kind of authorization may be in any case."""
    client = AdministrativeInvalidation(cache, tokens=TOKENS).app.test_client()
    for kind in ("bearer", "BEARER", "Bearer "):
        headers = {"Authorization": f"{kind} {'c' * 32}"}
        assert client.get(STATS_URL, headers=headers).status_code == 200


def test_a_token_admits_from_elsewhere(cache):
    """With tokens other machines are served, under any name of this one, by a proxy too."""
    client = AdministrativeInvalidation(cache, tokens=TOKENS).app.test_client()
    headers = bearer("r" * 32) | {"Host": "cache.example.org", "X-Forwarded-For": "10.0.0.9"}
    answer = client.get(STATS_URL, headers=headers, environ_overrides={"REMOTE_ADDR": "10.0.0.7"})
    assert answer.status_code == 200


# --- The audit log ---


def test_the_audit_log(cache, caplog):
    """Each change is a line that says who, from where, what, and how many went; reading is not."""
    caplog.set_level(logging.INFO, "lapse.audit")
    client = AdministrativeInvalidation(cache, tokens=TOKENS).app.test_client()
    sent = {"headers": bearer("c" * 32), "environ_overrides": {"REMOTE_ADDR": "10.0.0.7"}}
    client.delete(KEY_URL + "users:1", **sent)
    client.post(PATTERN_URL, json={"pattern": "users:*"}, **sent)
    client.post(PATTERN_URL, json={"pattern": "users:*", "dry_run": True}, **sent)
    client.delete(CLEAR_URL, **sent)
    client.get(STATS_URL, **sent)
    client.delete(CLEAR_URL)
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    who = {"who": f"token {hash_token('c' * 32)[7:19]}", "address": "10.0.0.7"}
    assert lines == [
        who | {"what": "key", "target": "'users:1'", "removed": 1},
        who | {"what": "pattern", "target": "'users:*'", "removed": 1},
        who | {"what": "all", "removed": 1},
    ]
    assert "c" * 32 not in caplog.text


def test_the_audit_log_cannot_be_forged(client, caplog):
    """Line ends and control characters of a key stay within its line."""
    caplog.set_level(logging.INFO, "lapse.audit")
    for key in ("a\nINFO:lapse.audit:{}", "a\r\x1b[2J", "\u2028\u0085x", "y" * 4000):
        client.delete(KEY_URL + quote(key, safe=""))
    for record in caplog.records:
        line = record.getMessage()
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 400
    assert len(caplog.records) == 4
    assert json.loads(caplog.records[0].getMessage())["who"] == "loopback"


# --- Failures ---


def test_a_cache_that_fails(caplog):
    """What the cache raises is 503 without details, and is in the log."""
    client = AdministrativeInvalidation(Broken()).app.test_client()
    answers = [
        client.delete(KEY_URL + "x"),
        client.post(PATTERN_URL, json={"pattern": "x*"}),
        client.post(PATTERN_URL, json={"pattern": "x*", "dry_run": True}),
        client.delete(CLEAR_URL),
        client.get(STATS_URL),
    ]
    for answer in answers:
        assert (answer.status_code, answer.get_json()["status"]) == (503, "error")
        assert b"hunter2" not in answer.data
    assert caplog.text.count("hunter2") >= 5


def test_a_cache_of_the_reference():
    """Any object with the reference's methods will do; its own numbers are answered."""

    class Plain:
        def __init__(self) -> None:
            self.entries = {"a:1": 1, "a:2": 2, "b": 3}

        def delete(self, key: str) -> bool:
            return self.entries.pop(key, None) is not None

        def delete_pattern(self, pattern: str) -> int:
            return sum(self.delete(key) for key in list(self.entries) if key[:1] == pattern[:1])

        def clear(self) -> None:
            self.entries.clear()

        def get_stats(self) -> dict[str, Any]:
            return {"cache_size": len(self.entries)}

    client = AdministrativeInvalidation(Plain()).app.test_client()
    assert client.delete(KEY_URL + "b").get_json() == SUCCESS
    assert client.delete(KEY_URL + "b").get_json() == ERROR
    assert client.post(PATTERN_URL, json={"pattern": "a*"}).get_json() == SUCCESS | {"count": 2}
    assert client.delete(CLEAR_URL).get_json() == SUCCESS
    assert client.get(STATS_URL).get_json() == {"cache_size": 0}


def test_other_methods(client):
    """What changes anything is no GET; a wrong method is 405 and says which is right."""
    for method, path, allowed in [
        ("GET", KEY_URL + "users:1", "DELETE"),
        ("POST", KEY_URL + "users:1", "DELETE"),
        ("GET", PATTERN_URL, "POST"),
        ("DELETE", PATTERN_URL, "POST"),
        ("GET", CLEAR_URL, "DELETE"),
        ("POST", CLEAR_URL, "DELETE"),
        ("OPTIONS", CLEAR_URL, "DELETE"),
    ]:
        answer = client.open(path, method=method)
        assert (answer.status_code, answer.headers["Allow"]) == (405, allowed)
        assert answer.get_json()["status"] == "error"
    assert client.delete("/admin/cache/invalidate").status_code == 404
