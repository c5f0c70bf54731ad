"""Rows of what hears from databases, queues and broadcasts, and of consistent hashing."""

from __future__ import annotations

from typing import Any

from conformance import Broadcaster, Database, Node, Queue, Recorder, has_defaults, ours, row
from support import wait_until

# --- Database ---

DATABASE = "DatabaseChangeInvalidation"


@row(DATABASE, "(cache, database), which starts it; database.get_recent_changes()")
def database_changes() -> None:
    has_defaults(ours(DATABASE), "cache", "database")
    database = Database({"table": "users", "id": 1})
    with ours(DATABASE)(Recorder(), database) as it:
        assert (it.database, it.cache.held) == (database, {})
        assert wait_until(lambda: not database.changes)


@row(DATABASE, "add_change_listener(table, callback)")
def add_change_listener() -> None:
    heard: list[Any] = []
    database = Database({"table": "users", "id": 1}, {"table": "orders", "id": 2})
    with ours(DATABASE)(Recorder(), database, start=False) as it:
        it.add_change_listener("users", heard.append)
        it.start_change_monitoring()
        assert wait_until(lambda: heard)
        assert [change["id"] for change in heard] == [1]


@row(DATABASE, "start_change_monitoring()")
def start_change_monitoring() -> None:
    database = Database({"table": "users", "id": 1})
    with ours(DATABASE)(Recorder(), database, start=False) as it:
        assert database.changes
        it.start_change_monitoring()
        assert wait_until(lambda: not database.changes)


@row(DATABASE, "invalidate_by_table(table): {table}:*")
def invalidate_by_table() -> None:
    with ours(DATABASE)(Recorder(), Database(), start=False) as it:
        it.invalidate_by_table("users")
        assert it.cache.asked == {"pattern users:*"}


@row(DATABASE, "invalidate_by_key(key)")
def invalidate_by_key() -> None:
    with ours(DATABASE)(Recorder(), Database(), start=False) as it:
        it.invalidate_by_key("users:1")
        assert it.cache.asked == {"users:1"}


# --- Message queue and broadcast ---

QUEUE, BROADCAST = "MessageQueueInvalidation", "BroadcastInvalidation"


@row(QUEUE, "(cache, message_queue), which starts it; message_queue.receive(timeout=1)")
def message_queue() -> None:
    has_defaults(ours(QUEUE), "cache", "message_queue")
    with ours(QUEUE)(Recorder(), Queue({"type": "clear_all"})) as it:
        assert wait_until(lambda: it.cache.asked == {"everything"})


@row(QUEUE, "start_message_processing()")
def start_message_processing() -> None:
    with ours(QUEUE)(Recorder(), Queue({"type": "clear_all"}), start=False) as it:
        assert it.cache.asked == set()
        it.start_message_processing()
        assert wait_until(lambda: it.cache.asked == {"everything"})


@row(QUEUE, "publish_invalidation(type, **kwargs): message_queue.publish({type, timestamp, ...})")
def publish_invalidation() -> None:
    messages = Queue()
    with ours(QUEUE)(Recorder(), messages, start=False) as it:
        it.publish_invalidation("invalidate_key", key="users:1")
    (message,) = messages.published
    assert (message["type"], message["key"]) == ("invalidate_key", "users:1")
    assert isinstance(message["timestamp"], float)


def queue_message(message: dict[str, Any], asked: str) -> None:
    """A row for one type of message of the queue."""

    @row(QUEUE, f"message {message}")
    def is_applied() -> None:
        with ours(QUEUE)(Recorder(), Queue(message)) as it:
            assert wait_until(lambda: it.cache.asked == {asked})


queue_message({"type": "invalidate_key", "key": "users:1"}, "users:1")
queue_message({"type": "invalidate_pattern", "pattern": "users:*"}, "pattern users:*")
queue_message({"type": "invalidate_table", "table": "users"}, "pattern users:*")
queue_message({"type": "clear_all"}, "everything")


@row(BROADCAST, "(cache, message_broadcaster), which starts it; message_broadcaster.receive()")
def broadcaster() -> None:
    has_defaults(ours(BROADCAST), "cache", "message_broadcaster")
    message = {"type": "invalidation", "invalidation_type": "key", "key": "k"}
    with ours(BROADCAST)(Recorder(), Broadcaster(message)) as it:
        assert wait_until(lambda: it.cache.asked == {"k"})


@row(BROADCAST, "start_message_listening()")
def start_message_listening() -> None:
    message = {"type": "invalidation", "invalidation_type": "key", "key": "k"}
    with ours(BROADCAST)(Recorder(), Broadcaster(message), start=False) as it:
        assert it.cache.asked == set()
        it.start_message_listening()
        assert wait_until(lambda: it.cache.asked == {"k"})


@row(BROADCAST, "broadcast_invalidation(type, **kwargs): message_broadcaster.broadcast({...})")
def broadcast_invalidation() -> None:
    messages = Broadcaster()
    with ours(BROADCAST)(Recorder(), messages, start=False) as it:
        it.broadcast_invalidation("pattern", pattern="users:*")
    message = next(each for each in messages.published if each["type"] == "invalidation")
    assert (message["invalidation_type"], message["pattern"]) == ("pattern", "users:*")
    assert isinstance(message["timestamp"], float)


def broadcast_message(kind: str, target: str, asked: str) -> None:
    """A row for one type of broadcast message."""
    message = {"type": "invalidation", "invalidation_type": kind, kind: target}

    @row(BROADCAST, f"message {message}")
    def is_applied() -> None:
        with ours(BROADCAST)(Recorder(), Broadcaster(message)) as it:
            assert wait_until(lambda: it.cache.asked == {asked})


broadcast_message("key", "users:1", "users:1")
broadcast_message("pattern", "users:*", "pattern users:*")
broadcast_message("table", "users", "pattern users:*")


# --- Consistent hashing ---

HASH, HASHED = "ConsistentHash", "ConsistentHashInvalidation"


@row(HASH, "(nodes, replicas=3)")
def consistent_hash() -> None:
    has_defaults(ours(HASH), "nodes", replicas=3)
    nodes = [Node(), Node()]
    ring = ours(HASH)(nodes)
    assert (ring.nodes, ring.replicas) == (nodes, 3)


@row(HASH, "get_node(key)")
def get_node() -> None:
    nodes = [Node(), Node(), Node()]
    ring = ours(HASH)(nodes)
    found = [ring.get_node(f"k{n}") for n in range(300)]
    assert set(map(id, found)) == set(map(id, nodes))
    assert found == [ring.get_node(f"k{n}") for n in range(300)]


@row(HASH, "get_node(key) of no nodes: None")
def get_node_of_none() -> None:
    assert ours(HASH)([]).get_node("k") is None


@row(HASHED, "(cache, cache_nodes), consistent_hash")
def hash_invalidation() -> None:
    has_defaults(ours(HASHED), "cache", "cache_nodes")
    nodes = [Node(), Node()]
    it = ours(HASHED)(cache := Recorder(), nodes)
    assert (it.cache, it.cache_nodes, it.consistent_hash.nodes) == (cache, nodes, nodes)


@row(HASHED, "invalidate_key(key): of the own cache, or forwarded to the node that has it")
def hash_invalidate_key() -> None:
    own, other = Recorder(), Node()
    it = ours(HASHED)(own, [own, other])
    keys = {f"k{n}" for n in range(100)}
    for key in keys:
        it.invalidate_key(key)
    assert own.asked | set(other.told) == keys
    assert own.asked
    assert other.told
    assert all((it.consistent_hash.get_node(key) is own) == (key in own.asked) for key in keys)


@row(HASHED, "invalidate_pattern(pattern): on all nodes")
def hash_invalidate_pattern() -> None:
    nodes = [Node(), Node()]
    ours(HASHED)(Recorder(), nodes).invalidate_pattern("a:*")
    assert [node.told for node in nodes] == [["pattern a:*"]] * 2


@row(HASHED, "invalidate_table(table): {table}:* on all nodes")
def hash_invalidate_table() -> None:
    nodes = [Node(), Node()]
    ours(HASHED)(Recorder(), nodes).invalidate_table("a")
    assert [node.told for node in nodes] == [["pattern a:*"]] * 2
