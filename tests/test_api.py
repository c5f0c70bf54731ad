"""APIInvalidation: one route for keys, patterns, tables, tags and all, and its tokens."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

pytest.importorskip("flask", reason="the extra `web` is not installed")

import lapse
from lapse.web.api import APIInvalidation
from web_support import Broken, ask, served

URL = "/api/cache/invalidate"
ERROR = {"status": "error"}
SUCCESS = {"status": "success"}


@pytest.fixture
def cache() -> Any:
    cache: lapse.TTLCache[Any, Any] = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many({"users:1": 1, "users:2": 2, "u*:1": 3, 7: 4, None: 5, "": 6})
    cache.set("page", 7, tags=["news"])
    return cache


@pytest.fixture
def client(cache):
    with APIInvalidation(cache) as api:
        yield api.app.test_client()


@pytest.mark.parametrize(
    ("message", "answer", "gone"),
    [
        ({"type": "key", "key": "users:1"}, SUCCESS, {"users:1"}),
        ({"type": "key", "key": 7}, SUCCESS, {7}),
        ({"type": "key", "key": None}, SUCCESS, {None}),
        ({"type": "key", "key": ""}, SUCCESS, {""}),
        ({"type": "key", "key": "nobody"}, ERROR, set()),
        ({"type": "pattern", "pattern": "users:*"}, SUCCESS | {"count": 2}, {"users:1", "users:2"}),
        ({"type": "pattern", "pattern": "nobody:*"}, SUCCESS | {"count": 0}, set()),
        ({"type": "table", "table": "users"}, SUCCESS | {"count": 2}, {"users:1", "users:2"}),
        ({"type": "table", "table": "u*"}, SUCCESS | {"count": 1}, {"u*:1"}),
        ({"type": "tag", "tag": "news"}, SUCCESS | {"count": 1}, {"page"}),
        ({"type": "all"}, SUCCESS, {"users:1", "users:2", "u*:1", 7, None, "", "page"}),
    ],
)
def test_messages(cache, client, message, answer, gone):
    """Each type removes what it names; key answers success or error, the others a count."""
    before = set(cache)
    got = client.post(URL, json=message)
    assert (got.status_code, got.get_json()) == (200, answer)
    assert before - set(cache) == gone


@pytest.mark.parametrize(
    "message",
    [
        {"type": "invalidate_key", "key": "users:1"},
        {"type": "clear_all"},
        {"type": "batch", "items": [{"type": "key", "key": "users:1"}]},
        {"type": "invalidation", "invalidation_type": "key", "key": "users:1"},
        {"type": "keys"},
        {"type": 5},
        {"key": "users:1"},
    ],
)
def test_unknown_types(cache, client, message):
    """Types of other interfaces and unknown ones are 400, where the reference answers 200."""
    answer = client.post(URL, json=message)
    assert answer.status_code == 400
    assert answer.get_json() == ERROR | {"message": "Invalid invalidation type"}
    assert len(cache) == 7


@pytest.mark.parametrize(
    "message",
    [
        {"type": "key"},
        {"type": "key", "key": {}},
        {"type": "key", "key": ["users:1"]},
        {"type": "key", "key": "x" * 5000},
        {"type": "pattern", "key": "users:*"},
        {"type": "pattern", "pattern": None},
        {"type": "pattern", "pattern": "x" * 1025},
        {"type": "table", "table": 7},
        {"type": "tag", "tag": ["news"]},
        [],
        "key",
    ],
)
def test_malformed_messages(cache, client, message):
    """A message without its target, or with one of the wrong type or size, is 400."""
    answer = client.post(URL, json=message)
    assert (answer.status_code, answer.get_json()["status"]) == (400, "error")
    assert len(cache) == 7


def test_bodies(cache, client):
    """415 for what is not said to be JSON, 413 above 64 KiB, 400 for what is none."""
    assert client.post(URL, data=b'{"type": "all"}').status_code == 415
    assert client.post(URL, json={"type": "all", "x": "x" * 66_000}).status_code == 413
    for body in (b"{", b"[" * 60_000, b"\xff", b'{"type": "all", "x": Infinity}'):
        answer = client.post(URL, data=body, content_type="application/json")
        assert answer.status_code == 400
    assert len(cache) == 7


def test_scopes(cache):
    """A key needs the scope key; patterns, tables and tags need pattern; all and "*" need clear."""
    tokens = {"r" * 20: "read", "k" * 20: "key", "p" * 20: "pattern", "c" * 20: "clear"}
    api = APIInvalidation(cache, tokens=tokens)
    client = api.app.test_client()
    messages = {
        "key": {"type": "key", "key": "users:1"},
        "pattern": {"type": "pattern", "pattern": "users:*"},
        "table": {"type": "table", "table": "*"},
        "tag": {"type": "tag", "tag": "news"},
        "star": {"type": "pattern", "pattern": "*"},
        "any": {"type": "pattern", "pattern": "?*[^x]"},
        "all": {"type": "all"},
    }

    def allowed(token: str) -> list[str]:
        headers = {"Authorization": f"Bearer {token}"}
        answers = {n: client.post(URL, json=m, headers=headers) for n, m in messages.items()}
        assert {answer.status_code for answer in answers.values()} <= {200, 403}
        return [name for name, answer in answers.items() if answer.status_code == 200]

    assert allowed("r" * 20) == []
    assert allowed("k" * 20) == ["key"]
    assert allowed("p" * 20) == ["key", "pattern", "table", "tag"]
    assert "" in cache
    assert allowed("c" * 20) == list(messages)
    assert client.post(URL, json=messages["all"]).status_code == 401
    assert api.stats().refused == {"scope": 7 + 6 + 3, "no_token": 1}


def test_the_audit_log(client, caplog):
    """What is refused is not in the audit log; what is applied is, also if nothing went."""
    caplog.set_level(logging.INFO, "lapse.audit")
    client.post(URL, json={"type": "nonsense"})
    client.post(URL, json={"type": "table", "table": "users"})
    client.post(URL, json={"type": "tag", "tag": "nobody's"})
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(each["what"], each["target"], each["removed"]) for each in lines] == [
        ("table", "'users'", 2),
        ("tag", '"nobody\'s"', 0),
    ]


def test_a_cache_that_fails():
    """What the cache raises is 503 without details."""
    api = APIInvalidation(Broken())
    client = api.app.test_client()
    for message in ({"type": "key", "key": "x"}, {"type": "tag", "tag": "x"}, {"type": "all"}):
        answer = client.post(URL, json=message)
        assert (answer.status_code, answer.get_json()["status"]) == (503, "error")
        assert b"hunter2" not in answer.data
    assert api.stats().refused == {"failed": 3}


def test_over_a_socket(cache):
    """Behind waitress the answers are the same."""
    with served(APIInvalidation(cache)) as address:
        answer = ask(address, "POST", URL, {"type": "table", "table": "users"})
        assert (answer.status, answer.body) == (200, SUCCESS | {"count": 2})
        assert ask(address, "GET", URL).status == 405
        large = ask(address, "POST", URL, {"type": "all", "x": "x" * 70_000})
        assert (large.status, large.body["status"]) == (413, "error")
    assert len(cache) == 5
