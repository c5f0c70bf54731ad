"""Selecting keys by pattern: the native matcher, `escape`, and the prefix index."""

from __future__ import annotations

import enum
import random
import re
import sys
import time
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

import lapse
from redis_glob import matches
from support import check

SPECIAL = "*?[]\\^-:"
ALPHABETS = {  # by the width of a unit
    "latin": "abé" + SPECIAL,
    "two bytes": "abéńж" + SPECIAL,
    "four bytes": "aéж\U0001f600\U0001f601" + SPECIAL,
    "surrogates": "a\ud800\udfff\uffff" + SPECIAL,
}
USUAL = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))
texts = st.text("ab12éж\U0001f600" + SPECIAL, max_size=8)


def cache_of(keys: Any, **options: Any) -> Any:
    """A cache that holds `keys`, for ever."""
    cache = lapse.TTLCache(None, cleanup_interval=None, **options)
    cache.set_many(dict.fromkeys(keys))
    return cache


class Text(str):
    """A str of another type."""


class Names(str, enum.Enum):
    """Its `str()` is not its text."""

    USERS = "user:*"


# --- The matcher -------------------------------------------------------------------------------


def random_texts(draw: random.Random, alphabet: str, count: int, longest: int) -> list[str]:
    return ["".join(draw.choices(alphabet, k=draw.randint(0, longest))) for _ in range(count)]


@pytest.mark.parametrize("alphabet", [*ALPHABETS, "bytes"])
def test_many_random_pairs(alphabet):
    """20,000 pairs of each width: the native matcher says what the oracle says."""
    draw = random.Random(alphabet)
    letters = ALPHABETS.get(alphabet, "abéÿ\0" + SPECIAL)
    keys: list[Any] = random_texts(draw, letters, 100, 6)
    patterns: list[Any] = random_texts(draw, letters + "**?", 200, 8)
    if alphabet == "bytes":
        keys, patterns = ([t.encode("latin-1") for t in each] for each in (keys, patterns))
    cache, some = cache_of(keys), 0
    for pattern in patterns:
        found = cache.get_keys_matching_pattern(pattern)
        assert sorted(found) == sorted(key for key in cache if matches(pattern, key)), pattern
        some += 0 < len(found) < len(cache)
    assert some > 10


@USUAL
@given(keys=st.sets(texts), pattern=texts)
def test_any_pattern(keys, pattern):
    """What a pattern lists, and what it deletes, is what the oracle says."""
    cache = cache_of(keys)
    matching = {key for key in keys if matches(pattern, key)}
    assert set(cache.get_keys_matching_pattern(pattern)) == matching
    assert cache.delete_pattern(pattern) == len(matching)
    assert set(cache) == keys - matching


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*", ["", "a", "a:b"], []),
        ("", [""], ["a"]),
        ("a?c", ["abc", "aéc"], ["ac", "abbc"]),
        ("a*c", ["ac", "abc", "abcbc"], ["ab", "bac"]),
        ("[a-c]", ["a", "b", "c"], ["d", "-", "ab", ""]),
        ("[c-a]", ["a", "b", "c"], ["d"]),
        ("[^a]", ["b", "^"], ["a", ""]),
        ("[!a]", ["!", "a"], ["b"]),
        ("[]", [], ["]", ""]),
        ("[^]", ["a", "]"], [""]),
        ("[a", ["a"], ["[a"]),
        ("[\\]a]", ["]", "a"], ["\\"]),
        ("\\*", ["*"], ["a", "\\*"]),
        ("a\\", ["a\\"], ["a"]),
        ("A*", ["A", "Ab"], ["a"]),
        ("**a**", ["a", "bab"], ["b"]),
        ("a.c", ["a.c"], ["abc"]),
        ("a\n*", ["a\nb"], ["a"]),
    ],
)
def test_the_dialect(pattern, yes, no):
    """Case by case, for str and for bytes; a pattern covers the whole key."""
    assert sorted(cache_of([*yes, *no]).get_keys_matching_pattern(pattern)) == sorted(yes)
    as_bytes = cache_of(key.encode("latin-1") for key in [*yes, *no])
    found = as_bytes.get_keys_matching_pattern(pattern.encode())
    assert sorted(key.decode("latin-1") for key in found) == sorted(yes)


def test_a_pattern_made_to_be_slow():
    """Fifty stars against ten thousand letters take milliseconds: nothing is tried twice."""
    cache = cache_of(["a" * 10_000])
    took = []
    for _ in range(3):
        start = time.process_time()
        assert cache.delete_pattern("a*" * 50 + "b") == 0
        took.append(time.process_time() - start)
    assert min(took) < 0.05


def test_keys_of_other_types(make):
    """A str pattern meets str keys only, a bytes pattern bytes keys; no other key ever matches."""
    cache = make()
    others = [1, 1.5, None, ("a",), frozenset("a"), True]
    cache.set_many(dict.fromkeys(["a", b"a", *others]))
    assert cache.get_keys_matching_pattern("*") == ["a"]
    assert cache.get_keys_matching_pattern(b"*") == [b"a"]
    assert cache.delete_pattern("*") == cache.delete_pattern(b"?") == 1
    assert cache.delete_pattern("1") == 0
    assert set(cache) == set(others)


def test_subclasses_of_str_count_by_their_text(make):
    """Keys, patterns and tables may be of any subclass of str, whatever its `str()` says."""
    cache = make()
    cache.set_many(dict.fromkeys([Text("user:1"), "user:2", Text("other")]))
    assert len(cache.get_keys_matching_pattern(Names.USERS)) == 2
    assert cache.delete_pattern(Text("user:1")) == 1
    assert cache.invalidate_table(Text("user")) == 1
    assert cache.delete_pattern("o*") == 1


@pytest.mark.parametrize("unit", ["a", "?", "ж", "\U0001f600", "*", b"a", b"?"])
def test_the_length_of_a_pattern(cache, unit):
    """1,024 units are accepted; one more is ValueError, and nothing is removed."""
    key = unit * 1024
    cache.set(key, 1)
    for call in (
        cache.delete_pattern, cache.get_keys_matching_pattern, cache.invalidate_pattern,
        cache.invalidate_table,
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"1,?024"):
            call(unit * 1025)
    assert cache.get_keys_matching_pattern(key) == [key]
    assert cache.delete_pattern(key) == 1


WRONG = pytest.mark.parametrize("wrong", [None, 1, ["a*"], bytearray(b"a*"), ("a",)])


@WRONG
def test_what_is_no_pattern(cache, wrong):
    """A pattern, or a table, that is neither str nor bytes is TypeError."""
    for call in (
        cache.delete_pattern, cache.get_keys_matching_pattern, cache.invalidate_pattern,
        cache.invalidate_table,
    ):  # fmt: skip
        with pytest.raises(TypeError):
            call(wrong)


# --- escape ------------------------------------------------------------------------------------


@USUAL
@given(text=st.text(SPECIAL + "ab!ж", max_size=12), others=st.sets(texts))
def test_an_escaped_text_matches_itself_only(text, others):
    """Whatever a user wrote stands for itself; behind it a star is a star again."""
    cache = cache_of(others | {text})
    assert cache.get_keys_matching_pattern(lapse.escape(text)) == [text]
    longer = {key for key in cache if key.startswith(text)}
    assert set(cache.get_keys_matching_pattern(lapse.escape(text) + "*")) == longer
    assert cache.delete_pattern(lapse.escape(text)) == 1
    assert set(cache) == others - {text}


@USUAL
@given(text=st.binary(max_size=12))
def test_escaped_bytes(text):
    """The same for bytes."""
    cache = cache_of([text, text + b"a", b"a" + text])
    assert cache.get_keys_matching_pattern(lapse.escape(text)) == [text]
    assert matches(lapse.escape(text) + b"?", text + b"a")


@WRONG
def test_what_cannot_be_escaped(wrong):
    """`escape` too takes str and bytes, and says TypeError of anything else."""
    with pytest.raises(TypeError):
        lapse.escape(wrong)


@pytest.mark.parametrize("table", ["a", "a*", "[ab]", "?", "\\", "", "ж", b"a*", b"[\xff]"])
def test_a_table_is_a_plain_name(cache, table):
    """`invalidate_table` removes what begins with that very name and a colon."""
    colon, letter = (b":", b"a") if isinstance(table, bytes) else (":", "a")
    inside = {table + colon, table + colon + letter, table + colon + letter + colon}
    outside = {table, letter + colon + letter + letter, table + letter + colon}
    cache.set_many(dict.fromkeys(inside | outside))
    gone = {key for key in inside | outside if key.startswith(table + colon)}
    assert cache.invalidate_table(table) == len(gone)
    assert set(cache) == (inside | outside) - gone


# --- Many keys ---------------------------------------------------------------------------------


def test_live_keys_only(make, clock):
    """Expired entries are neither listed nor counted, but they go with the others."""
    cache = make()
    cache.set_many({f"a{n}": n for n in range(100)}, ttl=1)
    cache.set_many({f"a{n}": n for n in range(100, 150)}, ttl=5)
    clock.advance(1)
    assert len(cache.get_keys_matching_pattern("a*")) == 50
    assert cache.delete_pattern("a*") == 50
    assert cache.expire() == 0
    stats = cache.stats()
    assert (stats.pattern_deletes, stats.expirations, stats.size) == (50, 100, 0)


def test_many_patterns_in_one_pass(make):
    """Each entry counts once, for the first pattern that matches it."""
    cache = make()
    cache.set_many(dict.fromkeys([f"{table}:{n}" for table in "abc" for n in range(100)]))
    patterns = ["a:1*", "a:*", "b:5", "[bc]:[0-4]", "a:1*", "c:99"]
    assert cache._invalidate_patterns(patterns) == [11, 89, 1, 10, 0, 1]
    assert len(cache) == 200 - 12
    with pytest.raises(TypeError):
        cache._invalidate_patterns(["b:*", 5])
    assert len(cache) == 200 - 12
    check(cache)


PLACES = ["a", "b", "long name", "ж", "\U0001f600", ""]


def deep_keys(draw: random.Random, count: int) -> list[str]:
    """Keys of one to nine colons, few names in each place."""
    return [
        ":".join([*draw.choices(PLACES, k=n % 9 + 1), str(n)])
        for n in draw.sample(range(99_999), count)
    ]


def without_index(pattern: str) -> str:
    """The same pattern without a literal head: it looks at every key."""
    return f"[{pattern[0]}]{pattern[1:]}"


def same_either_way(cache: Any, draw: random.Random) -> None:
    """Holds the index to a look at every key, on patterns of all depths."""
    keys = [key for key in cache if isinstance(key, str)]
    for depth in range(1, 10):
        for tail in ("*", "?*1*", "*:*[0-4]"):
            start = (
                ":".join(draw.choices(PLACES[:5], k=1) + draw.choices(PLACES, k=depth - 1)) + ":"
            )
            expression = re.compile(re.escape(start) + tail.replace("?", ".").replace("*", ".*"))
            expected = sorted(key for key in keys if expression.fullmatch(key))
            assert sorted(cache.get_keys_matching_pattern(start + tail)) == expected
            assert sorted(cache.get_keys_matching_pattern(without_index(start + tail))) == expected


def test_the_index_finds_what_a_look_at_every_key_finds(make, clock):
    """Before and after inserts, deletes, expiry and clear, at every depth."""
    draw = random.Random(1)
    cache = make(100)
    cache.set_many(dict.fromkeys(deep_keys(draw, 12_000)))
    cache.set_many(dict.fromkeys([b"a:1", b"a:b:1", 5, ("a:b",)]))
    plain = sys.getsizeof(cache)
    same_either_way(cache, draw)
    assert sys.getsizeof(cache) > plain + 12_000 * 32  # it is there
    cache.set_many(dict.fromkeys(deep_keys(draw, 4000)), ttl=1, tags=("a:",))
    same_either_way(cache, draw)
    cache.delete_many(list(cache)[::3])
    start = len(cache.get_keys_matching_pattern("[b]:a:*"))
    assert cache.delete_pattern("b:a:*") == start > 0
    same_either_way(cache, draw)
    check(cache)
    clock.advance(1)
    same_either_way(cache, draw)
    cache.expire()
    same_either_way(cache, draw)
    check(cache)
    cache.clear()
    assert sys.getsizeof(cache) < plain
    cache.set_many(dict.fromkeys(deep_keys(draw, 12_000)))
    same_either_way(cache, draw)
    check(cache)


def test_a_small_cache_keeps_no_index():
    """Up to a few thousand keys a look at all of them is cheap, and costs no memory."""
    cache = cache_of(f"{n % 5}:{n}" for n in range(3000))
    before = sys.getsizeof(cache)
    assert cache.delete_pattern("7:*") == 0
    assert sys.getsizeof(cache) == before
