"""Rules: which entries an event makes outdated. A table, to be read, copied and changed.

    RULES = InvalidationRules(
        Rule("product_update", {"update_type": "price_change"},
             keys=["product:{product_id}:price", "product:{product_id}:details"]),
        Rule("product_update", patterns=["search:*"]),
    )

    event ──► rules of its "type" whose conditions hold ──► their templates, filled ──► Groups

An event is a mapping. A template is text with names of its fields:

    {field}    the field's value; RuleError if the event has none
    {field?}   the same, but the template is left out if the event has none
    {{ }}      braces

A field that is None or "" counts as missing. What is filled into a pattern is escaped, so that it
matches itself alone. A rule with `each` is filled once for each value that a callable finds for the
event, such as the followers of an author; one with a hundred thousand values is still one batch.

A table never changes; threads may share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from string import Formatter
from typing import Any, NamedTuple

from lapse._core import escape
from lapse.invalidation.message import Invalidation, Kind
from lapse.invalidation.targets import Groups

__all__ = ["Event", "InvalidationRules", "Rule", "RuleError", "field_of"]

Event = Mapping[str, Any]
Values = list[Any]  # all of them int, or all str

KINDS_FILLED: tuple[Kind, ...] = ("pattern", "tag", "key")  # the strongest first
SPECIAL = "*?[]\\"
CONTAINERS = (bytes, bytearray, Mapping, list, tuple, set, frozenset)


class RuleError(ValueError):
    """An event lacks a field that a rule needs, or has one that no text can be made of."""


@dataclass(frozen=True)
class Rule:
    """What one kind of event makes outdated.

    Args:
        event: the "type" of the events that it is about.
        when: fields that must have these values; None: that must be missing.
        keys, patterns, tags: templates of what goes.
        each: a field's name, and a callable that answers its values for an event.

    Raises ValueError for a template that cannot be read, TypeError for a lone str where several
    templates belong.
    """

    event: str
    when: Event = field(default_factory=dict)
    keys: Iterable[str] = ()
    patterns: Iterable[str] = ()
    tags: Iterable[str] = ()
    each: tuple[str, Callable[[Event], Iterable[Any]]] | None = None
    _templates: Mapping[str, list[_Template]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        templates: dict[str, list[_Template]] = {}
        for kind in KINDS_FILLED:
            sources = getattr(self, f"{kind}s")
            if isinstance(sources, str):
                raise TypeError(f"{kind}s are several templates, not one str")
            sources = tuple(sources)
            object.__setattr__(self, f"{kind}s", sources)
            templates[kind] = [_Template(source, kind == "pattern") for source in sources]
        object.__setattr__(self, "_templates", templates)

    def applies(self, event: Event) -> bool:
        """Is it about this event?"""
        return event.get("type") == self.event and all(
            (_is_missing(event, name) if value is None else event.get(name) == value)
            for name, value in self.when.items()
        )

    def targets(self, event: Event) -> dict[str, list[str]]:
        """What goes, by kind. Raises RuleError, and whatever `each` raises."""
        found: dict[str, list[str]] = {}
        each, values = "", list[Any]()
        if self.each is not None:
            each, values = self.each[0], _fit(self.each[1](event))
        for kind, templates in self._templates.items():
            filled = [template.fill(event, each, values) for template in templates]
            found[kind] = list(chain.from_iterable(filled))
        return found


class InvalidationRules:
    """A table of rules, in any order; `rules + others`, `InvalidationRules(*rules, one)` join."""

    def __init__(self, *rules: Rule) -> None:
        self._rules = rules
        self.types = frozenset(rule.event for rule in rules)

    def groups(self, event: Event) -> Groups:
        """What the event makes outdated; nothing if no rule is about it. A target may stand twice.

        Raises RuleError, and what the `each` of a rule raises. Linear in what goes.
        """
        groups = Groups([], [], [], [], [])
        for rule in self._rules:
            if rule.applies(event):
                for kind, targets in rule.targets(event).items():
                    getattr(groups, kind).extend(targets)
        return groups

    def invalidations(self, event: Event) -> list[Invalidation]:
        """The same as a list, each once; patterns come first, then tags, then keys."""
        groups = self.groups(event)
        return [
            Invalidation(kind, target)
            for kind in KINDS_FILLED
            for target in dict.fromkeys(getattr(groups, kind))
        ]

    def __add__(self, other: InvalidationRules) -> InvalidationRules:
        return InvalidationRules(*self, *other)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)


def field_of(event: Event, name: str) -> Any:
    """A field that must be there; RuleError if it is not."""
    if _is_missing(event, name):
        raise RuleError(f"a {event.get('type')} without {name}: {dict(event)!r:.200}")
    return event[name]


# --- Templates ---


class _Slot(NamedTuple):
    """Literal text, and the field that follows it; None at the end."""

    text: str
    name: str | None
    optional: bool


class _Template:
    """A template, read once."""

    def __init__(self, source: str, escaped: bool) -> None:
        self._escaped = escaped
        self._slots = [_slot(source, *part) for part in Formatter().parse(source)]

    def fill(self, event: Event, each: str, values: Values) -> list[str]:
        """The texts that it makes: one, or one for each value; none without an optional field."""
        pieces = self._pieces(event, each)
        if len(pieces) < 2:
            return pieces
        safe = _escaped(values) if self._escaped else values
        if len(pieces) > 2:
            return [str(value).join(pieces) for value in safe]
        head, tail = pieces
        return [f"{head}{value}{tail}" for value in safe]

    def _pieces(self, event: Event, each: str) -> list[str]:
        """The filled text, cut where `each` stands; nothing if an optional field is missing."""
        pieces = [""]
        for text, name, optional in self._slots:
            pieces[-1] += text
            if name is None:
                continue
            if name == each:
                pieces.append("")
            elif optional and _is_missing(event, name):
                return []
            else:
                value = _text(field_of(event, name))
                pieces[-1] += escape(value) if self._escaped else value
        return pieces


def _slot(
    source: str, text: str, name: str | None, spec: str | None, conversion: str | None
) -> _Slot:
    if name is None:
        return _Slot(text, None, False)
    optional = name.endswith("?")
    name = name.removesuffix("?")
    if not name.isidentifier() or spec or conversion:
        raise ValueError(f"{{{name}}} is no field: {source!r}")
    return _Slot(text, name, optional)


def _is_missing(event: Event, name: str) -> bool:
    return event.get(name) in (None, "")


def _text(value: Any) -> str:
    """A value as text: a str, a number, a UUID, whatever else names one thing."""
    if value is None or isinstance(value, CONTAINERS):
        raise RuleError(f"{value!r:.100} names nothing")
    return str(value)


def _fit(values: Iterable[Any]) -> Values:
    """The values of `each`: as they are if all of them are int, or all str, else as text."""
    found = list(values)
    return found if set(map(type, found)) in ({int}, {str}) else list(map(_text, found))


def _escaped(values: Values) -> Values:
    """The same, to stand in a pattern. Most need nothing, and are looked at together."""
    if not values or type(values[0]) is int:
        return values
    joined = "".join(values)
    return list(map(escape, values)) if any(each in joined for each in SPECIAL) else values
