"""The table of what the reference has, and stand-ins with the reference's methods and no others.

A module `conformance_*` enters rows into ROWS; test_conformance.py runs them.
"""

from __future__ import annotations

import inspect
import queue
from collections.abc import Callable
from typing import Any, NamedTuple

import lapse


class Row(NamedTuple):
    """One thing that the reference has."""

    owner: str
    surface: str
    check: Callable[[], None]


ROWS: list[Row] = []


def row(owner: str, surface: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter the function as the check of `surface` in the class `owner`."""

    def enter(check: Callable[[], None]) -> Callable[[], None]:
        ROWS.append(Row(owner, surface, check))
        return check

    return enter


def ours(name: str) -> Any:
    """Our class of that name."""
    return getattr(lapse, name)


# --- Stand-ins ---


class Recorder:
    """A cache that remembers what it was asked to remove."""

    def __init__(self, **held: Any) -> None:
        self.held: dict[Any, Any] = dict(held)
        self.asked: set[Any] = set()

    def get(self, key: Any) -> Any:
        return self.held.get(key)

    def set(self, key: Any, value: Any, ttl: Any = None) -> None:
        self.held[key] = value

    def delete(self, key: Any) -> bool:
        self.asked.add(key)
        return self.held.pop(key, None) is not None

    def delete_pattern(self, pattern: str) -> int:
        self.asked.add(f"pattern {pattern}")
        return 3

    def clear(self) -> None:
        self.asked.add("everything")

    def get_stats(self) -> dict[str, int]:
        return {"hits": 7}


class Queue:
    """A message queue."""

    def __init__(self, *messages: Any) -> None:
        self.coming: queue.Queue[Any] = queue.Queue()
        self.published: list[Any] = []
        for message in messages:
            self.coming.put(message)

    def receive(self, timeout: float = 1) -> Any:
        try:
            return self.coming.get(timeout=timeout)
        except queue.Empty:
            return None

    def publish(self, message: Any) -> None:
        self.published.append(message)


class Broadcaster(Queue):
    """A message broadcaster: receive() waits until something comes."""

    def receive(self) -> Any:  # type: ignore[override]
        return super().receive(timeout=0.2)

    def broadcast(self, message: Any) -> None:
        self.published.append(message)


class Database:
    """Whatever a class asks its database, time series or data source."""

    def __init__(self, *changes: Any) -> None:
        self.changes = list(changes)
        self.held: dict[Any, Any] = {"k": "fresh"}
        self.versions: dict[Any, int] = {"k": 1}
        self.works = True

    def get_recent_changes(self) -> list[Any]:
        changes, self.changes = self.changes, []
        return changes

    def get_followers(self, user_id: Any) -> list[Any]:
        return [user_id + 1, user_id + 2]

    def get_dashboard_metrics(self, dashboard_id: Any) -> list[str]:
        return ["cpu", "mem"]

    def fetch(self, key: Any) -> Any:
        return self.held.get(key)

    def get_version(self, key: Any) -> Any:
        return self.versions.get(key)

    def write(self, key: Any, value: Any) -> bool:
        self.held[key] = value
        return self.works

    update = write

    def delete(self, key: Any) -> bool:
        self.held.pop(key, None)
        return self.works


class Node:
    """A node of a distributed cache."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def invalidate_key(self, key: Any) -> None:
        self.told.append(key)

    def invalidate_pattern(self, pattern: str) -> None:
        self.told.append(f"pattern {pattern}")


def has_defaults(cls: Any, *names: str, **defaults: Any) -> None:
    """The constructor takes these by position, and those with these defaults after them."""
    parameters = [
        each
        for each in inspect.signature(cls).parameters.values()
        if each.kind is each.POSITIONAL_OR_KEYWORD
    ]
    found = {each.name: each.default for each in parameters}
    assert [*found][: len(names) + len(defaults)] == [*names, *defaults]
    assert {name: found[name] for name in defaults} == defaults
