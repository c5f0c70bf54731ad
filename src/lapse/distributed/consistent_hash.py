"""Consistent hashing: each key has one owner among the nodes, and most keep theirs as nodes change.

    invalidate_key(k) ──► ring ──► the owner of k, and the one before it if k has just moved
    invalidate_pattern(p), invalidate_table(t) ──► every node

A node is any object with `invalidate_key(key)` and `invalidate_pattern(pattern)`: a cache of lapse,
a proxy of a remote one, this process's own cache.

When a node comes or goes, in this order:

    1. new owners forget what moves to them   they may have had it before, and missed changes since
    2. the ring is swapped, its epoch rises
    3. old owners forget it too               nobody tells them of changes any more

Other processes have rings of their own. Until all of them have changed, an invalidation that one of
them sends by its old ring misses a new owner: change all rings first, and move the readers then.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lapse import _core, forks
from lapse.distributed.nodes import Change, ConsistentHash, Nodes

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ConsistentHash", "ConsistentHashInvalidation", "HashStats", "NodesError"]

Forget = Callable[[Any, Callable[[Any], bool]], object]


class NodesError(RuntimeError):
    """Some nodes have raised; all others have been told. `errors` has what, by the node's name."""

    def __init__(self, errors: Mapping[str, Exception]) -> None:
        self.errors = dict(errors)
        shown = ", ".join(f"{name}: {error!r}" for name, error in self.errors.items())
        super().__init__(f"{len(self.errors)} nodes failed: {shown}")


class HashStats(NamedTuple):
    """What one ConsistentHashInvalidation has done."""

    #: Nodes of the ring, and how many times they have changed.
    nodes: int
    epoch: int
    #: Invalidations of keys; of patterns and tables.
    keys: int
    patterns: int
    #: Calls of nodes that have raised.
    errors: int
    #: Arcs of the ring that have moved.
    moves: int


class ConsistentHashInvalidation:
    """Tells of each invalidation those nodes that it concerns.

    Args:
        cache: this process's own, usually one of the nodes; it is told as a cache, not as a node.
        cache_nodes, replicas, weights, name: the nodes, as `ConsistentHash` takes them.
        forget: `forget(node, has_moved)` makes a node forget the keys for which `has_moved(key)` is
            true, after a change of nodes. Without it, a cache of lapse looks through its keys; any
            other node gets `invalidate_pattern("*")`.

    Every node is told, whatever another one raises; then NodesError has all that was raised. Any
    thread may call any method. It starts no thread, and close() leaves the nodes open.
    """

    def __init__(
        self,
        cache: Any,
        cache_nodes: Nodes,
        *,
        replicas: int = 3,
        weights: Mapping[str, float] | None = None,
        name: Callable[[Any], str] | None = None,
        forget: Forget | None = None,
    ) -> None:
        self.cache = cache
        self.closed = False
        self._forget = forget or _forget_moved
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()  # re-entrant: a finalizer may count in its midst
        forks.watch(self)
        self.consistent_hash = ConsistentHash(
            cache_nodes, replicas, weights=weights, name=name, hand_over=self._hand_over
        )

    @property
    def cache_nodes(self) -> list[Any]:
        """The nodes."""
        return self.consistent_hash.nodes

    def invalidate_key(self, key: Any) -> None:
        """Tell the owner of a key; the one before it too, if the key moved at the last change."""
        self._check_open()
        owners = self.consistent_hash.owners(key)
        self._count("keys")
        self._tell(owners, lambda node: node.invalidate_key(key), lambda: self.cache.delete(key))

    def invalidate_pattern(self, pattern: str | bytes) -> None:
        """Tell every node."""
        self._check_open()
        self._count("patterns")
        self._tell(
            dict(self.consistent_hash.items()),
            lambda node: node.invalidate_pattern(pattern),
            lambda: self.cache.delete_pattern(pattern),
        )

    def invalidate_table(self, table: str | bytes) -> None:
        """Tell every node of the pattern `table:*`, the table's name escaped."""
        self.invalidate_pattern(_core.table_pattern(table))

    def add_node(self, node: Any, weight: float = 1, *, name: str | None = None) -> Change:
        """Let a node in. What moves to it is forgotten there first, and then where it was.

        Raises ValueError if its name is taken. After NodesError it is in all the same.
        """
        self._check_open()
        return self.consistent_hash.add_node(node, weight, name=name)

    def remove_node(self, node: Any) -> Change:
        """Let a node go, by itself or by its name; what moves is forgotten likewise.

        Raises ValueError if it is not there. After NodesError it is gone all the same; a node that
        could not be told may hold what is outdated, if it comes back empty it.
        """
        self._check_open()
        return self.consistent_hash.remove_node(node)

    def stats(self) -> HashStats:
        """Figures of nearly one instant."""
        counts, ring = self._counts, self.consistent_hash
        return HashStats(
            nodes=len(ring),
            epoch=ring.epoch,
            keys=counts["keys"],
            patterns=counts["patterns"],
            errors=counts["errors"],
            moves=counts["moves"],
        )

    def get_stats(self) -> dict[str, Any]:
        """The same as a JSON-ready dict, with the class."""
        return self.stats()._asdict() | {"class": type(self).__name__}

    def close(self) -> None:
        """Refuse what comes from now on. The nodes stay open. Idempotent."""
        self.closed = True

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- Nodes ---

    def _hand_over(self, change: Change, swap: Callable[[], bool]) -> bool:
        errors = self._make_forget(change, {move.target for move in change.moves})
        if not swap():
            return False
        errors |= self._make_forget(change, {move.source for move in change.moves})
        self._count("moves", len(change.moves))
        if errors:
            raise NodesError(errors)
        return True

    def _make_forget(self, change: Change, names: set[str | None]) -> dict[str, Exception]:
        nodes = {name: node for name, node in change.nodes.items() if name in names}
        return self._ask(nodes, lambda node: self._forget(node, change.has_moved))

    def _tell(
        self,
        nodes: Mapping[str, Any],
        call: Callable[[Any], object],
        call_own: Callable[[], object],
    ) -> None:
        errors = self._ask(nodes, lambda node: call_own() if node is self.cache else call(node))
        if errors:
            raise NodesError(errors) from next(iter(errors.values()))

    def _ask(self, nodes: Mapping[str, Any], call: Callable[[Any], object]) -> dict[str, Exception]:
        """Call for each node; what was raised."""
        errors: dict[str, Exception] = {}
        for name, node in nodes.items():
            try:
                call(node)
            except Exception as error:
                errors[name] = error
        self._count("errors", len(errors))
        return errors

    def _count(self, what: str, more: int = 1) -> None:
        with self._lock:
            self._counts[what] += more

    def _after_fork(self) -> None:
        """In a forked child no other thread holds the lock, whatever it looks like."""
        self._lock = threading.RLock()

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError(f"{type(self).__name__} is closed")


def _forget_moved(node: Any, has_moved: Callable[[Any], bool]) -> None:
    """Make a node forget what has moved: key by key where it can list them, else everything."""
    if isinstance(node, _core.Cache):
        node.delete_many([key for key in node if has_moved(key)])
    else:
        node.invalidate_pattern("*")
