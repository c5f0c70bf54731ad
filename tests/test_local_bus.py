"""The same-host bus: real sockets and processes, forks, killed and stopped members, strangers."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lapse
from lapse.distributed import endpoint as endpoints
from lapse.distributed.datagrams import BYTES, JSON, split
from lapse.distributed.local import LARGEST, PIECE, LocalBroadcaster, MessagesLost
from lapse.invalidation import Invalidation
from lapse.invalidation.wire import decode, encode
from support import SOON, no_thread_to_be_had, run_python, wait_until

if not hasattr(socket, "AF_UNIX") or not hasattr(os, "fork"):
    pytest.skip("no Unix datagram sockets or no fork on this system", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
WAIT = 60.0  # seconds that another process has for anything at all

MEMBER = """
import json, os, sys
from lapse.distributed.local import LocalBroadcaster
bus = LocalBroadcaster("bus", directory=sys.argv[1], **json.loads(sys.argv[2]))
print(bus.identity, flush=True)
for line in sys.stdin:
    print(repr(eval(line)), flush=True)
"""


class Member:
    """Another process with one LocalBroadcaster, `bus`, which evaluates what it is asked."""

    def __init__(self, directory: str, options: str):
        path = [str(Path(lapse.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        self.process = subprocess.Popen(
            [sys.executable, "-c", MEMBER, directory, options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.identity = self.answer()

    def tell(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, expression: str) -> Any:
        self.tell(expression)
        return self.answer()

    def receives(self, *messages: Any) -> bool:
        """Whether it receives exactly these, in this order."""
        return all(self.ask(f"bus.receive({WAIT})") == repr(each) for each in messages)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)
        if number == signal.SIGSTOP:
            os.waitpid(self.process.pid, os.WUNTRACED)
        elif number == signal.SIGKILL:
            self.process.wait()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def directory() -> Iterator[str]:
    """A folder with a short path, as sockets need."""
    path = tempfile.mkdtemp(prefix="lapse-", dir="/tmp")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def join(directory: str) -> Iterator[Callable[..., LocalBroadcaster]]:
    """Makes members in this process, and closes them."""
    made = []

    def make(**options: Any) -> LocalBroadcaster:
        made.append(LocalBroadcaster("bus", directory=directory, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def spawn(directory: str) -> Iterator[Callable[..., Member]]:
    """Makes members in processes of their own, and kills those."""
    made = []

    def make(options: str = "{}") -> Member:
        made.append(Member(directory, options))
        return made[-1]

    yield make
    for each in made:
        each.end()


def folder(directory: str) -> Path:
    return Path(directory) / f"lapse-{os.geteuid()}-bus"


def files(directory: str) -> set[str]:
    return set(os.listdir(folder(directory)))


def raw_send(directory: str, member: str, *datagrams: bytes) -> None:
    """Sends datagrams to a member as a stranger of the same user would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for each in datagrams:
            stranger.sendto(each, str(folder(directory) / member))


def in_child(work: Callable[[], Any]) -> int:
    """Runs `work` in a forked child, which exits by 0 if that is True. Its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        signal.alarm(100)
        try:
            code = 0 if work() is True else 2
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- Messages ---


def test_every_other_process_gets_every_message(join, spawn):
    """Each member gets what the others send, in the order of each sender, and not its own."""
    here, others = join(patience=WAIT), [spawn(), spawn(), spawn()]
    assert here.members() == {each.identity for each in others}
    for number in range(20):
        here.broadcast({"number": number})
    for each in others:
        assert each.receives(*({"number": number} for number in range(20)))
    others[0].ask("bus.broadcast({'from': 'first'})")
    assert here.receive(WAIT) == {"from": "first"}
    assert all(each.receives({"from": "first"}) for each in others[1:])
    assert here.receive(0.01) is None
    assert others[0].ask("bus.receive(0.01)") == "None"


@pytest.mark.parametrize(
    "message",
    [{"type": "x", "n": [1, None, "ü"]}, {}, b"\xc1LP\x00", b"", "text ü", "", b"{}", '{"a": 1}'],
    ids=repr,
)
def test_a_message_arrives_as_what_it_was(message, join):
    """Mappings, bytes and str come out as they went in, empty ones too."""
    sender, receiver = join(), join()
    sender.broadcast(message)
    assert receiver.receive(WAIT) == message


@pytest.mark.parametrize("size", [PIECE - 1, PIECE, PIECE + 1, 5 * PIECE, LARGEST])
def test_large_messages_travel_in_pieces(size, join):
    """A message of any allowed size comes through whole, once."""
    sender, receiver = join(patience=WAIT), join()
    message = random.Random(size).randbytes(size)
    sender.broadcast(message)
    assert receiver.receive(WAIT) == message
    assert receiver.receive(0) is None


@pytest.mark.parametrize("compress", [None, "auto"])
def test_a_batch_of_ten_thousand_keys(compress, join, spawn):
    """A batch that is far larger than a datagram reaches another process as it was."""
    here, other = join(), spawn()
    batch = [Invalidation("key", f"users:{n}:{random.random()}") for n in range(10_000)]
    data = encode(batch, compress=compress)
    other.tell(f"bus.broadcast(bus.receive({WAIT}))")
    here.broadcast(data)
    assert decode(here.receive(WAIT)) == batch
    assert other.answer() == "None"


def test_what_cannot_be_sent_is_refused(join):
    """Too large a message, one without a JSON form, and other types raise, and nothing is sent."""
    sender, receiver = join(), join()
    with pytest.raises(ValueError, match="larger than"):
        sender.broadcast(bytes(LARGEST + 1))
    with pytest.raises(TypeError):
        sender.broadcast({"key": object()})
    with pytest.raises(TypeError, match="a mapping, bytes or str"):
        sender.broadcast([1, 2])
    assert receiver.receive(0.01) is None


def test_threads_that_send_at_once_do_not_mix_their_messages(join):
    """Pieces of messages that several threads send come together again, and none is lost."""
    sender, receiver = join(patience=WAIT), join()
    messages = [bytes([n]) * (3 * PIECE + n) for n in range(40)]
    found = []
    threads = [
        threading.Thread(target=lambda part=n: [sender.broadcast(m) for m in messages[part::4]])
        for n in range(4)
    ]
    for each in threads:
        each.start()
    found = [receiver.receive(WAIT) for _ in messages]
    for each in threads:
        each.join()
    assert sorted(found) == messages
    assert receiver.stats().incomplete == 0


def test_members_that_send_to_each_other_at_once(join, spawn):
    """Two members that send far more than a queue holds, and read nothing, block neither."""
    here, other = join(patience=WAIT), spawn(f'{{"patience": {WAIT}}}')
    began = time.monotonic()
    other.tell("[bus.broadcast(bytes(100_000)) for n in range(50)][0]")
    for _ in range(50):
        here.broadcast(bytes(100_000))
    assert other.answer() == "None"
    assert time.monotonic() - began < WAIT
    assert [len(here.receive(WAIT)) for _ in range(50)] == [100_000] * 50
    assert other.ask(f"[len(bus.receive({WAIT})) for n in range(50)]") == repr([100_000] * 50)


def test_one_member_is_told_alone(join):
    """send_to() reaches the member that it names, and is nothing if that has left."""
    sender, first, second = join(), join(), join()
    sender.send_to(first.identity, {"for": "first"})
    assert first.receive(WAIT) == {"for": "first"}
    assert second.receive(0.01) is None
    identity = first.identity
    first.close()
    sender.send_to(identity, {"for": "first"})
    sender.send_to("1-0123456789abcdef", {})
    assert sender.stats().lost == 0


@pytest.mark.parametrize("name", ["../victim", "/tmp/victim", ".", "", "1-0123456789abcdef/x", "a"])
def test_a_member_whose_name_is_another_path(name, join, directory):
    """A name from a message is no way to a file outside, nor to its removal."""
    sender, victim = join(), Path(directory) / "victim"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(victim))
    sender.send_to(name.replace("/tmp", directory), {})
    assert victim.exists()
    assert sender._peers._sockets == {}


def test_telling_one_member_keeps_the_ways_to_the_others(join):
    """Sockets are closed when their member has left, and only then."""
    sender, first, second = join(), join(), join()
    sender.broadcast({})
    ways = dict(sender._peers._sockets)
    sender.send_to(first.identity, {})
    sender.broadcast({})
    assert sender._peers._sockets == ways
    second.close()
    sender.broadcast({})
    assert set(sender._peers._sockets) == {first.identity}


# --- Members that are slow, stopped or dead ---


def test_an_inbox_that_overflows_says_so(join):
    """What had no room is reported at its place; what comes later arrives."""
    sender, receiver = join(), join(capacity=3)
    for number in range(10):
        sender.broadcast({"number": number})
    assert wait_until(lambda: receiver.stats().dropped == 7)
    assert [receiver.receive(0)["number"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(MessagesLost):
        receiver.receive(0)
    sender.broadcast({"number": 10})
    assert receiver.receive(WAIT) == {"number": 10}
    assert receiver.stats().received == 4


def test_a_stopped_member_holds_up_nobody_for_long(join, spawn):
    """Senders wait for it once, and not beyond their patience; the others get everything."""
    here, stopped, other = join(patience=1.0), spawn(), spawn()
    stopped.signal(signal.SIGSTOP)
    took = 0.0
    for number in range(50):
        began = time.monotonic()
        here.broadcast({"number": number})
        took += time.monotonic() - began
        assert other.receives({"number": number})
    assert 1.0 <= took < SOON  # to wait each time would take longer
    assert 30 <= here.stats().lost < 50
    stopped.signal(signal.SIGCONT)
    count = 50 - here.stats().lost
    assert stopped.receives(*({"number": number} for number in range(count)))
    here.broadcast({"number": "next"})
    assert stopped.receives({"number": "next"})


def test_a_member_that_was_behind_is_waited_for_again(join, spawn):
    """Once it has taken a message whole, a member gets large ones again."""
    here, other = join(patience=0.05), spawn()
    other.signal(signal.SIGSTOP)
    here.broadcast(bytes(40 * PIECE))
    assert here.stats().lost == 1
    other.signal(signal.SIGCONT)
    assert wait_until(lambda: here.broadcast({"small": 1}) or not here._peers._behind)
    here._peers._patience = WAIT
    here.broadcast(bytes(40 * PIECE))
    code = f"next(len(m) for m in iter(lambda: bus.receive({WAIT}), None) if type(m) is bytes)"
    assert other.ask(code) == str(40 * PIECE)
    assert other.ask("bus.stats().incomplete") == "1"


def test_a_killed_member_is_forgotten(join, spawn, directory):
    """Its file goes when something is sent, and nobody waits for it or misses anything."""
    here, killed, other = join(), spawn(), spawn()
    here.broadcast({"number": 0})
    killed.signal(signal.SIGKILL)
    assert killed.identity in files(directory)
    here.broadcast({"number": 1})
    assert files(directory) == {here.identity, other.identity}
    assert here.members() == {other.identity}
    assert other.receives({"number": 0}, {"number": 1})
    assert here.stats().lost == 0


def test_a_killed_member_that_nobody_has_sent_to(join, spawn, directory):
    """members() and new members remove what a killed process has left."""
    here, first, second = join(), spawn(), spawn()
    for each in (first, second):
        each.signal(signal.SIGKILL)
    assert here.members() == frozenset()
    assert files(directory) == {here.identity}


def test_a_member_killed_in_the_midst_of_a_message(join, spawn):
    """What a dead sender has left unfinished hinders nobody."""
    here, other = join(), spawn()
    for piece in list(split(BYTES, bytes(200_000), b"deadbeef", 1, PIECE))[:3]:
        raw_send(str(here._folder.path.parent), here.identity, piece)
    other.signal(signal.SIGKILL)
    spawn().ask("bus.broadcast({'number': 1})")
    assert here.receive(WAIT) == {"number": 1}


def test_joining_while_others_send(join, directory):
    """A member that appears in the midst of broadcasts is never taken for a dead one."""
    sender, stop = join(), threading.Event()

    def send() -> None:
        while not stop.is_set():
            sender.broadcast(b"x")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        for _ in range(100):
            with LocalBroadcaster("bus", directory=directory) as member:
                assert member.receive(WAIT) == b"x"
                assert member.identity in files(directory)
    finally:
        stop.set()
        thread.join()


# --- Strangers ---


def test_hostile_datagrams(join, directory):
    """Garbage, empty, cut, endless and oversized datagrams reach the reader as they are, or not."""
    here, other = join(), join()
    good = next(split(JSON, b'{"a":1}', b"stranger", 1, PIECE))
    deep = next(split(JSON, b"[" * 30_000, b"stranger", 3, PIECE))
    wrong = next(split(JSON, b"\xff{", b"stranger", 4, PIECE))
    raw_send(directory, here.identity, b"", b"garbage", good[:20], good, deep, wrong)
    raw_send(directory, here.identity, *split(BYTES, bytes(9 << 20), b"stranger", 5, 128 << 10))
    other.broadcast({"still": "there"})
    found = []
    while not found or found[-1] != {"still": "there"}:
        found.append(here.receive(WAIT))
    assert found[:5] == [b"garbage", good[:20], {"a": 1}, b"[" * 30_000, b"\xff{"]
    assert all(isinstance(each, (bytes, dict)) for each in found)
    assert here._assembler._size <= 4 * LARGEST


def test_random_datagrams_do_not_stop_a_member(join, directory):
    """Whatever bytes come, with a true header or without, the thread goes on."""
    here, draw = join(capacity=10_000), random.Random(7)
    good = next(split(BYTES, bytes(100), b"stranger", 1, PIECE))
    for _ in range(2000):
        datagram = bytearray(good if draw.random() < 0.7 else draw.randbytes(draw.randrange(60)))
        for _ in range(min(len(datagram), 3)):
            datagram[draw.randrange(len(datagram))] = draw.randrange(256)
        raw_send(directory, here.identity, bytes(datagram[: draw.randrange(130)]))
    raw_send(directory, here.identity, next(split(JSON, b'{"end":1}', b"innocent", 1, PIECE)))
    while here.receive(WAIT) != {"end": 1}:
        pass
    assert here._endpoint._thread.is_alive()


def test_a_folder_that_is_opened_to_others_later(join, directory):
    """Each member that joins checks anew."""
    join()
    folder(directory).chmod(0o755)
    with pytest.raises(PermissionError, match="open to others"):
        join()


# --- Coming and going ---


def test_leaving(join, directory):
    """A closed member has no file and no thread, and does nothing any more; twice is once."""
    here, other = join(), join()
    identity, thread = here.identity, here._endpoint._thread
    found = []

    def wait() -> None:
        with pytest.raises(RuntimeError):
            here.receive()
        found.append("refused")

    waiting = threading.Thread(target=wait)
    waiting.start()
    began = time.monotonic()
    here.close()
    here.close()
    waiting.join(WAIT)
    assert time.monotonic() - began < SOON
    assert wait_until(lambda: not thread.is_alive())
    assert found == ["refused"]
    assert identity not in files(directory)
    assert other.members() == frozenset()
    for call in (here.receive, here.subscribe, here.__enter__, lambda: here.broadcast({})):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    assert here.closed
    assert repr(here) == "LocalBroadcaster('bus', closed)"


def test_a_member_that_nobody_refers_to_leaves(directory):
    """With the last reference go file, socket and thread."""
    member = LocalBroadcaster("bus", directory=directory)
    thread = member._endpoint._thread
    del member
    gc.collect()
    assert files(directory) == set()
    assert wait_until(lambda: not thread.is_alive())


def test_the_end_of_the_interpreter(directory):
    """A process that ends without close() leaves nothing behind."""
    code = "from lapse.distributed.local import LocalBroadcaster\n"
    code += f"bus = LocalBroadcaster('bus', directory={directory!r})\nprint(bus.identity)"
    ended = run_python(code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip()
    assert ended.stderr == ""
    assert files(directory) == set()


def test_a_member_whose_file_was_removed_joins_anew(join, directory):
    """At its next broadcast it notices, tells its reader, and is there again."""
    here, other = join(), join()
    before = here.identity
    (folder(directory) / before).unlink()
    other.broadcast({"number": 1})
    here.broadcast({"number": 2})
    assert here.identity != before
    with pytest.raises(MessagesLost):
        here.receive(WAIT)
    other.broadcast({"number": 3})
    assert here.receive(WAIT) == {"number": 3}
    assert other.receive(WAIT) == {"number": 2}


def test_a_member_that_only_listens_notices_that_its_file_was_removed(join, directory, monkeypatch):
    """At its next receive() it is there again, and only then says what may be missing."""
    monkeypatch.setattr("lapse.distributed.local.LOOK", 0.0)
    here, other = join(), join()
    before = here.identity
    (folder(directory) / before).unlink()
    other.broadcast({"number": 1})
    with pytest.raises(MessagesLost, match="reconnected"):
        here.receive(WAIT)
    assert here.identity != before
    other.broadcast({"number": 2})
    assert here.receive(WAIT) == {"number": 2}


def test_a_socket_that_fails(join, caplog):
    """The member is another one at its next receive(), which says that something may be missing."""
    here, other = join(), join()
    before = here.identity
    endpoint = here._endpoint
    fails(endpoint, OSError("out of order"))
    other.send_to(before, {"number": 1})
    assert wait_until(lambda: endpoint.failed)
    with pytest.raises(MessagesLost, match="reconnected"):
        here.receive(WAIT)
    assert here.identity != before
    other.broadcast({"number": 2})
    assert here.receive(WAIT) == {"number": 2}
    assert wait_until(lambda: "failed" in caplog.text)


def fails(endpoint: Any, error: Exception) -> None:
    """Have the next datagram that an endpoint gets raise an error."""
    take = endpoint._take

    def fail(datagram: bytes) -> None:
        endpoint._take = take
        raise error

    endpoint._take = fail


def test_no_memory_for_a_message(join):
    """The thread outlives it, and the reader is told that something is missing."""
    here, other = join(), join()
    fails(here._endpoint, MemoryError())
    other.broadcast({"number": 1})
    with pytest.raises(MessagesLost, match="no memory"):
        here.receive(WAIT)
    other.broadcast({"number": 2})
    assert here.receive(WAIT) == {"number": 2}


def test_no_thread_for_a_member(directory):
    """It leaves nothing behind that others would send to."""
    with no_thread_to_be_had(), pytest.raises(RuntimeError, match="new thread"):
        LocalBroadcaster("bus", directory=directory)
    assert files(directory) == set()


def test_a_folder_that_was_removed(join, directory):
    """Members come together again in a new folder as they send."""
    here, other = join(), join()
    shutil.rmtree(folder(directory))
    here.broadcast({})
    other.broadcast({})
    assert here.members() == {other.identity}
    here.broadcast({"number": 1})
    with pytest.raises(MessagesLost):
        other.receive(WAIT)
    assert other.receive(WAIT) == {"number": 1}


def test_subscribing(join):
    """Each subscription is a member of its own; the first member leaves unless it receives."""
    bus, other = join(), join()
    with bus.subscribe() as first, bus.subscribe() as second:
        assert bus.identity is None
        assert other.members() == {first.identity, second.identity}
        bus.broadcast({"number": 1})
        assert first.receive(WAIT) == second.receive(WAIT) == {"number": 1}
        first.broadcast({"number": 2})
        assert second.receive(WAIT) == {"number": 2}
        assert bus.receive(0) is None
        assert len(other.members()) == 3
    assert other.members() == {bus.identity}
    with bus.subscribe():
        assert bus.identity in other.members()


def test_buses_of_other_names_are_apart(join, directory):
    """A message goes to the members of its own bus only."""
    here = join()
    with LocalBroadcaster("bus.2", directory=directory) as other:
        other.broadcast({})
        assert other.members() == here.members() == frozenset()
        assert here.receive(0.01) is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"patience": -1}, ValueError),
        ({"patience": float("nan")}, ValueError),
        ({"capacity": 0}, ValueError),
        ({"capacity": "many"}, TypeError),
    ],
)
def test_options_out_of_range(options, error, directory):
    """Numbers that mean nothing are refused, and leave no file."""
    with pytest.raises(error):
        LocalBroadcaster("bus", directory=directory, **options)
    assert not folder(directory).exists()


def test_figures(join):
    """stats() counts what was sent, received and lost; get_stats() is the same for JSON."""
    sender, receiver = join(), join()
    for _ in range(3):
        sender.broadcast({})
    assert wait_until(lambda: receiver.stats().waiting == 3)
    receiver.receive()
    assert sender.stats() == (3, 0, 0, 0, 0, 0)
    assert receiver.get_stats() == {
        "sent": 0, "lost": 0, "received": 3, "dropped": 0, "incomplete": 0, "waiting": 2,
        "name": "bus", "class": "LocalBroadcaster",
    }  # fmt: skip


# --- Fork ---


def test_a_forked_child_is_a_member_of_its_own(join, directory):
    """The child joins when it first receives; its end leaves the parent's file and socket alone."""
    here, other = join(), join()

    def work() -> bool:
        assert here.identity is None
        assert here.receive(0) is None
        other.close()
        here.broadcast({"from": "child"})
        message = here.receive(WAIT)
        here.close()
        return message == {"from": "parent"}

    identity = here.identity
    child = in_child(work)
    assert here.receive(WAIT) == other.receive(WAIT) == {"from": "child"}
    joined = here.members() - {other.identity}
    assert [each.split("-")[0] for each in joined] == [str(child)]
    here.broadcast({"from": "parent"})
    assert exit_code(child) == 0
    assert files(directory) == {identity, other.identity}
    other.broadcast({"still": "there"})
    assert here.receive(WAIT) == {"still": "there"}


def test_a_forked_child_lets_go_of_the_parents_sockets(join, directory, monkeypatch):
    """When the parent has left, nothing of it listens on in a child that does not use the bus."""
    monkeypatch.setattr(endpoints, "JOIN", WAIT)  # the parent has left for certain
    here, other = join(), join()
    identity, there, go = here.identity, os.pipe(), os.pipe()
    child = in_child(lambda: os.write(there[1], b"x") == 1 and os.read(go[0], 1) == b"x")
    os.read(there[0], 1)
    hidden = folder(directory) / identity
    os.link(hidden, folder(directory) / "kept")
    here.close()
    os.rename(folder(directory) / "kept", hidden)
    left = other.members()
    os.write(go[1], b"x")
    assert exit_code(child) == 0
    assert left == frozenset()
    for each in (*there, *go):
        os.close(each)


def test_a_child_that_ends_without_a_word(join, directory):
    """What a child leaves at os._exit() is removed by the next who sends."""
    here = join()
    child = in_child(lambda: here.receive(0) is None)
    assert exit_code(child) == 0
    assert len(files(directory)) == 2
    here.broadcast({})
    assert files(directory) == {here.identity}


def test_fork_while_others_send_and_receive(join):
    """Locks that other threads hold at the fork do not bind the child."""
    here, other, stop = join(), join(), threading.Event()

    def send() -> None:
        while not stop.is_set():
            here.broadcast(bytes(100_000))
            other.broadcast(b"x")

    thread = threading.Thread(target=send)
    thread.start()

    def work() -> bool:
        here.members()
        here.broadcast({"from": os.getpid()})
        try:
            return here.receive(WAIT) is not None
        except MessagesLost:
            return True

    try:
        children = [in_child(work) for _ in range(10)]
        assert [exit_code(each) for each in children] == [0] * 10
    finally:
        stop.set()
        thread.join()


def test_what_waited_at_a_fork_is_missing_in_the_child(join):
    """Messages for the parent are not the child's: it is told that it lacks them."""
    here, other = join(), join()
    other.broadcast({"number": 1})
    assert wait_until(lambda: here.stats().waiting == 1)

    def work() -> bool:
        try:
            here.receive(WAIT)
        except MessagesLost:
            return here.receive(0) is None
        return False

    assert exit_code(in_child(work)) == 0
    assert here.receive(WAIT) == {"number": 1}
