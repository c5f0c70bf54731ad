"""The oracle of patterns, `redis_glob`, against `KEYS` of a real server of this test's own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from redis_glob import matches
from servers.valkey import Valkey

ALPHABETS = {
    "all": rb"ab[]^-\*?:",
    "stars": rb"ab*?",
    "brackets": rb"abc[]^-\x",
    "high": b"a\x00\x7f\x80\xff[]^*?",  # without ranges: their ends are signed on a server
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of an empty server on a free port, which keeps its files in a temporary folder."""
    with Valkey(tmp_path_factory.mktemp("valkey")) as server, server.client() as client:
        yield client


def texts(draw: random.Random, alphabet: bytes, count: int, longest: int) -> set[bytes]:
    """Up to `count` different random texts, none of them empty."""
    return {
        bytes(draw.choices(alphabet, k=draw.randint(1, draw.randint(1, longest))))
        for _ in range(count)
    }


def answers(client: Any, patterns: list[bytes]) -> list[list[bytes]]:
    """The keys that match each pattern, in one round trip."""
    pipeline = client.pipeline(transaction=False)
    for pattern in patterns:
        pipeline.keys(pattern)
    found: list[list[bytes]] = pipeline.execute()
    return found


@pytest.mark.parametrize("name", ALPHABETS)
def test_random_patterns_match_what_a_server_says(client: Any, name: str) -> None:
    draw = random.Random(name)
    keys = texts(draw, ALPHABETS[name], 120, 7)
    patterns = [*texts(draw, ALPHABETS[name], 3000, 10), b"", b"*", b"**"]
    client.flushall()
    client.mset(dict.fromkeys(keys, b""))
    matched = 0
    for pattern, found in zip(patterns, answers(client, patterns), strict=True):
        assert {key for key in keys if matches(pattern, key)} == set(found), pattern
        matched += 0 < len(found) < len(keys)
    assert matched > 100


@pytest.mark.parametrize("name", ["all", "stars", "brackets"])
def test_str_and_bytes_match_alike(name: str) -> None:
    draw = random.Random(name)
    keys = texts(draw, ALPHABETS[name], 60, 7) | {b""}
    for pattern in texts(draw, ALPHABETS[name], 300, 8):
        for key in keys:
            assert matches(pattern.decode(), key.decode()) == matches(pattern, key)
            assert not matches(pattern, key.decode())
            assert not matches(pattern.decode(), key)


def test_stars_match_the_empty_key_unlike_on_a_server(client: Any) -> None:
    client.flushall()
    client.set(b"", b"")
    assert answers(client, [b"*", b"", b"**", b"?"]) == [[b""], [b""], [], []]
    assert matches(b"*", b"")
    assert matches(b"**", b"")
