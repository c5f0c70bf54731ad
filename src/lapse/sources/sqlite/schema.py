"""What a table of an SQLite file looks like: its columns, its key, and what must be unique in it.

    Table ──► columns             in their order, generated ones too
          ──► key, rowid          how a row is told from others
          ──► uniques ──► terms   whose row a REPLACE may push out: one for each unique index, and
                                  for the rowid

Everything here is text of SQL that is ready to be put into a trigger: names are quoted, expressions
of indexes and literal defaults are as the schema has them. Nothing is executed but PRAGMAs and
reads of the schema. The caller holds the connection.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from typing import Literal, NamedTuple

__all__ = ["Column", "Table", "Term", "Unique", "literal", "quoted", "read_table", "split_index"]

_RESERVED = ("old", "new")
_ROWID_NAMES = ("rowid", "_rowid_", "oid")
#: A default that is the same whenever it is computed, and cannot name anything.
_LITERAL = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?|x?'(?:[^']|'')*'", re.IGNORECASE)
_TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\] | --[^\n]* | /\*.*?\*/ |
        \w+ | .""",
    re.VERBOSE | re.DOTALL,
)
_ORDERED = re.compile(r"\s+(?:ASC|DESC)\s*$", re.IGNORECASE)
_NUMERIC = re.compile("INT|REAL|FLOA|DOUB|NUM|DEC|BOOL|DATE|TIME", re.IGNORECASE)
_HIDDEN, _GENERATED = 1, (2, 3)  # as table_xinfo numbers them
_EXPRESSION = -2  # the number that index_xinfo gives to what is no column


class Column(NamedTuple):
    """One column."""

    name: str
    #: A literal, where a NULL that is refused becomes this one if the statement says OR REPLACE.
    default: str | None
    generated: bool
    #: Declared for numbers, which are small.
    numeric: bool


class Term(NamedTuple):
    """One of the values that together must be unique."""

    #: A quoted column, a name of the rowid, or an expression over columns.
    sql: str
    kind: Literal["column", "rowid", "expression"]
    collation: str = "BINARY"


class Unique(NamedTuple):
    """Rows equal in all terms cannot be in the table together, if `where` holds for both."""

    terms: tuple[Term, ...]
    where: str | None = None


class Table(NamedTuple):
    """One table, as the schema has it now."""

    name: str
    columns: tuple[Column, ...]
    #: The columns of the primary key in its order; empty: the rowid is all there is.
    key: tuple[str, ...]
    #: A name by which the rowid can be reached, as SQL; None: there is none.
    rowid: str | None
    uniques: tuple[Unique, ...]


def quoted(name: str) -> str:
    """An identifier as SQL takes it, whatever its characters."""
    if "\0" in name:
        raise ValueError(f"not a usable name: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A text as SQL takes it."""
    if "\0" in text:
        raise ValueError(f"not a usable name: {text!r}")
    return "'" + text.replace("'", "''") + "'"


def read_table(connection: sqlite3.Connection, name: str) -> Table | None:
    """The table of that name, in any case of its letters; None if there is none.

    ValueError for a view, a virtual table, or a table whose rows nothing tells apart.
    """
    found = connection.execute(
        "SELECT name, type, rootpage FROM sqlite_master"
        " WHERE type IN ('table', 'view') AND name = ? COLLATE NOCASE",
        (name,),
    ).fetchone()
    if found is None:
        return None
    name, kind, page = found
    if kind != "table" or not page:
        raise ValueError(f"{name!r} is a view or a virtual table: only tables can be captured")
    if name.lower() in _RESERVED:
        raise ValueError(f"{name!r} is what a trigger calls a row: such a table cannot be captured")
    info = connection.execute(f"PRAGMA table_xinfo({quoted(name)})").fetchall()
    columns = tuple(
        Column(
            each[1],
            _constant(each[4]) if each[3] else None,
            each[6] in _GENERATED,
            _NUMERIC.search(each[2]) is not None,
        )
        for each in info
        if each[6] != _HIDDEN
    )
    key = tuple(each[1] for each in sorted(info, key=lambda each: each[5]) if each[5])
    indexes = connection.execute(f"PRAGMA index_list({quoted(name)})").fetchall()
    rowid = _rowid(connection, name, columns, key, any(each[3] == "pk" for each in indexes))
    uniques = [Unique((Term(rowid, "rowid"),))] if rowid else []
    uniques += [_unique(connection, each[1]) for each in indexes if each[2]]
    if not key and rowid is None:
        raise ValueError(f"the rows of {name!r} cannot be told apart")
    return Table(name, columns, key, rowid, tuple(uniques))


def _constant(default: str | None) -> str | None:
    return default if default is not None and _LITERAL.fullmatch(default) else None


def _rowid(
    connection: sqlite3.Connection,
    table: str,
    columns: tuple[Column, ...],
    key: tuple[str, ...],
    key_is_indexed: bool,
) -> str | None:
    """How SQL names the rowid: by one of its names, or as the INTEGER PRIMARY KEY."""
    taken = {column.name.lower() for column in columns}
    for name in _ROWID_NAMES:
        if name not in taken:
            try:
                connection.execute(f"SELECT {name} FROM {quoted(table)} LIMIT 0")
            except sqlite3.OperationalError:
                return None  # WITHOUT ROWID
            return name
    return quoted(key[0]) if len(key) == 1 and not key_is_indexed else None


def _unique(connection: sqlite3.Connection, index: str) -> Unique:
    """What a unique index holds unique."""
    info = connection.execute(f"PRAGMA index_xinfo({quoted(index)})").fetchall()
    found = connection.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'index' AND name = ? AND sql IS NOT NULL",
        (index,),
    ).fetchone()
    expressions, where = split_index(found[0]) if found else ([], None)
    terms = tuple(
        Term(f"({expressions[number]})", "expression", collation)
        if column == _EXPRESSION
        else Term(quoted(name), "column", collation)
        for number, column, name, _, collation, is_key in info
        if is_key
    )
    return Unique(terms, f"({where})" if where else None)


def split_index(sql: str) -> tuple[list[str], str | None]:
    """The terms of a CREATE INDEX, without their order, and the condition of a partial one."""
    terms, depth, closed, where = [""], 0, False, ""
    for token in _tokens(sql):
        depth += (token == "(") - (token == ")")
        if closed:
            where += token
        elif depth == 0:
            closed = token == ")"
        elif depth == 1 and token == ",":
            terms.append("")
        elif depth > 1 or token != "(":
            terms[-1] += token
    condition = where.strip()
    return (
        [_ORDERED.sub("", term).strip() for term in terms],
        condition[len("WHERE") :].strip() if condition else None,
    )


def _tokens(sql: str) -> Iterator[str]:
    """The text of a statement in pieces, each comment a space."""
    for match in _TOKEN.finditer(sql):
        token = match.group()
        yield " " if token.startswith(("--", "/*")) else token
