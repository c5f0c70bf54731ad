"""What a world of the demo is: a database, what happens in it, what is read of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lapse.demo.origin import Origin, Reading, Writing
from lapse.demo.popularity import Popularity
from lapse.scenarios.base import Scenario

__all__ = ["World"]


class World:
    """A database with its readers and writers, of which a scenario's class knows what goes when."""

    name = ""
    #: What it is, in a line.
    about = ""
    #: SQL. Every table that is captured has the columns `id` and `version`.
    schema = ""
    tables: tuple[str, ...] = ()
    #: Templates of keys by table, for what follows from a row itself.
    keys: Mapping[str, str] = MappingProxyType({})
    #: Mean seconds between two changes of one writer.
    pause = 0.01
    popularity: Popularity

    def fill(self, writing: Writing) -> None:
        """The first rows."""
        raise NotImplementedError

    def load(self, reading: Reading, key: str) -> Any:
        """What a page of this key shows."""
        raise NotImplementedError

    def change(self, writing: Writing, rng: random.Random) -> None:
        """Something happens."""
        raise NotImplementedError

    def scenario(self, cache: Any, origin: Origin) -> Scenario:
        """The scenario for a cache and its database; close() it."""
        raise NotImplementedError

    def event(self, change: Mapping[str, Any]) -> dict[str, Any] | None:
        """The scenario's event that a changed row stands for; None if it stands for none."""
        raise NotImplementedError
