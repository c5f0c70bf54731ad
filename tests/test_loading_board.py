"""The board of loads under way: who waits for whom, and what a flight leaves behind."""

from __future__ import annotations

import threading
import traceback
from typing import Any

import pytest

from lapse.flight import Flights
from lapse.flight_board import DROPPED, Flight, LoadCycleError, Run, Wait, board, inside
from lapse.flight_gates import AGAIN, Outcome, ThreadGate
from loads import Call, Counting, everything_lands, run, waiting
from support import KINDS, wait_until

_ = pytest.fixture(autouse=True)(everything_lands)
ME = threading.get_ident()


def flight_of(cache: Any, key: Any, thread: int = -1) -> Flight:
    """A flight on the board, led by another thread."""
    flight = Flight(cache, key, frozenset())
    flight.run.thread = thread
    assert board.offer(flight) is flight
    return flight


def test_a_run_that_is_over_closes_no_ring():
    """What a run waited for, and the thread that it needed, do not matter once it is over."""
    first, last = Run(), Run()
    first.thread, last.thread = -1, -2
    first.waits[first] = last
    for caller, thread in ((last, None), (None, -2)):
        assert board.is_ring(first, caller, thread)
        last.over = True
        assert not board.is_ring(first, caller, thread)
        last.over = False


def test_a_run_ends_with_its_loader(cache):
    """In a thread and in a task the run of a load is over when the load is."""
    runs: list[Any] = []
    cache.get_or_load("k", lambda key: runs.append(inside.get()))
    run(cache.aget_or_load("other", lambda key: runs.append(inside.get())))
    assert [run.over for run in runs] == [True, True]
    assert inside.get() is None


def test_a_wait_within_a_wait(cache):
    """A signal handler that waits in the midst of a wait leaves the outer one as it was."""
    outer, inner = flight_of(cache, "outer"), flight_of(cache, "inner")
    with Wait(outer, ThreadGate(), ME):
        with Wait(inner, ThreadGate(), ME):
            assert board.blocked[ME] is inner.run
        assert board.blocked[ME] is outer.run
    assert not board.blocked
    for flight in (outer, inner):
        assert not flight.waiters
        board.settle(flight, DROPPED)


def test_waiting_for_what_has_ended(cache):
    """A caller that joins in the moment in which a flight ends begins anew at once."""
    flight, gate = flight_of(cache, "k"), ThreadGate()
    board.settle(flight, Outcome("value"))
    with Wait(flight, gate, ME):
        gate.wait(None)
    assert gate.take("k") is AGAIN


def test_a_refused_wait_leaves_nothing(cache):
    """A wait that would close a ring is not entered anywhere."""
    flight, gate = flight_of(cache, "k", ME), ThreadGate()
    flight.waiters[gate] = None
    with pytest.raises(LoadCycleError), Wait(flight, gate, ME):
        pass
    assert not flight.waiters
    assert not board.blocked
    board.settle(flight, DROPPED)


def test_a_flight_that_has_ended_holds_no_lease(cache):
    """An exception that somebody keeps does not keep a lease out."""
    with pytest.raises(ValueError, match="no") as caught:
        cache.get_or_load("k", Counting(ValueError("no")))
    held = [
        value for frame in caught.traceback for value in frame.frame.f_locals.values()
        if isinstance(value, Flight)
    ]  # fmt: skip
    assert held
    assert all(flight.lease is None for flight in held)


def test_a_shared_exception_does_not_grow():
    """Each caller's traceback shows the loader's frames and his own, not those of the others."""
    gates = [ThreadGate() for _ in range(5)]
    with pytest.raises(ValueError, match="no") as caught:
        Counting(ValueError("no"))("k")
    for gate in gates:
        gate.open(Outcome(None, caught.value, caught.tb))
        with pytest.raises(ValueError, match="no") as again:
            gate.take("k")
        names = [frame.name for frame in traceback.extract_tb(again.value.__traceback__)]
        assert names.count("take") == 1
        assert names[-1] == "__call__"


def test_what_the_leader_found_is_not_for_later_callers(kind):
    """The leader finds a value, which is then invalidated: who comes after that loads anew."""
    base, options = KINDS[kind]
    steps = ["look", "lease"]
    later: list[Call] = []

    class Overtaken(base):
        def lease(self, key, *, tags=()):
            if steps[-1:] == ["lease"]:
                steps.pop()
                self.set(key, "old")
            return super().lease(key, tags=tags)

        def _look(self, key, default):
            value = super()._look(key, default)
            if steps[-1:] == ["look"]:
                steps.pop()
                self.delete(key)
                later.append(Call(self.get_or_load, key, Counting()))
                assert wait_until(lambda: waiting(self, key) or key in self)
            return value

    cache: Any = Overtaken(cleanup_interval=None, **options)
    assert cache.get_or_load("k", Counting()) == "old"
    assert later[0].result() == ("k", 1)


def test_what_a_leader_finds_is_his_alone(cache):
    """Who joins while the leader looks is not given what he finds: it may be hidden by then."""
    joined: list[Call] = []

    class View:
        """The cache as somebody sees it who outdates leases first, and hides a value after that."""

        hidden = False

        def __getattr__(self, name):
            return getattr(cache, name)

        def _look(self, key, default):
            value = default if self.hidden else cache._look(key, default)
            if not joined:
                self.hidden = True
                joined.append(Call(Flights().load, self, key, lambda _: "new", None, (), None))
                assert wait_until(lambda: waiting(self, key))
            return value

    view: Any = View()
    cache["k"] = "old"
    assert Flights().load(view, "k", Counting(), None, (), None) == "old"
    assert joined[0].result() == cache["k"] == "new"


def test_a_change_in_the_midst_costs_no_load(kind):
    """A change after the leader's lease and before his look does not make him load in vain."""
    base, options = KINDS[kind]
    looks: list[Any] = []

    class Overtaken(base):
        def _look(self, key, default):
            looks.append(key)
            if len(looks) == 1:
                self.delete(key)
            return super()._look(key, default)

    cache: Any = Overtaken(cleanup_interval=None, **options)
    assert cache.get_or_load("k", Counting()) == ("k", 1)
    assert "k" in cache
