"""Tags: what an entry bears, and what `delete_tag` takes."""

from __future__ import annotations

import copy
import enum
import pickle
import textwrap
from typing import Any

import pytest

from support import Key, check, run_python


class Colour(str, enum.Enum):
    """Its `str()` is not its text."""

    RED = "red"


class Named(str):
    """A str that would give another text away."""

    def __str__(self) -> str:
        return "another"


STORES: dict[str, Any] = {
    "set": lambda c: c.set("a", 2),
    "set with other tags": lambda c: c.set("a", 2, tags=("new",)),
    "set with none": lambda c: c.set("a", 2, tags=()),
    "setitem": lambda c: c.__setitem__("a", 2),
    "set_many": lambda c: c.set_many({"a": 2}),
    "set_many with tags": lambda c: c.set_many([("a", 2)], tags=["new"]),
    "update": lambda c: c.update(a=2),
    "delete and add": lambda c: (c.delete("a"), c.add("a", 2)),
    "expire and add": lambda c: (c.clock.advance(10), c.add("a", 2)),
    "expire and setdefault": lambda c: (c.clock.advance(10), c.setdefault("a", 2)),
    "expire and incr": lambda c: (c.clock.advance(10), c.incr("a", 2)),
    "fill": lambda c: c.fill(c.lease("a"), 2),
    "fill with tags": lambda c: c.fill(c.lease("a"), 2, tags=("new",)),
    "clear and set": lambda c: (c.clear(), c.set("a", 2)),
}


@pytest.mark.parametrize("name", STORES)
def test_storing_again_replaces_the_tags(cache, name):
    """The tags are those of the last store: an old one takes the entry no more."""
    cache.set("a", 1, tags=("old", "older"))
    STORES[name](cache)
    new = {"new"} if "tags" in name and "none" not in name else set()
    assert cache.tags("a") == new
    assert cache.delete_tag("old") == 0
    assert cache["a"] == 2
    assert cache.delete_tag("new") == len(new)
    check(cache)


KEEPS: dict[str, Any] = {
    "incr": lambda c: c.incr("a"),
    "touch": lambda c: c.touch("a", 100),
    "touch_many": lambda c: c.touch_many(["a"]),
    "get": lambda c: (c.get("a"), c["a"], c.gather(["a"])),
    "add": lambda c: c.add("a", 2),
    "setdefault": lambda c: c.setdefault("a", 2),
    "outdated fill": lambda c: c.fill(outdated(c), 2, tags=("new",)),
    "growth": lambda c: c.set_many((n, n) for n in range(5000)),
    "other tags": lambda c: c.delete_tag("other"),
}


def outdated(cache: Any) -> Any:
    lease = cache.lease("a")
    cache.set("a", 1, tags=("x", "y"))
    return lease


@pytest.mark.parametrize("name", KEEPS)
def test_everything_else_keeps_the_tags(cache, name):
    """Reads, touches and sums leave an entry's tags alone."""
    cache.set("a", 1, tags=("x", "y"))
    KEEPS[name](cache)
    assert cache.tags("a") == {"x", "y"}
    check(cache)
    assert cache.delete_tag("y") == 1
    assert cache.tags("a") == frozenset()
    check(cache)


@pytest.mark.parametrize(
    "copied",
    [
        lambda c: c.copy(),
        copy.copy,
        copy.deepcopy,
        lambda c: pickle.loads(pickle.dumps(c)),
        lambda c: c | {},
        lambda c: {} | c,
    ],
)
def test_copies_bear_the_same_tags(cache, copied):
    """Every copy keeps the tags, in an index of its own."""
    many = {f"t{n}" for n in range(40)}
    cache.set("a", 1, tags=("x", "y"))
    cache.set("b", 2)
    cache.set("c", 3, tags=many)
    other = copied(cache)
    assert (other.tags("a"), other.tags("b"), other.tags("c")) == ({"x", "y"}, frozenset(), many)
    assert other.delete_tag("x") == 1
    assert cache.tags("a") == {"x", "y"}
    check(other)


@pytest.mark.parametrize(
    "tags",
    [("x", "y"), ["x", "y"], {"x", "y"}, frozenset("xy"), {"x": 1, "y": 2}, list("xyxy")],
)
def test_any_iterable_of_tags(cache, tags):
    """Tags come in any iterable; one that is named twice is one tag."""
    cache.set("a", 1, tags=tags)
    cache.set("b", 1, None, tags=iter(tags))
    cache.set_many({"c": 1}, tags=(tag for tag in tags))
    assert cache.tags("a") == cache.tags("b") == cache.tags("c") == {"x", "y"}
    assert isinstance(cache.tags("a"), frozenset)
    assert cache.delete_tag("x") == 3
    check(cache)


WRONG = ["x", b"x", None, 5, [b"x"], ["x", None], ("x", 1), [["x"]], [("x",)], Named("x")]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_are_no_tags(cache, wrong):
    """A lone str, and anything but str inside, is TypeError; the entry stays as it was."""
    cache.set("a", 1, tags=("old",))
    lease = cache.lease("b")
    for call in (
        lambda: cache.set("a", 2, tags=wrong),
        lambda: cache.set("a", 2, 5, tags=wrong),
        lambda: cache.set_many({"a": 2}, tags=wrong),
        lambda: cache.lease("a", tags=wrong),
        lambda: cache.fill(lease, 2, tags=wrong),
    ):
        with pytest.raises(TypeError):
            call()
    assert cache["a"] == 1
    assert cache.tags("a") == {"old"}
    assert cache.fill(lease, 2)
    check(cache)


def test_what_are_no_tags_of_a_lease_that_has_some():
    """The same where the tags join those of the lease; in an interpreter of its own."""
    code = """
        import lapse
        cache = lapse.TTLCache(cleanup_interval=None)
        for wrong in (b"x", None, 5, [b"x"], ("x", 1), [["x"]], "x") * 20:
            lease = cache.lease("a", tags=("old",))
            try:
                cache.fill(lease, 1, tags=wrong)
            except TypeError:
                assert "a" not in cache
            else:
                raise SystemExit(f"{wrong!r} was taken for tags")
            assert cache.fill(lease, 2, tags=("new",))
            assert cache.delete_tag("new") == 1
    """
    run = run_python(textwrap.dedent(code))
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("wrong", [b"x", None, 5, ["x"], ("x",)])
def test_what_is_no_tag(cache, wrong):
    """`delete_tag` takes one str."""
    with pytest.raises(TypeError):
        cache.delete_tag(wrong)


def test_an_iterable_that_raises(cache):
    """An exception of the tags' iterator comes through, and nothing is stored."""

    def tags() -> Any:
        yield "x"
        raise OSError("the tags")

    with pytest.raises(OSError, match="the tags"):
        cache.set("a", 1, tags=tags())
    assert "a" not in cache


@pytest.mark.parametrize("tag", [Colour.RED, Named("red")])
def test_subclasses_of_str_count_by_their_text(cache, tag):
    """A tag is its text, whatever its type and its `str()` say."""
    cache.set("a", 1, tags=[tag])
    assert cache.tags("a") == {"red"}
    assert {type(each) for each in cache.tags("a")} == {str}
    assert cache.delete_tag("red") == 1
    cache.set("a", 1, tags=["red"])
    assert cache.delete_tag(tag) == 1


def test_tags_are_compared_whole(cache):
    """Neither part, nor case, nor another spelling of the same glyph is the same tag."""
    tags = ["", "a", "ab", "A", "a ", "a*", "*", "é", "e\u0301", "ж", "\U0001f600", "\0", "\ud800"]
    for n, tag in enumerate(tags):
        cache.set(n, tag, tags=(tag,))
    for n, tag in enumerate(tags):
        assert cache.tags(n) == {tag}
        assert cache.delete_tag(tag) == 1, tag
        assert n not in cache
        assert len(cache) == len(tags) - n - 1
    check(cache)


def test_tags_are_a_namespace_of_their_own(cache):
    """Neither keys, nor patterns, nor the prefixes that are indexed have to do with tags."""
    cache.set_many({f"user:{n}": n for n in range(9000)})
    cache.set("other", 1, tags=("user:", "user:1", "user:*"))
    assert cache.delete_pattern("other:*") == 0
    assert len(cache.get_keys_matching_pattern("user:1*")) == 2111 - 1000
    assert cache.tags("user:1") == frozenset()
    assert cache.tags("user:") == frozenset()
    assert cache.delete_tag("user:1") == 1
    assert cache.delete_tag("user:") == cache.delete_tag("user:2") == 0
    assert len(cache) == 9000
    check(cache)


def test_any_number_of_tags(cache):
    """Ten thousand tags on one key, and each of them takes it."""
    names = [f"tag {n}" for n in range(10_000)]
    for n in range(3):
        cache.set(n, n, tags=names[n:])
    assert cache.tags(0) == set(names)
    assert cache.delete_tag(names[0]) == 1
    assert cache.delete_tag(names[-1]) == 2
    assert not cache
    check(cache)


def test_many_keys_of_one_tag(cache):
    """Keys of every kind, equal hashes included; those of other tags stay."""
    keys = [*range(3000), *map(str, range(3000)), *(Key(n, n % 3) for n in range(30)), (), None]
    for n, key in enumerate(keys):
        cache.set(key, n, tags=("odd" if n % 2 else "even", "all"))
    assert cache.delete_tag("odd") == len(keys) // 2
    assert sorted(cache.values()) == list(range(0, len(keys), 2))
    assert cache.tags(Key(0, 0)) == {"even", "all"}
    assert cache.delete_tag("all") == len(cache.tags("absent")) + (len(keys) + 1) // 2
    assert not cache
    check(cache)


def test_live_entries_count(cache, clock):
    """An expired entry bears no tags, and is not counted."""
    cache.set_many({n: n for n in range(10)}, ttl=1, tags=("x",))
    cache.set_many({n: n for n in range(10, 15)}, ttl=5, tags=("x",))
    clock.advance(1)
    assert cache.tags(1) == frozenset()
    assert cache.delete_tag("x") == 5
    stats = cache.stats()
    assert (stats.tag_deletes, stats.expirations, stats.deletes, stats.size) == (5, 10, 0, 0)


def test_errors_of_tags(cache):
    """`tags` needs a hashable key; after `close` all of it is RuntimeError."""
    with pytest.raises(TypeError):
        cache.tags([])
    cache.close()
    for call in (cache.tags, cache.delete_tag, lambda tag: cache.set("a", 1, tags=(tag,))):
        with pytest.raises(RuntimeError):
            call("x")
