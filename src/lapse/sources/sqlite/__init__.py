"""Changes of rows in an SQLite file, as a source of invalidations.

    any writer ──► triggers ──► outbox ──► reader ──► SQLiteChanges ──► Batch | Resync

changes      SQLiteChanges: the source, its thread's loop, positions, the file that may be replaced
reader       what is new in one opened file
outbox       the queries: reading, positions, pruning; why no change is missed
install      puts tables and triggers into the file
triggers     their text
schema       what a table looks like
rows         a row of the outbox as a change
connection   a connection whose commits wake a source
"""

from lapse.sources.sqlite.changes import SQLiteChanges, SQLiteStats

__all__ = ["SQLiteChanges", "SQLiteStats"]
