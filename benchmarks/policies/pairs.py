"""The traces as arrays of numbers, and the sizes at which they are replayed."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lapse.policies.sizes import Size
from lapse.traces import Key, open_trace

#: Percent of the distinct keys.
SIZES = (1, 3, 10, 30)


class Keys(NamedTuple):
    """A trace: its requests as numbers 0, 1, .. in the order in which they appear first."""

    name: str
    requests: array[int]
    distinct: int

    def capacity(self, percent: int) -> int:
        """How many entries that is."""
        return Size(percent, is_percent=True).entries(self.distinct)


def read_traces(folder: Path, only: str | None, limit: int | None) -> Iterator[Keys]:
    """Every trace in the folder, or those whose name contains `only`, small ones first."""
    for path in sorted(folder.glob("*.*z"), key=lambda path: path.stat().st_size):
        name = path.name.removesuffix(path.suffix).removesuffix(".trace").removesuffix(".tsv")
        if only is None or only in name:
            yield _read(name, path, limit)


def _read(name: str, path: Path, limit: int | None) -> Keys:
    numbers: dict[Key, int] = {}
    requests = array("I")
    with open_trace(path, limit=limit) as trace:
        for chunk in trace:
            requests.extend(numbers.setdefault(key, len(numbers)) for key in chunk.keys)
    return Keys(name, requests, len(numbers))
