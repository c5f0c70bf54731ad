"""InvalidationRules: templates, conditions, values from a callable, escaping, errors."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lapse
from lapse.invalidation import Invalidation
from lapse.invalidation.rules import InvalidationRules, Rule, RuleError, field_of


def keys_of(*templates: str, **event: Any) -> list[str]:
    """What these templates of keys make of an event."""
    rules = InvalidationRules(Rule("e", keys=templates))
    return rules.groups({"type": "e", **event}).key


def patterns_of(*templates: str, **event: Any) -> list[Any]:
    """What these templates of patterns make of an event."""
    rules = InvalidationRules(Rule("e", patterns=templates))
    return rules.groups({"type": "e", **event}).pattern


def test_fields_are_filled_in():
    """A template names fields of the event; one without names is as it stands."""
    assert keys_of("p:{id}:price", "{a}{b}", "all", id=7, a="x", b="y") == [
        "p:7:price",
        "xy",
        "all",
    ]


@pytest.mark.parametrize("value", [0, 7, -1, 2.5, "x", "é", uuid.UUID(int=5)])
def test_whatever_names_one_thing_is_a_value(value):
    """Numbers, text and other names are filled in as text; zero is a value."""
    assert keys_of("p:{id}", id=value) == [f"p:{value}"]


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_field_is_an_error(value):
    """An absent field, None and the empty text are missing; the error names type and field."""
    for event in ({"id": value}, {}):
        with pytest.raises(RuleError, match="a e without id"):
            keys_of("p:{id}", **event)


@pytest.mark.parametrize("value", [b"x", [1], (1,), {1}, {"a": 1}])
def test_a_container_names_nothing(value):
    """Bytes and containers are refused."""
    with pytest.raises(RuleError, match="names nothing"):
        keys_of("p:{id}", id=value)


def test_each_is_asked_once():
    """The values of an event are asked for once, however many kinds of targets there are."""
    asked: list[Any] = []

    def followers(event: Any) -> list[int]:
        asked.append(event["id"])
        return [1, 2]

    rule = Rule("e", keys=["k:{f}"], patterns=["p:{f}:*"], tags=["t"], each=("f", followers))
    found = InvalidationRules(rule).invalidations({"type": "e", "id": 7})
    assert [each.target for each in found] == ["p:1:*", "p:2:*", "t", "k:1", "k:2"]
    assert asked == [7]


def test_optional_fields():
    """A template with an optional field is left out where the event has none."""
    assert keys_of("c:{old?}", "c:{new?}", "c:{old?}:{new?}", old="a", new=None) == ["c:a"]


def test_patterns_are_escaped_and_keys_are_not():
    """What is filled into a pattern matches itself alone."""
    assert keys_of("p:{id}", id="a*") == ["p:a*"]
    assert patterns_of("p:{id}:*", id="a*[b]\\") == ["p:a\\*\\[b\\]\\\\:*"]


def test_braces():
    """Doubled braces are braces."""
    assert keys_of("{{{id}}}", id=1) == ["{1}"]


@pytest.mark.parametrize("template", ["{}", "{0}", "{a.b}", "{a[0]}", "{a!r}", "{a:>3}", "{", "a}"])
def test_templates_that_cannot_be_read(template):
    """Positions, attributes, items, conversions and formats are refused when the rule is made."""
    with pytest.raises(ValueError, match=r"no field|[Ss]ingle|expected"):
        Rule("e", keys=[template])


@pytest.mark.parametrize("name", ["keys", "patterns", "tags"])
def test_a_lone_text_is_refused(name):
    """Its letters would be the templates."""
    with pytest.raises(TypeError, match="several"):
        Rule("e", **{name: "p:{id}"})


def test_conditions():
    """A rule is about events of its type whose fields have these values; None: are missing."""
    rules = InvalidationRules(
        Rule("e", {"kind": "a", "n": 1}, keys=["both"]),
        Rule("e", {"kind": "a"}, keys=["kind"]),
        Rule("e", {"n": None}, keys=["no n"]),
        Rule("f", keys=["f"]),
    )
    for event, expected in [
        ({"type": "e", "kind": "a", "n": 1}, ["both", "kind"]),
        ({"type": "e", "kind": "a"}, ["kind", "no n"]),
        ({"type": "e", "n": ""}, ["no n"]),
        ({"type": "f", "kind": "a"}, ["f"]),
        ({"type": "g"}, []),
        ({}, []),
    ]:
        assert rules.groups(event).key == expected
    assert rules.types == {"e", "f"}


def test_one_for_each_value():
    """A callable answers the values of a field; templates without it are filled once."""
    asked = []

    def values(event: Any) -> list[Any]:
        asked.append(event)
        return [1, "two", 3]

    rules = InvalidationRules(
        Rule(
            "e",
            keys=["k:{each}:{id}:{each}", "once:{id}"],
            tags=["t:{each}"],
            each=("each", values),
        )
    )
    groups = rules.groups({"type": "e", "id": 9})
    assert groups.key == ["k:1:9:1", "k:two:9:two", "k:3:9:3", "once:9"]
    assert groups.tag == ["t:1", "t:two", "t:3"]
    assert asked == [{"type": "e", "id": 9}]


def test_no_values():
    """For no value at all only the templates without it are left."""
    rules = InvalidationRules(Rule("e", keys=["k:{each}", "once"], each=("each", lambda event: [])))
    assert rules.groups({"type": "e"}).key == ["once"]


def test_values_that_name_nothing():
    """None among the values, or no iterable, is an error."""
    for values in ([1, None], [[1]], None, 7):
        rules = InvalidationRules(
            Rule("e", keys=["k:{each}"], each=("each", lambda _, v=values: v))
        )
        with pytest.raises((RuleError, TypeError)):
            rules.groups({"type": "e"})


@given(st.lists(st.one_of(st.integers(), st.text(alphabet="ab*?[]\\:é", min_size=1)), max_size=30))
def test_each_value_matches_itself_alone(values):
    """However the values are spelt, their patterns remove their own keys and no others."""
    rules = InvalidationRules(Rule("e", patterns=["k:{each}"], each=("each", lambda event: values)))
    cache = lapse.TTLCache(None)
    cache.set_many({f"k:{value}": 1 for value in values} | {"k:": 2, "k:axb": 3, "k": 4})
    others = {"k:", "k:axb", "k"} - {f"k:{value}" for value in values}
    for pattern in rules.groups({"type": "e"}).pattern:
        cache.delete_pattern(pattern)
    assert set(cache) == others


def test_as_a_list():
    """invalidations() has each target once, patterns first."""
    rules = InvalidationRules(
        Rule("e", keys=["k", "k"], patterns=["p:*"], tags=["t"]), Rule("e", patterns=["p:*"])
    )
    assert rules.invalidations({"type": "e"}) == [
        Invalidation("pattern", "p:*"),
        Invalidation("tag", "t"),
        Invalidation("key", "k"),
    ]
    assert rules.invalidations({"type": "other"}) == []


def test_a_table_is_copied_and_changed():
    """Tables are added, iterated and made anew."""
    first, second = Rule("e", keys=["a"]), Rule("e", keys=["b"])
    rules = InvalidationRules(first) + InvalidationRules(second)
    assert list(rules) == [first, second]
    assert len(rules) == 2
    changed = InvalidationRules(*(rule for rule in rules if rule is not first))
    assert changed.groups({"type": "e"}).key == ["b"]


def test_a_field_that_must_be_there():
    """field_of() answers it, or raises the same error as a template."""
    assert field_of({"type": "e", "id": 0}, "id") == 0
    with pytest.raises(RuleError, match="a e without id"):
        field_of({"type": "e"}, "id")
