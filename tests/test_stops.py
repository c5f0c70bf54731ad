"""Ends and forks of a process whose threads stop all others to give memory back."""

from __future__ import annotations

import os
import sys

import pytest

from lapse import forks, stops
from support import FREE_THREADED, run_python

TURNS = 120 if os.environ.get("LAPSE_LONG") == "1" else 6

SHRINKING = """
import lapse, threading, time

turns = [0] * 3

def shrink(me):
    cache = lapse.TTLCache(60)
    while True:
        cache.set_many(dict.fromkeys(range(9000)))
        cache.clear()
        turns[me] += 1

for me in range(3):
    threading.Thread(target=shrink, args=(me,), daemon=True).start()
while min(turns) < 3:
    time.sleep(0.001)
"""


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="CPython 3.10 may crash at its end where other threads run on",
)
def test_exit_while_memory_goes_back():
    """Threads that give memory back do not keep the interpreter from ending."""
    for _ in range(TURNS):
        child = run_python(SHRINKING)
        assert (child.returncode, child.stderr) == (0, "")


ENDED = """
from lapse import TTLCache
from lapse._core import end_stops

cache = TTLCache(60)

def left():
    cache.set_many(dict.fromkeys(range(90_000)))
    cache.clear()
    return cache.stats().bytes

before = left()
assert not end_stops()
print(before, left())
"""


@pytest.mark.skipif(not FREE_THREADED, reason="with the GIL no thread need be stopped")
def test_memory_stays_where_nobody_may_be_stopped():
    """After the end of the stops a cache keeps what it would give back."""
    child = run_python(ENDED)
    assert child.returncode == 0, child.stderr
    before, after = map(int, child.stdout.split())
    assert after > 4 * before


def test_the_exit_waits_for_stops(monkeypatch):
    """The exit asks until no stop is under way."""
    answers = iter([True, True, False])
    monkeypatch.setattr(stops, "end_stops", lambda: next(answers))
    stops._end()
    assert list(answers) == []


def test_the_exit_does_not_wait_for_ever(monkeypatch):
    """A stop that does not end is given up."""
    asked: list[bool] = []
    monkeypatch.setattr(stops, "end_stops", lambda: asked.append(True) or True)
    monkeypatch.setattr(stops, "PATIENCE", 0.01)
    stops._end()
    assert asked


HELD = """
from lapse import TTLCache, forks

cache = TTLCache(60)

def left():
    cache.set_many(dict.fromkeys(range(90_000)))
    cache.clear()
    return cache.stats().bytes

before = left()
forks._before_fork()
held = left()
forks._let_go_in_parent()
print(before, held, left())
"""


@pytest.mark.skipif(not FREE_THREADED, reason="with the GIL no thread need be stopped")
def test_a_fork_holds_stops():
    """Nobody is stopped while a process forks; afterwards memory goes back again."""
    child = run_python(HELD)
    assert child.returncode == 0, child.stderr
    before, held, after = map(int, child.stdout.split())
    assert held > 4 * before
    assert after < 2 * before


def test_a_fork_waits_for_stops(monkeypatch):
    """It holds stops once, asks until none is under way, and lets go once; a child need not."""
    answers, asked = iter([True, True, False, False]), []
    monkeypatch.setattr(stops, "hold_stops", lambda more: asked.append(more) or next(answers))
    forks._before_fork()
    forks._let_go_in_parent()
    forks._let_go_in_parent()
    assert asked == [1, 0, 0, -1]


def test_a_fork_does_not_wait_for_ever(monkeypatch):
    """A stop that does not end keeps no process from forking."""
    monkeypatch.setattr(stops, "hold_stops", lambda more: True)
    monkeypatch.setattr(forks, "PATIENCE", 0.01)
    forks._before_fork()
    forks._let_go_in_parent()


def test_a_child_forgets_stops(monkeypatch):
    """Before anything else is told of the fork, which may start a thread."""
    told: list[str] = []
    monkeypatch.setattr(stops, "forget_stops", lambda: told.append("stops"))
    monkeypatch.setattr(forks, "tell_all", lambda *_: told.append("caches"))
    forks._after_fork()
    assert told == ["stops", "caches"]
