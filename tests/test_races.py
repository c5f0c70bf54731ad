"""What another thread does between two steps of a call: things die, are taken away, are closed."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lapse.distributed.local import LocalBroadcaster
from lapse.distributed.memory import MemoryBroadcaster
from lapse.invalidation import OptimizedInvalidation
from lapse.invalidation.alerts import Alert, Alerts
from lapse.invalidation.metrics import WireMeter
from lapse.sources.memory import MemoryQueue
from lapse.sources.templates import Templates
from lapse.web.stats import Tally
from support import PATIENCE, run_python, switching

THREADS = 4
TURNS = 2000
SECONDS = 1.0


_switch_often = switching(2e-6)


def beside(work: Callable[[], object], *others: Callable[[], object]) -> None:
    """Runs `work` TURNS times, or for SECONDS, while each of the others is run over and over."""
    over, raised = threading.Event(), list[BaseException]()

    def run(other: Callable[[], object]) -> None:
        try:
            while not over.is_set():
                other()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(other,)) for other in others]
    for thread in threads:
        thread.start()
    end = time.monotonic() + SECONDS
    try:
        for _ in range(TURNS):
            work()
            if raised or time.monotonic() > end:
                break
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not raised, raised
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


def at_once(work: Callable[[], object]) -> None:
    """Runs `work` TURNS times in each of THREADS threads."""
    barrier = threading.Barrier(THREADS)

    def run() -> None:
        barrier.wait()
        for _ in range(TURNS):
            work()

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_subscribers_that_die_while_a_message_is_handed_out():
    """Whoever publishes is not disturbed by ends that come and go in other threads."""
    queue = MemoryQueue()
    kept = [queue.subscribe() for _ in range(100)]
    beside(lambda: queue.publish({"n": 1}), queue.subscribe, queue.subscribe)
    assert all(each.receive(0) == {"n": 1} for each in kept)


def test_members_that_die_while_they_are_listed():
    """Nor is whoever asks for the members of a bus."""
    bus = MemoryBroadcaster()
    kept = [bus.subscribe() for _ in range(100)]
    beside(bus.members, bus.subscribe, bus.subscribe)
    assert bus.members() == {each.identity for each in kept}


def test_what_covers_a_full_ring_goes_while_it_is_counted():
    """A drain may take it away between two looks of the thread, or of repr()."""
    with OptimizedInvalidation({}, start=False) as queue:

        class Going:
            def __len__(self) -> int:
                queue._covered = None
                return 1

        queue._covered = Going()
        assert queue._waiting() == 1
        assert queue._waiting() == 0


def test_an_empty_batch_is_taken_away_by_somebody_else():
    """A producer that finds nothing to take does not mind that its batch is gone already."""
    with OptimizedInvalidation({}, start=False) as queue:
        place: list[Any] = []

        def take_away() -> None:
            place[:] = range(200)

        beside(lambda: [queue._take(1, place) for _ in range(50)], take_away, take_away)


def test_a_member_that_is_closed_as_it_joins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who has closed a bus is no member of it any more, whatever a thread in receive() does."""
    if not hasattr(os, "geteuid"):
        pytest.skip("no Unix datagram sockets on this system")
    bus, other = (LocalBroadcaster("bus", directory=tmp_path) for _ in range(2))
    monkeypatch.setattr(bus, "_check_open", bus.close)  # right after it was found open
    bus.join()
    assert other.members() == frozenset()
    other.close()


@pytest.mark.parametrize("count", ["alerts", "callbacks", "templates", "bytes", "requests"])
def test_nothing_is_lost_of_what_threads_count_together(
    count: str, monkeypatch: pytest.MonkeyPatch
):
    """Figures that several threads raise are exact."""
    monkeypatch.setattr(logging.getLogger("lapse.invalidation"), "disabled", True)
    alerts, templates = Alerts(lambda alert: 1 / 0), Templates(keys={"t": "{missing}"})
    meter, tally = WireMeter(), Tally()
    work, found = {
        "alerts": (lambda: alerts.tell(Alert("gap", "a", "b")), lambda: alerts.told["gap"]),
        "callbacks": (lambda: alerts.tell(Alert("gap", "a", "b")), lambda: alerts.errors),
        "templates": (lambda: templates({"table": "t"}), lambda: templates.errors),
        "bytes": (lambda: meter.sent(2, 1), lambda: meter.wire_out),
        "requests": (lambda: tally.applied(1, 1), lambda: tally.stats().removed),
    }[count]
    at_once(work)
    assert found() == THREADS * TURNS


FORK = """
import os, signal, threading
from contextlib import ExitStack
from kombu import Connection
from kombu.utils.objects import cached_property
from lapse.sources import kombu_links
from lapse.sources.kombu import KombuQueue
queue = KombuQueue("memory://", name="fork")
queue.receive()
held, go_on = threading.Event(), threading.Event()
def hold():
    with ExitStack() as locks:
        locks.enter_context(kombu_links._in_process)
        for each in vars(Connection).values():
            if isinstance(each, cached_property):
                locks.enter_context(each.lock)
        held.set()
        go_on.wait()
threading.Thread(target=hold).start()
held.wait()
if (child := os.fork()) == 0:
    signal.alarm(100)
    queue.receive()
    queue.publish(b"1")
    assert queue.receive(60) == b"1"
    os._exit(0)
go_on.set()
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_while_a_thread_is_within_kombu():
    """Locks that belong to no link, lapse's and kombu's own, are free again in a child."""
    pytest.importorskip("kombu")
    done = run_python(FORK)
    assert done.returncode == 0, done.stderr
