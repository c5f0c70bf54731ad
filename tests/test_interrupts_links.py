"""The same where processes and threads hear of each other: channels, mailboxes, buses, workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from channel_support import NOW, Played
from interrupts import each_interruption, interrupt
from lapse import MappingSource, TTLCache, flight_refresh, sweeper
from lapse.distributed.confirmations import Confirmations
from lapse.distributed.local import LocalBroadcaster
from lapse.flight_board import DROPPED, Flight, board
from lapse.invalidation import Invalidation
from lapse.invalidation.envelope import read
from lapse.invalidation.fanout import Fanout
from lapse.invalidation.limits import Limits
from lapse.invalidation.metrics import WireMeter
from lapse.loading.write_through import WriteThroughInvalidation
from support import PATIENCE, SOON, wait_until

# --- Channels ---

SENDING: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "one": (lambda p: p.channel.publish([Invalidation("key", "own")]), ["own"]),
    "some": (lambda p: p.channel.publish([Invalidation("key", n) for n in range(2)]), [0, 1]),
    "pump": (lambda p: p.channel._outbox.pump(), []),
}
HANDLERS = SENDING | {"interrupt": (interrupt, [])}


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("failures", "most"), [(0, 1000), (2, 3)])
@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("call", SENDING)
def test_no_message_is_lost(call, handler, failures, most, binary):
    """They go out in the order of their numbers; what had been published goes out in any case."""

    def prepare() -> Any:
        played = Played(most_unsent=most, binary=binary)
        played.script.failing.extend(OSError("on purpose") for _ in range(failures))
        for n in range(3):
            played.channel.publish([Invalidation("key", f"first{n}")])
        played.clock.advance(10)
        return played

    expected = {f"first{n}" for n in range(3)} | {*HANDLERS[handler][1]}
    if handler != "interrupt":
        expected |= {*SENDING[call][1]}
    for played in each_interruption(prepare, SENDING[call][0], HANDLERS[handler][0]):
        for _ in range(3):
            played.clock.advance(10)
            played.channel._outbox.pump()
        assert played.channel.unsent == 0
        assert played.channel.publish_failures <= failures
        messages = [read(each, limits=Limits(), meter=WireMeter()) for each in played.script.sent]
        numbers = [message.sequence for message in messages]
        assert numbers == sorted(numbers)
        if handler != "interrupt":  # whose victim may take a number with it: receivers see the gap
            assert numbers == [*range(len(numbers))]
        items = [item for message in messages for item in message.invalidations]
        assert expected <= {item.target for item in items} or "all" in {i.kind for i in items}


# --- Mailboxes ---


class Hall(Fanout):
    """A fan-out that remembers who has subscribed by name, and what they got."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes: list[Any] = []

    def join(self) -> None:
        self.boxes.append(self.subscribe())

    def got(self) -> list[list[Any]]:
        """What waits in each mailbox, those of later subscribers included."""
        self.join()
        return [list(iter(lambda box=box: box.receive(0), None)) for box in self.boxes]  # type: ignore[misc]


def hall(members: int = 0, *messages: str) -> Hall:
    made = Hall()
    for _ in range(members):
        made.join()
    for message in messages:
        made.publish(message)
    return made


def test_who_subscribes_misses_nothing():
    """What is published meanwhile is his, too, and nobody else's."""
    for it in each_interruption(lambda: hall(0, "a"), Hall.join, lambda it: it.publish("b")):
        assert it.got() == [["a", "b"], []]


def test_who_subscribes_while_another_one_does():
    """One of them gets what nobody had got."""
    for it in each_interruption(lambda: hall(0, "a"), Hall.join, Hall.join):
        assert sorted(it.got()) == [[], [], ["a"]]


def test_who_subscribes_while_something_is_published():
    """It reaches the first subscriber, whoever that is."""
    for it in each_interruption(hall, lambda it: it.publish("a"), Hall.join):
        assert it.got() == [["a"], []]


def test_a_message_right_before_a_wait(monkeypatch):
    """Nobody wakes up the reader then: he looks again by himself."""
    it = hall(1)
    wait = it._changed.wait

    def interrupted_wait(timeout: float | None) -> bool:
        it.publish("a")
        return wait(timeout)

    monkeypatch.setattr(it._changed, "wait", interrupted_wait)
    begun = time.monotonic()
    assert it.boxes[0].receive(30) == "a"
    assert time.monotonic() - begun < SOON


# --- The bus of a host ---


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Callable[[], LocalBroadcaster]]:
    """Makes members, each of a bus of its own."""
    made: list[LocalBroadcaster] = []

    def make() -> LocalBroadcaster:
        made.append(LocalBroadcaster(f"b{len(made)}", directory=tmp_path))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_socket_fails_while_its_file_is_looked_for(bus):
    """It is not forgotten: the member would be deaf from then on."""

    def prepare() -> LocalBroadcaster:
        made = bus()
        made._look_at = 0.0
        return made

    def fail(made: LocalBroadcaster) -> None:
        made._endpoint.failed = True

    for made in each_interruption(prepare, lambda made: made._look_for_own_file(), fail):
        assert made._endpoint.failed
        made.close()


@pytest.mark.parametrize("handler", ["join", "close"])
def test_joining_is_interrupted(bus, handler):
    """By another join, or the end of it: there is one file a member, and none after close()."""

    def prepare() -> LocalBroadcaster:
        made = bus()
        made._leave()
        return made

    def join(made: LocalBroadcaster) -> None:
        with suppress(RuntimeError):  # closed
            made.join()

    def handle(made: LocalBroadcaster) -> None:
        getattr(made, handler)()

    for made in each_interruption(prepare, join, handle):
        assert made._folder.names() == ([] if made.closed else [made.identity])
        made.close()
        assert made._folder.names() == []


def test_a_broadcast_in_the_midst_of_another(bus):
    """Both arrive, though the outer one is of many pieces."""
    large = "x" * 100_000

    def prepare() -> LocalBroadcaster:
        made = bus()
        made.other = made.subscribe()
        made.other.join()
        return made

    for made in each_interruption(
        prepare, lambda made: made.broadcast(large), lambda made: made.broadcast("late")
    ):
        assert {made.other.receive(PATIENCE), made.other.receive(PATIENCE)} == {large, "late"}
        made.other.close()
        made.close()


def test_somebody_is_heard_while_the_present_are_listed():
    """The list is of one instant."""

    def prepare() -> Confirmations:
        made = Confirmations(60, lambda: NOW)
        made.heard("a")
        made.heard("b")
        return made

    for made in each_interruption(prepare, Confirmations.present, lambda made: made.heard("c")):
        assert made.present() == {"a", "b", "c"}


# --- Threads that end ---


def test_a_reload_is_asked_for_as_the_worker_ends(monkeypatch):
    """Somebody works at it, the worker or a new one."""
    monkeypatch.setattr(flight_refresh, "LINGER", 0.0)

    class Asked(flight_refresh.Workers):
        """With one thread, the caller's."""

        def __init__(self) -> None:
            super().__init__()
            self._threads = 1
            self.cache = TTLCache(60, cleanup_interval=None)
            self.flight: Any = None
            self.going = False

        def ask(self) -> None:
            self.flight = Flight(self.cache, "k", frozenset())
            board.offer(self.flight)
            self.submit(self.cache, self.flight, object(), lambda _: "new", None)

        def run(self) -> None:
            self.going = self._run_once()

    for workers in each_interruption(Asked, Asked.run, Asked.ask):
        flight = workers.flight
        assert workers.going or wait_until(lambda flight=flight: flight.settled)
        board.settle(flight, DROPPED)


def test_a_cache_is_made_as_the_sweeper_ends(monkeypatch):
    """It is swept by this thread or by the next."""
    monkeypatch.setattr(sweeper, "LINGER", 0.0)
    cache = TTLCache(60, cleanup_interval=None)

    def prepare() -> sweeper.Sweeper:
        made = sweeper.Sweeper()
        made._thread = threading.current_thread()
        return made

    for made in each_interruption(
        prepare, lambda made: made._next_due(), lambda made: made.watch(cache, 0.01)
    ):
        assert made._thread is not None or not made._heap
        made._stopping = True


def test_a_server_is_closed_as_it_starts(monkeypatch):
    """It does not serve on."""
    pytest.importorskip("flask")
    from lapse.web.api import APIInvalidation
    from lapse.web.serving import Server

    monkeypatch.setattr(Server.close, "__defaults__", (0.0,))  # nobody runs it who could end
    made: list[Any] = []
    servers: list[Any] = []

    def prepare() -> Any:
        made.append(APIInvalidation(TTLCache(60, cleanup_interval=None)))
        servers.clear()
        return made[-1]

    def serve(interface: Any) -> None:
        with suppress(RuntimeError):  # closed
            servers.append(interface._server("127.0.0.1", 0, 1))

    for _ in each_interruption(prepare, serve, lambda interface: interface.close()):
        assert all(server._closing for server in servers)
    for interface in made:
        interface.close()


# --- Sources ---

WRITES: dict[str, Callable[[WriteThroughInvalidation], Any]] = {
    "write": lambda through: through.write("k", "new"),
    "update": lambda through: through.update("k", "new"),
    "delete": lambda through: through.delete("k"),
}


@pytest.mark.parametrize("call", WRITES)
def test_a_write_that_is_interrupted(call):
    """The cache has what the source has, or nothing."""

    def prepare() -> WriteThroughInvalidation:
        cache = TTLCache(60, cleanup_interval=None)
        through = WriteThroughInvalidation(cache, MappingSource())
        through.write("k", "old")
        return through

    for through in each_interruption(prepare, WRITES[call], interrupt):
        value = through.data_source.fetch("k")
        assert through.cache.get("k", value) == value


def test_a_source_is_written_to_as_it_deletes():
    """A value has a version, and none has none."""
    for source in each_interruption(
        lambda: MappingSource({"k": 1}),
        lambda source: source.delete("k"),
        lambda source: source.write("k", 2),
    ):
        assert (source.fetch("k") is None) == (source.get_version("k") is None)
