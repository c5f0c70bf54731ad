"""The changes of an SQLite file: threads, other processes, killed writers, forked children."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lapse
from lapse import forks
from lapse.sources.database import DatabaseChangeInvalidation
from lapse.sources.sqlite import SQLiteChanges
from sqlite_support import JOURNALS, changes_of, make_file, read_now
from support import PATIENCE, in_child, run_python, wait_until

USERS = "CREATE TABLE users (id INTEGER PRIMARY KEY, name UNIQUE)"
WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
first, count = map(int, sys.argv[2:])
for n in range(first, first + count):
    db.execute("INSERT INTO users VALUES (?, ?)", (n, str(n)))
"""
KILLED = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
db.execute("INSERT INTO users VALUES (1, 'committed')")
db.execute("PRAGMA cache_size = 5")
db.execute("BEGIN IMMEDIATE")
db.executemany("INSERT INTO users VALUES (?, ?)", [(n, "x" * 500 + str(n)) for n in range(2, 2000)])
print("ready", flush=True)
time.sleep(60)
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


@pytest.fixture(params=JOURNALS)
def path(tmp_path: Any, request: pytest.FixtureRequest) -> Path:
    """A file in each journal mode."""
    make_file(tmp_path / "data.db", USERS, request.param).close()
    return Path(tmp_path / "data.db")


@pytest.fixture
def source(path: Path) -> Iterator[SQLiteChanges]:
    """A source of its changes."""
    with_source = SQLiteChanges(path, ["users"])
    yield with_source
    with_source.close()


class Following:
    """A thread that iterates a source and keeps what it yields, and when."""

    def __init__(self, source: SQLiteChanges) -> None:
        self.source = source
        self.keys: list[Any] = []
        self.empty = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for event in self.source:
            found = [change["key"] for change in changes_of([event])]
            self.keys += found
            self.empty += not found
            if event.commit is not None:
                event.commit()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *exc: object) -> None:
        self.source.close()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


def start(script: str, *arguments: Any) -> subprocess.Popen[str]:
    """A process that runs a script."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_other_processes(path, source):
    """Every committed row of several processes at once comes, in the order of its number."""
    with Following(source) as following:
        writers = [start(WRITER, path, 1000 * n, 100) for n in range(3)]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        assert wait_until(lambda: len(following.keys) == 300)
    for n in range(3):
        mine = [key for key in following.keys if key // 1000 == n]
        assert mine == list(range(1000 * n, 1000 * n + 100))


def test_a_writer_that_is_killed(path, source):
    """What a writer had not committed when it was killed never comes; the file goes on."""
    writer = start(KILLED, path)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    writer.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    writer.wait()
    writer.stdout.close()
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    db.execute("INSERT INTO users VALUES (5000, 'next')")
    assert [change["key"] for change in changes_of(read_now(source))] == [1, 5000]
    db.close()


def test_a_reader_that_is_killed(path):
    """A named consumer that was killed goes on where it had committed, or before."""
    script = f"""
import os, signal, sys
from lapse.sources.sqlite import SQLiteChanges
source = SQLiteChanges({str(path)!r}, ["users"], consumer="one")
db = source.connect(isolation_level=None)
db.execute("INSERT INTO users VALUES (1, 'a')")
for event in source:
    if event.changes:
        event.commit()
        break
db.execute("INSERT INTO users VALUES (2, 'b')")
next(iter(source))
sys.stdout.write("read")
sys.stdout.flush()
os._exit(9)
"""
    assert run_python(script).stdout == "read"
    source = SQLiteChanges(path, ["users"], consumer="one")
    assert [change["key"] for change in changes_of(read_now(source))] == [2]
    source.close()


def test_a_connection_that_wakes(path):
    """A commit by the source's own connection is read at once, however rarely it looks."""
    source = SQLiteChanges(path, ["users"], poll=1000.0, idle_poll=1000.0)
    db = source.connect()
    with Following(source) as following:
        assert wait_until(lambda: source.stats().looks > 0)
        with db:
            db.execute("INSERT INTO users VALUES (1, 'a')")
        assert wait_until(lambda: following.keys == [1])
        db.execute("INSERT INTO users VALUES (2, 'b')")
        db.commit()
        assert wait_until(lambda: following.keys == [1, 2])
        db.isolation_level = None
        db.executemany("INSERT INTO users VALUES (?, ?)", [(3, "c")])
        assert wait_until(lambda: following.keys == [1, 2, 3])
        db.executescript("BEGIN; INSERT INTO users VALUES (4, 'd'); COMMIT")
        assert wait_until(lambda: following.keys == [1, 2, 3, 4])
        db.cursor().execute("INSERT INTO users VALUES (5, 'e')")
        assert wait_until(lambda: following.keys == [1, 2, 3, 4, 5])
    db.close()


def test_wake(path):
    """wake() makes it look at once."""
    source = SQLiteChanges(path, ["users"], poll=1000.0, idle_poll=1000.0)
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    with Following(source) as following:
        assert wait_until(lambda: source.stats().looks > 0)
        db.execute("INSERT INTO users VALUES (1, 'a')")
        source.wake()
        assert wait_until(lambda: following.keys == [1])
    db.close()


def test_catch_up(path):
    """catch_up() waits until what was committed is in force, and says whether it is."""
    cache = lapse.TTLCache(None, cleanup_interval=None)
    source = SQLiteChanges(path, ["users"])
    db = sqlite3.connect(path, isolation_level=None, timeout=60)
    with DatabaseChangeInvalidation(cache, source, start=False) as invalidation:
        db.execute("INSERT INTO users VALUES (0, 'x')")
        assert source.catch_up(timeout=0.01) is False
        invalidation.start_change_monitoring()
        for n in range(1, 50):
            cache[f"users:{n}"] = n
            db.execute("INSERT INTO users VALUES (?, ?)", (n, n))
            assert source.catch_up(timeout=30)
            assert f"users:{n}" not in cache
    assert source.catch_up() is False
    db.close()


def test_reading_does_not_wake(path):
    """A connection that only reads wakes nobody."""
    source = SQLiteChanges(path, ["users"])
    db = source.connect()
    woken: list[int] = []
    db.tell = lambda: woken.append(1)
    db.execute("SELECT * FROM users").fetchall()
    db.commit()
    assert woken == []
    db.execute("INSERT INTO users VALUES (1, 'a')")
    assert woken == []
    db.commit()
    assert woken == [1]
    db.close()
    source.close()


def test_an_empty_batch_when_nothing_happens(source):
    """At the latest after half a second an empty batch says that all is well."""
    with Following(source) as following:
        assert wait_until(lambda: following.empty >= 2)


def test_looks_become_rare(path):
    """The longer nothing happens, the rarer it looks, down to a bound; wake() starts anew."""
    now = [0.0]
    source = SQLiteChanges(path, ["users"], poll=0.002, idle_poll=0.025, clock=lambda: now[0])
    naps = []
    for seconds in (0.0, 3.0, 10.0, 50.0, 10_000.0):
        now[0] = seconds
        naps.append(source._nap(now[0]))
    assert naps[:2] == [0.002, 0.002]
    assert naps == sorted(naps)
    assert naps[-1] == 0.025
    source.wake()
    assert source._nap(now[0]) == 0.002
    source.close()


def test_close_from_another_thread(path):
    """close() ends an iteration at once, however rarely it looks, and may be called again."""
    source = SQLiteChanges(path, ["users"], poll=1000.0, idle_poll=1000.0)
    with Following(source):
        assert wait_until(lambda: source.stats().looks > 0)
        source.close()
        source.close()
    assert list(source) == []


@needs_fork
def test_a_forked_child(path):
    """A child follows the file by a connection of its own, and the parent goes on."""
    script = f"""
import os, time
import lapse
from lapse.sources.database import DatabaseChangeInvalidation
from lapse.sources.sqlite import SQLiteChanges

def gone(key):
    end = time.monotonic() + 60
    while key in cache and time.monotonic() < end:
        time.sleep(0.001)
    return key not in cache

cache = lapse.TTLCache(None)
source = SQLiteChanges({str(path)!r}, ["users"], consumer="one")
invalidation = DatabaseChangeInvalidation(cache, source)
cache["users:1"] = 1
inherited = source._outbox
child = os.fork()
if child == 0:
    end = time.monotonic() + 60
    while invalidation.stats().resyncs != {{"fork": 1}} and time.monotonic() < end:
        time.sleep(0.001)
    cache["users:1"] = 1
    cache["mine"] = 1
    db = source.connect(isolation_level=None, timeout=60)
    db.execute("INSERT INTO users VALUES (1, 'a')")
    right = gone("users:1") and "mine" in cache and source._outbox is not inherited
    os._exit(0 if right else 1)
assert gone("users:1")
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
cache["users:2"] = 2
source.connect(isolation_level=None, timeout=60).execute("INSERT INTO users VALUES (2, 'b')")
print(status, gone("users:2"))
"""
    result = run_python(script, "-W", "ignore::ResourceWarning")
    assert result.stdout == "0 True\n", result.stderr


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_waits_for_a_look(path, monkeypatch):
    """SQLite counts its locks by process: a child would find the file locked for ever."""
    monkeypatch.setattr(forks, "PATIENCE", PATIENCE)
    source, looking = SQLiteChanges(path, ["users"]), threading.Event()

    def look() -> None:
        with source._lock:
            connection = source._outbox._connection
            looking.set()
            for _ in range(3000):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("COMMIT")

    def work() -> None:
        db = source.connect(isolation_level=None, timeout=60)
        db.execute("INSERT INTO users VALUES (1, 'a')")
        assert source._lock.acquire(timeout=0)  # the child's own

    thread = threading.Thread(target=look)
    thread.start()
    assert looking.wait(PATIENCE)
    assert in_child(work) == 0
    thread.join()
    assert not source._lock._is_owned()
    source.close()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_does_not_wait_for_ever(source, monkeypatch):
    """A look that does not end keeps no process from forking."""
    monkeypatch.setattr(forks, "PATIENCE", 0.01)
    looking, go_on = threading.Event(), threading.Event()

    def look() -> None:
        with source._lock:
            looking.set()
            assert go_on.wait(60)

    thread = threading.Thread(target=look)
    thread.start()
    assert looking.wait(PATIENCE)
    status = in_child(source.close)
    looked_on = thread.is_alive()
    go_on.set()
    thread.join()
    assert status == 0
    assert looked_on


def test_a_cache_follows_another_process(path):
    """Entries of rows that another process changes go, and no others."""
    cache = lapse.TTLCache(None, cleanup_interval=None)
    cache.update({f"users:{n}": n for n in range(200)})
    with DatabaseChangeInvalidation(cache, SQLiteChanges(path, ["users"])) as invalidation:
        assert start(WRITER, path, 50, 100).wait(60) == 0
        assert wait_until(lambda: len(cache) == 100)
        assert sorted(cache.values()) == [*range(50), *range(150, 200)]
        assert invalidation.stats().resyncs == {}


def test_the_position_is_written_at_exit(path):
    """A process that ends without close() has kept its position."""
    script = f"""
from lapse.sources.sqlite import SQLiteChanges
source = SQLiteChanges({str(path)!r}, ["users"], consumer="one", clock=lambda: 5.0)
db = source.connect(isolation_level=None)
for n in range(20):
    db.execute("INSERT INTO users VALUES (?, ?)", (n, n))
    next(iter(source)).commit()
"""
    assert run_python(script).returncode == 0
    source = SQLiteChanges(path, ["users"], consumer="one")
    assert changes_of(read_now(source)) == []
    source.close()
