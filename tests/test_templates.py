"""Templates: what follows from a changed row, and what happens where one cannot be filled in."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import lapse
from lapse.invalidation import Invalidation, OptimizedInvalidation
from lapse.sources.templates import Templates


def update(old: Any, new: Any, table: str = "users", **more: Any) -> dict[str, Any]:
    """A change of a row."""
    return {"table": table, "operation": "update", "old": old, "new": new, **more}


def targets(templates: Templates, change: Any) -> list[tuple[str, Any]]:
    """Kind and target of what follows."""
    return [(item.kind, item.target) for item in templates(change)]


ADA, AUGUSTA = {"id": 1, "email": "a@"}, {"id": 1, "email": "b@"}


class TestFilling:
    """Columns in braces."""

    def test_old_and_new_row(self):
        """Both rows count, and what follows from both follows once."""
        templates = Templates(keys={"users": ["user:{id}", "email:{email}"]})
        assert targets(templates, update(ADA, AUGUSTA)) == [
            ("key", "user:1"), ("key", "email:a@"), ("key", "email:b@"),
        ]  # fmt: skip

    def test_one_row(self):
        """An insert has a new row only, a delete an old one."""
        templates = Templates(keys={"users": "email:{email}"})
        assert targets(templates, update(None, ADA)) == [("key", "email:a@")]
        assert targets(templates, update(ADA, None)) == [("key", "email:a@")]

    def test_every_kind(self):
        """Keys, tags and patterns of one table all follow."""
        templates = Templates({"users": "u:{id}"}, {"users": "user-{id}"}, {"users": "u:{id}:*"})
        assert targets(templates, update(None, ADA)) == [
            ("key", "u:1"), ("tag", "user-1"), ("pattern", "u:1:*"),
        ]  # fmt: skip

    def test_columns_are_escaped_in_patterns(self):
        """What a row holds matches only itself; the template's own wildcards are wildcards."""
        cache = lapse.TTLCache(None, cleanup_interval=None)
        cache.update({"c:*:1": 1, "c:x:1": 2, "c:[a]:1": 3})
        templates = Templates(patterns={"users": "c:{name}:*"})
        with OptimizedInvalidation(cache, start=False) as queue:
            queue.apply(templates(update({"name": "*"}, {"name": "[a]"})))
        assert list(cache) == ["c:x:1"]

    def test_formats(self):
        """Conversions, formats and doubled braces are those of an f-string."""
        templates = Templates(keys={"users": "{{{a!r:>5}}}:{b:.2f}:{c}"})
        row = {"a": "x", "b": 1.005, "c": None}
        assert targets(templates, update(None, row)) == [
            ("key", f"{{{row['a']!r:>5}}}:{row['b']:.2f}:{row['c']}")
        ]

    def test_names_of_columns_are_whole(self):
        """A name may have dots, brackets and spaces, and reaches into nothing."""
        templates = Templates(keys={"users": "{a.b} {c[0]} {d e} {id.__class__}"})
        row = {"a.b": 1, "c[0]": 2, "d e": 3, "id.__class__": 4}
        assert targets(templates, update(None, row)) == [("key", "1 2 3 4")]

    def test_a_row_of_its_own(self):
        """A change without old and new row is the row."""
        templates = Templates(keys={"users": "user:{id}"})
        assert targets(templates, {"table": "users", "id": 5}) == [("key", "user:5")]

    def test_time_of_the_change(self):
        """When the row was written is known of what follows, so that latency can be measured."""
        (item,) = Templates()(update(ADA, AUGUSTA, key=1, at=12.5))
        assert item == Invalidation("key", "users:1", sent_at=12.5)


class TestCallables:
    """Callables in place of templates."""

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ("k", ["k"]),
            (("a", 1), [("a", 1)]),
            (7, [7]),
            (None, []),
            ([], []),
            (["k", ("a", 1)], ["k", ("a", 1)]),
            (iter(["k", "m"]), ["k", "m"]),
        ],
    )
    def test_answers(self, answer, expected):
        """One key, several, or none; a tuple is a key."""
        templates = Templates(keys={"users": lambda row: answer})
        assert targets(templates, update(None, ADA)) == [("key", each) for each in expected]

    def test_tags(self):
        """A tuple of tags is several."""
        templates = Templates(tags={"users": lambda row: ("a", row["email"])})
        assert targets(templates, update(None, ADA)) == [("tag", "a"), ("tag", "a@")]


class TestWithoutTemplate:
    """Tables that no template is for."""

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"key": 5}, ["users:5"]),
            ({"primary_key": "x"}, ["users:x"]),
            ({"id": 0}, ["users:0"]),
            ({"key": ("a", 1)}, ["users:a:1"]),
            ({"key": 2, "old_key": 1}, ["users:1", "users:2"]),
            ({}, []),
        ],
    )
    def test_primary_key(self, change, expected):
        """The key is "<table>:<primary key>"; without a primary key nothing follows."""
        assert targets(Templates(), {"table": "users", **change}) == [("key", k) for k in expected]

    @pytest.mark.parametrize("key", [None, (1, None)])
    def test_no_key(self, key):
        """A key that is NULL is the whole table."""
        templates = Templates()
        assert targets(templates, {"table": "users", "key": key}) == [("table", "users")]
        assert templates.errors == 1

    def test_other_tables(self):
        """A template of one table is none of another."""
        templates = Templates(tags={"orders": "o-{id}"})
        assert targets(templates, {"table": "users", "key": 1}) == [("key", "users:1")]


class TestFailing:
    """Templates that cannot be filled in."""

    def test_a_column_that_is_not_there(self, caplog):
        """The whole table goes, and all that the template may have meant; logged once."""
        templates = Templates(keys={"users": ["user:{id}", "u*:{nope}:{id}"]})
        with caplog.at_level(logging.ERROR, "lapse.sources"):
            for _ in range(3):
                found = targets(templates, update(None, ADA))
        assert found == [("key", "user:1"), ("table", "users"), ("pattern", "u\\*:*:*")]
        assert templates.errors == 3
        assert caplog.text.count("the whole table goes") == 1
        assert "nope" in caplog.text

    def test_patterns(self):
        """The wildcards of a pattern stay."""
        templates = Templates(patterns={"users": "c:{nope}:*"})
        assert targets(templates, update(None, ADA)) == [("table", "users"), ("pattern", "c:*:*")]

    @pytest.mark.parametrize(
        "given",
        [
            {"tags": {"users": "t-{nope}"}},
            {"tags": {"users": lambda row: 5}},
            {"keys": {"users": lambda row: 1 / 0}},
            {"keys": {"users": lambda row: [[]]}},
        ],
    )
    def test_callables_and_tags(self, given):
        """What raises, or answers what cannot be a target, is the whole table."""
        templates = Templates(**given)
        assert targets(templates, update(None, ADA)) == [("table", "users")]
        assert templates.errors == 1

    def test_a_format_that_does_not_fit(self):
        """A value that the format does not take, NULL say, is no exception."""
        templates = Templates(keys={"users": "p:{price:.2f}"})
        assert targets(templates, update(None, {"price": None})) == [
            ("table", "users"), ("pattern", "p:*"),
        ]  # fmt: skip

    def test_a_change_that_says_only_the_table(self):
        """Where there is a template, a change without a row is the whole table, never nothing."""
        templates = Templates(keys={"users": "user:{id}"})
        expected = [("table", "users"), ("pattern", "user:*")]
        assert targets(templates, {"table": "users"}) == expected
        assert targets(templates, update(None, None)) == expected


@pytest.mark.parametrize("template", ["{}", "{", "a}", "{id:{width}}"])
def test_malformed(template):
    """A malformed template is a ValueError when it is given."""
    with pytest.raises(ValueError, match=r".+"):
        Templates(keys={"users": template})


def test_no_template():
    """What is neither text nor callable is a TypeError."""
    with pytest.raises(TypeError, match="template"):
        Templates(keys={"users": [5]})
