"""Incarnations and their numbers, and what a receiver makes of the numbers of others."""

from __future__ import annotations

import pytest

from lapse import ManualClock
from lapse.invalidation.origin import REORDERED, Ledger, Origin


def test_an_origin_counts():
    """Numbers begin at 0; no two incarnations are alike; a renewed one begins anew."""
    origin, other = Origin(), Origin()
    assert origin.id != other.id
    assert len(origin.id) <= 256
    assert [origin.next(), origin.next(), origin.last] == [0, 1, 1]
    before = origin.id
    origin.renew()
    assert origin.id != before
    assert (origin.last, origin.next()) == (-1, 0)


@pytest.mark.parametrize("ordered", [True, False])
def test_in_order(ordered):
    """Messages that come in order are new, second copies are duplicates."""
    ledger = Ledger(ordered=ordered)
    assert [ledger.see("a", n) for n in (0, 1, 1, 2, 0)] == [
        "new", "new", "duplicate", "new", "duplicate",
    ]  # fmt: skip
    assert ledger.see("b", 0) == "new"
    assert ledger.overdue() == 0


def test_a_gap_once():
    """A hole in the numbers is a gap, once; each origin has numbers of its own."""
    ledger = Ledger()
    assert [ledger.see("a", n) for n in (0, 2, 3, 1)] == ["new", "gap", "new", "duplicate"]
    assert ledger.see("b", 0) == "new"


def test_an_unknown_incarnation():
    """One that is first seen above 0 is a gap once."""
    ledger = Ledger()
    assert [ledger.see("a", n) for n in (5, 6)] == ["gap", "new"]


def test_heartbeats():
    """A heartbeat reveals that the last message is lost, once; one in time reveals nothing."""
    ledger = Ledger()
    assert not ledger.reach("a", None)
    assert ledger.see("a", 0) == "new"
    assert [ledger.reach("a", n) for n in (0, 1, 1)] == [False, True, False]
    assert ledger.see("a", 2) == "new"
    assert ledger.reach("b", 3)
    assert ledger.see("b", 4) == "new"


def test_an_unordered_transport_has_its_grace():
    """What is missing may come late; what does not is overdue, once, after the grace."""
    clock = ManualClock(10.0)
    ledger = Ledger(ordered=False, grace=1.0, clock=clock)
    assert [ledger.see("a", n) for n in (0, 3, 1, 1)] == ["new", "new", "new", "duplicate"]
    assert ledger.overdue() == 0
    clock.advance(0.9)
    assert ledger.overdue() == 0
    clock.advance(0.2)
    assert [ledger.overdue(), ledger.overdue()] == [1, 0]
    assert ledger.see("a", 2) == "duplicate"
    assert ledger.see("b", 2) == "new"
    clock.advance(2.0)
    assert ledger.overdue() == 1


def test_an_unordered_transport_that_misses_much():
    """More holes than are remembered are a gap at once."""
    ledger = Ledger(ordered=False)
    assert ledger.see("a", 0) == "new"
    assert ledger.see("a", REORDERED + 2) == "gap"


@pytest.mark.parametrize("ordered", [True, False])
def test_a_heartbeat_from_far_ahead(ordered):
    """The highest number that a message may have is a gap like any other."""
    ledger = Ledger(ordered=ordered)
    assert ledger.reach("a", 2**63 - 1)
    assert not ledger.lacks("a")


def test_origins_are_bounded():
    """The origin that was heard longest ago is forgotten, and is unknown when it comes again."""
    ledger = Ledger(most=2)
    for origin in ("a", "b", "a", "c"):
        ledger.see(origin, 0)
        assert len(ledger) <= 2
    assert ledger.see("a", 1) == "new"
    assert ledger.see("b", 1) == "gap"
