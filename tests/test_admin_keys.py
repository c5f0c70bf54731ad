"""Keys in the paths of AdministrativeInvalidation: every text reaches its entry, and no other."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

pytest.importorskip("flask", reason="the extra `web` is not installed")

import lapse
from lapse.web.admin import AdministrativeInvalidation
from web_support import ask, raw, served

KEY_URL = "/admin/cache/invalidate/"
ERROR = {"status": "error"}
SUCCESS = {"status": "success"}

KEYS = [
    "a/b", "/a", "//a//b", "a/", "/", "", "a//b", ".", "..", "../x", "a/../b", "a/./b", "%2F",
    "a%2Fb", "a b", "a+b", "?", "a?type=int", "#", "a;b=c", "a&b", "\u00e9\u4e2d\U0001f600", "\n",
    "a\nb", "\r\n", "\x00", "\\", '"', "'", "<script>", "http://x/y", "invalidate/", "7", "\u2028",
    "-pattern", "~user", ":", "a:b:c", "*",
]  # fmt: skip


@pytest.fixture
def cache() -> Any:
    cache: lapse.TTLCache[Any, Any] = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many({"users:1": 1, "users:2": 2, "orders:1": 3})
    return cache


@pytest.fixture
def client(cache) -> Any:
    return AdministrativeInvalidation(cache).app.test_client()


@pytest.mark.parametrize("key", KEYS, ids=ascii)
def test_keys_in_paths(key):
    """Whatever a key is made of, its percent-encoded form in the path reaches it, and only it."""
    cache = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many(dict.fromkeys([*KEYS, "other"], 1))
    with AdministrativeInvalidation(cache) as admin:
        client = admin.app.test_client()
        answer = client.delete(KEY_URL + quote(key, safe=""))
        assert (answer.status_code, answer.get_json()) == (200, SUCCESS)
        assert set(cache) == {*KEYS, "other"} - {key}
        assert client.delete(KEY_URL + quote(key, safe="")).get_json() == ERROR


def test_keys_in_paths_over_a_socket():
    """The same behind waitress."""
    cache = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many(dict.fromkeys([*KEYS, "other"], 1))
    with served(AdministrativeInvalidation(cache)) as address:
        for key in KEYS:
            answer = ask(address, "DELETE", KEY_URL + quote(key, safe=""))
            assert (answer.status, answer.body) == (200, SUCCESS), ascii(key)
            assert key not in cache
    assert set(cache) == {"other"}


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (b"a/b", "a/b"),
        (b"a%2Fb", "a/b"),
        (b"a%2fb", "a/b"),
        (b"a%252Fb", "a%2Fb"),
        (b"/a", "/a"),
        (b"a//b/", "a//b/"),
        (b"a/../b", "a/../b"),
        (b"a+b", "a+b"),
        (b"a%", "a%"),
        (b"a%zz", "a%zz"),
        (b"%C3%A9", "\u00e9"),
    ],
)
def test_what_a_path_means(path, key):
    """Slashes and dots are part of a key, encoded or not, and nothing is decoded twice."""
    cache = lapse.TTLCache(60, cleanup_interval=None)
    cache.set_many({key: 1, "other": 2})
    with served(AdministrativeInvalidation(cache)) as address:
        host = b"localhost:%d" % address[1]
        for target in (KEY_URL.encode() + path, b"http://" + host + KEY_URL.encode() + path):
            cache[key] = 1
            answer = raw(address, b"DELETE %s HTTP/1.1\r\nHost: %s\r\n\r\n" % (target, host))
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            assert set(cache) == {"other"}


def test_keys_that_are_no_text(cache):
    """Bytes that are not UTF-8 are 400, and never another key."""
    cache["\ufffd"] = 1
    with served(AdministrativeInvalidation(cache)) as address:
        for path in ("%FF", "%C3", "a%ED%A0%80"):
            assert ask(address, "DELETE", KEY_URL + path).status == 400
    assert "\ufffd" in cache


def test_whole_numbers(cache, client):
    """With type=int a key is a number; without it, it is text."""
    cache.set_many({7: 1, "7": 2, -8: 3})
    assert client.delete(KEY_URL + "7?type=int").get_json() == SUCCESS
    assert "7" in cache
    assert client.delete(KEY_URL + "-8?type=int").get_json() == SUCCESS
    assert client.delete(KEY_URL + "7").get_json() == SUCCESS
    for path in ("x?type=int", "1.0?type=int", "%20%207?type=int", "\u0667?type=int",
                 "1_0?type=int", "?type=int", "7?type=float", "9" * 40 + "?type=int"):  # fmt: skip
        assert client.delete(KEY_URL + path).status_code == 400
    assert set(cache) == {"users:1", "users:2", "orders:1"}


def test_long_keys(client):
    """A key longer than any that a message may name is 400."""
    assert client.delete(KEY_URL + "x" * 4096).status_code == 200
    assert client.delete(KEY_URL + "x" * 4097).status_code == 400
