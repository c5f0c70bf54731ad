"""The kombu transport by itself: what every broker must do, on memory, Valkey and RabbitMQ."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lapse.invalidation.message import MessageError
from lapse.invalidation.source import MessagesLost
from servers import rabbitmq
from servers.proxy import Proxy, certificate
from support import PATIENCE, SOON, run_python, wait_until

kombu = pytest.importorskip("kombu", reason="nothing to talk to a broker with: kombu is missing")

from lapse.distributed.kombu import KombuBroadcaster  # noqa: E402
from lapse.sources import kombu_links, kombu_settings  # noqa: E402
from lapse.sources.kombu import KombuQueue  # noqa: E402
from lapse.sources.kombu_settings import Settings  # noqa: E402

Make = Callable[..., KombuQueue]


class Broker:
    """What a test knows of a broker: its URL, and the server where there is one."""

    def __init__(self, url: str, server: Any = None) -> None:
        self.url = url
        self.server = server


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Valkey of this module's own, running."""
    servers_valkey = pytest.importorskip("servers.valkey")
    with servers_valkey.Valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield Broker(server.url, server)


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A RabbitMQ of this module's own, running."""
    if reason := rabbitmq.missing():
        pytest.skip(reason)
    with rabbitmq.RabbitMQ(tmp_path_factory.mktemp("rabbit")) as server:
        yield Broker(server.url, server)


@pytest.fixture(params=["memory", "valkey", pytest.param("rabbit", marks=pytest.mark.slow)])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each kind of broker in turn."""
    return Broker("memory://") if request.param == "memory" else _started(request, request.param)


@pytest.fixture(params=["valkey", pytest.param("rabbit", marks=pytest.mark.slow)])
def remote(request: pytest.FixtureRequest) -> Broker:
    """Each kind of broker that is a server."""
    return _started(request, request.param)


def _started(request: pytest.FixtureRequest, name: str) -> Broker:
    found: Broker = request.getfixturevalue(name)
    return found


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes queues on an exchange of this test's own, subscribed already, and closes them."""
    with contextlib.ExitStack() as stack:

        def made(broker: Broker, **options: Any) -> KombuQueue:
            name = "".join(c if c.isalnum() else "-" for c in request.node.name)[:100].strip("-")
            queue = KombuQueue(broker.url, **{"name": name, "timeout": 30, **options})
            stack.callback(queue.close)
            assert queue.receive() is None
            return queue

        yield made


def drained(queue: Any, count: int, seconds: float = PATIENCE) -> list[Any]:
    """The next `count` messages, or as many as come within `seconds`."""
    found: list[Any] = []
    end = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < end:
        message = queue.receive(0.2)
        if message is not None:
            found.append(message)
    return found


def raw_producer(queue: KombuQueue, url: str) -> Any:
    """kombu's own producer on the exchange of `queue`, which sends whatever it is given."""
    connection = kombu.Connection(url)
    return connection.Producer(exchange=kombu.Exchange(queue.name, "fanout", durable=False))


# --- Messages ---


def test_every_queue_gets_every_message(broker: Broker, make: Make) -> None:
    """Bytes and mappings reach all queues of a name, the sender's own too, once each, in order."""
    queues = [make(broker) for _ in range(3)]
    sent = [b"\xc1LP\x00", {"type": "invalidate_key", "key": "ä:1"}, b"", {"n": [1, None, 2.5]}]
    for message in sent:
        queues[0].publish(message)
    for queue in queues:
        assert drained(queue, 4) == sent
        assert queue.receive(0.05) is None


def test_files_are_a_broker_too(tmp_path: Path) -> None:
    """A shared folder carries messages to everybody, in no order, and nothing stays in it."""
    options = {"data_folder_in": tmp_path, "data_folder_out": tmp_path}
    options["control_folder"] = tmp_path / "control"
    ends = [KombuQueue("filesystem://", transport_options=options) for _ in range(3)]
    assert [end.receive() for end in ends] == [None] * 3
    ends.pop().close()
    ends[0].publish(b"x")
    ends[1].publish({"n": 1})
    for end in ends:
        assert sorted(map(str, drained(end, 2))) == ["b'x'", "{'n': 1}"]
        end.close()
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_names_are_apart(broker: Broker, make: Make) -> None:
    """Queues of one name hear nothing of another, a longer one with the same beginning included."""
    here, there = make(broker, name="here"), make(broker, name="here.there")
    here.publish(b"1")
    there.publish(b"2")
    assert drained(here, 1) == [b"1"]
    assert drained(there, 1) == [b"2"]
    assert here.receive(0.05) is None
    assert there.receive(0.05) is None


def test_processes_hear_each_other(remote: Broker, make: Make) -> None:
    """What another process publishes comes in, and what this one publishes reaches it."""
    queue = make(remote)
    code = f"""
from lapse.sources.kombu import KombuQueue
with KombuQueue({remote.url!r}, name={queue.name!r}) as queue:
    queue.receive()
    queue.publish(b"from the child")
    while True:
        message = queue.receive()
        if message == b"answer":
            break
"""
    child = threading.Thread(target=lambda: results.append(run_python(code)))
    results: list[Any] = []
    child.start()
    assert drained(queue, 1, 30) == [b"from the child"]
    queue.publish(b"answer")
    child.join(PATIENCE)
    assert results[0].returncode == 0, results[0].stderr


def test_the_order_of_a_sender_is_kept(broker: Broker, make: Make) -> None:
    """Five hundred messages of one sender come complete and in their order."""
    queue, other = make(broker), make(broker)
    for n in range(500):
        queue.publish({"n": n})
    assert [message["n"] for message in drained(other, 500)] == list(range(500))


def test_threads_share_a_queue(broker: Broker, make: Make) -> None:
    """Four threads that publish and two that receive lose nothing and mix nothing up."""
    queue, heard = make(broker), []

    def publish(who: int) -> None:
        for n in range(50):
            queue.publish(f"{who}.{n}".encode())

    threads = [threading.Thread(target=publish, args=(who,)) for who in range(4)]
    threads += [
        threading.Thread(target=lambda: heard.extend(drained(queue, 100))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(heard) == sorted(f"{who}.{n}".encode() for who in range(4) for n in range(50))


# --- What is refused ---


def test_what_cannot_travel_is_refused_by_publish(make: Make) -> None:
    """Too large, not JSON, not bytes: an error before anything is sent, and the queue lives on."""
    queue = make(Broker("memory://"), max_size=10)
    with pytest.raises(ValueError, match="limit is 10"):
        queue.publish(b"x" * 11)
    with pytest.raises(ValueError, match="limit is 10"):
        queue.publish({"key": "longer"})
    for wrong in ({"key": object()}, "text", 7, None, ["a"]):
        with pytest.raises(TypeError):
            queue.publish(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="JSON"):
        queue.publish({"n": float("nan")})
    queue.publish(bytearray(b"x" * 10))
    assert drained(queue, 1) == [b"x" * 10]


class Trap:
    """Unpickled, it leaves a mark."""

    sprung = False

    def __reduce__(self) -> Any:
        return (setattr, (Trap, "sprung", True))


def test_only_two_content_types_are_read(broker: Broker, make: Make) -> None:
    """A pickle is not unpickled, YAML and text are not read: each is a MessageError, no more."""
    queue = make(broker)
    producer = raw_producer(queue, broker.url)
    producer.publish(pickle.dumps(Trap()), content_type="application/x-python-serialize")
    producer.publish("a: 1", content_type="application/x-yaml")
    producer.publish(b"{}", content_type="text/plain")
    for body in (b"{", b"[1]", b"7", b"\xff", b"[" * 100_000):
        producer.publish(body, content_type="application/json", content_encoding="utf-8")
    queue.publish(b"after")
    for _ in range(8):
        with pytest.raises(MessageError):
            drained(queue, 1)
    assert drained(queue, 1) == [b"after"]
    assert not Trap.sprung


def test_kombu_never_inflates(broker: Broker, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that says it is compressed stays as it is and is refused."""
    inflated = []
    real = zlib.decompress
    monkeypatch.setitem(
        kombu.compression._decoders, "application/x-gzip", lambda b: inflated.append(b) or real(b)
    )
    queue = make(broker)
    producer = raw_producer(queue, broker.url)
    bomb = b"\0" * 1_000_000
    producer.publish(bomb, content_type="application/octet-stream", compression="zlib")
    with pytest.raises(MessageError, match="compressed"):
        drained(queue, 1)
    assert inflated == []


def test_a_large_message_is_refused(broker: Broker, make: Make) -> None:
    """What is larger than max_size is a MessageError for those who receive it."""
    small, large = make(broker, max_size=100), make(broker)
    large.publish(b"x" * 101)
    large.publish(b"x" * 100)
    with pytest.raises(MessageError, match="101 bytes"):
        drained(small, 1)
    assert drained(small, 1) == [b"x" * 100]


def test_what_waits_is_bounded(make: Make, monkeypatch: pytest.MonkeyPatch, valkey: Broker) -> None:
    """Beyond the backlog messages are dropped, and receive() says so after those that were kept."""
    monkeypatch.setattr(kombu_links, "BACKLOG", 5)
    queue = make(valkey)
    for n in range(20):
        queue.publish(bytes([n]))
    kept = [queue.receive() for _ in range(5)]
    assert kept == [bytes([n]) for n in range(5)]
    with pytest.raises(MessagesLost):
        drained(queue, 20)
    queue.publish(b"after")
    assert drained(queue, 20, 2)[-1] == b"after"


# --- Construction ---


def test_a_transport_without_fanout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that cannot reach everybody is a ValueError at once."""
    monkeypatch.setitem(kombu.transport.TRANSPORT_ALIASES, "lonely", "test_kombu_lonely:Transport")
    lonely = type(sys)("test_kombu_lonely")
    lonely.Transport = type("Transport", (kombu.transport.virtual.Transport,), {})  # type: ignore
    monkeypatch.setitem(sys.modules, "test_kombu_lonely", lonely)
    with pytest.raises(ValueError, match="no fanout"):
        KombuQueue("lonely://")


@pytest.mark.parametrize("name", ["", "a/b", "a*", "a[b]", "a?", " a", "x" * 101, ".", "ä", "a\n"])
def test_names_that_mean_something_elsewhere_are_refused(name: str) -> None:
    """A name holds nothing that a broker reads as a pattern, or a file system as a path."""
    with pytest.raises(ValueError, match="name"):
        KombuQueue("memory://", name=name)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": float("inf")}, {"max_size": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    """Limits that do not limit are a ValueError."""
    with pytest.raises(ValueError, match=next(iter(options))):
        KombuQueue("memory://", **options)


@pytest.mark.parametrize("url", ["nonsense://host", "memory://?surprise=1", "a.b://host"])
def test_urls_that_kombu_does_not_know_are_refused(url: str) -> None:
    """An unknown transport or option of a URL is a ValueError."""
    with pytest.raises(ValueError, match=r"."):
        KombuQueue(url)


def test_a_password_is_not_shown() -> None:
    """The representation names the exchange and the transport, no more of the URL."""
    assert repr(KombuQueue("redis://user:secret@nowhere:1/0")) == "<KombuQueue 'lapse' on redis>"


def test_missing_kombu_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without kombu the error says what to install."""
    monkeypatch.setitem(sys.modules, "kombu", None)
    with pytest.raises(ImportError, match=r"pip install 'lapse\[kombu\]'"):
        KombuQueue("memory://")


def test_tls_is_checked_by_default() -> None:
    """kombu takes any certificate with rediss:// and any host name with amqps://; we do not."""
    secure = Settings("rediss://nowhere", "x", 1, {}, {}).connection().ssl
    assert secure["ssl_cert_reqs"].name == "CERT_REQUIRED"
    assert secure["ssl_check_hostname"] is True
    given = Settings("rediss://nowhere", "x", 1, {"ssl_ca_certs": "/ca"}, {}).connection().ssl
    assert given["ssl_ca_certs"] == "/ca"
    assert given["ssl_cert_reqs"].name == "CERT_REQUIRED"
    assert "server_hostname" in Settings("amqps://nowhere", "x", 1, {}, {}).connection().ssl


def test_what_the_transport_can_do() -> None:
    """The capabilities that a channel asks for."""
    queue = KombuQueue("memory://")
    assert (queue.binary, queue.broadcast, queue.replay) == (True, True, False)
    assert (queue.ordered, queue.delivery) == (True, "at-most-once")
    assert not KombuQueue("filesystem://").ordered


# --- The broadcaster ---


def test_the_broadcaster_is_the_same_link(broker: Broker, make: Make) -> None:
    """A KombuBroadcaster hears a KombuQueue of its name, and is heard."""
    queue = make(broker)
    with KombuBroadcaster(broker.url, name=queue.name) as broadcaster:
        assert broadcaster.receive() is None
        broadcaster.broadcast({"type": "invalidation"})
        queue.publish(b"x")
        assert drained(broadcaster, 2) == [{"type": "invalidation"}, b"x"]
        assert drained(queue, 2) == [{"type": "invalidation"}, b"x"]
        assert broadcaster.binary
        assert not broadcaster.replay


# --- Ends ---


def test_close_ends_a_receive(broker: Broker, make: Make) -> None:
    """A receive() that waits for a minute returns None at close()."""
    queue = make(broker)
    heard: list[Any] = []
    thread = threading.Thread(target=lambda: heard.append(queue.receive(60)))
    thread.start()
    assert wait_until(queue._receiving.locked)
    begin = time.monotonic()
    queue.close()
    thread.join(PATIENCE)
    assert time.monotonic() - begin < SOON
    assert heard == [None]
    queue.close()
    for use in (queue.receive, lambda: queue.publish(b"x")):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_a_closed_queue_leaves_nothing_in_the_process(make: Make) -> None:
    """kombu's memory forgets the queue: nothing is put where nobody reads."""
    state = kombu.transport.memory.Transport.global_state
    queues = kombu.transport.memory.Channel.queues
    before = set(queues)
    staying, going = make(Broker("memory://")), make(Broker("memory://"))
    assert len(set(queues) - before) == 2
    going.close()
    staying.publish(b"x")
    assert len(set(queues) - before) == 1
    assert len(state.exchanges[staying.name]["table"]) == 1


def test_many_queues_leave_one_name_at_a_valkey(make: Make, valkey: Broker) -> None:
    """What the server remembers does not grow with the processes that were killed."""
    queues = [make(valkey) for _ in range(3)]
    with valkey.server.client() as client:
        assert client.scard(f"_kombu.binding.{queues[0].name}") == 1


# --- Ends of one's own ---


def test_who_subscribes_has_an_end_of_its_own(broker: Broker, make: Make) -> None:
    """Each end gets what is published once subscribe() has returned, and is closed by itself."""
    queue = make(broker)
    first, second = queue.subscribe(), queue.subscribe()
    queue.publish(b"x")
    assert [drained(each, 1) for each in (queue, first, second)] == [[b"x"]] * 3
    first.close()
    second.publish(b"y")
    assert [drained(each, 1) for each in (queue, second)] == [[b"y"]] * 2
    second.close()
    queue.close()
    with pytest.raises(RuntimeError, match="closed"):
        queue.subscribe()


def test_an_end_that_could_not_subscribe_says_so(valkey: Broker) -> None:
    """A broker that was down for subscribe() shows in the first receive(), even if it is back."""
    valkey.server.kill()
    try:
        end = KombuQueue(valkey.url, name="down", timeout=30).subscribe()
    finally:
        valkey.server.start()
    with end:
        with pytest.raises(Exception, match=r"refused"):
            end.receive()
        assert end.receive() is None


# --- Faults ---


def refusals(queue: KombuQueue) -> None:
    """What receive() and publish() do while nobody listens: raise, soon."""
    with pytest.raises(Exception, match=r"."):
        queue.publish(b"lost")
    for call in (lambda: queue.receive(30), lambda: queue.publish(b"lost")) * 2:
        begin = time.monotonic()
        with pytest.raises(Exception, match=r"."):
            call()
        assert time.monotonic() - begin < 25  # and not the 30 that receive() would wait
        assert queue._consumer is queue._producer is None  # no link is used again that has failed


def test_a_killed_broker_shows_and_comes_back(remote: Broker, make: Make) -> None:
    """Both directions raise while it is down; then receive() returns None and all goes on."""
    for _ in range(2):
        queue, other = make(remote), make(remote)
        other.publish(b"before")
        assert drained(queue, 1) == drained(other, 1) == [b"before"]
        remote.server.kill()
        try:
            refusals(queue)
            refusals(other)
        finally:
            remote.server.start()
        assert queue.receive() is None
        assert other.receive() is None
        other.publish(b"after")
        assert drained(queue, 1) == [b"after"]


def test_a_waiting_receive_notices_the_end_of_the_broker(remote: Broker, make: Make) -> None:
    """A receive() that waits raises when the broker is killed, not when its time is over."""
    queue = make(remote)
    met: list[BaseException] = []

    def wait() -> None:
        try:
            queue.receive(60)
        except Exception as error:
            met.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert wait_until(queue._receiving.locked)
    try:
        remote.server.kill()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert met
    finally:
        remote.server.start()


def test_subscribed_before_it_returns(broker: Broker, make: Make) -> None:
    """What is published right after receive() has connected comes in, every time."""
    sender = make(broker)
    for n in range(20):
        with KombuQueue(broker.url, name=sender.name, timeout=30) as queue:
            assert queue.receive() is None
            sender.publish(bytes([n]))
            assert drained(queue, 1) == [bytes([n])]


def test_a_broker_that_does_not_answer_counts_as_dead(make: Make, valkey: Broker) -> None:
    """A stopped server holds up a publish for `timeout` seconds, and no close()."""
    queue, patient = make(valkey, timeout=2), make(valkey, timeout=2 * SOON)
    queue.publish(b"x")
    patient.publish(b"x")
    pid = valkey.server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        begin = time.monotonic()
        with pytest.raises(Exception, match=r"."):
            queue.publish(b"y")
        assert time.monotonic() - begin < SOON
        begin = time.monotonic()
        patient.close()
        assert time.monotonic() - begin < SOON
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_link_that_falls_silent_counts_as_dead(
    remote: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection over which nothing comes any more raises, and the next one is made."""
    monkeypatch.setattr(kombu_settings, "SIGN_OF_LIFE", 3)
    with Proxy(remote.server.port) as proxy:
        url = remote.url.replace(str(remote.server.port), str(proxy.port))
        with KombuQueue(url, name="silent", timeout=30) as queue:
            assert queue.receive() is None
            assert queue.receive(7) is None  # it answers questions
            proxy.silence()
            with pytest.raises(Exception, match=r"."):
                queue.receive(30)
            assert queue.receive() is None
            queue.publish(b"x")
            assert drained(queue, 1) == [b"x"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="nothing makes a certificate: openssl")
def test_tls_names_and_certificates(remote: Broker, tmp_path: Path) -> None:
    """A certificate that is not trusted, or of another host, is refused; a trusted one serves."""
    context, trusted = certificate(tmp_path)
    plain, ca = (
        ("redis://", "ssl_ca_certs") if remote.url.startswith("redis") else ("amqp://", "ca_certs")
    )
    with Proxy(remote.server.port, context) as proxy:

        def end(host: str, tls: dict[str, str]) -> KombuQueue:
            url = remote.url.replace(plain, plain.replace(":", "s:"))
            url = url.replace(f"127.0.0.1:{remote.server.port}", f"{host}:{proxy.port}")
            return KombuQueue(url, name="tls", tls=tls, timeout=30)

        for queue in (end("localhost", {}), end("127.0.0.1", {ca: str(trusted)})):
            for use in (queue.receive, lambda queue=queue: queue.publish(b"x")):
                with pytest.raises(Exception, match=r"certificate verify failed"):
                    use()
        with end("localhost", {ca: str(trusted)}) as queue:
            assert queue.receive() is None
            queue.publish(b"x" * 100_000)
            assert drained(queue, 1) == [b"x" * 100_000]


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_close_does_not_wait_for_a_connection_that_is_not_made(scheme: str) -> None:
    """A port that accepts and says nothing holds up neither close() nor, for long, receive()."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(PATIENCE)
        url = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}//"
        queue = KombuQueue(url, name="x", timeout=2 * SOON)
        met: list[BaseException] = []

        def connect() -> None:
            try:
                queue.receive()
            except Exception as error:
                met.append(error)

        thread = threading.Thread(target=connect)
        thread.start()
        with silent.accept()[0]:
            begin = time.monotonic()
            queue.close()
            assert time.monotonic() - begin < SOON
        thread.join(PATIENCE)  # its connection has ended
        assert met
        with KombuQueue(url, name="x", timeout=1) as hasty, pytest.raises(Exception, match=r"."):
            hasty.receive()


FORK = """
import os, sys, threading
from lapse.sources.kombu import KombuQueue
def drained(queue, wanted):
    for _ in range(500):
        message = queue.receive(0.2)
        if message is not None:
            assert message == wanted, message
            return
    raise SystemExit(f"no {wanted}")
queue = KombuQueue(URL, name="fork", timeout=30)
queue.receive()
queue.publish(b"1")
drained(queue, b"1")
reading, writing = os.pipe()
waiting = threading.Thread(target=queue.receive, args=(0.5,))  # holds a lock across the fork
waiting.start()
if (child := os.fork()) == 0:
    assert queue._consumer is None
    queue.receive()
    queue.publish(b"2")
    drained(queue, b"2")
    queue.close()
    os.write(writing, b"x")
    os._exit(0)
waiting.join()
os.read(reading, 1)
assert os.waitpid(child, 0)[1] == 0
consumer, producer = queue._consumer, queue._producer
queue.publish(b"3")
for _ in range(500):
    if queue.receive(0.2) == b"3":
        break
else:
    raise SystemExit("no 3")
assert (queue._consumer, queue._producer) == (consumer, producer)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_links_of_its_own(broker: Broker) -> None:
    """Parent and child go on apart, even if the fork came while a thread was receiving."""
    done = run_python(FORK.replace("URL", repr(broker.url)))
    assert done.returncode == 0, done.stderr
