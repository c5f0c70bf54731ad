"""From a changed row to the invalidations that follow: templates over the columns of the row.

    keys={"users": ["user:{id}", "email:{email}"]}      a user changes ──► two keys of the row as it
                                                        was, and two of the row as it is
    tags={"orders": ["user-{user_id}"]}
    patterns={"products": ["category:{category}:*"]}    the column is escaped, the rest is a glob

A change is a mapping with a "table". Where it has "old" or "new", those are the rows; otherwise it
is the row itself. A table without any template has the key "<table>:<key>", where the change has a
"key" (several columns: joined by ":"), a "primary_key" or an "id". A change with none of those says
only that the table has changed, and nothing follows: listeners are there for it.

Invariants
    1. Nothing that a row holds is an error, and nothing is lost in silence. Where a template cannot
       be filled in, the whole table goes, and all that its fixed letters fit. This is logged the
       first time, and counted.
    2. What comes from a row is data: in a pattern it matches only itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from string import Formatter
from typing import Any, Literal

from lapse._core import escape
from lapse.invalidation.counting import counting
from lapse.invalidation.message import Invalidation

__all__ = ["Template", "Templates", "TemplatesByTable"]

log = logging.getLogger("lapse.sources")

Kind = Literal["key", "tag", "pattern"]
Row = Mapping[str, Any]
#: A text with columns in braces, or a callable that gets a row and answers one target, an iterable
#: of several (no tuple, which is one key), or None.
Template = str | Callable[[Row], Any]
#: Templates of each table, one or several.
TemplatesByTable = Mapping[str, Template | Iterable[Template]]


class Templates:
    """Turns changes into invalidations. Any thread may call it.

    Args:
        keys, tags, patterns: templates by table. Braces hold the name of a column, and as in an
            f-string a conversion and a format: "{price:.2f}". `{{` is a brace.

    Raises ValueError for a template that is malformed or has a nameless column, TypeError for one
    that is neither text nor callable.
    """

    __slots__ = ("_by_table", "_logged", "errors")

    def __init__(
        self,
        keys: TemplatesByTable | None = None,
        tags: TemplatesByTable | None = None,
        patterns: TemplatesByTable | None = None,
    ) -> None:
        self._by_table: dict[str, list[_Filler | _Default]] = {}
        self._add("key", keys)
        self._add("tag", tags)
        self._add("pattern", patterns)
        #: Templates that could not be filled in.
        self.errors = 0
        self._logged: set[tuple[str, Any]] = set()

    def _add(self, kind: Kind, templates: TemplatesByTable | None) -> None:
        for table, given in (templates or {}).items():
            fillers = self._by_table.setdefault(table, [])
            fillers += [_Filler(kind, each) for each in _several(given)]

    def __call__(self, change: Mapping[str, Any]) -> list[Invalidation]:
        """What follows from a change, each once. Raises KeyError for one without a "table"."""
        table = change["table"]
        rows = _rows(change)
        found: dict[Invalidation, None] = {}
        for filler in self._by_table.get(table) or [_DEFAULT]:
            try:
                found.update(dict.fromkeys(filler(change, rows)))
            except Exception as error:
                self._failed(table, filler, error)
                found.update(dict.fromkeys([Invalidation("table", table), *filler.instead]))
        return list(found)

    def _failed(self, table: str, filler: _Filler | _Default, error: Exception) -> None:
        with counting():
            self.errors += 1
            known = (table, filler) in self._logged
            self._logged.add((table, filler))
        if not known:
            log.error(
                "%s: the whole table goes, because %r cannot be filled in: %s: %s",
                table, filler, type(error).__name__, error,
            )  # fmt: skip


class _Filler:
    """One template of one kind."""

    __slots__ = ("_fill", "_kind", "_template", "instead")

    def __init__(self, kind: Kind, template: Template) -> None:
        self._kind: Kind = kind
        self._template = template
        #: What goes where it cannot be filled in, beside the table.
        self.instead: list[Invalidation] = []
        if callable(template):
            self._fill: Callable[[Row], Any] = template
        elif isinstance(template, str):
            parts = _parsed(template)
            self._fill = partial(_filled, parts, escape if kind == "pattern" else str)
            if kind != "tag":
                self.instead.append(Invalidation("pattern", _wildcard(parts, kind)))
        else:
            raise TypeError(f"a template is a text or a callable, not {template!r}")

    def __call__(self, change: Row, rows: list[Row]) -> list[Invalidation]:
        return [
            Invalidation(self._kind, target, sent_at=_sent_at(change))
            for row in rows
            for target in self._targets(self._fill(row))
        ]

    def _targets(self, answer: Any) -> Iterable[Any]:
        """One target, several, or none. A tuple may be a key, and cannot be a tag."""
        if answer is None:
            return ()
        one = (str, bytes, tuple) if self._kind == "key" else (str, bytes)
        if isinstance(answer, one) or not isinstance(answer, Iterable):
            return (answer,)
        return answer

    def __repr__(self) -> str:
        return f"the {self._kind} {self._template!r}"


class _Default:
    """For tables without a template: the key of the change, before and after."""

    instead: tuple[Invalidation, ...] = ()

    def __call__(self, change: Row, rows: list[Row]) -> list[Invalidation]:
        name = next((name for name in ("key", "primary_key", "id") if name in change), None)
        if name is None:
            return []
        keys = [change["old_key"]] if "old_key" in change else []
        return [
            Invalidation("key", f"{change['table']}:{_joined(key)}", sent_at=_sent_at(change))
            for key in [*keys, change[name]]
        ]

    def __repr__(self) -> str:
        return "the key of the change"


_DEFAULT = _Default()

#: Fixed letters, then a column, its format and its conversion, as an f-string has them.
Part = tuple[str, str | None, str | None, str | None]


def _parsed(template: str) -> list[Part]:
    """A template in parts. A name in braces is the whole name of a column, dots and all."""
    parts = list(Formatter().parse(template))
    for _, name, spec, _ in parts:
        if name == "" or "{" in (spec or ""):
            raise ValueError(f"a column without a name in {template!r}")
    return parts


def _filled(parts: list[Part], quote: Callable[[str], str], row: Row) -> str:
    text = []
    for before, name, spec, conversion in parts:
        text.append(before)
        if name is not None:
            value = Formatter().convert_field(row[name], conversion)
            text.append(quote(format(value, spec or "")))
    return "".join(text)


def _wildcard(parts: list[Part], kind: Kind) -> str:
    """A pattern of all that a template may become."""
    return "".join(
        (escape(before) if kind == "key" else before) + ("" if name is None else "*")
        for before, name, _, _ in parts
    )


def _joined(key: Any) -> str:
    if key is None:
        raise ValueError("the change has no key")
    if isinstance(key, (tuple, list)):
        return ":".join(map(_joined, key))
    return str(key)


def _rows(change: Row) -> list[Row]:
    """The row as it was and as it is; the change itself if it has neither."""
    rows = [change[side] for side in ("old", "new") if change.get(side) is not None]
    return rows or [change]


def _sent_at(change: Row) -> float | None:
    at = change.get("at")
    return at if isinstance(at, float) else None


def _several(given: Template | Iterable[Template]) -> Iterable[Template]:
    if isinstance(given, str) or callable(given):
        return (given,)
    return given
