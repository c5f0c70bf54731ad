"""The text of the triggers that write the changes of a table into the outbox.

    statement ─► BEFORE trigger ─► displaced   rows in the way, which a REPLACE would push out
              ─► the row changes
              ─► AFTER trigger  ─► changes     what was pushed out, then the row, old and new

Invariants
    1. The text depends on the table alone, never on who installs it, so that all processes agree.
    2. SQLite runs a DELETE trigger for a row that REPLACE pushes out only if the connection has set
       recursive_triggers. So the BEFORE triggers note which rows equal the new one in something
       unique; if the AFTER trigger runs, none of those can be there any more, and they are deleted
       rows. If it does not (OR IGNORE, an upsert), they stay noted, until the next row for the same
       place, or the reader, throws them out; a DELETE trigger that did run has done so as well.
    3. No statement of a trigger can fail or conflict: the policy of the statement that fired it (OR
       IGNORE, OR REPLACE) would override its own. So they break no constraint and call no function
       that raises.
    4. Values are stored as they are, in columns without a type: nothing is converted, so nothing is
       lost. Only what is larger than LARGEST gives way to the mark OMITTED, unless it is a key's.
    5. The text is short, because every connection that opens the file parses it.

A row of the outbox says itself what its values are: `layout` is a JSON array of the places of the
key's columns and the names of all, null for the rowid; v0, v1, ... are the old row's values and
then the new row's.
"""

from __future__ import annotations

import json

from lapse.sources.sqlite.schema import Column, Table, Term, Unique, literal, quoted

__all__ = ["LARGEST", "OMITTED", "trigger_texts", "width"]

#: Units (letters, bytes) of a value; larger ones are left out, but for a key's.
LARGEST = 65_536
#: Stands for a value that was left out.
OMITTED = bytes.fromhex("6c61707365206f6d6974746564e29c82")

_SOME_NOTED = 'EXISTS (SELECT 1 FROM "lapse_displaced")'


def width(table: Table) -> int:
    """The values that a row of the table takes in the outbox."""
    return len(_names(table))


def _names(table: Table) -> list[str | None]:
    """The names of the values; None for the rowid, where that is the key."""
    return [*([] if table.key else [None]), *(each.name for each in table.columns)]


def trigger_texts(table: Table) -> dict[str, str]:
    """The statements that make the triggers of a table, by name."""
    sql = _Sql(table)
    known = f"{_SOME_NOTED} OR {sql.in_the_way()}"
    update = [*sql.confirm(f" AND ({sql.moved()})"), sql.change("update", old="OLD", new="NEW")]
    return dict(
        [
            sql.trigger("conflict", f"BEFORE INSERT ON {sql.name} WHEN {known}", sql.note()),
            sql.trigger(
                "insert",
                f"AFTER INSERT ON {sql.name}",
                [*sql.confirm(), sql.change("insert", new="NEW")],
            ),
            sql.trigger(
                "move",
                f"BEFORE UPDATE ON {sql.name} WHEN {sql.moved()}",
                sql.note(f" AND NOT ({sql.same()})"),
            ),
            sql.trigger("update", f"AFTER UPDATE ON {sql.name}", update),
            sql.trigger(
                "delete",
                f"AFTER DELETE ON {sql.name}",
                [sql.forget(), sql.change("delete", old="OLD")],
            ),
        ]
    )


class _Sql:
    """Pieces of SQL about one table. A `row` is OLD, NEW or the table's own name, quoted."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.name = quoted(table.name)
        self._text = literal(table.name)
        self._columns = [quoted(each.name) for each in table.columns]
        self._identity = [table.rowid] if table.rowid else [quoted(each) for each in table.key]
        self._defaults = {quoted(each.name): each.default for each in table.columns}
        self._places = [self._place(number, each) for number, each in enumerate(table.uniques)]
        names = _names(table)
        keys = [names.index(each) for each in table.key or (None,)]
        self._layout = literal(json.dumps([keys, names], ensure_ascii=False))

    def trigger(self, what: str, when: str, body: list[str]) -> tuple[str, str]:
        """The name of a trigger, and the statement that makes it."""
        name = f"lapse {what} {self._table.name}"
        return name, f"CREATE TRIGGER {quoted(name)} {when} BEGIN\n" + ";\n".join(body) + ";\nEND"

    # Rows in the way

    def in_the_way(self) -> str:
        """Is there a row where the new one wants to be?"""
        return " OR ".join(
            f"EXISTS (SELECT 1 FROM {self.name} WHERE {self._equal(unique)})"
            for unique in self._table.uniques
        )

    def moved(self) -> str:
        """Does an update change anything that must be unique?"""
        terms = [term for unique in self._table.uniques for term in unique.terms]
        columns = [term.sql for term in terms if term.kind != "expression"]
        if len(columns) < len(terms) or any(unique.where for unique in self._table.uniques):
            columns = [*columns, *self._columns]
        return " OR ".join(f"NEW.{each} IS NOT OLD.{each}" for each in dict.fromkeys(columns))

    def same(self) -> str:
        """Is a row of the table the one that is being updated?"""
        return " AND ".join(f"{self.name}.{each} IS OLD.{each}" for each in self._identity)

    def note(self, condition: str = "") -> list[str]:
        """Write down the rows that are where the new one wants to be, each once."""
        row, known, statements = self.name, condition, []
        for place, unique in zip(self._places, self._table.uniques, strict=True):
            equal = self._equal(unique)
            values = [place, self._text, self._same_text(row), self._layout, *self._values(row)]
            statements += [
                f'DELETE FROM "lapse_displaced" WHERE "place" = {place}',
                f'INSERT INTO "lapse_displaced" ("place", "table", "identity", "layout",'
                f" {self._slots()}) SELECT {', '.join(values)} FROM {row} WHERE {equal}{known}",
            ]
            known += f" AND ({equal}) IS NOT 1"
        return statements

    def confirm(self, condition: str = "") -> list[str]:
        """The new row is there, so those are gone."""
        statements = []
        for place in self._places:
            where = f'FROM "lapse_displaced" WHERE "place" = {place}{condition}'
            statements += [
                f'INSERT INTO "lapse_changes" ("table", "operation", "layout", {self._slots()})'
                f' SELECT "table", \'delete\', "layout", {self._slots()} {where}',
                f"DELETE {where}",
            ]
        return statements

    def forget(self) -> str:
        """The row is gone, and the trigger that runs tells of it."""
        return (
            f'DELETE FROM "lapse_displaced" WHERE "table" = {self._text}'
            f' AND "identity" = {self._same_text("OLD")}'
        )

    def _place(self, number: int, unique: Unique) -> str:
        values = " || ',' || ".join(f"quote({self._new(term)})" for term in unique.terms)
        return literal(f"{number} {self._table.name} ") + " || " + values

    def _same_text(self, row: str) -> str:
        """What tells a row from others, as one text."""
        return " || ',' || ".join(f"quote({row}.{each})" for each in self._identity)

    def _equal(self, unique: Unique) -> str:
        """Would a row of the table be in the way of the new one?"""
        conditions = [
            f"{self._old(term)} COLLATE {quoted(term.collation)} = {self._new(term)}"
            for term in unique.terms
        ]
        if unique.where:
            conditions += [unique.where, self._on_new(unique.where)]
        return " AND ".join(conditions)

    def _old(self, term: Term) -> str:
        return term.sql if term.kind == "expression" else f"{self.name}.{term.sql}"

    def _new(self, term: Term) -> str:
        if term.kind == "expression":
            return self._on_new(term.sql)
        return self._new_column(term.sql)

    def _new_column(self, column: str) -> str:
        """A NULL becomes the default where OR REPLACE meets NOT NULL."""
        default = self._defaults.get(column)
        return f"coalesce(NEW.{column}, {default})" if default else f"NEW.{column}"

    def _on_new(self, expression: str) -> str:
        """An expression over the table's columns, computed for the new row."""
        row = ", ".join(f"{self._new_column(column)} AS {column}" for column in self._columns)
        return f"(SELECT {expression} FROM (SELECT {row}) AS {self.name})"

    # Changes

    def change(self, operation: str, old: str | None = None, new: str | None = None) -> str:
        """Write down a change."""
        values = [self._text, literal(operation), self._layout]
        values += self._values(old) if old else []
        values += self._values(new) if new else []
        slots = self._slots(2 if old and new else 1, 0 if old else 1)
        return (
            f'INSERT INTO "lapse_changes" ("table", "operation", "layout", {slots})'
            f" VALUES ({', '.join(values)})"
        )

    def _slots(self, rows: int = 1, skipped: int = 0) -> str:
        """The names of the columns that hold a row, or two."""
        size = width(self._table)
        return ", ".join(f'"v{n}"' for n in range(skipped * size, (skipped + rows) * size))

    def _values(self, row: str) -> list[str]:
        columns = [] if self._table.key else [f"{row}.{self._table.rowid}"]
        return columns + [self._value(row, each) for each in self._table.columns]

    def _value(self, row: str, column: Column) -> str:
        value = f"{row}.{quoted(column.name)}"
        if column.numeric or column.name in self._table.key:
            return value
        return f"CASE WHEN length({value}) > {LARGEST} THEN x'{OMITTED.hex()}' ELSE {value} END"
