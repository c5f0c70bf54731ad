"""Named nodes on a ring: who owns a key, and what changes when a node comes or goes.

    ConsistentHash ──► view {epoch, nodes, ring, the ring before}    swapped whole, never changed

A node is known by its name, never by `str(node)`: two objects that stand for one node, in two
processes or before and after a restart, own the same keys.

Invariants
    1. Who looks a key up reads one view, and takes no lock.
    2. Changes are made one after the other; a change that another one has overtaken is made anew.
    3. No lock is held while `hand_over` or a naming callable runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from lapse import _core, forks
from lapse.distributed.ring import Move, Ring, point_of

__all__ = ["Change", "ConsistentHash", "Nodes"]

Nodes = Iterable[Any] | Mapping[str, Any]
HandOver = Callable[["Change", Callable[[], bool]], bool]


class Change(NamedTuple):
    """What the coming or going of a node does to the ring."""

    #: The epoch that begins with it.
    epoch: int
    #: The arcs that go from one node to another, and all nodes before and after, by name.
    moves: list[Move]
    nodes: Mapping[str, Any]
    before: Ring
    after: Ring

    def has_moved(self, key: Any) -> bool:
        """Has the key another owner by this? One that no ring takes has none. O(log points)."""
        try:
            point = point_of(key)
        except TypeError:
            return False
        return self.before.owner_at(point) != self.after.owner_at(point)


class _View(NamedTuple):
    """All that a look-up needs, swapped in one piece."""

    epoch: int
    nodes: Mapping[str, Any]
    ring: Ring
    previous: Ring


class ConsistentHash:
    """A ring of nodes.

    Args:
        nodes: the nodes, or a mapping of names to nodes. In a list a node has the name that `name`
            gives it, else its own `name`; a str is its own name. One that has none is called after
            its place, "node-0" and so on: then every process must have them in the same order.
        replicas: points that a node of weight 1 has on the ring. 3, as the reference has it, leaves
            the shares of the nodes very uneven; 100 brings them within some 10 percent.
        weights: by name, how much larger a node's share is than that of a node of weight 1.
        name: a callable that names a node.
        hand_over: called with each `Change` and a callable that swaps the ring and answers whether
            it has: if not, another change was quicker, and this one is made anew. Answers the same.

    Raises ValueError for two nodes of one name, an unknown name in `weights` or a number out of
    range. Any thread may call any method; get_node() takes no lock, and costs one hash and a binary
    search.
    """

    def __init__(
        self,
        nodes: Nodes,
        replicas: int = 3,
        *,
        weights: Mapping[str, float] | None = None,
        name: Callable[[Any], str] | None = None,
        hand_over: HandOver | None = None,
    ) -> None:
        if not replicas >= 1:
            raise ValueError(f"replicas must be at least 1, not {replicas!r}")
        self.replicas = replicas
        self._name: Callable[[Any], str | None] = name or _name_of
        self._hand_over = hand_over or _swap_at_once
        self._swapping = threading.Lock()
        named = self._named(nodes)
        weights = dict(weights or {})
        if unknown := weights.keys() - named.keys():
            raise ValueError(f"weights of nodes that are not there: {sorted(unknown)}")
        ring = Ring({each: self._size(weights.get(each, 1)) for each in named})
        self._view = _View(0, named, ring, ring)
        forks.watch(self)

    def _after_fork(self) -> None:
        """In a forked child no other thread holds the lock, whatever it looks like."""
        self._swapping = threading.Lock()

    @property
    def nodes(self) -> list[Any]:
        """The nodes."""
        return list(self._view.nodes.values())

    @property
    def names(self) -> list[str]:
        """Their names, in the same order."""
        return list(self._view.nodes)

    @property
    def epoch(self) -> int:
        """How many times nodes have come or gone."""
        return self._view.epoch

    def get_node(self, key: Any) -> Any:
        """The node that a key belongs to; None if there are no nodes.

        A key is str, bytes, int, float, bool, None or a tuple of these, else it is a TypeError.
        """
        view = self._view
        owner = view.ring.owner(key)
        return None if owner is None else view.nodes[owner]

    def get_node_name(self, key: Any) -> str | None:
        """Its name."""
        return self._view.ring.owner(key)

    def items(self) -> list[tuple[str, Any]]:
        """Names and nodes."""
        return list(self._view.nodes.items())

    def owners(self, key: Any) -> dict[str, Any]:
        """The node that a key belongs to and, if that has just changed, the one before; by name."""
        view, point = self._view, point_of(key)
        found = (view.ring.owner_at(point), view.previous.owner_at(point))
        return {name: view.nodes[name] for name in found if name is not None and name in view.nodes}

    def add_node(self, node: Any, weight: float = 1, *, name: str | None = None) -> Change:
        """Let a node in. Raises ValueError if it has no name, or one that is taken."""
        name = self._name(node) if name is None else name
        if not isinstance(name, str):
            raise ValueError(f"a node that comes needs a name: {node!r:.100}")
        size = self._size(weight)

        def grown(view: _View) -> tuple[Mapping[str, Any], Ring]:
            if name in view.nodes:
                raise ValueError(f"there is a node {name!r} already")
            return {**view.nodes, name: node}, Ring({**view.ring.sizes, name: size})

        return self._change(grown)

    def remove_node(self, node: Any) -> Change:
        """Let a node go, by itself or by its name. Raises ValueError if it is not there."""

        def shrunk(view: _View) -> tuple[Mapping[str, Any], Ring]:
            gone = _find(view.nodes, node)
            nodes = {name: each for name, each in view.nodes.items() if name != gone}
            return nodes, Ring({name: view.ring.sizes[name] for name in nodes})

        return self._change(shrunk)

    def __len__(self) -> int:
        return len(self._view.nodes)

    def __repr__(self) -> str:
        return f"ConsistentHash({self.names!r}, epoch={self.epoch})"

    def _change(self, changed: Callable[[_View], tuple[Mapping[str, Any], Ring]]) -> Change:
        while True:
            view = self._view
            nodes, ring = changed(view)
            after = _View(view.epoch + 1, nodes, ring, view.ring)
            moves = view.ring.moves_to(ring)
            change = Change(after.epoch, moves, {**view.nodes, **nodes}, view.ring, ring)
            if self._hand_over(change, partial(self._swap, view, after)):
                return change

    def _swap(self, view: _View, after: _View) -> bool:
        with self._swapping:
            if self._view is not view:
                return False
            self._view = after
            return True

    def _named(self, nodes: Nodes) -> dict[str, Any]:
        if isinstance(nodes, Mapping) and not isinstance(nodes, _core.Cache):
            if not all(isinstance(name, str) for name in nodes):
                raise ValueError("the names of nodes must be str")
            return dict(nodes)
        named: dict[str, Any] = {}
        for place, node in enumerate(nodes):
            name = self._name(node)
            name = f"node-{place}" if name is None else name
            if name in named:
                raise ValueError(f"two nodes have the name {name!r}")
            named[name] = node
        return named

    def _size(self, weight: float) -> int:
        """Points of a node of this weight."""
        if not 0 < weight < float("inf"):
            raise ValueError(f"a weight must be a positive number, not {weight!r}")
        return max(1, round(self.replicas * weight))


def _name_of(node: Any) -> str | None:
    """A node's own name, if it has one."""
    name = node if isinstance(node, str) else getattr(node, "name", None)
    return name if isinstance(name, str) else None


def _find(nodes: Mapping[str, Any], node: Any) -> str:
    """The name of a node that is given by itself, or by its name."""
    for name, each in nodes.items():
        if each is node or (isinstance(node, str) and name == node):
            return name
    raise ValueError(f"no such node: {node!r:.100}")


def _swap_at_once(change: Change, swap: Callable[[], bool]) -> bool:
    return swap()
