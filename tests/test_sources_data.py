"""Data sources: the methods that caches call, versions that never come back, SQLite's threads."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import UserDict
from typing import Any

import pytest

from lapse.loading.sources import MappingSource, SQLiteSource
from support import PATIENCE


@pytest.fixture(params=["mapping", "sqlite"])
def source(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    """An empty source of either kind."""
    if request.param == "mapping":
        return MappingSource()
    return SQLiteSource(tmp_path / "data.db", timeout=PATIENCE)


class TestEverySource:
    """What any caller of a data source relies on."""

    def test_nothing_there(self, source):
        """An unknown key has no value and no version, and cannot be updated or deleted."""
        assert source.fetch("a") is None
        assert source.get_version("a") is None
        assert source.update("a", 1) is False
        assert source.delete("a") is False
        assert source.fetch("a") is None

    def test_write_fetch_delete(self, source):
        """What is written is fetched until it is deleted."""
        assert source.write("a", "one") is True
        assert source.write("b", b"two") is True
        assert source.update("a", 3) is True
        assert (source.fetch("a"), source.fetch("b")) == (3, b"two")
        assert source.delete("a") is True
        assert (source.fetch("a"), source.get_version("a")) == (None, None)
        assert source.fetch("b") == b"two"

    def test_every_change_has_a_higher_version(self, source):
        """A version rises with each write and update, and with no read."""
        seen = []
        for n in range(5):
            assert source.write("a", n) if n % 2 else source.update("a", n) or source.write("a", n)
            seen.append(source.get_version("a"))
            assert source.get_version("a") == seen[-1]
        assert seen == sorted(set(seen))

    @pytest.mark.parametrize("others", [0, 3])
    def test_a_version_is_not_given_twice(self, source, others):
        """A key that was deleted comes back with a version above all that it had."""
        for n in range(others):
            source.write(n, n)
        source.write("a", 1)
        before = source.get_version("a")
        source.delete("a")
        source.write("a", 2)
        assert source.get_version("a") > before

    def test_keys_are_told_apart_as_python_does(self, source):
        """1 is 1.0 and is not "1"."""
        source.write(1, "int")
        source.write("1", "text")
        assert (source.fetch(1), source.fetch(1.0), source.fetch("1")) == ("int", "int", "text")

    def test_many_threads(self, source):
        """Every write of many threads is there, with a version of its own."""
        start = threading.Barrier(4)

        def work(thread: int) -> None:
            start.wait()
            for n in range(25):
                source.write((thread * 25) + n, n)
                source.write("shared", n)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [source.fetch(n) for n in range(100)] == [n % 25 for n in range(100)]
        assert len({source.get_version(n) for n in range(100)}) == 100

    def test_repr_names_the_class(self, source):
        """A repr says what it is."""
        assert type(source).__name__ in repr(source)


class TestMappingSource:
    def test_over_any_mapping(self):
        """It reads and writes the mapping that it is given; what was there has a version."""
        data: UserDict[str, int] = UserDict({"a": 1})
        source = MappingSource(data)
        assert (source.fetch("a"), source.get_version("a")) == (1, 1)
        assert source.update("a", 2)
        assert source.get_version("a") == 2
        source.write("b", 3)
        source.delete("a")
        assert data == {"b": 3}


class TestSQLiteSource:
    def test_the_file_is_shared(self, tmp_path):
        """Another source on the same file sees the same rows; another table has its own."""
        one, two = SQLiteSource(tmp_path / "x.db"), SQLiteSource(str(tmp_path / "x.db"))
        other = SQLiteSource(tmp_path / "x.db", "other")
        one.write("a", 1)
        assert two.fetch("a") == 1
        assert two.get_version("a") == one.get_version("a")
        assert other.fetch("a") is None

    def test_it_is_a_real_table(self, tmp_path):
        """Any SQLite program can read the rows; the journal is write-ahead."""
        SQLiteSource(tmp_path / "x.db", "users").write("a", 1.5)
        connection = sqlite3.connect(tmp_path / "x.db")
        assert connection.execute("SELECT key, value FROM users").fetchall() == [("a", 1.5)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()

    @pytest.mark.parametrize("table", ['a"; DROP TABLE t; --', "select", "ä b", "x]", "'", "`"])
    def test_any_table_name_is_a_name(self, tmp_path, table):
        """A table's name is never read as SQL."""
        source = SQLiteSource(tmp_path / "x.db", table)
        assert source.write("a", 1)
        assert source.update("a", 2)
        assert (source.fetch("a"), source.delete("a")) == (2, True)
        connection = sqlite3.connect(tmp_path / "x.db")
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        assert {name for (name,) in names} == {table, "sqlite_sequence"}
        connection.close()

    @pytest.mark.parametrize("table", ["", "a\0b"])
    def test_names_that_are_none(self, tmp_path, table):
        """A table's name has characters, and no NUL."""
        with pytest.raises(ValueError, match="table"):
            SQLiteSource(tmp_path / "x.db", table)

    @pytest.mark.parametrize("path", ["", ":memory:"])
    def test_a_file_is_needed(self, path):
        """Connections of several threads would have a memory each."""
        with pytest.raises(ValueError, match="file"):
            SQLiteSource(path)

    def test_encode_and_decode(self, tmp_path):
        """Values of other types go through the caller's functions."""
        source = SQLiteSource(tmp_path / "x.db", encode=json.dumps, decode=json.loads)
        source.write("a", {"name": "Ada"})
        assert source.fetch("a") == {"name": "Ada"}
        source.update("a", [1, None])
        assert source.fetch("a") == [1, None]

    def test_what_sqlite_cannot_store(self, tmp_path):
        """SQLite's own errors come through, and nothing has changed."""
        source = SQLiteSource(tmp_path / "x.db")
        source.write("a", 1)
        with pytest.raises(sqlite3.Error):
            source.write("a", object())
        with pytest.raises(sqlite3.Error):
            source.write(None, 1)
        assert source.fetch("a") == 1

    def test_a_connection_a_thread(self, tmp_path):
        """Threads open connections of their own; after close() the next call opens another."""
        made = []

        class Counting(SQLiteSource):
            __slots__ = ()

            def _connect(self) -> sqlite3.Connection:
                made.append(threading.get_ident())
                return super()._connect()

        source = Counting(tmp_path / "x.db")
        source.write("a", 1)
        threading.Thread(target=source.fetch, args=("a",)).start()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(60)
        assert len(made) == 2
        source.close()
        source.close()
        assert source.fetch("a") == 1
        assert made.count(threading.get_ident()) == 2

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_a_forked_child(self, tmp_path):
        """A child uses a connection of its own; the parent's goes on."""
        made = []

        class Counting(SQLiteSource):
            __slots__ = ()

            def _connect(self) -> sqlite3.Connection:
                made.append(os.getpid())
                return super()._connect()

        source = Counting(tmp_path / "x.db")
        source.write("a", 1)
        child = os.fork()
        if child == 0:
            good = source.fetch("a") == 1 and source.write("b", 2) and made[1:] == [os.getpid()]
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert (source.fetch("b"), source.write("c", 3)) == (2, True)
